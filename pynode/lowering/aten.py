"""From an ATen graph to the graph of instructions: the driver and its table.

The operations themselves are in ``aten_pointwise``, ``aten_shapes`` and ``aten_products``. A new
one is a function there under ``@operation(names)``; it gets the :class:`Translation` and the
operation's arguments, in which a tensor that depends on an input is a View and any other a
torch.Tensor, and returns a View, a torch.Tensor, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from pynode.errors import LoweringError
from pynode.lowering.graph import Graph
from pynode.lowering.views import Shape, View

Translator = Callable[..., Any]
OPERATIONS: dict[str, Translator] = {}


class Unsupported(Exception):
    """An operation that has no instruction: its name, and why where there is more to say."""

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"{name}: {why}" if why else name)
        self.name, self.why = name, why


def operation(*names: str) -> Callable[[Translator], Translator]:
    """Enter a translator for ATen operations by name, all overloads of each."""

    def enter(function: Translator) -> Translator:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter


def packet_name(target: Any) -> str:
    """``"aten.add"`` of ``aten.add.Tensor``."""
    return str(getattr(target, "overloadpacket", target))


class Translation:
    """One ATen graph being translated.

    Attributes:
        graph: what it becomes.
        node: the fx node at hand.
    """

    node: FxNode

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self.graph = graph
        self.dtype = dtype

    def view(self, x: Any) -> View:
        """A View of anything: a View, a tensor, a number."""
        if isinstance(x, View):
            return x
        if isinstance(x, Tensor):
            return self.graph.constant(x.detach().cpu().resolve_neg().numpy())
        return self.graph.constant(x)

    def pointwise(self, kind: str, *operands: Any) -> View:
        return self.graph.pointwise(kind, *(self.view(x) for x in operands))

    @property
    def shape(self) -> Shape:
        """Shape of the node's result, as torch found it."""
        return tuple(int(n) for n in self.node.meta["val"].shape)

    @property
    def result_dtype(self) -> torch.dtype:
        return self.node.meta["val"].dtype

    def refuse(self, why: str) -> Unsupported:
        return Unsupported(packet_name(self.node.target), why)

    def run(self, module: GraphModule, inputs: list[View | Tensor]) -> list[Any]:
        """The graph's outputs: Views, constants (torch.Tensor), or None."""
        values: dict[FxNode, Any] = {}
        waiting = iter(inputs)
        for node in module.graph.nodes:
            self.node = node
            if node.op == "placeholder":
                values[node] = next(waiting)
            elif node.op == "get_attr":
                values[node] = getattr(module, node.target)
            elif node.op == "output":
                return list(torch.fx.node.map_arg(node.args[0], values.__getitem__))
            else:
                values[node] = self._call(node, values)
        raise LoweringError("the traced graph has no output")

    def _call(self, node: FxNode, values: dict[FxNode, Any]) -> Any:
        given: Any = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        args, kwargs = given
        name = packet_name(node.target)
        if name == "<built-in function getitem>":
            return args[0][args[1]]
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported(name, "it draws random numbers")
        if not any(isinstance(x, View) for x in _leaves((args, kwargs))):
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        self._check_dtype(name)
        if name not in OPERATIONS:
            raise Unsupported(name)
        args, kwargs = _on_cpu((args, kwargs))
        return OPERATIONS[name](self, *args, **kwargs)

    def _check_dtype(self, name: str) -> None:
        val = self.node.meta.get("val")
        for part in val if isinstance(val, list | tuple) else (val,):
            if not isinstance(part, Tensor):
                continue
            if part.dtype.is_complex:
                raise Unsupported(name, "it makes complex numbers")
            if part.dtype.is_floating_point and part.dtype != self.dtype:
                raise Unsupported(name, f"it computes in {part.dtype}, the state is {self.dtype}")


def _on_cpu(x: Any) -> Any:
    """With constant tensors where programs are made, wherever the field lies."""
    return torch.utils._pytree.tree_map(
        lambda y: y.cpu() if isinstance(y, Tensor) else y, x, is_leaf=lambda y: isinstance(y, View)
    )


def _leaves(x: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(x, is_leaf=lambda y: isinstance(y, View))
