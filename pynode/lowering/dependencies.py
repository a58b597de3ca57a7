"""The trainable tensors of a field, looked for once as long as it holds the same."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Any, TypeVar

from torch import Tensor

from pynode.field import FlatField, trainable_tensors
from pynode.lowering.unchanged import Unchanged
from pynode.solution import Statistics

_FOUND: weakref.WeakKeyDictionary[Any, dict[str, tuple[Unchanged, list[Tensor]]]]
_FOUND = weakref.WeakKeyDictionary()

V = TypeVar("V")


def trainable_of(field: FlatField, z0: Tensor, t0: float) -> list[Tensor]:
    """Tensors that require grad and that the field depends on beside its args.

    To find them takes an evaluation, which would cost as much as a whole small solve: it is done
    anew only if the field holds something else now.
    """
    shelf = shelf_of(_FOUND, field.fn)
    known = shelf.get("found")
    if known is not None and known[0].holds(field.fn):
        return known[1]
    quiet = FlatField(field.fn, field.layout, field.args, Statistics())
    found = trainable_tensors(quiet, t0, z0.detach())[0]
    shelf["found"] = Unchanged(field.fn, found, []), found
    return found


def shelf_of(shelves: MutableMapping[Any, dict[Any, V]], fn: Any) -> dict[Any, V]:
    """What is kept for a field; an empty dict that nobody keeps where it has no weak references."""
    try:
        return shelves.setdefault(fn, {})
    except TypeError:
        return {}
