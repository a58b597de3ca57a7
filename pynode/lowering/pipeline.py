"""From a field to programs: trace, translate, fuse, emit, and check against torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.errors import InputError, LoweringError
from pynode.field import FlatField, trainable_tensors
from pynode.lowering import (  # the aten modules fill the table
    aten_convolution,  # noqa: F401
    aten_pointwise,  # noqa: F401
    aten_products,  # noqa: F401
    aten_shapes,  # noqa: F401
    cache,
)
from pynode.lowering.aten import Translation, Unsupported
from pynode.lowering.check import verify
from pynode.lowering.emit import emit
from pynode.lowering.fuse import alive, fuse
from pynode.lowering.graph import Graph
from pynode.lowering.instructions import LAM, OUT, TIME, P, Z
from pynode.lowering.lowered import LoweredField, Parameter, reads_time
from pynode.lowering.origin import module_of
from pynode.lowering.program import Program
from pynode.lowering.trace import PROGRAMS, TAKES_LAM, Traced, trace
from pynode.lowering.views import Node, Value, View
from pynode.solution import Statistics

one_thread = threading.RLock()
"""torch.fx replaces functions of the whole process while it traces."""

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


@torch.inference_mode(False)
def lower(
    field: FlatField,
    z0: Tensor,
    t0: float = 0.0,
    which: Sequence[str] = tuple(PROGRAMS),
    *,
    tensors: Sequence[Tensor] | None = None,
    check: bool = True,
) -> LoweredField:
    """Programs of a field, kept for the next time (see ``cache.py``).

    Args:
        field: on flat states.
        z0: a flat state (N,); programs are for its shape and dtype.
        t0: a time at which the field can be evaluated.
        which: names of programs.
        tensors: trainable tensors that the field depends on beside z, t and args; default: they
            are found, which takes an evaluation.
        check: compare every new program with torch at another point.

    Raises:
        LoweringError: an operation has no instruction, the field cannot be traced, or a program
            does not compute what torch does (a field with a memory, say).
        InputError: there is no such program.
    """
    unknown = [name for name in which if name not in PROGRAMS]
    if unknown:
        raise InputError(f"no program {unknown[0]!r}; there are {', '.join(PROGRAMS)}")
    if z0.dtype not in DTYPES or any(d.is_complex for d in field.layout.dtypes):
        kinds = ", ".join(sorted({str(d) for d in field.layout.dtypes}))
        raise LoweringError(
            f"the state is {kinds}: programs are for float32 and float64. Cast the state, or "
            'write complex numbers as pairs, or use lowering="callback"'
        )
    z0 = z0.detach().clone()  # which may have been made in inference mode
    originals = parameters_of(field, z0, t0, tensors)
    with one_thread:
        kept = cache.recall(field, z0, originals)
        missing = [name for name in which if kept is None or name not in kept.programs]
        if missing:
            new = _lower_anew(field, originals, z0, t0, missing, check)
            kept = new if kept is None else new.joined(kept)
            cache.keep(field, z0, originals, kept)
    assert kept is not None
    return replace(kept, tensors=tuple(originals))


def _lower_anew(
    field: FlatField,
    originals: Sequence[Tensor],
    z0: Tensor,
    t0: float,
    which: Sequence[str],
    check: bool,
) -> LoweredField:
    layout = parameter_layout(field, originals)
    field, tensors = with_own_args(field, originals)
    constants: dict[int, tuple[Tensor, Tensor]] = {}
    programs = {}
    traced: dict[str, Traced] = {}
    for name in which:
        whole = "vjp" if name.startswith("vjp") else name  # one graph serves all products with λ
        try:
            if whole not in traced:
                traced[whole] = trace(whole, field, tensors, z0, t0)
            programs[name] = _program(name, traced[whole], layout, z0, field.layout.rows or 1)
        except Unsupported as error:
            raise LoweringError(_refusal(error, name, field, z0, t0)) from None
        held = [x for x in traced[whole][1] if isinstance(x, Tensor)]
        constants.update({id(x): (x, x.detach().clone()) for x in held})
    rows = field.layout.rows or 1
    lowered = LoweredField(
        dtype=DTYPES[z0.dtype],
        rows=rows,
        width=z0.numel() // rows,
        parameters=layout,
        programs=programs,
        autonomous=field.form == "z" or ("f" in programs and not reads_time(programs["f"])),
        tensors=tuple(originals),
        constants=tuple(constants.values()),
    )
    if check:
        verify(lowered, field, tensors, z0, t0)
    return lowered


def with_own_args(field: FlatField, tensors: Sequence[Tensor]) -> tuple[FlatField, list[Tensor]]:
    """The field with floating args that require grad, and all its parameters accordingly."""
    own = {
        id(leaf): leaf.detach().clone().requires_grad_()
        for leaf in pytree.tree_leaves(field.args)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.requires_grad
    }
    args = pytree.tree_map(lambda leaf: own.get(id(leaf), leaf), field.args)
    mine = FlatField(field.fn, field.layout, args, Statistics())
    return mine, [own.get(id(tensor), tensor) for tensor in tensors]


def parameters_of(
    field: FlatField, z0: Tensor, t0: float, tensors: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Trainable tensors that the field depends on, then the floating tensors of its args."""
    quiet = FlatField(field.fn, field.layout, field.args, Statistics())
    found = list(trainable_tensors(quiet, t0, z0)[0] if tensors is None else tensors)
    known = {id(p) for p in found}
    for leaf in pytree.tree_leaves(field.args):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and id(leaf) not in known:
            known.add(id(leaf))
            found.append(leaf)
    for tensor in found:
        if tensor.dtype != z0.dtype:
            raise LoweringError(
                f"a parameter of shape {tuple(tensor.shape)} is {tensor.dtype}, the state "
                f"{z0.dtype}: cast one of them"
            )
    return found


