"""ATen operations that move, repeat or choose entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.lowering.aten import Translation, operation
from pynode.lowering.views import Shape, Value, View


def _positions(shape: Shape) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


# Views ------------------------------------------------------------------------------------------


@operation(
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.unsqueeze", "aten.squeeze",
    "aten._reshape_alias",
)  # fmt: skip
def _reshape(tr: Translation, x: View, *_: Any) -> View:
    return tr.graph.reshape(x, tr.shape)


@operation(
    "aten.clone", "aten.detach", "aten.alias", "aten.lift_fresh", "aten.lift_fresh_copy",
    "aten.contiguous", "aten.positive", "aten.lift",
)  # fmt: skip
def _same(tr: Translation, x: View, **_: Any) -> View:
    return x


@operation("aten.permute", "aten.permute_copy")
def _permute(tr: Translation, x: View, dims: Sequence[int]) -> View:
    return x.permute([d % len(x.shape) for d in dims])


@operation("aten.transpose")
def _transpose(tr: Translation, x: View, a: int, b: int) -> View:
    return x.transpose(a, b) if x.shape else x


@operation("aten.t", "aten.numpy_T", "aten.mT")
def _t(tr: Translation, x: View) -> View:
    return x.transpose(-2, -1) if len(x.shape) > 1 else x


@operation("aten.expand", "aten.expand_copy", "aten.broadcast_to")
def _expand(tr: Translation, x: View, *_: Any, **__: Any) -> View:
    return x.expand(tr.shape)


@operation("aten.slice")
def _slice(
    tr: Translation, x: View, dim: int = 0, start: int | None = None, end: Any = None, step: int = 1
) -> View:
    dim %= len(x.shape)
    first = slice(start, end, step).indices(x.shape[dim])[0]
    return x.slice(dim, first, tr.shape[dim], step)


@operation("aten.select")
def _select(tr: Translation, x: View, dim: int, index: int) -> View:
    return x.select(dim, index)


@operation("aten.flip")
def _flip(tr: Translation, x: View, dims: Sequence[int]) -> View:
    for dim in dims:
        x = x.flip(dim % len(x.shape))
    return x


@operation("aten.unfold")
def _unfold(tr: Translation, x: View, dim: int, size: int, step: int) -> View:
    dim %= len(x.shape)
    strides = list(x.strides)
    strides[dim] *= step
    return View(x.value, tr.shape, (*strides, x.strides[dim]), x.offset)


@operation("aten.diagonal")
def _diagonal(tr: Translation, x: View, offset: int = 0, dim1: int = 0, dim2: int = 1) -> View:
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    start = offset * x.strides[b] if offset >= 0 else -offset * x.strides[a]
    kept = [s for axis, s in enumerate(x.strides) if axis not in (a, b)]
    strides = (*kept, x.strides[a] + x.strides[b])
    return View(x.value, tr.shape, strides, x.offset + start)


def _stored_in_order(tr: Translation, x: View) -> None:
    val = tr.node.args[0].meta["val"]  # type: ignore[union-attr]
    if not val.is_contiguous() or val.storage_offset() != 0:
        raise tr.refuse("on a tensor that is not contiguous")


@operation("aten.as_strided")
def _as_strided(
    tr: Translation, x: View, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> View:
    _stored_in_order(tr, x)
    x = tr.graph.dense(x)
    return View(x.value, tuple(size), tuple(stride), x.offset + (offset or 0))


@operation("aten.split", "aten.split_with_sizes")
def _split(tr: Translation, x: View, sizes: int | Sequence[int], dim: int = 0) -> tuple[View, ...]:
    dim %= len(x.shape)
    n = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, n - at) for at in range(0, n, sizes)]
    starts = np.cumsum([0, *sizes])
    return tuple(x.slice(dim, int(a), size) for a, size in zip(starts, sizes, strict=False))


@operation("aten.unbind")
def _unbind(tr: Translation, x: View, dim: int = 0) -> tuple[View, ...]:
    return tuple(x.select(dim, i) for i in range(x.shape[dim]))


# Putting together -------------------------------------------------------------------------------


def _canvas(shape: Shape) -> View:
    """A view that only says where pieces go."""
    return Value(shape).view()


@operation("aten.cat")
def _cat(tr: Translation, tensors: Sequence[Any], dim: int = 0) -> View:
    parts = [tr.view(x) for x in tensors if math.prod(x.shape) or len(x.shape) > 1]
    dim %= len(tr.shape)
    canvas, at, pieces = _canvas(tr.shape), 0, []
    for part in parts:
        n = part.shape[dim]
        if n:
            pieces.append((part, canvas.slice(dim, at, n)))
        at += n
    return tr.graph.assemble(tr.shape, pieces)


@operation("aten.stack")
def _stack(tr: Translation, tensors: Sequence[Any], dim: int = 0) -> View:
    canvas, dim = _canvas(tr.shape), dim % len(tr.shape)
    pieces = [(tr.view(x), canvas.select(dim, i)) for i, x in enumerate(tensors)]
    return tr.graph.assemble(tr.shape, pieces)


def _put(tr: Translation, base: Any, src: Any, place: View) -> View:
    whole = tr.view(base).expand(tr.shape)
    pieces = [(whole, _canvas(tr.shape)), (tr.view(src).expand(place.shape), place)]
    return tr.graph.assemble(tr.shape, pieces)


@operation("aten.select_scatter")
def _select_scatter(tr: Translation, x: Any, src: Any, dim: int, index: int) -> View:
    return _put(tr, x, src, _canvas(tr.shape).select(dim, index))


@operation("aten.slice_scatter")
def _slice_scatter(
    tr: Translation,
    x: Any,
    src: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> View:
    dim %= len(tr.shape)
    first, last, step = slice(start, end, step).indices(tr.shape[dim])
    length = len(range(first, last, step))
    if not length:
        return tr.view(x)
    return _put(tr, x, src, _canvas(tr.shape).slice(dim, first, length, step))


@operation("aten.diagonal_scatter")
def _diagonal_scatter(
    tr: Translation, x: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> View:
    index = _positions(tr.shape).diagonal(offset, dim1, dim2)
    place = View(Value(tr.shape), tuple(index.shape), index.stride(), int(index.storage_offset()))
    return _put(tr, x, src, place)


@operation("aten.as_strided_scatter")
def _as_strided_scatter(
    tr: Translation,
    x: Any,
    src: Any,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | None = None,
) -> View:
    _stored_in_order(tr, x)
    return _put(tr, x, src, View(Value(tr.shape), tuple(size), tuple(stride), offset or 0))


@operation("aten.select_backward")
def _select_backward(tr: Translation, g: Any, sizes: Any, dim: int, index: int) -> View:
    return _put(tr, 0, g, _canvas(tr.shape).select(dim, index))


@operation("aten.slice_backward")
def _slice_backward(
    tr: Translation, g: Any, sizes: Any, dim: int, start: int, end: int, step: int
) -> View:
    return _slice_scatter(tr, tr.graph.constant(0), g, dim, start, end, step)


@operation("aten.constant_pad_nd")
def _pad(tr: Translation, x: View, pad: Sequence[int], value: float = 0) -> View:
    """Padding by constants; negative padding crops."""
    place = _canvas(tr.shape)
    for k in range(len(pad) // 2):
        dim, before, after = len(x.shape) - 1 - k, pad[2 * k], pad[2 * k + 1]
        x = x.slice(dim, max(-before, 0), x.shape[dim] - max(-before, 0) - max(-after, 0))
        place = place.slice(dim, max(before, 0), x.shape[dim])
    return tr.graph.assemble(
        tr.shape, [(tr.view(value).expand(tr.shape), _canvas(tr.shape)), (x, place)]
    )


@operation("aten.repeat")
def _repeat(tr: Translation, x: View, repeats: Sequence[int]) -> View:
    lead = (1,) * (len(repeats) - len(x.shape))
    shape = lead + x.shape
    paired = tuple(n for pair in zip(repeats, shape, strict=True) for n in pair)
    spread = View(
        x.value,
        paired,
        tuple(s for step in (0,) * len(lead) + x.strides for s in (0, step)),
        x.offset,
    )
    return tr.graph.reshape(spread, tr.shape)


# By index ---------------------------------------------------------------------------------------


def _constant_index(tr: Translation, *indices: Any) -> None:
    if any(isinstance(index, View) for index in indices):
        raise tr.refuse("its index depends on the state, the time or a parameter")


@operation(
    "aten.index", "aten.index_select", "aten.gather", "aten.take", "aten.roll", "aten.embedding",
    "aten._unsafe_index", "aten.im2col",
)  # fmt: skip
def _chosen(tr: Translation, x: Any, *args: Any, **kwargs: Any) -> View:
    """Any choice of entries: the operation itself, on the entries' numbers, says which."""
    _constant_index(tr, *torch.utils._pytree.tree_leaves((args, kwargs), is_leaf=_is_view))
    if not isinstance(x, View):
        raise tr.refuse("its index depends on the state, the time or a parameter")
    positions = tr.node.target(_positions(x.shape), *args, **kwargs)  # type: ignore[operator]
    return tr.graph.gather(x, positions.numpy())


