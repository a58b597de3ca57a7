"""One-dimensional periodic series on one irregular grid, to be filled in and forecast."""

from __future__ import annotations

import math

import torch

from pynode.data.series import IrregularSeries
from pynode.data.spirals import ForecastTask
from pynode.errors import InputError

WINDOW = 5.0
LOW, HIGH = 0.4, 0.8  # of the frequency, in periods a unit of time
OFFSET, OFFSET_SD = 1.0, 0.1


def periodic(
    n_series: int = 1000,
    observed: int = 30,
    noise: float = 0.01,
    seed: int = 0,
    *,
    window_points: int = 100,
    beyond_points: int = 100,
) -> ForecastTask:
    """The toy of Rubanova et al. 2019, section 4.1: x(t) = offset + sin 2πft.

    The frequency f is uniform in [0.4, 0.8] and the offset normal about 1 with standard deviation
    0.1, each series its own; all begin with the same phase. All clean points lie on one irregular
    grid that the series share, uniform at random on [0, 5]; beyond it, on [5, 10], is another one.

    Args:
        n_series: number of series.
        observed: observations a series, drawn without replacement from the window's points.
        noise: standard deviation of an observation.
        seed: the same seed gives the same task, and does not touch torch's global generator. The
            grid is the same for all seeds.
        window_points, beyond_points: points of the clean series in the window and beyond it.

    Raises:
        InputError: a number is out of its range.
    """
    if n_series < 1 or not 1 <= observed <= window_points or beyond_points < 1:
        raise InputError(
            f"n_series={n_series}, observed={observed}, window_points={window_points}, "
            f"beyond_points={beyond_points}: at least 1 each, and no more observed than there are "
            "in the window"
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"noise={noise}: a standard deviation is a finite number, 0 or more")
    grid = torch.Generator().manual_seed(0)
    inside = WINDOW * torch.rand(window_points, generator=grid, dtype=torch.float32).sort().values
    beyond = WINDOW * (
        1 + torch.rand(beyond_points, generator=grid, dtype=torch.float32).sort().values
    )
    times = torch.cat([inside, beyond]).expand(n_series, -1)

    generator = torch.Generator().manual_seed(seed)
    frequency = LOW + (HIGH - LOW) * torch.rand(
        n_series, 1, generator=generator, dtype=torch.float32
    )
    offset = OFFSET + OFFSET_SD * torch.randn(n_series, 1, generator=generator, dtype=torch.float32)
    x = (offset + (2 * math.pi * frequency * times).sin()).unsqueeze(-1)
    clean = IrregularSeries(times, x, torch.ones_like(x, dtype=torch.bool))
    return seen_in_window(clean, window_points, observed, WINDOW, noise, generator)


def seen_in_window(
    clean: IrregularSeries,
    window_points: int,
    observed: int,
    window: float,
    noise: float,
    generator: torch.Generator,
) -> ForecastTask:
    """The task of which ``observed`` of the first ``window_points`` points are seen, each series'
    own, all coordinates, with noise."""
    chosen = torch.rand(
        len(clean), window_points, generator=generator, dtype=torch.float32
    ).argsort(dim=1)
    chosen = chosen[:, :observed].sort(dim=1).values
    wide = chosen.unsqueeze(-1).expand(-1, -1, clean.coordinates)
    seen = clean.values.gather(1, wide)
    seen = seen + noise * torch.randn(seen.shape, generator=generator, dtype=torch.float32)
    times = clean.times.gather(1, chosen)
    series = IrregularSeries(times, seen, torch.ones_like(seen, dtype=torch.bool))
    return ForecastTask(series, clean, window)
