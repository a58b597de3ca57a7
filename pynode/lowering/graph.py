"""The graph of instructions to be, built with what can be avoided avoided.

Views are lazy: reshapes, permutations, expansions, slices make no node. Equal nodes are made
once. Elementwise nodes of constants are computed; those that repeat along a dimension are made
once along it; those of permuted arrays are made in the arrays' own order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pynode.lowering.instructions import BINARY, REDUCE, TERNARY, UNARY, Array
from pynode.lowering.views import Node, Shape, Value, View, merged, row_major

_POINTWISE: dict[int, tuple[str, Any]] = {
    1: ("unary", UNARY),
    2: ("binary", BINARY),
    3: ("ternary", TERNARY),
}


class Graph:
    """Nodes in the order of their making.

    Args:
        dtype: numpy dtype of all values.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.nodes: list[Node] = []
        self._made: dict[Any, Value] = {}
        self._constants: dict[Any, View] = {}

    def constant(self, array: Any) -> View:
        data = np.asarray(array).astype(self.dtype, order="C")
        if data.size > 1 and (data == data.reshape(-1)[0]).all():
            return self.constant(data.reshape(-1)[0]).expand(data.shape)
        key = (data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = Value(data.shape, constant=data).view()
        return self._constants[key]

    def node(
        self,
        op: str,
        kind: str | None,
        operands: Sequence[View],
        shape: Shape,
        extra: tuple[Any, ...] = (),
        where: tuple[tuple[int, Shape], ...] = (),
    ) -> View:
        key = (op, kind, tuple(o.key for o in operands), shape, extra, where)
        if key not in self._made:
            value = Value(shape)
            value.node = Node(op, kind, tuple(operands), value, extra, where)
            self.nodes.append(value.node)
            self._made[key] = value
        return self._made[key].view()

    # Elementwise ---------------------------------------------------------------------------------

    def pointwise(self, kind: str, *operands: View) -> View:
        """A kind of the tables on operands that broadcast."""
        shape = np.broadcast_shapes(*(o.shape for o in operands))
        views = [o.expand(shape) for o in operands]
        op, table = _POINTWISE[len(views)]
        if all(v.value.constant is not None for v in views):
            with np.errstate(all="ignore"):
                return self.constant(table[kind](*(v.numpy() for v in views)))
        if kind in ("add", "sub"):
            positive = _without_negation(kind, *views)
            if positive is not None:
                return self.pointwise(*positive)
        simple = _neutral(kind, views)
        if simple is None and kind == "add":
            simple = self._add_pieces(*views)
        if simple is not None:
            return simple
        return self._in_order(op, kind, views)

    def _in_order(self, op: str, kind: str, views: list[View]) -> View:
        shape = views[0].shape
        needed = [n if any(v.strides[axis] for v in views) else 1 for axis, n in enumerate(shape)]
        views = [_first(v, needed) for v in views]
        order = _storage_order(views)
        made = self.node(
            op, kind, [v.permute(order) for v in views], tuple(needed[axis] for axis in order)
        )
        return made.permute(np.argsort(order).tolist()).expand(shape)

    def _add_pieces(self, a: View, b: View) -> View | None:
        """The sum of two arrays that hold pieces among zeros, made as one such array.

        The gradient of a state that is read entry by entry is a sum of these.
        """
        nodes = [v.value.node if v.is_whole else None for v in (a, b)]
        if any(node is None or node.op != "assemble" for node in nodes):
            return None
        left, right = (_sparse(node) for node in nodes if node is not None)
        if left is None or right is None:
            return None
        owner = np.full(a.size, -1)
        for number, (view, offset, strides) in enumerate(right):
            owner[places(offset, strides, view.shape)] = number
        sums = list(right)
        for view, offset, strides in left:
            owners = np.unique(owner[places(offset, strides, view.shape)])
            if len(owners) != 1:
                return None
            if owners[0] < 0:
                sums.append((view, offset, strides))
                continue
            other, other_offset, other_strides = right[owners[0]]
            if (other.shape, other_offset, other_strides) != (view.shape, offset, strides):
                return None
            sums[owners[0]] = (self.pointwise("add", view, other), offset, strides)
        base = Value(a.shape).view()
        pieces = [(self.constant(0).expand(a.shape), base)]
        return self.assemble(
            a.shape,
            pieces + [(v, View(base.value, v.shape, s, o)) for v, o, s in sums],
        )

    def dense(self, view: View) -> View:
        """The view, or a copy, contiguous."""
        if view.is_contiguous:
            return View(view.value, view.shape, row_major(view.shape), view.offset)
        if view.value.constant is not None:
            data = view.numpy()
            if view.number is None:
                return self.constant(data)
        return self.node("unary", "identity", [view], view.shape)

    def reshape(self, view: View, shape: Shape) -> View:
        seen = view.reshape(shape)
        if seen is None:
            seen = self.dense(view).reshape(shape)
        assert seen is not None
        return seen

    # Products ------------------------------------------------------------------------------------

    def mm(self, a: View, b: View, addend: View | None = None) -> View:
        shape = (a.shape[0], b.shape[1])
        if addend is not None and addend.number == 0:  # a tangent of what is constant
            addend = None
        if addend is None and _picks_rows(a):
            times = shape[0] // b.shape[0]
            rows = View(
                b.value, (b.shape[0], times, shape[1]), (b.strides[0], 0, b.strides[1]), b.offset
            )
            return self.reshape(rows, shape)
        operands = [self._matrix(a), self._matrix(b)]
        if addend is not None:
            operands.append(addend.expand(shape))
        return self.node("mm", None, operands, shape)

    def bmm(self, a: View, b: View) -> View:
        shape = (a.shape[0], a.shape[1], b.shape[2])
        if shape[0] == 1:
            return self.mm(a.select(0, 0), b.select(0, 0)).reshape(shape)  # type: ignore[return-value]
        return self.node("bmm", None, [self._matrix(a), self._matrix(b)], shape)

    def _matrix(self, view: View) -> View:
        return view if leading(view.shape[-2:], view.strides[-2:]) else self.dense(view)

    # Reductions ----------------------------------------------------------------------------------

    def reduce(self, kind: str, view: View, dims: Sequence[int], keepdim: bool) -> View:
        axes = sorted(d % len(view.shape) for d in dims) if view.shape else []
        kept = tuple(n for axis, n in enumerate(view.shape) if axis not in axes)
        final = (
            tuple(1 if axis in axes else n for axis, n in enumerate(view.shape))
            if keepdim
            else kept
        )
        result = self._reduce(kind, view, set(axes))
        return self.reshape(result, final)

    def _reduce(self, kind: str, view: View, axes: set[int]) -> View:
        if view.value.constant is not None:
            return self.constant(REDUCE[kind](view.numpy(), axis=tuple(axes)))
        view, axes, repeats = _drop_repeated(view, axes)
        if kind == "prod" and repeats > 1:
            raise ValueError("a product over repeated entries")
        kept = tuple(n for axis, n in enumerate(view.shape) if axis not in axes)
        groups = _groups(view, axes)
        if groups is None:
            view = self.dense(view)
            groups = _groups(view, axes)
        while groups is None:  # reduce the innermost run of dimensions, then the rest
            last = max(axes)
            first = last
            while first - 1 in axes:
                first -= 1
            view = self.reshape(
                self._reduce(kind, view, set(range(first, last + 1))),
                view.shape[:first] + view.shape[last + 1 :],
            )
            axes = {axis for axis in axes if axis < first}
            groups = _groups(view, axes)
        outer, n, inner = groups
        if n[0] == 1:
            result = self.reshape(view, kept)
        else:
            operand = View(
                view.value, (outer[0], n[0], inner[0]), (outer[1], n[1], inner[1]), view.offset
            )
            made = self.node("reduce", kind, [operand], (outer[0], inner[0]))
            result = self.reshape(made, kept)
        if repeats > 1 and kind == "sum":
            return self.pointwise("mul", result, self.constant(repeats))
        return result

    def scan(self, view: View, dim: int) -> View:
        view = self.dense(view)
        outer, n = math.prod(view.shape[:dim]), view.shape[dim]
        inner = math.prod(view.shape[dim + 1 :])
        return self.node("scan", "sum", [view], view.shape, (outer, n, inner))

    # Putting together, taking apart ---------------------------------------------------------------

    def assemble(self, shape: Shape, pieces: Sequence[tuple[View, View]]) -> View:
        """An array made of pieces, later ones over earlier ones.

        Args:
            pieces: what goes where; the second is a view of any value of that shape, of which
                only offset and strides count. Together they cover the array.
        """
        flat: list[tuple[View, int, Shape]] = []
        for view, place in pieces:
            inner = view.value.node
            whole = place.offset == 0 and view.size == math.prod(shape) and place.is_contiguous
            if whole and view.is_whole and inner is not None and inner.op == "assemble":
                flat += [(v, *where) for v, where in zip(inner.operands, inner.where, strict=True)]
            else:
                flat.append((view, place.offset, place.strides))
        flat = _visible(math.prod(shape), flat)
        views = [view for view, _, _ in flat]
        if len(flat) == 1 and View(views[0].value, views[0].shape, flat[0][2], 0).is_contiguous:
            return self.reshape(views[0], shape)
        if all(v.value.constant is not None for v in views):
            return self.constant(_assembled(shape, flat, self.dtype))
        return self.node("assemble", None, views, shape, where=tuple((o, s) for _, o, s in flat))

    def gather(self, view: View, index: Array) -> View:
        """The entries of a view at flat positions (of its shape, row-major), in index's shape."""
        if view.value.constant is not None:
            return self.constant(view.numpy().reshape(-1)[index])
        source = self.dense(view)
        table = np.ascontiguousarray(index, dtype=np.int64)
        return self.node("gather", None, [source], tuple(index.shape), (table.tobytes(),))

    def scatter_add(self, base: View, view: View, index: Array) -> View:
        """``base`` with the entries of ``view`` added at flat positions."""
        table = np.ascontiguousarray(index, dtype=np.int64)
        return self.node(
            "scatter_add", None, [base, self.dense(view)], base.shape, (table.tobytes(),)
        )


def leading(shape: Shape, strides: Shape) -> tuple[int, int] | None:
    """(transposed, leading dimension) of a matrix as BLAS stores it, or None."""
    (r, c), (down, across) = shape, strides
    if (c == 1 or across == 1) and (r == 1 or down >= c):
        return 0, down if r > 1 else c
    if (r == 1 or down == 1) and (c == 1 or across >= r):
        return 1, across if c > 1 else r
    return None


def _picks_rows(a: View) -> bool:
    """Whether a matrix is constant and its product repeats each row of the other factor.

    Such are the unit cotangents that make a Jacobian.
    """
    m, k = a.shape
    if a.value.constant is None or m % k or a.size > 1 << 20:
        return False
    return bool(np.array_equal(a.numpy(), np.repeat(np.eye(k), m // k, axis=0)))


def _neutral(kind: str, views: list[View]) -> View | None:
    """The operand that the result is, where the other operand changes nothing."""
    if kind == "identity":
        return views[0]
    for operand, other in ((0, 1), (1, 0)):
        if len(views) != 2:
            break
        number = views[other].number
        if number == 1 and (kind == "mul" or (kind in ("div", "pow") and other == 1)):
            return views[operand]
        if number == 0 and (kind == "add" or (kind == "sub" and other == 1)):
            return views[operand]
    return None


def _without_negation(kind: str, a: View, b: View) -> tuple[str, View, View] | None:
    """a + b or a − b as the difference or sum of what is negated in it, if anything is."""
    minus_a, minus_b = _negated(a), _negated(b)
    if minus_b is not None:
        return ("sub" if kind == "add" else "add"), a, minus_b
    if minus_a is not None and kind == "add":
        return "sub", b, minus_a
    return None


def _negated(view: View) -> View | None:
    """What a view is the negative of."""
    node = view.value.node
    if node is None or node.kind != "neg" or not view.is_whole:
        return None
    return node.operands[0] if node.operands[0].shape == view.shape else None


def _first(view: View, shape: Sequence[int]) -> View:
    return View(view.value, tuple(shape), view.strides, view.offset)


def _storage_order(views: list[View]) -> list[int]:
    """Dimensions by falling stride of the largest operand, so that memory is passed in order."""
    shape = views[0].shape
    full = [
        v
        for v in views
        if v.value.constant is None
        and all(s > 0 for n, s in zip(shape, v.strides, strict=True) if n > 1)
    ]
    axes = list(range(len(shape)))
    if not full:
        return axes
    strides = full[0].strides
    order = sorted(axes, key=lambda axis: (-strides[axis] if shape[axis] > 1 else 0, axis))
    return order if full[0].permute(order).is_contiguous else axes


def _drop_repeated(view: View, axes: set[int]) -> tuple[View, set[int], int]:
    """Without the reduced dimensions along which the entries repeat, and how often they do."""
    repeats = 1
    for axis in axes:
        if view.shape[axis] > 1 and view.strides[axis] == 0:
            repeats *= view.shape[axis]
            view = view.slice(axis, 0, 1)
    return view, axes, repeats


def _groups(view: View, axes: set[int]) -> tuple[tuple[int, int], ...] | None:
    """(size, stride) of the dimensions kept before, reduced, and kept after; None if more."""
    runs: list[tuple[bool, list[int]]] = []
    for axis, n in enumerate(view.shape):
        if n == 1:
            continue
        if runs and runs[-1][0] == (axis in axes):
            runs[-1][1].append(axis)
        else:
            runs.append((axis in axes, [axis]))
    names = "".join("r" if reduced else "k" for reduced, _ in runs)
    if names not in ("", "k", "r", "kr", "rk", "krk"):
        return None
    found: list[tuple[int, int]] = []
    for _, run in runs:
        dims = merged(tuple(view.shape[a] for a in run), (tuple(view.strides[a] for a in run),))
        if len(dims) != 1:
            return None
        found.append((dims[0][0], dims[0][1][0]))
    one = (1, 0)
    if names in ("", "k"):
        return (found or [one])[0], one, one
    before = found[0] if names[0] == "k" else one
    after = found[-1] if names[-1] == "k" else one
    return before, found[names.index("r")], after


def places(offset: int, strides: Shape, shape: Shape) -> Array:
    """Flat positions of a region."""
    index = np.full(shape, offset, dtype=np.int64)
    for axis, (n, s) in enumerate(zip(shape, strides, strict=True)):
        index += (np.arange(n) * s).reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return index.reshape(-1)


def _sparse(node: Node) -> list[tuple[View, int, Shape]] | None:
    """The pieces of an array that is zero elsewhere; None if they overlap each other."""
    pieces = [
        (view, *where)
        for view, where in zip(node.operands, node.where, strict=True)
        if view.number != 0
    ]
    covered = np.zeros(node.value.size, dtype=bool)
    for view, offset, strides in pieces:
        covered[places(offset, strides, view.shape)] = True
    return pieces if covered.sum() == sum(view.size for view, *_ in pieces) else None


def _visible(size: int, pieces: list[tuple[View, int, Shape]]) -> list[tuple[View, int, Shape]]:
    """Without pieces that later ones cover entirely."""
    covered = np.zeros(size, dtype=bool)
    kept = []
    for view, offset, strides in reversed(pieces):
        where = places(offset, strides, view.shape)
        if not covered[where].all():
            kept.append((view, offset, strides))
            covered[where] = True
    return kept[::-1]


def _assembled(shape: Shape, pieces: list[tuple[View, int, Shape]], dtype: Any) -> Array:
    data = np.zeros(math.prod(shape), dtype=dtype)
    for view, offset, strides in pieces:
        data[places(offset, strides, view.shape)] = view.numpy().reshape(-1)
    return data.reshape(shape)