def _is_view(x: Any) -> bool:
    return isinstance(x, View)


def _zeros_like(tr: Translation) -> View:
    return tr.graph.constant(0).expand(tr.shape)


@operation("aten.index_add")
def _index_add(
    tr: Translation, x: Any, dim: int, index: Any, source: Any, alpha: float = 1
) -> View:
    _constant_index(tr, index)
    where = _positions(tr.shape).index_select(dim, index)
    scaled = tr.pointwise("mul", source, alpha)
    return tr.graph.scatter_add(tr.view(x), scaled, where.numpy())


@operation("aten.scatter_add")
def _scatter_add(tr: Translation, x: Any, dim: int, index: Any, src: Any) -> View:
    _constant_index(tr, index)
    taken = tr.view(src)
    for axis, n in enumerate(index.shape):
        taken = taken.slice(axis, 0, n)
    where = _positions(tr.shape).gather(dim, index)
    return tr.graph.scatter_add(tr.view(x), taken, where.numpy())


@operation("aten.scatter")
def _scatter(tr: Translation, x: Any, dim: int, index: Any, src: Any, **kwargs: Any) -> View:
    _constant_index(tr, index)
    if kwargs:
        raise tr.refuse(f"with {', '.join(kwargs)}")
    numbers = math.prod(tr.shape) + _positions(tuple(src.shape)) if hasattr(src, "shape") else None
    taken = math.prod(tr.shape) if numbers is None else numbers
    return _overwrite(tr, x, src, _positions(tr.shape).scatter(dim, index, taken))


