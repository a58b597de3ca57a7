"""What a field holds that its programs depend on, wherever Python lets a field find it.

A trace turns plain numbers, switches and branches into constants. So whoever keeps a program has to
know when one of them is another: attributes of modules and objects, of their classes, closures,
defaults, the globals that the code names, and what is inside lists, tuples and dicts. Libraries are
taken not to change.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
MISSING = object()
_DEPTH = 40
_LIBRARIES = {"torch", "numpy", "pynode", "scipy", "pandas", "sklearn", "matplotlib", "juliacall"}
_LIBRARIES |= sys.stdlib_module_names - {"__main__"}
_CONTAINERS = (list, tuple, set, dict)


class Held(NamedTuple):
    """Something that holds parts.

    Attributes:
        kind: how a part is read again: ``"mapping"`` and ``"names"`` by ``owner.get(key)``, where
            a mapping must not have grown either; ``"sequence"`` in order; ``"cell"`` as its
            content; ``"attribute"`` by ``getattr``.
        owner: what holds.
        parts: (key, value) of each.
    """

    kind: str
    owner: Any
    parts: list[tuple[Any, Any]]


def holdings(fn: Any) -> Iterator[Held]:
    """All that a field holds, from the outside in, each once."""
    yield from _inside(fn, set(), 0)


def content(cell: Any) -> Any:
    """What is in a closure's cell, or MISSING where the name is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _inside(obj: Any, seen: set[Any], depth: int) -> Iterator[Held]:
    if isinstance(obj, (*PLAIN, Tensor, np.ndarray)) or id(obj) in seen or depth > _DEPTH:
        return
    seen.add(id(obj))
    for held in _held_by(obj, seen):
        yield held
        for _, value in held.parts:
            yield from _inside(value, seen, depth + 1)


def _held_by(obj: Any, seen: set[Any]) -> Iterable[Held]:
    if isinstance(obj, nn.Module):
        return _of_module(obj, seen)
    if isinstance(obj, functools.partial):
        parts = [("func", obj.func), ("args", obj.args), ("keywords", obj.keywords)]
        return [Held("attribute", obj, parts)]
    if inspect.ismethod(obj):
        return [Held("attribute", obj, [("__self__", obj.__self__), ("__func__", obj.__func__)])]
    if inspect.isfunction(obj):
        return _of_function(obj)
    if isinstance(obj, list | tuple | set):
        return [Held("sequence", obj, list(enumerate(obj)))]
    if isinstance(obj, dict):
        return [Held("mapping", obj, list(obj.items()))]
    if isinstance(obj, type):
        return _of_classes(obj, seen, makes=True)
    if isinstance(obj, types.SimpleNamespace) or not _of_library(type(obj)):
        return _of_object(obj, seen)
    return []


def _of_module(module: nn.Module, seen: set[Any]) -> Iterator[Held]:
    own = vars(module)
    parts = [  # of torch's own private containers those that hold tensors and modules
        (name, value)
        for name, value in own.items()
        if not (isinstance(value, _CONTAINERS) and name.startswith("_"))
        or name in ("_parameters", "_buffers", "_modules")
    ]
    yield Held("mapping", own, parts)
    yield from _of_classes(type(module), seen)


def _of_object(obj: Any, seen: set[Any]) -> Iterator[Held]:
    if isinstance(getattr(obj, "__dict__", None), dict):
        yield Held("mapping", vars(obj), list(vars(obj).items()))
    slots = [
        (name, getattr(obj, name))
        for cls in type(obj).__mro__
        for name in _names(vars(cls).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__") and hasattr(obj, name)
    ]
    if slots:
        yield Held("attribute", obj, slots)
    yield from _of_classes(type(obj), seen)


def _of_classes(cls: type, seen: set[Any], makes: bool = False) -> Iterator[Held]:
    """Functions and plain values of a class and those that it inherits from.

    Args:
        makes: objects of it may be made. Of those that are there what made them is done, and all
            that it names may be far more than what they need.
    """
    for base in cls.__mro__:
        if _of_library(base) or ("class", id(base), makes) in seen:
            continue
        seen |= {("class", id(base), kind) for kind in {False, makes}}
        parts = []
        for name, value in vars(base).items():
            if name in ("__init__", "__new__") and not makes:
                continue
            if inspect.isfunction(value) or (
                isinstance(value, (*PLAIN, *_CONTAINERS, staticmethod, classmethod, property))
                and not name.startswith("__")
            ):
                parts.append((name, value))
        yield Held("names", vars(base), parts)
        for _, value in parts:  # these hide a function each
            if isinstance(value, property):
                yield Held("attribute", value, [("fget", value.fget)])
            elif isinstance(value, staticmethod | classmethod):
                yield Held("attribute", value, [("__func__", value.__func__)])


def _of_function(function: Any) -> Iterator[Held]:
    yield Held("attribute", function, [("__defaults__", function.__defaults__),
                                       ("__kwdefaults__", function.__kwdefaults__),
                                       ("__code__", function.__code__)])  # fmt: skip
    for cell in function.__closure__ or ():
        yield Held("cell", cell, [(None, content(cell))])
    if _of_library(function):
        return
    names = set(_global_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    yield Held("names", function.__globals__, list(found.items()))
    for value in found.values():
        if isinstance(value, types.ModuleType) and not _of_library(value):
            inner = [(name, vars(value)[name]) for name in names if name in vars(value)]
            yield Held("names", vars(value), inner)


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _names(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _of_library(obj: Any) -> bool:
    name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES
