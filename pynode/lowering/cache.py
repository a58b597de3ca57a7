"""Programs kept by what they depend on, so that new parameter values cost no new trace.

A program depends on the field's code, on shapes and dtypes, on which tensors are parameters, on
what the modules among the field hold as plain numbers and switches (training or not, say), and on
the values of tensors that are not trainable.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.field import FlatField
from pynode.lowering.lowered import LoweredField

_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, LoweredField]] = weakref.WeakKeyDictionary()

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)
_OF_TORCH = frozenset(vars(nn.Module()))  # of which only plain values are looked at
_DEPTH = 6


def recall(field: FlatField, z0: Tensor, tensors: Sequence[Tensor]) -> LoweredField | None:
    """What was kept for such a field, if no tensor that it holds as a constant has changed."""
    found = _shelf(field.fn).get(_key(field, z0, tensors))
    if found is None or not all(same(tensor, copy) for tensor, copy in found.constants):
        return None
    return found


def keep(field: FlatField, z0: Tensor, tensors: Sequence[Tensor], lowered: LoweredField) -> None:
    key = _key(field, z0, tensors)
    if key is not None:
        _shelf(field.fn)[key] = lowered


def forget() -> None:
    """Drop everything that is kept."""
    _KEPT.clear()


def same(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and torch.allclose(tensor, copy, 0, 0, equal_nan=True)


def _shelf(fn: Callable[..., Any]) -> dict[Hashable, LoweredField]:
    owner = fn.__self__ if inspect.ismethod(fn) else fn
    try:
        return _KEPT.setdefault(owner, {})
    except TypeError:  # not hashable, or without weak references: nothing can be kept
        return {}


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
        elif isinstance(leaf, _PLAIN):
            parts.append((type(leaf), leaf))
        else:
            return None
    parts += [(id(x), tuple(x.shape), x.dtype) for x in tensors if id(x) not in given]
    parts += _settings(field.fn, set(), 0)
    return tuple(parts)


def settings(obj: Any) -> Iterator[Hashable]:
    """What :func:`_key` looks at in something that a module holds."""
    return _settings(obj, set(), 1)


def _settings(obj: Any, seen: set[int], depth: int) -> Iterator[Hashable]:
    """Plain numbers and switches that a field holds, wherever its tensors are looked for."""
    if isinstance(obj, _PLAIN):
        yield type(obj), obj
        return
    if isinstance(obj, Tensor) or id(obj) in seen or depth > _DEPTH:
        return
    seen.add(id(obj))
    if isinstance(obj, nn.Module):
        for module in obj.modules():
            yield f"{type(module).__module__}.{type(module).__qualname__}"
            for name, value in vars(module).items():
                if type(value) in _PLAIN_TYPES or isinstance(value, _PLAIN):
                    yield name, type(value), value
                elif name in _OF_TORCH:
                    continue
                elif isinstance(value, list | tuple | dict) and not name.startswith("_"):
                    yield from _settings(value, seen, depth + 1)
    elif isinstance(obj, functools.partial):
        yield from _settings([obj.func, *obj.args, *obj.keywords.values()], seen, depth + 1)
    elif inspect.ismethod(obj):
        yield from _settings([obj.__self__, obj.__func__], seen, depth + 1)
    elif inspect.isfunction(obj):
        cells = [c.cell_contents for c in obj.__closure__ or () if _is_bound(c)]
        yield from _settings([*cells, *(obj.__defaults__ or ())], seen, depth + 1)
    elif isinstance(obj, list | tuple):
        for part in obj:
            yield from _settings(part, seen, depth + 1)
    elif isinstance(obj, dict):
        for name, part in obj.items():
            yield str(name)
            yield from _settings(part, seen, depth + 1)


def _is_bound(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # reading it tells
    except ValueError:
        return False
    return True
