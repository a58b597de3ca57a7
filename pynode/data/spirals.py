"""Two-dimensional spirals, seen in a window, to be predicted beyond it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.data.series import Index, IrregularSeries, as_rows, split_rows
from pynode.errors import InputError

GRID = 500  # points of a whole spiral
SPAN = 6 * math.pi  # of its angle t
FIRST_START, LAST_START = 50, 249  # of the window, as indices into the grid
GROWTH = 0.3  # b of the radius law
SCALE = 5.0  # coordinates are divided by it


@dataclass(frozen=True, eq=False)
class ForecastTask:
    """Series seen in a window, and what they were, and went on to be, in truth.

    Attributes:
        observed: noisy, irregular, incomplete, inside the window: all that a model may see.
        clean: the series without noise on a regular grid, in the window and beyond.
        window: time at which the window ends: clean times up to it are to be fitted, later ones
            to be extrapolated.

    Raises:
        InputError: the two differ in number of series or coordinates, or an observation lies
            beyond the window.
    """

    observed: IrregularSeries
    clean: IrregularSeries
    window: float

    def __post_init__(self) -> None:
        o, c = self.observed, self.clean
        if len(o) != len(c) or o.coordinates != c.coordinates:
            raise InputError(f"observed is {o}, but clean is {c}: they must be of the same series")
        if bool((o.times > self.window).any()):
            raise InputError(f"an observation lies beyond the end of the window, {self.window:g}")

    def __len__(self) -> int:
        return len(self.observed)

    def __getitem__(self, index: Index) -> ForecastTask:
        """Some of the series, see :meth:`IrregularSeries.__getitem__`."""
        rows = as_rows(index, len(self), self.observed.times.device)
        return ForecastTask(self.observed[rows], self.clean[rows], self.window)

    def split(self, fractions: Sequence[float], seed: int) -> tuple[ForecastTask, ...]:
        """Disjoint random parts, see :func:`pynode.data.series.split_rows`."""
        return tuple(self[rows] for rows in split_rows(len(self), fractions, seed))


def spirals(
    n_series: int = 1000,
    observed: int = 30,
    noise: float = 0.03,
    missing: float = 0.0,
    seed: int = 0,
    *,
    window_points: int = 100,
    beyond_points: int = 100,
) -> ForecastTask:
    """Spirals after Chen et al. 2018, Neural Ordinary Differential Equations, section 5.1.

    Half of them turn clockwise, r = 50 b / θ about (-5, 0) with the angle θ = 6π + 1 - t, half
    counter-clockwise, r = b θ about (5, 0) with θ = t; b = 0.3, and all coordinates are divided
    by 5. Of 500 values of t on [0, 6π], a window of ``window_points`` starts at a random index
    from 50 to 249. The paper does not say its scale, noise and starts; these are ours.

    Args:
        n_series: number of spirals; which of them turn which way is random.
        observed: observations a series, drawn without replacement from the window's points.
        noise: standard deviation of the Gaussian noise on each coordinate of an observation.
        missing: probability that a coordinate of an observation is dropped. Where both would be,
            one of them, chosen at random, stays: a share of missing - missing²/2 is dropped.
        seed: the same seed gives the same task, and does not touch torch's global generator.
        window_points, beyond_points: points of the clean series in the window and beyond it.

    Returns:
        A :class:`ForecastTask` in float32, whose times start at 0 at the start of the window and
        are in units of t.

    Raises:
        InputError: a number is out of its range.
    """
    _check(n_series, observed, noise, missing, window_points, beyond_points)
    generator = torch.Generator().manual_seed(seed)
    count = window_points + beyond_points
    start = torch.randint(FIRST_START, LAST_START + 1, (n_series,), generator=generator)
    clockwise = torch.randperm(n_series, generator=generator) < n_series // 2
    step = SPAN / (GRID - 1)
    t = (start.unsqueeze(1) + torch.arange(count)).double() * step
    x = _positions(t, clockwise).float()
    times = (torch.arange(count).double() * step).float().expand(n_series, -1)

    chosen = torch.rand(n_series, window_points, generator=generator, dtype=torch.float32).argsort(
        dim=1
    )
    chosen = chosen[:, :observed].sort(dim=1).values
    seen = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    seen = seen + noise * torch.randn(seen.shape, generator=generator, dtype=torch.float32)
    return ForecastTask(
        observed=IrregularSeries(times.gather(1, chosen), seen, _kept(seen, missing, generator)),
        clean=IrregularSeries(times, x, torch.ones_like(x, dtype=torch.bool)),
        window=float(times[0, window_points - 1]),
    )


def _positions(t: Tensor, clockwise: Tensor) -> Tensor:
    """Coordinates (B, N, 2) at the parameters t (B, N)."""
    way = clockwise.unsqueeze(1)
    angle = torch.where(way, SPAN + 1 - t, t)
    radius = torch.where(way, 50 * GROWTH / angle, GROWTH * angle)
    x = radius * angle.cos() + torch.where(way, -5.0, 5.0)
    return torch.stack([x, radius * angle.sin()], dim=-1) / SCALE


def _kept(values: Tensor, missing: float, generator: torch.Generator) -> Tensor:
    """Which coordinates stay: all but a random share, and at least one of each observation."""
    draw = torch.rand(values.shape, generator=generator, dtype=torch.float32)
    return (draw >= missing) | (draw == draw.max(dim=-1, keepdim=True).values)


def _check(
    n_series: int, observed: int, noise: float, missing: float, window: int, beyond: int
) -> None:
    if n_series < 1:
        raise InputError(f"n_series={n_series}: at least one is needed")
    if window < 1 or beyond < 0 or LAST_START + window + beyond > GRID:
        raise InputError(
            f"window_points={window} and beyond_points={beyond}: at least 1 and 0, and together "
            f"at most {GRID - LAST_START}, the points after the last start"
        )
    if not 1 <= observed <= window:
        raise InputError(
            f"observed={observed}: the window has {window} points, of which 1 to {window} can be "
            "observed"
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"noise={noise}: a standard deviation is a finite number, 0 or more")
    if not 0 <= missing < 1:
        raise InputError(f"missing={missing}: a probability in [0, 1) is needed")
