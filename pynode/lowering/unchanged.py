"""Whether what a program was made from is still what it was, in microseconds.

:mod:`pynode.lowering.cache` compares all that a program depends on by value, which costs more than
a small solve. Here the same things are compared by identity: where that says "unchanged" it is so,
and where it does not, the slow comparison decides.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEPTH = 6
_MISSING = object()


class Unchanged:
    """What a field held when this was made; :meth:`holds` says whether it still does.

    Args:
        fn: the field.
        tensors: trainable tensors that it depends on.
        constants: tensors whose values are in the programs, with copies of them as they were.
    """

    def __init__(
        self, fn: Any, tensors: Sequence[Tensor], constants: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self._dicts: list[tuple[dict, int, list[tuple[Any, Any]]]] = []
        self._lists: list[tuple[list | set, tuple]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._tensors = [(x, x.dtype, x.shape) for x in tensors]
        self._constants = constants
        self._watched: list[Tensor] = []
        self._look(fn, set(), 0)
        self._grads = [(x, x.requires_grad) for x in self._watched]

    def holds(self) -> bool:
        for held, size, items in self._dicts:
            if len(held) != size:
                return False
            for key, value in items:
                if held.get(key, _MISSING) is not value:
                    return False
        for x, dtype, shape in self._tensors:
            if x.dtype is not dtype or x.shape != shape:
                return False
        for x, needs in self._grads:
            if x.requires_grad is not needs:
                return False
        for parts, before in self._lists:
            if len(parts) != len(before) or any(
                a is not b for a, b in zip(parts, before, strict=True)
            ):
                return False
        for cell, content in self._cells:
            if _content(cell) is not content:
                return False
        for owner, name, value in self._attributes:
            if getattr(owner, name) is not value:
                return False
        return all(same(tensor, copy) for tensor, copy in self._constants)

    def _look(self, obj: Any, seen: set[int], depth: int) -> None:
        if isinstance(obj, _PLAIN) or id(obj) in seen or depth > _DEPTH:
            return
        seen.add(id(obj))
        if isinstance(obj, Tensor):
            self._watched.append(obj)
        elif isinstance(obj, nn.Module):
            for module in obj.modules():
                self._look_at_module(module, seen, depth)
        elif isinstance(obj, functools.partial):
            for part in (obj.func, *obj.args, obj.keywords):
                self._look(part, seen, depth + 1)
        elif inspect.ismethod(obj):
            self._look(obj.__self__, seen, depth + 1)
            self._look(obj.__func__, seen, depth + 1)
        elif inspect.isfunction(obj):
            for cell in obj.__closure__ or ():
                content = _content(cell)
                self._cells.append((cell, content))
                self._look(content, seen, depth + 1)
            self._attributes.append((obj, "__defaults__", obj.__defaults__))
            self._look(obj.__defaults__, seen, depth + 1)
        elif isinstance(obj, list | set):
            self._lists.append((obj, tuple(obj)))
            for part in obj:
                self._look(part, seen, depth + 1)
        elif isinstance(obj, tuple):
            for part in obj:
                self._look(part, seen, depth + 1)
        elif isinstance(obj, dict):
            self._dicts.append((obj, len(obj), list(obj.items())))
            for part in obj.values():
                self._look(part, seen, depth + 1)

    def _look_at_module(self, module: nn.Module, seen: set[int], depth: int) -> None:
        held = vars(module)
        items: list[tuple[Any, Any]] = []
        for name, value in held.items():
            if isinstance(value, _PLAIN):
                items.append((name, value))
            elif name in ("_parameters", "_buffers", "_modules"):
                items.append((name, value))
                self._dicts.append((value, len(value), list(value.items())))
                self._watched += [x for x in value.values() if isinstance(x, Tensor)]
            elif isinstance(value, list | tuple | dict) and not name.startswith("_"):
                items.append((name, value))
                self._look(value, seen, depth + 1)
        self._dicts.append((held, len(held), items))


def same(tensor: Tensor, copy: Tensor) -> bool:
    """Equal in shape and value, NaN being equal to NaN."""
    if tensor.shape != copy.shape:
        return False
    return torch.equal(tensor, copy) or torch.allclose(tensor, copy, 0, 0, equal_nan=True)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return _MISSING
