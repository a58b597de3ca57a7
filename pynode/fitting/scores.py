"""How good forecasts are, and whether a difference between two models is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pynode.fitting.calibration import Calibration, Residuals
from pynode.fitting.windows import Frame, Window

COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_LEVELS = np.round(np.arange(0.05, 1.0, 0.05), 2)
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Scores:
    """Errors on held-out windows, in the data's own units where not said otherwise.

    Attributes:
        by_value: for each value ``rmse``, ``mae``, ``crps`` and ``coverage_10`` to ``coverage_95``
            beyond the origin, and ``rmse_inside`` for hidden rows before it; None where there
            was nothing.
        relative: RMSE beyond the origin in standard deviations of the training data, the root
            mean square over values: what models are compared by.
        squares: (W,), the squares that ``relative`` is made of, a mean for each window.
        groups: (W,), windows that share one do not count as independent.
        n_windows: how many windows; n_values: how many values beyond the origin.
    """

    by_value: dict[str, dict[str, float | None]]
    relative: float
    squares: np.ndarray
    groups: np.ndarray
    n_windows: int
    n_values: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "by_value": self.by_value,
            "relative": self.relative,
            "squares": self.squares.tolist(),
            "groups": self.groups.tolist(),
            "n_windows": self.n_windows,
            "n_values": self.n_values,
        }

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Scores:
        """From :meth:`as_dict`."""
        return Scores(**saved | {k: np.array(saved[k]) for k in ("squares", "groups")})


def score(
    names: Sequence[str],
    windows: Sequence[Window],
    parts: Sequence[Residuals],
    calibration: Calibration,
    scale: np.ndarray,
    deviation: np.ndarray,
    frame: Frame,
) -> Scores:
    """Score the errors ``parts`` on ``windows``.

    Args:
        scale: (C,), units of the errors; deviation: (C,), that of the training data.
    """
    ahead = np.concatenate([p.ahead for p in parts])
    error = np.concatenate([p.error for p in parts])
    std = calibration.std(ahead, np.concatenate([p.std for p in parts]))
    future = ahead > 0
    by_value = {
        name: _of_value(
            error[:, c] * scale[c],
            std[:, c] * scale[c],
            future,
            np.array([calibration.half_width(p)[c] for p in COVERAGES]),
            np.array(
                [calibration.half_width(abs(2 * p - 1))[c] * np.sign(p - 0.5) for p in _LEVELS]
            ),
        )
        for c, name in enumerate(names)
    }
    squares = np.array([_mean_square(p, scale / deviation) for p in parts])
    known = np.isfinite(squares)
    return Scores(
        by_value=by_value,
        relative=float(np.sqrt(squares[known].mean())) if known.any() else float("nan"),
        squares=squares[known],
        groups=np.array([_group(w, frame) for w in windows], dtype=np.int64)[known],
        n_windows=int(known.sum()),
        n_values=int(np.isfinite(error[future]).sum()),
    )


def _mean_square(part: Residuals, factor: np.ndarray) -> float:
    squares = np.square(part.error[part.ahead > 0] * factor)
    known = np.isfinite(squares)
    return float(squares[known].mean()) if known.any() else float("nan")


def _group(window: Window, frame: Frame) -> int:
    """Windows of one series whose origins lie within one horizon overlap: they are one group."""
    block = int(window.place.origin // max(frame.horizon, 1e-300)) % 1_000_003
    return window.place.series * 1_000_003 + block


def _of_value(
    error: np.ndarray,
    std: np.ndarray,
    future: np.ndarray,
    widths: np.ndarray,
    quantiles: np.ndarray,
) -> dict[str, float | None]:
    known = np.isfinite(error)
    ahead, inside = error[future & known], error[~future & known]
    found: dict[str, float | None] = {
        "rmse": _root_mean_square(ahead),
        "mae": float(np.abs(ahead).mean()) if len(ahead) else None,
        "crps": None,
        "rmse_inside": _root_mean_square(inside),
    }
    width = std[future & known]
    for coverage, half in zip(COVERAGES, widths, strict=True):
        held = float((np.abs(ahead) <= half * width).mean()) if len(ahead) else None
        found[f"coverage_{100 * coverage:.0f}"] = held
    if len(ahead):
        # The CRPS is twice the mean pinball loss over all levels (Gneiting, Raftery 2007).
        miss = ahead[:, None] - width[:, None] * quantiles
        pinball = np.where(miss >= 0, _LEVELS * miss, (_LEVELS - 1) * miss)
        found["crps"] = float(2 * pinball.mean())
    return found


def _root_mean_square(error: np.ndarray) -> float | None:
    return float(np.sqrt(np.square(error).mean())) if len(error) else None


@dataclass(frozen=True)
class Difference:
    """One model's relative RMSE minus another's.

    Attributes:
        value: the difference; below 0 the first is better.
        low, high: its 95 % interval; NaN with fewer than 3 independent groups.
        groups: how many of these there are.
    """

    value: float
    low: float
    high: float
    groups: int

    @property
    def beyond_chance(self) -> bool | None:
        """Whether 0 lies outside the interval; None where that cannot be told."""
        if self.groups < 3:
            return None
        return not self.low <= 0 <= self.high


def difference(first: Scores, second: Scores, seed: int = 0) -> Difference:
    """Compare two models on the same windows, by a bootstrap over groups (Efron 1979)."""
    value = first.relative - second.relative
    groups, index = np.unique(first.groups, return_inverse=True)
    n = len(groups)
    if n < 3 or len(first.squares) != len(second.squares):
        return Difference(value, float("nan"), float("nan"), n)
    sums = np.zeros((n, 3))
    np.add.at(sums, index, np.stack([first.squares, second.squares, np.ones(len(index))], 1))
    rng = np.random.default_rng(seed)
    draws = sums[rng.integers(0, n, size=(_RESAMPLES, n))].sum(axis=1)
    differences = np.sqrt(draws[:, 0] / draws[:, 2]) - np.sqrt(draws[:, 1] / draws[:, 2])
    low, high = np.quantile(differences, [0.025, 0.975])
    return Difference(value, float(low), float(high), n)
