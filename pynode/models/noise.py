"""Normal noise for a batch that is computed in parts.

A batch that is split over processes, or over several backward passes, gets the very noise that it
would get in one piece, so that how it is split changes nothing but rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_PART: ContextVar[tuple[int, int] | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def part_of_batch(first: int, whole: int) -> Iterator[None]:
    """In here, samples are rows ``first``, ``first`` + 1, … of a batch of ``whole``."""
    token = _PART.set((first, whole))
    try:
        yield
    finally:
        _PART.reset(token)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise shaped as ``like`` (B, …), from ``generator`` or torch's global one."""
    part = _PART.get()
    whole = like.shape if part is None else (part[1], *like.shape[1:])
    noise = torch.randn(whole, generator=generator, device=like.device, dtype=like.dtype)
    return noise if part is None else noise[part[0] : part[0] + len(like)]
