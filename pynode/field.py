"""The field: calling conventions, and the tensors that it depends on."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.errors import FieldError, InputError
from pynode.precision import Autocast, cast_up
from pynode.solution import Statistics
from pynode.state import State, StateLayout

UserField = Callable[..., State]


def calling_form(fn: UserField, with_args: bool) -> str:
    """How the field wants to be called: ``"z"``, ``"tz"`` or ``"tza"``.

    The number of positional parameters without a default decides: one is f(z), two f(t, z),
    three f(t, z, args). A third one with a default receives ``args`` when there are any.

    Raises:
        InputError: no such form fits, or ``args`` are given to a field that takes none.
    """
    if not callable(fn):
        raise InputError(f"the field is a {type(fn).__name__}, which cannot be called")
    counts = _positional(fn.forward if isinstance(fn, nn.Module) else fn)
    if counts is None:
        return "tza" if with_args else "tz"
    required, most, variadic = counts
    if with_args:
        if required <= 3 <= most:
            return "tza"
        raise InputError(
            f"args were given, but the field takes {required} positional parameter(s): "
            "define it as f(t, z, args)"
        )
    if variadic and required <= 2:
        return "tz"
    if required in (1, 2):
        return "z" if required == 1 else "tz"
    if required == 3:
        raise InputError("the field is f(t, z, args), but no args were given: pass args=...")
    raise InputError(
        f"the field takes {required} positional parameters: define it as f(t, z), f(t, z, args) "
        "or f(z)"
    )


class _Counted(NamedTuple):
    """Positional parameters that are required, that can be given, and whether any number can, of a
    function with this code and these defaults."""

    bound: bool
    code: Any
    defaults: Any
    counts: tuple[int, int, bool] | None


_COUNTED: weakref.WeakKeyDictionary[Any, _Counted] = weakref.WeakKeyDictionary()
"""What :func:`_positional` found: inspecting a signature takes longer than a small solve."""


def _positional(target: Callable[..., Any]) -> tuple[int, int, bool] | None:
    bound = type(target) is MethodType
    function: Any = target.__func__ if bound else target  # type: ignore[attr-defined]
    if type(function) is not FunctionType:
        return _inspected(target)
    code, defaults, known = function.__code__, function.__defaults__, _COUNTED.get(function)
    if (
        known is None
        or known.bound is not bound
        or known.code is not code
        or known.defaults is not defaults
    ):
        known = _COUNTED[function] = _Counted(bound, code, defaults, _inspected(target))
    return known.counts


def _inspected(target: Callable[..., Any]) -> tuple[int, int, bool] | None:
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = sum(p.default is p.empty for p in positional)
    return required, 3 if variadic else len(positional), variadic


class FlatField:
    """The user's field as a function of a time and a flat state, counting its evaluations.

    Attributes:
        stats: where evaluations are counted.
        backward: count them as ``nfe_backward`` rather than ``nfe``.
        shape: of the state, where it is one real tensor and no autocast is on; else None.
        autocast: the autocast to evaluate the field under; what it returns in a lower precision
            is then cast up to the state's dtype.
    """

    def __init__(
        self,
        fn: UserField,
        layout: StateLayout,
        args: Any,
        stats: Statistics,
        backward: bool = False,
        autocast: Autocast | None = None,
        form: str | None = None,
    ) -> None:
        self.fn = fn
        self.layout = layout
        self.args = args
        self.stats = stats
        self.backward = backward
        self.autocast = autocast
        self.form = form or calling_form(fn, args is not None)
        # One real tensor under no autocast is the usual case, and what a step costs beside the
        # field: it is evaluated without the general way's detours.
        self.shape = layout.shapes[0] if layout.plain and autocast is None else None
        self._sizes = layout.sizes
        self._dtype = layout.dtype

    def for_backward(self) -> FlatField:
        return FlatField(self.fn, self.layout, self.args, self.stats, True, self.autocast)

    def with_args(self, args: Any) -> FlatField:
        return FlatField(self.fn, self.layout, args, self.stats, self.backward, self.autocast)

    def __call__(self, t: float | Tensor, z: Tensor) -> Tensor:
        """dz/dt (size,) at time ``t`` (a number, or a 0-d tensor that may require grad)."""
        if self.shape is not None:
            return self.shaped(t, z).reshape(-1)
        self._count_one()
        if self.autocast is None:
            return self._flat(self._evaluate(t, z))
        with self.autocast.on():
            value = self._evaluate(t, z)
        return self._flat(cast_up(value, self.layout.dtype))

    def shaped(self, t: float | Tensor, z: Tensor) -> Tensor:
        """dz/dt in the state's ``shape``, where there is one, at a flat state."""
        self._count_one()
        shape, fn = self.shape, self.fn
        state = z.reshape(*self._sizes)
        if self.form == "z":
            value = fn(state)
        elif self.form == "tz":
            if not isinstance(t, Tensor):
                t = torch.full((), t, dtype=self._dtype, device=z.device)
            value = fn(t, state)
        else:
            value = self._call(t, z, state)
        if value.__class__ is Tensor and value.shape == shape and value.dtype == self._dtype:
            return value
        return self._flat(value).reshape(shape)  # type: ignore[arg-type]

    def _count_one(self) -> None:
        if self.backward:
            self.stats.nfe_backward += 1
        else:
            self.stats.nfe += 1

    def _evaluate(self, t: float | Tensor, z: Tensor) -> State:
        return self._call(t, z, self.layout.restore(z))

    def _call(self, t: float | Tensor, z: Tensor, state: State) -> State:
        if self.form == "z":
            return self.fn(state)
        if not isinstance(t, Tensor):
            t = torch.full((), t, dtype=z.dtype, device=z.device)
        if self.form == "tz":
            return self.fn(t, state)
        return self.fn(t, state, self.args)

    def _flat(self, value: State) -> Tensor:
        try:
            return self.layout.flatten_derivative(value)
        except FieldError as error:
            if self.form == "z" and not isinstance(self.fn, nn.Module):
                hint = " (it was called as f(z), having one parameter)"
                raise FieldError(f"{error}{hint}") from None
            raise


