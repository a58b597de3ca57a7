"""What is taken out of a table's values before a network sees them, and put back after.

A linear trend and seasons of known periods, both by least squares, then the standard deviation:
networks of this size neither learn that a series climbs for forty years nor count its winters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pynode.data.frames import SeriesTable
from pynode.errors import InputError

HARMONICS = 3  # of a season, at most
CALENDAR = (365.2425, 7.0, 1.0)  # days: periods that timestamps are likely to have
_PERIODOGRAM_POINTS = 3000  # at most; of a longer table a regular share is used
_FREQUENCIES = 20_000
_RIDGE = 1e-8


@dataclass(frozen=True)
class Shape:
    """Trend and season to be taken out.

    Attributes:
        trend: whether there is a linear trend.
        periods: of the seasons, in units of the table's times.
        harmonics: of each season, as many as the sampling resolves.
    """

    trend: bool = False
    periods: tuple[float, ...] = ()
    harmonics: tuple[int, ...] = ()

    def design(self, times: np.ndarray, origin: float, span: float) -> np.ndarray:
        """Regressors (n, p) at ``times`` (n,)."""
        since = np.asarray(times, dtype=np.float64) - origin
        columns = [since / span] if self.trend else []
        for period, count in zip(self.periods, self.harmonics, strict=True):
            for k in range(1, count + 1):
                angle = 2 * np.pi * k * since / period
                columns += [np.cos(angle), np.sin(angle)]
        return np.stack(columns, axis=1) if columns else np.empty((len(since), 0))


@dataclass(frozen=True, eq=False)
class Scaling:
    """From the data's units to the network's and back.

    A value x of column c at time t is level + design(t)·coefficients + scale·y; the level is the
    mean of the training data, or, with ``centred``, that of what is known in each window.

    Attributes:
        shape: what is taken out.
        origin, span: of the times in the design.
        coefficients: (p, C).
        mean: (C,), of the training data after that.
        scale: (C,).
        centred: whether each window is counted from its own level.
    """

    shape: Shape
    origin: float
    span: float
    coefficients: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    centred: bool

    def reduced(self, times: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values (n, C) without trend, season and mean, in units of ``scale``."""
        return (values - self.regular(times)) / self.scale

    def regular(self, times: np.ndarray) -> np.ndarray:
        """Trend, season and mean (n, C)."""
        design = self.shape.design(times, self.origin, self.span)
        return design @ self.coefficients + self.mean

    def restored(self, times: np.ndarray, reduced: np.ndarray) -> np.ndarray:
        """What :meth:`reduced` undoes; any leading dimensions, (…, n, C)."""
        return reduced * self.scale + self.regular(times)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "trend": self.shape.trend,
            "periods": list(self.shape.periods),
            "harmonics": list(self.shape.harmonics),
            "origin": self.origin,
            "span": self.span,
            "coefficients": self.coefficients.tolist(),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "centred": self.centred,
        }

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Scaling:
        """From :meth:`as_dict`."""
        shape = Shape(saved["trend"], tuple(saved["periods"]), tuple(saved["harmonics"]))
        mean = np.array(saved["mean"], dtype=np.float64)
        return Scaling(
            shape,
            saved["origin"],
            saved["span"],
            np.array(saved["coefficients"], dtype=np.float64).reshape(-1, len(mean)),
            mean,
            np.array(saved["scale"], dtype=np.float64),
            saved["centred"],
        )


def learn_scaling(table: SeriesTable, shape: Shape, centred: bool) -> Scaling:
    """Fit trend and season to all series at once, each about a level of its own."""
    origin = min(float(t[0]) for t in table.times)
    span = max(max(float(t[-1]) for t in table.times) - origin, 1e-12)
    coefficients = _regression(table, shape, origin, span)
    rest = [
        x - shape.design(t, origin, span) @ coefficients
        for t, x in zip(table.times, table.values, strict=True)
    ]
    stacked = np.concatenate(rest)
    for name, known in zip(table.names, np.isfinite(stacked).any(axis=0), strict=True):
        if not known:
            raise InputError(
                f"{name!r} has no value in the part to learn from: leave it out, or hold out less"
            )
    mean = level_of(stacked)
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = np.concatenate([x - level_of(x) for x in rest]) if centred else stacked - mean
        scale = np.sqrt(level_of(np.square(deviations)))
    if not (np.isfinite(scale).all() and np.isfinite(mean).all()):
        raise InputError("the values are too large to be worked with: give them in other units")
    # A constant column has nothing to be scaled by.
    tiny = scale <= 1e-9 * np.maximum(np.abs(mean), 1e-290)
    return Scaling(shape, origin, span, coefficients, mean, np.where(tiny, 1.0, scale), centred)


