"""From windows to predictions and their errors, in the network's units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pynode.data.series import IrregularSeries
from pynode.fitting.calibration import Residuals
from pynode.fitting.networks import WindowModel
from pynode.fitting.windows import Window, pack

DRAWS = 40  # of the latent state
_CHUNK = 32  # windows predicted at once
_STONES = 400  # points that a recurrent network steps over, at most


@dataclass(frozen=True, eq=False)
class Answer:
    """Predictions at the times that a window was asked for.

    Attributes:
        mean, std: (Q, C); the std is that of an observation under the network's own likelihood,
            with the spread of its draws, or 1 where it has none.
        ahead: (Q,), time from the nearest known row, negative before the last one.
    """

    mean: np.ndarray
    std: np.ndarray
    ahead: np.ndarray


@torch.no_grad()
def answers(
    model: WindowModel,
    windows: Sequence[Window],
    times: Sequence[np.ndarray],
    gap: float,
    seed: int = 0,
) -> list[Answer]:
    """Predict each window at its own ``times`` (any order), in the network's units.

    Args:
        gap: a typical time between rows, over which recurrent networks step.
        seed: of the draws.
    """
    model.eval()
    found: list[Answer] = []
    for first in range(0, len(windows), _CHUNK):
        some = windows[first : first + _CHUNK]
        found += _chunk(model, some, times[first : first + _CHUNK], gap, seed)
    return found


def _chunk(
    model: WindowModel,
    windows: Sequence[Window],
    times: Sequence[np.ndarray],
    gap: float,
    seed: int,
) -> list[Answer]:
    packed = pack([_known_only(w) for w in windows])
    asked = [np.unique(np.asarray(t, dtype=np.float32)) for t in times]
    grids = [np.union1d(t, _stones(t, gap)) for t in asked] if model.steps else asked
    longest = max(len(t) for t in grids)
    at = torch.full((len(grids), longest), math.nan)
    for row, t in zip(at, grids, strict=True):
        row[: len(t)] = torch.from_numpy(t)
    mean, std = _moments(model, packed, at, seed)
    out = []
    for i, (w, t) in enumerate(zip(windows, times, strict=True)):
        slot = np.searchsorted(grids[i], np.asarray(t, dtype=np.float32))
        out.append(Answer(mean[i][slot], std[i][slot], _ahead(w.known_times, np.asarray(t))))
    return out


def _moments(
    model: WindowModel, packed: IrregularSeries, at: torch.Tensor, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if not model.random:
        found = model.predict(packed, at)
        std = torch.ones_like(found.mean) if found.std is None else found.std
        return found.mean.double().numpy(), std.double().numpy()
    # All draws of all windows are one solve.
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(packed)).repeat(DRAWS)
    found = model.predict(packed[rows], at[rows], generator)
    assert found.std is not None
    means = found.mean.double().unflatten(0, (DRAWS, len(packed)))
    variance = means.var(dim=0) + found.std[: len(packed)].double().square()
    return means.mean(dim=0).numpy(), variance.sqrt().numpy()


def _known_only(window: Window) -> Window:
    none = np.empty(0)
    return Window(
        window.place,
        window.known_times,
        window.known,
        none,
        np.empty((0, window.known.shape[1])),
        window.level,
        window.static,
    )


def _stones(times: np.ndarray, gap: float) -> np.ndarray:
    """Times between the origin and the last that is asked for, ``gap`` apart."""
    last = float(times.max()) if len(times) else 0.0
    if last <= 0:
        return np.empty(0, dtype=np.float32)
    count = int(np.clip(last / max(gap, 1e-9), 1, _STONES))
    return np.linspace(last / count, last, count).astype(np.float32)


def _ahead(known: np.ndarray, times: np.ndarray) -> np.ndarray:
    right = np.searchsorted(known, times).clip(max=len(known) - 1)
    left = (right - 1).clip(min=0)
    distance = np.minimum(np.abs(times - known[left]), np.abs(times - known[right]))
    return np.where(times > known[-1], distance, -distance)


def residuals(
    model: WindowModel, windows: Sequence[Window], gap: float, seed: int = 0
) -> list[Residuals]:
    """Errors of each window at all that it was asked for."""
    found = answers(model, windows, [w.asked_times for w in windows], gap, seed)
    return [
        Residuals(a.ahead, w.asked - a.mean, a.std, np.full(len(a.ahead), w.place.series))
        for w, a in zip(windows, found, strict=True)
    ]


def together(parts: Sequence[Residuals]) -> Residuals:
    """The errors of all windows."""
    return Residuals(
        np.concatenate([p.ahead for p in parts]),
        np.concatenate([p.error for p in parts]),
        np.concatenate([p.std for p in parts]),
        np.concatenate([p.series for p in parts]),
    )
