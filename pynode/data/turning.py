"""Two-dimensional series at times as uneven, and with as many values missing, as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.data.series import Index, IrregularSeries, as_rows
from pynode.errors import InputError

WORLDS = ("autonomous", "driven")
MEAN_GAP = 0.4
_SMALLEST_GAP = 1e-3


@dataclass(frozen=True, eq=False)
class TurningSeries:
    """What may be seen of some series, and what they were at those moments.

    Attributes:
        observed: B series of N noisy observations of 2 coordinates, some missing.
        truth: (B, N, 2), without noise, all of it.
    """

    observed: IrregularSeries
    truth: Tensor

    def __len__(self) -> int:
        return len(self.observed)

    def __getitem__(self, index: Index) -> TurningSeries:
        rows = as_rows(index, len(self), self.truth.device)
        return TurningSeries(self.observed[rows], self.truth[rows])


def turning(
    n_series: int,
    observations: int = 40,
    unevenness: float = 1.0,
    missing: float = 0.0,
    seed: int = 0,
    *,
    world: str = "autonomous",
    noise: float = 0.05,
) -> TurningSeries:
    """Series on circles, or under a common season, at random times.

    Gaps between observations are independent, of mean 0.4, and follow a gamma distribution.

    Args:
        n_series: B.
        observations: N, of each series; the first one is at its own random time in [0, 0.4].
        unevenness: standard deviation of the gaps over their mean: 0 gives a regular grid, 1 a
            Poisson process, more gives bursts with long silence between them.
        missing: probability that a coordinate of an observation is missing; where both would be,
            one of them, at random, stays.
        seed: the same seed gives the same series.
        world: ``"autonomous"``: each series turns on a circle about 0 with a frequency (uniform in
            [0.8, 1.6]), phase and radius (in [0.5, 1.5]) of its own, so that what comes next
            depends on the state and the gap; or ``"driven"``: all follow the same season,
            (sin 1.9t, cos 3.1t), by a factor of their own, so that it depends on the date.
        noise: standard deviation of an observation.

    Raises:
        InputError: a number is out of its range.
    """
    _check(n_series, observations, unevenness, missing, noise, world)
    generator = torch.Generator().manual_seed(seed)
    start = MEAN_GAP * torch.rand(n_series, 1, generator=generator)
    gaps = _gaps((n_series, observations - 1), unevenness, generator)
    times = torch.cat([start, start + gaps.cumsum(1)], dim=1)
    truth = _values(times, world, generator)
    seen = truth + noise * torch.randn(truth.shape, generator=generator)
    draw = torch.rand(seen.shape, generator=generator)
    mask = (draw >= missing) | (draw == draw.max(dim=-1, keepdim=True).values)
    return TurningSeries(IrregularSeries(times, seen, mask), truth)


def _gaps(shape: tuple[int, int], unevenness: float, generator: torch.Generator) -> Tensor:
    if unevenness == 0:
        return torch.full(shape, MEAN_GAP)
    concentration = torch.full(shape, 1 / unevenness**2)
    draws = torch._standard_gamma(concentration, generator=generator)
    return (draws * MEAN_GAP * unevenness**2).clamp(min=_SMALLEST_GAP)


def _values(times: Tensor, world: str, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(times), 1, generator=generator)

    radius = uniform(0.5, 1.5)
    if world == "driven":
        return torch.stack([radius * (1.9 * times).sin(), radius * (3.1 * times).cos()], dim=-1)
    angle = uniform(0.8, 1.6) * times + uniform(0.0, 2 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _check(
    n_series: int, observations: int, unevenness: float, missing: float, noise: float, world: str
) -> None:
    rules = [
        ("n_series", n_series, n_series >= 1, "at least 1"),
        ("observations", observations, observations >= 2, "at least 2"),
        ("unevenness", unevenness, 0 <= unevenness <= 5, "in [0, 5]"),
        ("missing", missing, 0 <= missing < 1, "in [0, 1)"),
        ("noise", noise, math.isfinite(noise) and noise >= 0, "a finite number, 0 or more"),
        ("world", world, world in WORLDS, f"one of {', '.join(WORLDS)}"),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            raise InputError(f"{name}={value!r} must be {rule}")
