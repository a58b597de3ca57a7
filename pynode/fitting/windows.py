"""Windows: what is known up to an origin, and what is to be predicted after it.

Times are counted from the origin, so that a network meets the same task wherever a window lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pynode.data.frames import SeriesTable
from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.fitting.scaling import Scaling, level_of

MOST_READ, MOST_ASKED = 500, 300  # rows of a window: the last before, an even choice after
SPAN = 12.0  # units of the network's time in a whole window


@dataclass(frozen=True)
class Frame:
    """The sizes of a window.

    Attributes:
        context: how far back from the origin it reads, in the table's units of time.
        horizon: how far ahead it predicts.
        unit: one unit of the network's time.
    """

    context: float
    horizon: float
    unit: float

    @staticmethod
    def of(context: float, horizon: float) -> Frame:
        """With ``SPAN`` units of the network's time in a window."""
        return Frame(context, horizon, (context + horizon) / SPAN)


@dataclass(frozen=True)
class Place:
    """Where a window is.

    Attributes:
        series: its row in the table.
        origin: the last moment that may be known.
        until: the last moment that may be asked for.
    """

    series: int
    origin: float
    until: float


@dataclass(frozen=True, eq=False)
class Window:
    """One window in the network's units.

    Attributes:
        place: where it is.
        known_times (n,), known (n, C): what is read, times ≤ 0, NaN where missing.
        asked_times (m,), asked (m, C): all that is scored, inside the window and after.
        level: (C,), taken out of all values (0 unless centred).
        static: (S,), NaN where missing.
    """

    place: Place
    known_times: np.ndarray
    known: np.ndarray
    asked_times: np.ndarray
    asked: np.ndarray
    level: np.ndarray
    static: np.ndarray


def cut(
    table: SeriesTable,
    scaling: Scaling,
    frame: Frame,
    place: Place,
    drop: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Window | None:
    """The window at ``place``, or None where nothing is known before, or nothing to be asked.

    Args:
        drop: share of the known rows that are hidden, to be asked for only.
        rng: for ``drop``.
    """
    times, values = table.times[place.series], table.values[place.series]
    first = np.searchsorted(times, place.origin - frame.context, side="left")
    last = np.searchsorted(times, min(place.origin + frame.horizon, place.until), side="right")
    times, values = times[first:last], values[first:last]
    there = np.isfinite(values).any(axis=1)
    times, values = times[there], values[there]
    before = times <= place.origin
    early = np.flatnonzero(before)[:-MOST_READ]
    late = np.flatnonzero(~before)
    if len(late) > MOST_ASKED:
        late = late[np.linspace(0, len(late) - 1, MOST_ASKED).astype(int)]
    if len(early) or len(late) < (~before).sum():
        chosen = before.copy()
        chosen[early] = False
        chosen[late] = True
        times, values, before = times[chosen], values[chosen], before[chosen]
    read = before.copy()
    if drop > 0 and rng is not None and before.sum() > 2:
        hidden = rng.random(len(times)) < drop
        hidden[rng.choice(np.flatnonzero(before))] = False
        read &= ~hidden
    if not read.any():
        return None
    reduced = scaling.reduced(times, values)
    level = level_of(reduced[read]) if scaling.centred else np.zeros(reduced.shape[1])
    reduced = reduced - level
    since = (times - place.origin) / frame.unit
    return Window(
        place,
        since[read],
        reduced[read],
        since[~read],
        reduced[~read],
        level,
        table.static[place.series],
    )


def places(
    table: SeriesTable,
    frame: Frame,
    count: int,
    rng: np.random.Generator,
    after: float = -np.inf,
    until: float = np.inf,
) -> list[Place]:
    """Random places for windows whose future lies in (after, until].

    An origin is drawn from where at least one moment is known before it and one is to come. Each
    series has at least one window, if it has room for any; longer ones have more.
    """
    rooms = []
    for b, t in enumerate(table.times):
        end = min(until, float(t[-1]))
        inside = t[(t > after) & (t <= end)]
        if len(t) < 2 or len(inside) == 0:
            continue
        # With only a row or two known, nobody could forecast anything.
        low = max(after, float(t[min(max(2, min(len(t) // 4, 10)), len(t) - 2)]))
        # At least the start of the future must be there; where there is room, all of it.
        high = max(low, min(end - frame.horizon, end))
        high = high if high > low else max(low, float(inside[-1]) - 0.5 * (float(inside[-1]) - low))
        if float(inside[-1]) > low:
            rooms.append((b, low, high, end))
    if not rooms:
        return []
    weights = np.array(
        [max(high - low, 1e-9 * max(frame.horizon, 1e-300)) for _, low, high, _ in rooms]
    )
    each = np.ones(len(rooms), dtype=int)
    extra = max(0, count - len(rooms))
    each += rng.multinomial(extra, weights / weights.sum())
    found = []
    for (b, low, high, end), n in zip(rooms, each, strict=True):
        for origin in np.sort(rng.uniform(low, high, size=n)) if high > low else [low] * min(n, 4):
            found.append(Place(b, float(origin), end))
    return found


def pack(windows: Sequence[Window]) -> IrregularSeries:
    """Windows as series: C values, S static covariates, and whether a row is read.

    The last coordinate is 1 in rows that the network reads, 0 in those that it is only asked for.
    """
    if not windows:
        raise InputError("no window fits into the series: they are too short for the horizon")
    times, values = [], []
    for w in windows:
        t = np.concatenate([w.known_times, w.asked_times])
        x = np.concatenate([w.known, w.asked])
        flag = np.r_[np.ones(len(w.known_times)), np.zeros(len(w.asked_times))]
        order = np.argsort(t, kind="stable")
        static = np.broadcast_to(w.static, (len(t), len(w.static)))
        rows = np.concatenate([x, static, flag[:, None]], axis=1)[order]
        moments = t[order].astype(np.float32)
        distinct = np.r_[True, np.diff(moments) > 0]  # float32 may put two moments in one
        times.append(torch.from_numpy(moments[distinct]))
        values.append(torch.from_numpy(rows[distinct].astype(np.float32)))
    return IrregularSeries.from_ragged(times, values)
