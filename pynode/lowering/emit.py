"""From nodes to a program: places in memory, and instructions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pynode.lowering.fuse import uses
from pynode.lowering.graph import leading
from pynode.lowering.instructions import CONST, OPERATIONS, WORK, Array
from pynode.lowering.program import Instruction, Program
from pynode.lowering.views import Node, Shape, Value, View, merged, row_major

ALIGN = 8
"""Intermediate arrays begin at multiples of this many entries."""

_ELEMENTWISE = ("unary", "binary", "ternary")


def emit(
    nodes: Sequence[Node],
    dtype: str,
    inputs: dict[str, int],
    outputs: Sequence[tuple[str, int]],
) -> Program:
    """A checked program of the nodes, which are all alive; the outputs' are among them."""
    _place_pieces(nodes)
    work, offsets = _allocate(nodes)
    writer = _Writer(offsets, dtype)
    for node in nodes:
        writer.write(node)
    return Program(
        dtype=dtype,
        inputs=inputs,
        outputs=tuple(outputs),
        work=work,
        constants=np.array(writer.constants, dtype=dtype),
        indices=np.array(writer.indices, dtype=np.int64),
        code=tuple(writer.code),
    )


# Placing pieces where they are put together -----------------------------------------------------


def _place_pieces(nodes: Sequence[Node]) -> None:
    """Let what an array is assembled from be made in its place, where possible."""
    count = uses(nodes)
    for node in reversed(nodes):
        if node.op != "assemble" or sum(v.size for v in node.operands) > node.value.size:
            continue  # not assembled of anything, or pieces cover each other
        pieces = list(zip(node.operands, node.where, strict=True))
        in_a_row = all(
            View(node.value, view.shape, strides, offset).is_contiguous
            for view, (offset, strides) in pieces
        )
        for view, (offset, strides) in pieces:
            value = view.value
            if value.node is None or value.home is not None or value.slot is not None:
                continue
            if not view.is_whole or not (in_a_row or count[value] == 1):
                continue
            place = View(node.value, view.shape, strides, offset).reshape(value.shape)
            if place is not None and _can_make(value.node, place):
                value.home = (node.value, offset, place.strides)


def _can_make(node: Node, place: View) -> bool:
    """Whether the node's instruction can write to such a place."""
    if place.is_contiguous:
        return True
    if node.op == "mm":
        layout = leading(place.shape, place.strides)
        return layout is not None and layout[0] == 0
    return node.op in (*_ELEMENTWISE, "reduce")


def _root(value: Value) -> Value:
    while value.home is not None:
        value = value.home[0]
    return value


# Memory -----------------------------------------------------------------------------------------


@dataclass
class _Gap:
    start: int
    end: int


def _allocate(nodes: Sequence[Node]) -> tuple[int, dict[Value, int]]:
    """Size of the work memory, and the offset of each value that lies there by itself."""
    last: dict[Value, int] = {}
    for number, node in enumerate(nodes):
        for value in (node.value, *(o.value for o in node.operands)):
            last[_root(value)] = number
    offsets: dict[Value, int] = {}
    gaps = [_Gap(0, 1 << 60)]
    top = 0
    for number, node in enumerate(nodes):
        root = _root(node.value)
        freed: Value | None = None
        if root.slot is None and root not in offsets:
            freed = _dying_operand(node, number, last, offsets)
            offsets[root] = _take(gaps, root.size) if freed is None else offsets[freed]
            top = max(top, offsets[root] + root.size)
        for value in {_root(o.value) for o in node.operands} | {root}:
            if value in offsets and last[value] == number and value is not freed:
                _give(gaps, offsets[value], value.size)
    return top, offsets


