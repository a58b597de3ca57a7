"""torch.autocast is for the field: states, stages, errors and times keep the state's dtype.

A solve remembers the autocast that is on when it begins, switches it off for its own arithmetic,
and on again around every evaluation of the field, those of the backward pass included, whether or
not that runs inside the ``with`` block. Weights are cast once in a block, so that ``discrete`` adds
up their gradient in the lower precision; ``torch.autocast(..., cache_enabled=False)`` casts them,
and keeps them, at each evaluation.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Autocast:
    """An autocast that was found on."""

    device_type: str
    dtype: torch.dtype
    cache: bool

    def on(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, self.dtype, cache_enabled=self.cache)


_available = functools.cache(torch.amp.is_autocast_available)


def active_autocast(device: torch.device) -> Autocast | None:
    """The autocast that is on for a device."""
    kind = device.type
    if not _available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return Autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())


_NOTHING = nullcontext()


def without_autocast(
    device: torch.device, found: Autocast | Literal["look"] | None = "look"
) -> AbstractContextManager:
    """A block in which autocast is off for a device; ``found`` is the one that is on, if known."""
    if (active_autocast(device) if found == "look" else found) is None:
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


def cast_up(value: object, dtype: torch.dtype) -> object:
    """The floating tensors in a nest cast to ``dtype`` where that loses nothing."""

    def cast(x: object) -> object:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
            return x
        return x.to(dtype) if torch.promote_types(x.dtype, dtype) == dtype else x

    return pytree.tree_map(cast, value)
