"""A start for fields that are trained through a solver: slopes matched first, with no solver."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def central_slopes(ts: Tensor, zs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner times (T − 2,), states and slopes (T − 2, D) of a path zs (T, D), by differences."""
    return ts[1:-1], zs[1:-1], (zs[2:] - zs[:-2]) / (ts[2:] - ts[:-2]).unsqueeze(1)


def match_slopes(
    field: nn.Module,
    parts: tuple[Tensor, Tensor, Tensor],
    unit: Tensor,
    steps: int,
    lr: float,
) -> None:
    """Train ``field(t, z)`` to give the slopes at the states, by Adam with a cosine schedule.

    Roesch, Rackauckas, Stumpf 2021, Collocation based training of neural ordinary differential
    equations. Crude where data are noisy or far apart, but cheap, and blind to no part of the path.

    Args:
        field: of one state (D,) or many (n, D).
        parts: of :func:`central_slopes`.
        unit: (D,), what an error is measured in.
        steps, lr: of Adam.
    """
    ts, zs, slopes = parts
    optimizer = torch.optim.Adam(field.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        ((field(ts[:, None], zs) - slopes) / unit).square().mean().backward()
        optimizer.step()
        schedule.step()