def _dying_operand(
    node: Node, number: int, last: dict[Value, int], offsets: dict[Value, int]
) -> Value | None:
    """An operand that is read for the last time and whose memory the result may take."""
    if node.value.home is not None:
        return None
    if node.op in _ELEMENTWISE:
        candidates = node.operands
    elif node.op == "mm":
        candidates = node.operands[2:]
    elif node.op == "scatter_add":
        candidates = node.operands[:1]
    else:
        return None
    for view in candidates:
        value = view.value
        alone = all(
            o is view
            or _root(o.value) is not value
            or (o.value is value and o.is_whole and o in candidates)
            for o in node.operands
        )
        dies = value in offsets and last[value] == number and value.home is None
        if dies and alone and view.is_whole and value.size == node.value.size:
            return value
    return None


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _take(gaps: list[_Gap], size: int) -> int:
    """The tightest gap that fits."""
    need = _padded(size)
    gap = min((g for g in gaps if g.end - g.start >= need), key=lambda g: g.end - g.start)
    start = gap.start
    gap.start += need
    if gap.start == gap.end:
        gaps.remove(gap)
    return start


def _give(gaps: list[_Gap], start: int, size: int) -> None:
    gaps.append(_Gap(start, start + _padded(size)))
    gaps.sort(key=lambda g: g.start)
    joined = [gaps[0]]
    for gap in gaps[1:]:
        if gap.start == joined[-1].end:
            joined[-1].end = gap.end
        else:
            joined.append(gap)
    gaps[:] = joined


# Instructions -----------------------------------------------------------------------------------