def parameter_layout(field: FlatField, tensors: Sequence[Tensor]) -> tuple[Parameter, ...]:
    names: dict[int, str] = {}
    if isinstance(field.fn, nn.Module):
        names = {id(p): name for name, p in field.fn.named_parameters()}
    for path, leaf in pytree.tree_flatten_with_path(field.args)[0]:
        names.setdefault(id(leaf), "args" + pytree.keystr(path))
    layout, at = [], 0
    for number, tensor in enumerate(tensors):
        name = names.get(id(tensor), f"tensor{number}")
        layout.append(Parameter(name, tuple(tensor.shape), at))
        at += tensor.numel()
    return tuple(layout)


def _program(
    name: str, traced: Traced, layout: Sequence[Parameter], z0: Tensor, rows: int
) -> Program:
    module, held, there = traced
    n = z0.numel()
    total = sum(p.size for p in layout)
    graph = Graph(DTYPES[z0.dtype])
    vector = Value((total,), slot=P).view()
    given: dict[str, View] = {
        "z": Value((n,), slot=Z).view(),
        "t": Value((), slot=TIME).view(),
        "lam": Value((n,), slot=LAM).view(),
    }
    values: list[View | Tensor] = []
    for item in held:
        if isinstance(item, str):
            values.append(given[item])
        elif isinstance(item, int):
            p = layout[item]
            part = vector.slice(0, p.offset, p.size).reshape(p.shape)
            assert part is not None
            values.append(part)
        else:
            values.append(item.detach())
    translation = Translation(graph, z0.dtype)
    results = iter([translation.view(x) for x in translation.run(module, values)])
    found = [next(results) if here else None for here in there]
    if name == "vjp_z":
        found = found[:1]
    elif name == "vjp_p":
        found = found[1:-1]
    outputs, nodes = _outputs(name, graph, found, layout, n, rows)
    kept = fuse(alive(graph.nodes, nodes), nodes)
    if name == "pullback":
        kept = value_first(kept)
    inputs = {"z": n, "t": 1, "p": total, "lam": n if name in TAKES_LAM else 0}
    return emit(kept, DTYPES[z0.dtype], inputs, outputs)


def value_first(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in an order of which a first part needs no λ, and the others all do: run by itself
    it gives the field's value, and what it leaves in memory serves the others later."""
    pulled: set[Value] = set()
    for node in nodes:
        if any(o.value.slot == LAM or o.value in pulled for o in node.operands):
            pulled.add(node.value)
    return sorted(nodes, key=lambda node: node.value in pulled)


def _outputs(
    name: str,
    graph: Graph,
    found: Sequence[View | None],
    layout: Sequence[Parameter],
    n: int,
    rows: int,
) -> tuple[list[tuple[str, int]], list[Node]]:
    """The outputs' sizes, and the nodes that put them together in their slots."""
    total = sum(p.size for p in layout)
    sizes = {"dz": n, "gz": n, "gp": total, "gt": 1, "jac": n * (n // rows), "ft": n}
    waiting = iter(found)
    outputs, nodes = [], []
    for number, out in enumerate(PROGRAMS[name]):
        value = Value((sizes[out],), slot=OUT + number)
        parts = [(p.offset, p.size) for p in layout] if out == "gp" else [(0, sizes[out])]
        operands, where = [], []
        for offset, size in parts:
            view = next(waiting)
            if size:
                flat = graph.constant(0).expand((size,)) if view is None else view
                operands.append(graph.reshape(flat, (size,)))
                where.append((offset, (1,)))
        value.node = Node("assemble", None, tuple(operands), value, where=tuple(where))
        outputs.append((out, sizes[out]))
        nodes.append(value.node)
    return outputs, nodes


def _refusal(error: Unsupported, name: str, field: FlatField, z0: Tensor, t0: float) -> str:
    where = module_of(error.name, field, z0, t0)
    what = f"{error.name} has no instruction" if not error.why else f"{error.name}: {error.why}"
    if "random" in error.why:
        return (
            f"{what} ({where}), and a field must be a function of t and z: use field.eval(), or "
            "draw the numbers once, before the solve, and pass them as args"
        )
    stage = "" if name == "f" else f", while lowering {name}"
    return f'{what} ({where}{stage}). lowering="callback" runs the field as it is, more slowly'
