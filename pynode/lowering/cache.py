"""Programs kept by what they depend on, so that new parameter values cost no new trace.

A program depends on the field's code, on shapes and dtypes, on which tensors are parameters, on
all else that the field holds (``holdings.py``), and on the values of tensors that are not
trainable.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import CodeType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.field import FlatField
from pynode.lowering.dependencies import shelf_of
from pynode.lowering.holdings import PLAIN, holdings
from pynode.lowering.lowered import LoweredField
from pynode.lowering.unchanged import same

_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, LoweredField]] = weakref.WeakKeyDictionary()

_HASHED = (str, int)
_OPEN = (list, tuple, set, dict, nn.Module)


def recall(field: FlatField, z0: Tensor, tensors: Sequence[Tensor]) -> LoweredField | None:
    """What was kept for such a field, if no tensor that it holds as a constant has changed."""
    found = shelf_of(_KEPT, _owner(field.fn)).get(_key(field, z0, tensors))
    if found is None or not all(same(tensor, copy) for tensor, copy in found.constants):
        return None
    return found


def keep(field: FlatField, z0: Tensor, tensors: Sequence[Tensor], lowered: LoweredField) -> None:
    key = _key(field, z0, tensors)
    if key is not None:
        shelf_of(_KEPT, _owner(field.fn))[key] = lowered


def forget() -> None:
    """Drop everything that is kept."""
    _KEPT.clear()


def _owner(fn: Callable[..., Any]) -> Any:
    """A bound method is made anew each time."""
    return fn.__self__ if inspect.ismethod(fn) else fn


def _key(field: FlatField, z0: Tensor, tensors: Sequence[Tensor]) -> Hashable | None:
    """None where something cannot be compared."""
    layout = field.layout
    parts: list[Hashable] = [
        getattr(field.fn, "__func__", None), field.form, tuple(layout.shapes),
        tuple(layout.dtypes), layout.rows, str(layout.spec), z0.dtype, str(z0.device),
    ]  # fmt: skip
    leaves, spec = pytree.tree_flatten(field.args)
    parts.append(str(spec))
    given = {id(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            parts.append((tuple(leaf.shape), leaf.dtype))
        elif isinstance(leaf, Tensor):
            parts.append((tuple(leaf.shape), leaf.dtype, tuple(leaf.reshape(-1).tolist())))
        elif isinstance(leaf, PLAIN):
            parts.append((type(leaf), leaf))
        else:
            return None
    parts += [(id(x), tuple(x.shape), x.dtype) for x in tensors if id(x) not in given]
    parts += _settings(field.fn)
    return tuple(parts)


def _settings(fn: Any) -> Iterator[Hashable]:
    """What a field holds beside the values of tensors, by value where that can be compared."""
    for kind, owner, parts in holdings(fn):
        yield kind, type(owner).__qualname__, len(parts)
        for name, value in parts:
            yield name if isinstance(name, _HASHED) else str(name)
            yield type(value).__qualname__
            if isinstance(value, PLAIN):
                yield value
            elif isinstance(value, Tensor):
                yield id(value), tuple(value.shape), value.dtype, value.requires_grad
            elif isinstance(value, np.ndarray):
                yield value.shape, value.dtype.str, value.tobytes()
            elif isinstance(value, CodeType):
                yield value
            elif not isinstance(value, _OPEN):  # what is inside of those comes by itself
                yield id(value)