class _Writer:
    def __init__(self, offsets: dict[Value, int], dtype: str) -> None:
        self.code: list[Instruction] = []
        self.constants: list[float] = []
        self.indices: list[int] = []
        self._offsets = offsets
        self._constant_offsets: dict[object, int] = {}
        self._index_offsets: dict[bytes, int] = {}
        self._dtype = dtype

    def write(self, node: Node) -> None:
        if node.op in _ELEMENTWISE:
            assert node.kind is not None
            strides = node.value.home[2] if node.value.home else row_major(node.value.shape)
            out = View(node.value, node.value.shape, strides, 0)
            self._elementwise(node.kind, out, node.operands)
        else:
            getattr(self, f"_{node.op}")(node)

    def _address(self, value: Value, offset: int = 0) -> tuple[int, int]:
        while value.home is not None:
            value, more, _ = value.home
            offset += more
        if value.slot is not None:
            return value.slot, offset
        if value.constant is not None:
            return CONST, offset + self._constant(value.constant)
        return WORK, offset + self._offsets[value]

    def _constant(self, data: Array) -> int:
        key = (data.shape if data.ndim else (), data.tobytes())
        if key not in self._constant_offsets:
            self._constant_offsets[key] = len(self.constants)
            self.constants += data.reshape(-1).tolist()
        return self._constant_offsets[key]

    def _index(self, table: bytes) -> int:
        if table not in self._index_offsets:
            self._index_offsets[table] = len(self.indices)
            self.indices += np.frombuffer(table, dtype=np.int64).tolist()
        return self._index_offsets[table]

    def _add(self, op: str, kind: str | None, **values: int | tuple[int, ...]) -> None:
        integers: list[int] = []
        for field in OPERATIONS[op].fields:
            value = values[field.lstrip("@")]
            integers += value if isinstance(value, tuple) else (value,)
        self.code.append(Instruction(op, kind, tuple(integers)))

    def _elementwise(self, kind: str, out: View, operands: Sequence[View]) -> None:
        views = [out, *operands]
        dims = merged(out.shape, tuple(v.strides for v in views))
        outer, inner = dims[:-4], dims[-4:]
        for index in itertools.product(*(range(n) for n, _ in outer)):
            bases = [
                v.offset + sum(i * s[k] for i, (_, s) in zip(index, outer, strict=True))
                for k, v in enumerate(views)
            ]
            self._loop(kind, views, bases, inner)

    def _loop(
        self, kind: str, views: list[View], bases: list[int], dims: list[tuple[int, Shape]]
    ) -> None:
        op = ("unary", "binary", "ternary")[len(views) - 2]
        at = {
            name: self._address(view.value, base)
            for name, view, base in zip(("out", "a", "b", "c"), views, bases, strict=False)
        }
        n, steps = dims[0] if dims else (1, (1,) * len(views))
        flat = len(dims) <= 1 and steps[0] == 1 and all(s in (0, 1) for s in steps)
        if flat and (op != "unary" or steps[1] == 1):
            named = {f"s{x}": s for x, s in zip("abc", steps[1:], strict=False)}
            self._add(op, kind, n=n, **at, **named)
            return
        lead = 4 - len(dims)
        full = {"shape4": (1,) * lead + tuple(n for n, _ in dims)}
        for k, name in enumerate(("out4", "a4", "b4", "c4")[: len(views)]):
            full[name] = (0,) * lead + tuple(s[k] for _, s in dims)
        self._add(f"{op}_nd", kind, **full, **at)

    def _assemble(self, node: Node) -> None:
        for view, (offset, strides) in zip(node.operands, node.where, strict=True):
            home = view.value.home
            if home and home[0] is node.value and home[1] == offset and view.is_whole:
                continue  # made there
            place = View(node.value, view.shape, strides, offset)
            self._elementwise("identity", place, (view,))

    def _mm(self, node: Node) -> None:
        a, b, *addend = node.operands
        (m, n), k = node.value.shape, a.shape[1]
        strides = node.value.home[2] if node.value.home else (n, 1)
        layout = leading((m, n), strides)
        assert layout is not None
        add: dict[str, int | tuple[int, ...]] = {"add": 0, "c": (0, 0), "ci": 0, "cj": 0}
        for c in addend:
            ci, cj = (s if size > 1 else 0 for s, size in zip(c.strides, c.shape, strict=True))
            add = {"add": 1, "c": self._address(c.value, c.offset), "ci": ci, "cj": cj}
        self._add(
            "mm", None, m=m, n=n, k=k, out=self._address(node.value), ldc=layout[1],
            **self._operand("a", a), **self._operand("b", b), **add,
        )  # fmt: skip

    def _operand(self, name: str, view: View) -> dict[str, int | tuple[int, ...]]:
        layout = leading(view.shape[-2:], view.strides[-2:])
        assert layout is not None
        return {
            name: self._address(view.value, view.offset),
            f"t{name}": layout[0],
            f"ld{name}": layout[1],
        }

    def _bmm(self, node: Node) -> None:
        a, b = node.operands
        (batch, m, n), k = node.value.shape, a.shape[2]
        steps = {"os": m * n, "as": a.strides[0], "bs": b.strides[0]}
        self._add(
            "bmm", None, batch=batch, m=m, n=n, k=k, out=self._address(node.value), ldc=n,
            **self._operand("a", a), **self._operand("b", b), **steps,
        )  # fmt: skip

    def _reduce(self, node: Node) -> None:
        (a,) = node.operands
        (outer, n, inner), (ao, an, ai) = a.shape, a.strides
        oo, oi = node.value.home[2] if node.value.home else (inner, 1)
        self._add(
            "reduce", node.kind, outer=outer, n=n, inner=inner, out=self._address(node.value),
            oo=oo, oi=oi, a=self._address(a.value, a.offset), ao=ao, an=an, ai=ai,
        )  # fmt: skip

    def _scan(self, node: Node) -> None:
        (a,) = node.operands
        outer, n, inner = node.extra
        self._add(
            "scan", node.kind, outer=outer, n=n, inner=inner, out=self._address(node.value),
            a=self._address(a.value, a.offset),
        )  # fmt: skip

    def _gather(self, node: Node) -> None:
        (a,) = node.operands
        self._add(
            "gather", None, n=node.value.size, out=self._address(node.value),
            a=self._address(a.value, a.offset), first=self._index(node.extra[0]),
        )  # fmt: skip

    def _scatter_add(self, node: Node) -> None:
        base, a = node.operands
        if self._address(base.value, base.offset) != self._address(node.value):
            self._elementwise("identity", node.value.view(), (base,))
        n = math.prod(a.shape)
        self._add(
            "scatter_add", None, n=n, out=self._address(node.value),
            a=self._address(a.value, a.offset), first=self._index(node.extra[0]),
        )  # fmt: skip