def closed_over(fn: UserField) -> list[Tensor]:
    """Tensors that a field holds or closes over, each once."""
    found: dict[int, Tensor] = {}
    for tensor in _closed_over(fn, seen=set()):
        found.setdefault(id(tensor), tensor)
    return list(found.values())


def closed_over_trainables(fn: UserField) -> list[Tensor]:
    """Those of :func:`closed_over` that require grad."""
    return [tensor for tensor in closed_over(fn) if tensor.requires_grad]


def trainable_tensors(field: FlatField, t0: float, z0: Tensor) -> tuple[list[Tensor], Tensor]:
    """Tensors that require grad and that the field depends on beside t, z and args.

    They are the parameters of modules among the field and what it closes over, tensors that it
    closes over, and, to miss none, the leaves of the autograd graph of one evaluation at
    (``t0``, ``z0``), which is returned too.

    Returns:
        The tensors, each once, and f(t0, z0), detached.
    """
    with torch.enable_grad():
        value = field(t0, z0.detach())
    mine = [leaf for leaf in pytree.tree_leaves(field.args) if isinstance(leaf, Tensor)]
    return trainables_behind(value, field, mine), value.detach()


def trainables_behind(value: Tensor, field: FlatField, beside: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that require grad and that a value of the field depends on, each once.

    Args:
        beside: other tensors that it depends on, which are left out.
    """
    found = {id(tensor): tensor for tensor in closed_over_trainables(field.fn)}
    others = {id(tensor): tensor for tensor in beside}
    known = {id(x.grad_fn) for x in (*found.values(), *beside) if x.grad_fn is not None}
    for leaf in _graph_leaves(value, stop=known):
        if id(leaf) not in others:
            found.setdefault(id(leaf), leaf)
    return list(found.values())


def _closed_over(obj: Any, seen: set[int], depth: int = 0) -> Iterator[Tensor]:
    """Tensors reachable from a callable: module parameters, closure cells, partials, self."""
    if id(obj) in seen or depth > 6:
        return
    seen.add(id(obj))
    if isinstance(obj, Tensor):
        yield obj
    elif isinstance(obj, nn.Module):
        yield from obj.parameters()
        yield from obj.buffers()
    elif isinstance(obj, functools.partial):
        for part in (obj.func, *obj.args, *obj.keywords.values()):
            yield from _closed_over(part, seen, depth + 1)
    elif inspect.ismethod(obj):
        yield from _closed_over(obj.__self__, seen, depth + 1)
        yield from _closed_over(obj.__func__, seen, depth + 1)
    elif inspect.isfunction(obj):
        for cell in obj.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # a name not bound yet
                continue
            yield from _closed_over(content, seen, depth + 1)
        for default in obj.__defaults__ or ():
            yield from _closed_over(default, seen, depth + 1)
    elif isinstance(obj, list | tuple | set):
        for part in obj:
            yield from _closed_over(part, seen, depth + 1)
    elif isinstance(obj, dict):
        for part in obj.values():
            yield from _closed_over(part, seen, depth + 1)


def _graph_leaves(value: Tensor, stop: set[int]) -> Iterator[Tensor]:
    """Leaf tensors of the autograd graph of ``value``; nodes in ``stop`` are not entered."""
    stack = [value.grad_fn]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen or id(node) in stop:
            continue
        seen.add(id(node))
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        stack.extend(parent for parent, _ in node.next_functions)