@operation("aten.index_put", "aten._unsafe_index_put", "aten._index_put_impl")
def _index_put(
    tr: Translation, x: Any, indices: Any, values: Any, accumulate: bool = False, *_: Any
) -> View:
    _constant_index(tr, *indices)
    positions = _positions(tr.shape)
    where = torch.ops.aten.index.Tensor(positions, indices)
    if accumulate:
        source = tr.view(values).expand(tuple(where.shape))
        return tr.graph.scatter_add(tr.view(x), source, where.numpy())
    taken = math.prod(tr.shape) + _positions(tuple(values.shape))
    return _overwrite(tr, x, values, torch.ops.aten.index_put(positions, indices, taken))


def _overwrite(tr: Translation, x: Any, src: Any, chosen: Tensor) -> View:
    """Entries of x and src side by side, by number."""
    flat = [tr.graph.reshape(tr.view(v), (tr.view(v).size,)) for v in (x, src)]
    n = flat[0].size + flat[1].size
    canvas = _canvas((n,))
    places = canvas.slice(0, 0, flat[0].size), canvas.slice(0, flat[0].size, flat[1].size)
    both = tr.graph.assemble((n,), list(zip(flat, places, strict=True)))
    return tr.graph.gather(both, chosen.numpy())


# Constants in the shape of something ------------------------------------------------------------


@operation(
    "aten.zeros_like", "aten.ones_like", "aten.empty_like", "aten.new_zeros", "aten.new_ones",
    "aten.new_empty", "aten.new_empty_strided", "aten._efficientzerotensor",
    "aten._new_zeros_with_same_feature_meta",
)  # fmt: skip
def _filled(tr: Translation, x: Any, *_: Any, **__: Any) -> Tensor:
    ones = "ones" in str(tr.node.target)
    return torch.full(tr.shape, float(ones)).to(tr.result_dtype)


@operation("aten.full_like", "aten.new_full")
def _full(tr: Translation, x: Any, *args: Any, **__: Any) -> Any:
    value = args[-1]
    if isinstance(value, View):
        return value.expand(tr.shape)
    return torch.full(tr.shape, value).to(tr.result_dtype)


@operation("aten.copy")
def _copy(tr: Translation, x: Any, src: Any, *_: Any) -> View:
    return tr.view(src).expand(tr.shape)
