"""Intervals that hold what they promise on data the network did not learn from.

Split conformal prediction (Vovk, Gammerman, Shafer 2005; Lei et al. 2018) with the network's own
standard deviation as the scale: on the validation windows, half-widths are multiplied by the factor
that lets intervals of 80 % hold 80 % of the values, one factor for each stretch of the horizon.
What n errors tell of one more is corrected for as if there were one for each series: those of one
series are alike. Overlapping windows are not independent and series drift, so this is a
calibration, no guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.8  # coverage that is matched in each stretch of the horizon
GRID: tuple[float, ...] = (*(round(0.02 * k, 2) for k in range(1, 50)), 0.99, 0.995)
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_BINS, _FEWEST = 5, 100
_FEWEST_SERIES = 5  # of fewer nothing can be said about another one


@dataclass(frozen=True, eq=False)
class Residuals:
    """Errors on windows, each array (n, C), NaN where nothing was observed.

    Attributes:
        ahead: (n,), time from the nearest known row, in the network's units; negative inside.
        error: value minus prediction.
        std: the network's own standard deviation.
        series: (n,), which series each belongs to.
    """

    ahead: np.ndarray
    error: np.ndarray
    std: np.ndarray
    series: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibration:
    """Half-widths of intervals.

    Attributes:
        inside: (C,), factor on the network's std between known rows.
        near: inside means no farther than this from a known row.
        ahead: (K,), middles of the stretches of the horizon.
        factors: (K, C).
        shape: (len(GRID), C), half-widths for each coverage in ``GRID``, in calibrated stds.
    """

    inside: np.ndarray
    near: float
    ahead: np.ndarray
    factors: np.ndarray
    shape: np.ndarray

    def std(self, ahead: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Calibrated standard deviations (n, C), such that ± 1.28 of them hold 80 %.

        Args:
            ahead: (n,), see :class:`Residuals`.
            std: (n, C), the network's own.
        """
        distance = np.abs(ahead)
        factor = np.empty_like(std)
        for c in range(std.shape[1]):
            factor[:, c] = np.interp(distance, self.ahead, self.factors[:, c])
        # Beyond what was calibrated, as a random walk spreads.
        factor *= np.sqrt(np.maximum(distance / self.ahead[-1], 1.0))[:, None]
        between = (ahead < 0) & (distance <= self.near)
        return std * np.where(between[:, None], self.inside, factor)

    def half_width(self, coverage: float) -> np.ndarray:
        """(C,) half-width of an interval with that coverage, in calibrated stds."""
        grid = np.array([0.0, *GRID])
        table = np.concatenate([np.zeros((1, self.shape.shape[1])), self.shape])
        found = np.array([np.interp(coverage, grid, column) for column in table.T])
        if coverage > GRID[-1]:  # beyond what can be counted: a Gaussian's tail
            normal = NormalDist()
            found *= normal.inv_cdf(0.5 + coverage / 2) / normal.inv_cdf(0.5 + GRID[-1] / 2)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "inside": self.inside.tolist(),
            "near": self.near,
            "ahead": self.ahead.tolist(),
            "factors": self.factors.tolist(),
            "shape": self.shape.tolist(),
        }

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Calibration:
        """From :meth:`as_dict`."""
        arrays = {k: np.array(v, dtype=np.float64) for k, v in saved.items() if k != "near"}
        return Calibration(near=float(saved["near"]), **arrays)


def calibrate(residuals: Residuals, horizon: float) -> Calibration:
    """Learn half-widths from errors on validation windows.

    Args:
        residuals: the errors.
        horizon: in the network's units.
    """
    ahead, columns = residuals.ahead, residuals.error.shape[1]
    future = ahead > 0
    inside = ahead <= 0
    near = 3 * float(np.quantile(-ahead[inside], 0.9)) if inside.any() else 0.0
    ratio = np.abs(residuals.error) / residuals.std
    count = len(np.unique(residuals.series))
    edges = _edges(ahead[future])
    middles, factors = [], []
    everything = np.array([_factor(ratio[:, c], count) for c in range(columns)])
    for low, high in pairwise(edges):
        chosen = future & (ahead > low) & (ahead <= high)
        middles.append(float(np.median(ahead[chosen])) if chosen.any() else (low + high) / 2)
        factors.append([_factor(ratio[chosen, c], count, everything[c]) for c in range(columns)])
    factors = _smoothed(factors)
    if not middles:
        middles, factors = [horizon], [everything.tolist()]
    first = Calibration(
        inside=np.array([_factor(ratio[inside, c], count, everything[c]) for c in range(columns)]),
        near=near,
        ahead=np.array(middles),
        factors=np.array(factors),
        shape=np.zeros((len(GRID), columns)),
    )
    scaled = np.abs(residuals.error) / first.std(ahead, residuals.std)
    normal = NormalDist()
    gaussian = [normal.inv_cdf(0.5 + p / 2) for p in GRID]
    shape = np.array([[_quantile(scaled[:, c], p, count, g) for c in range(columns)]
                      for p, g in zip(GRID, gaussian, strict=True)])  # fmt: skip
    return Calibration(first.inside, near, first.ahead, first.factors, np.maximum.accumulate(shape))


def _smoothed(factors: list[list[float]]) -> list[list[float]]:
    """Each stretch's factor, averaged with those beside it: a stretch has few errors of its own."""
    if len(factors) < 3:
        return factors
    table = np.array(factors)
    padded = np.concatenate([table[:1], table, table[-1:]])
    return (0.25 * padded[:-2] + 0.5 * table + 0.25 * padded[2:]).tolist()


def _edges(ahead: np.ndarray) -> np.ndarray:
    """Stretches of the horizon with about as many errors in each."""
    if len(ahead) == 0:
        return np.array([])
    bins = int(np.clip(len(ahead) // _FEWEST, 1, _BINS))
    inner = np.quantile(ahead, np.linspace(0, 1, bins + 1))[1:]
    return np.unique(np.r_[0.0, inner])


def _quantile(ratio: np.ndarray, level: float, series: int, default: float) -> float:
    """The conformal quantile of errors, ``default`` for few.

    With n independent errors it is the k-th smallest, k = ⌈(n + 1)·level⌉. Here only the series are
    independent, so it is the share ⌈(series + 1)·level⌉ / series of all errors, at most all.
    """
    known = np.sort(ratio[np.isfinite(ratio)])
    n = series if series >= _FEWEST_SERIES else len(known)
    share = np.ceil((n + 1) * level) / max(n, 1)
    if len(known) < 5 or (n == len(known) and share > 1):
        return default
    return float(known[int(np.ceil(min(share, 1.0) * len(known))) - 1])


def _factor(ratio: np.ndarray, series: int, default: float = 1.0) -> float:
    return max(_quantile(ratio, LEVEL, series, default * _Z) / _Z, 1e-6)