def level_of(values: np.ndarray) -> np.ndarray:
    """Means (C,) of what is known in (n, C); 0 where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _regression(table: SeriesTable, shape: Shape, origin: float, span: float) -> np.ndarray:
    """Coefficients (p, C), within series."""
    n_columns = len(table.names)
    width = shape.design(np.zeros(1), origin, span).shape[1]
    if width == 0:
        return np.zeros((0, n_columns))
    coefficients = np.zeros((width, n_columns))
    for c in range(n_columns):
        gram, moment = np.zeros((width, width)), np.zeros(width)
        for t, x in zip(table.times, table.values, strict=True):
            known = np.isfinite(x[:, c])
            if known.sum() < 2:
                continue
            design = shape.design(t[known], origin, span)
            design = design - design.mean(axis=0)
            gram += design.T @ design
            moment += design.T @ (x[known, c] - x[known, c].mean())
        gram += _RIDGE * max(np.trace(gram), 1e-12) / width * np.eye(width)
        coefficients[:, c] = np.linalg.solve(gram, moment)
    return coefficients


# -- finding periods --------------------------------------------------------------------------


def find_period(table: SeriesTable, shape: Shape) -> float | None:
    """The period that explains most of what ``shape`` leaves, by a least-squares periodogram.

    Lomb 1976, Scargle 1982: for uneven times. At least three periods must fit into the table, and
    two of its typical gaps into a period.

    Returns:
        The period, or None if there is no room for one, or none explains a tenth of the variance.
    """
    scaling = learn_scaling(table, shape, centred=True)
    times, rest = _pooled(table, scaling)
    duration = float(np.median([t[-1] - t[0] for t in table.times]))
    gap = float(np.median(table.gaps)) if len(table.gaps) else 0.0
    if len(times) < 20 or gap <= 0 or duration < 8 * gap:
        return None
    lowest, highest = 3 / duration, 0.5 / gap
    if highest <= lowest:
        return None
    step = 0.2 / duration
    # Of a very long table only the long periods: windows are long enough to learn short ones from.
    count = min(int((highest - lowest) / step) + 1, _FREQUENCIES)
    frequencies = lowest + step * np.arange(count)
    power = _power(times, rest, frequencies)
    best = frequencies[int(power.argmax())]
    fine = np.linspace(best - step, best + step, 81)
    fine_power = _power(times, rest, fine)
    if fine_power.max() < 0.1:
        return None
    period = 1 / float(fine[int(fine_power.argmax())])
    if table.clock.timestamps:
        near = [p for p in CALENDAR if abs(1 / p - 1 / period) < 0.5 / duration]
        period = near[0] if near else period
    return period


def harmonics_of(table: SeriesTable, period: float) -> int:
    """How many harmonics the sampling resolves."""
    gap = float(np.median(table.gaps)) if len(table.gaps) else period
    return int(np.clip(period / (4 * max(gap, 1e-300)), 1, HARMONICS))


def _pooled(table: SeriesTable, scaling: Scaling) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) and rests (n, C) about each series' mean, 0 where missing."""
    rests = []
    for t, x in zip(table.times, table.values, strict=True):
        reduced = scaling.reduced(t, x)
        rests.append(np.nan_to_num(reduced - level_of(reduced)))
    times, rest = np.concatenate(table.times), np.concatenate(rests)
    every = -(-len(times) // _PERIODOGRAM_POINTS)
    if every > 1:  # at random places: regular ones would fold high frequencies onto low ones
        chosen = np.random.default_rng(0).choice(len(times), _PERIODOGRAM_POINTS, replace=False)
        times, rest = times[chosen], rest[chosen]
    return times - times.mean(), rest


def _power(times: np.ndarray, rest: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Share of the variance that each frequency explains, the mean over columns."""
    total = np.square(rest).sum(axis=0)
    shares: list[float] = []
    for some in np.array_split(frequencies, max(1, len(frequencies) // 500)):
        angle = 2 * np.pi * some[:, None] * times
        c, s = np.cos(angle), np.sin(angle)
        cc, ss, cs = (c * c).sum(1), (s * s).sum(1), (c * s).sum(1)
        xc, xs = c @ rest, s @ rest
        det = np.maximum(cc * ss - cs * cs, 1e-9 * len(times) ** 2)
        explained = (ss[:, None] * xc**2 - 2 * cs[:, None] * xc * xs + cc[:, None] * xs**2) / det[
            :, None
        ]
        shares += (explained / np.maximum(total, 1e-300)).mean(axis=1).tolist()
    return np.array(shares)


def calendar_or_given(periods: Sequence[float], table: SeriesTable) -> Shape:
    """A shape with these seasons."""
    return Shape(False, tuple(periods), tuple(harmonics_of(table, p) for p in periods))
