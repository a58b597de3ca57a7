"""A fitted model as its owner uses it: tables in, tables out, in the data's own units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from pynode.data.clock import Clock
from pynode.data.frames import SeriesTable, Static, read_series
from pynode.data.tables import Columns, Text
from pynode.errors import InputError
from pynode.fitting.calibration import Calibration
from pynode.fitting.networks import WindowModel
from pynode.fitting.predictor import answers
from pynode.fitting.scaling import Scaling
from pynode.fitting.scores import Scores
from pynode.fitting.windows import Frame, Place, cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.1, 0.5, 0.9)
_MOST_STEPS = 1000  # of a forecast whose grid was not given

Table: TypeAlias = str | Path | pd.DataFrame | SeriesTable
_Times: TypeAlias = Sequence[Any] | np.ndarray | pd.Series | pd.Index


@dataclass(frozen=True, eq=False)
class Reader:
    """How tables for a fitted model are read: as the one that it was fitted on.

    Attributes:
        columns, clock, statics: of that table.
        text: how a CSV file is written.
        gap: the typical time between two of its rows.
    """

    columns: Columns
    clock: Clock
    statics: tuple[Static, ...]
    text: Text
    gap: float

    def read(self, source: Table, need_label: bool = False) -> SeriesTable:
        """The series of another table; one that has been read is taken as it is."""
        if isinstance(source, SeriesTable):
            return source
        columns = self.columns
        if not need_label and columns.label is not None:
            columns = Columns(**{**columns.__dict__, "label": None})
        return read_series(source, columns, text=self.text, clock=self.clock, statics=self.statics)


@dataclass(eq=False)
class Forecaster:
    """A fitted model; made by :func:`pynode.fit` or :func:`pynode.load`.

    Attributes:
        model: the network, on windows.
        reader: how tables are read.
        frame: sizes of a window.
        scaling: what is taken out of the values.
        calibration: of the intervals.
        seed: of the draws behind an interval.
        scores: on what was held out; None if nothing was.
        history: rows of training, one an epoch.
        reasons: what was decided before training, in words.
        hyper: the network's options.
    """

    model: WindowModel
    reader: Reader
    frame: Frame
    scaling: Scaling
    calibration: Calibration
    seed: int
    scores: Scores | None
    history: list[dict[str, Any]]
    reasons: tuple[str, ...]
    hyper: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""
        only = self.reader.columns.only
        return self.reader.columns.values if only is None else only

    def __repr__(self) -> str:
        return (
            f"Forecaster({self.model.name}, {', '.join(self.names)}, "
            f"horizon {self.reader.clock.say(self.frame.horizon)})"
        )

    # -- what it is for -----------------------------------------------------------------------

    def predict(
        self,
        frame: Table,
        at: _Times | Mapping[Hashable, _Times],
        quantiles: Sequence[float] = QUANTILES,
    ) -> pd.DataFrame:
        """Values of all series at the times ``at``, between their rows or after.

        Between rows a latent ODE uses what lies before and after; the other models only what lies
        before.

        Args:
            frame: the table of what is known.
            at: times for all series, or for each by its id.
            quantiles: in (0, 1).

        Returns:
            A row for each series and time: id, time, and for each value x ``x_mean`` and, for each
            quantile q, ``x_q{q}``.

        Raises:
            InputError: the table is not like the one that the model was fitted on, or a time lies
                before all that is known.
        """
        table = self.reader.read(frame)
        return self._table(table, self._asked(table, at), quantiles)

    def forecast(
        self,
        frame: Table,
        horizon: Any = None,
        every: Any = None,
        quantiles: Sequence[float] = QUANTILES,
    ) -> pd.DataFrame:
        """What comes after the last row of each series.

        Args:
            frame: the table of what is known.
            horizon: how far; default: as the model was trained. Beyond that, intervals go on as
                those of a random walk, and the message of ``reasons`` no longer applies.
            every: time between two predictions; default: the typical one of the table.
            quantiles: see :meth:`predict`.

        Returns:
            As :meth:`predict`.
        """
        table = self.reader.read(frame)
        return self._table(table, self._ahead(table, horizon, every), quantiles)

    def impute(
        self, frame: Table, every: Any = None, quantiles: Sequence[float] = ()
    ) -> pd.DataFrame:
        """The table with its missing values filled in; known values stay as they are.

        Args:
            frame: the table.
            every: also fill in rows at this distance from the first row of each series on;
                default: only rows that are there.
            quantiles: of filled-in values, as further columns, NaN where a value was known.

        Returns:
            Sorted by series and time: id, time, values.
        """
        table = self.reader.read(frame)
        if every is not None:
            table = _with_grid(table, table.clock.duration(every, "every"))
        first = [t[np.isfinite(x).any(axis=1).argmax()] for t, x in _pairs(table)]
        holes = [
            t[np.isnan(x).any(axis=1) & (t >= start)]
            for (t, x), start in zip(_pairs(table), first, strict=True)
        ]
        parts = []
        answered = self._many(table, list(enumerate(holes)), quantiles)
        for b, ((t, x), (mean, low)) in enumerate(zip(_pairs(table), answered, strict=True)):
            filled, where = x.copy(), np.isin(t, holes[b])
            hole = np.isnan(x) & where[:, None]
            padded = np.full_like(x, np.nan)
            padded[where] = mean
            filled[hole] = padded[hole]
            columns: dict[str, Any] = self._keys(table, b, t)
            for c, name in enumerate(self.names):
                columns[name] = filled[:, c]
                for q, values in zip(quantiles, low, strict=True):
                    wide = np.full(len(t), np.nan)
                    wide[where] = values[:, c]
                    columns[f"{name}_q{q:g}"] = np.where(hole[:, c], wide, np.nan)
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def plot(self, frame: Table, series: Hashable | None = None, horizon: Any = None) -> Figure:
        """One series with what the model makes of it, and its forecast with intervals.

        Args:
            frame: the table of what is known.
            series: its id; default: the first one.
            horizon: how far ahead; default: as the model was trained.
        """
        from pynode.fitting.figures import series_figure

        table = self.reader.read(frame)
        return series_figure(self, table, _row(table, series), horizon)

    def score(self, frame: Table, after: Any) -> dict[str, dict[str, float]]:
        """Forecast all rows after a moment from those before, and compare.

        Args:
            frame: the table, with the rows that are to be forecast.
            after: the last moment that may be known.

        Returns:
            For each value: ``rmse``, ``mae``, ``coverage_80``, and ``last_value_rmse``, that of
            holding what was seen last.
        """
        whole = self.reader.read(frame)
        moment = whole.clock.at(after, "after")
        past, future = whole.cut(until=moment), whole.cut(after=moment)
        ids = {who: i for i, who in enumerate(past.ids)}
        rows = [(ids[who], b) for b, who in enumerate(future.ids) if who in ids]
        if not rows:
            raise InputError("no series has rows both before and after that moment")
        errors, held, misses = [], [], []
        jobs = [(known, future.times[asked]) for known, asked in rows]
        answered = self._many(past, jobs, (0.1, 0.9))
        for (known, asked), (mean, (low, high)) in zip(rows, answered, strict=True):
            truth = future.values[asked]
            errors.append(truth - mean)
            held.append(np.where(np.isnan(truth), np.nan, (truth >= low) & (truth <= high)))
            misses.append(truth - _last(past.values[known]))
        error, hold, miss = (np.concatenate(x) for x in (errors, held, misses))
        return {
            name: {
                "rmse": float(np.sqrt(np.nanmean(error[:, c] ** 2))),
                "mae": float(np.nanmean(np.abs(error[:, c]))),
                "coverage_80": float(np.nanmean(hold[:, c])),
                "last_value_rmse": float(np.sqrt(np.nanmean(miss[:, c] ** 2))),
            }
            for c, name in enumerate(self.names)
        }

    def save(self, path: str | Path) -> None:
        """Write the model to one file, which :func:`pynode.load` reads."""
        from pynode.fitting.files import save

        save(self, Path(path))

    # -- inside -------------------------------------------------------------------------------

    def _asked(self, table: SeriesTable, at: Any) -> list[np.ndarray]:
        if not isinstance(at, Mapping):
            times = np.sort(table.clock.many(at))
            return [times] * len(table)
        unknown = [who for who in at if who not in table.ids]
        if unknown:
            raise InputError(f"at names the series {unknown[0]!r}, which is not in the table")
        return [
            np.sort(table.clock.many(at[who])) if who in at else np.empty(0) for who in table.ids
        ]

    def _ahead(self, table: SeriesTable, horizon: Any, every: Any) -> list[np.ndarray]:
        length = self.frame.horizon
        if horizon is not None:
            length = table.clock.duration(horizon, "horizon")
        if every is not None:
            step = table.clock.duration(every, "every")
            if length / step > 1e6:
                raise InputError("that would be more than a million predictions a series")
        else:
            step = max(self.reader.gap, length / _MOST_STEPS)
        count = max(1, int(length / step + 1e-9))
        offsets = step * np.arange(1, count + 1)
        return [_last_time(t, x) + offsets for t, x in _pairs(table)]

    def _table(
        self, table: SeriesTable, asked: Sequence[np.ndarray], quantiles: Sequence[float]
    ) -> pd.DataFrame:
        parts = []
        answered = self._many(table, list(enumerate(asked)), quantiles)
        for b, (times, (mean, found)) in enumerate(zip(asked, answered, strict=True)):
            columns = self._keys(table, b, times)
            for c, name in enumerate(self.names):
                columns[f"{name}_mean"] = mean[:, c]
                for q, values in zip(quantiles, found, strict=True):
                    columns[f"{name}_q{q:g}"] = values[:, c]
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def _keys(self, table: SeriesTable, b: int, times: np.ndarray) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        if table.columns.id is not None:
            columns[table.columns.id] = [table.ids[b]] * len(times)
        columns[table.columns.time] = table.clock.restore(times)
        return columns

    def _series(
        self, table: SeriesTable, b: int, times: np.ndarray, quantiles: Sequence[float]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Means (Q, C) and quantiles of series ``b`` at sorted times, in the data's units."""
        return self._many(table, [(b, times)], quantiles)[0]

    def _many(
        self,
        table: SeriesTable,
        asked: Sequence[tuple[int, np.ndarray]],
        quantiles: Sequence[float],
    ) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """As :meth:`_series`, for several series at once."""
        for q in quantiles:
            if not 0 < q < 1:
                raise InputError(f"quantile {q}: must be in (0, 1)")
        jobs = [
            (i, origin, chosen)
            for i, (b, times) in enumerate(asked)
            for origin, chosen in self._origins(table, b, times)
        ]
        windows, at = [], []
        for i, origin, chosen in jobs:
            b, times = asked[i]
            window = cut(table, self.scaling, self.frame, Place(b, origin, origin))
            assert window is not None
            windows.append(window)
            at.append((times[chosen] - origin) / self.frame.unit)
        found = answers(self.model, windows, at, self.reader.gap / self.frame.unit, self.seed)
        empty = [np.empty((len(times), len(self.names))) for _, times in asked]
        means, stds = empty, [x.copy() for x in empty]
        for window, answer, (i, _, chosen) in zip(windows, found, jobs, strict=True):
            times = asked[i][1][chosen]
            means[i][chosen] = self.scaling.restored(times, answer.mean + window.level)
            stds[i][chosen] = self.calibration.std(answer.ahead, answer.std) * self.scaling.scale
        widths = [np.sign(q - 0.5) * self.calibration.half_width(abs(2 * q - 1)) for q in quantiles]
        return [
            (mean, [mean + width * std for width in widths])
            for mean, std in zip(means, stds, strict=True)
        ]

    def _origins(
        self, table: SeriesTable, b: int, times: np.ndarray
    ) -> list[tuple[float, np.ndarray]]:
        """Origins of windows, and which times each answers.

        Times after the last known row are asked of the window that ends there; times inside, of
        one that has a quarter of its context after the last of them.
        """
        if len(times) == 0:
            return []
        known = table.times[b][np.isfinite(table.values[b]).any(axis=1)]
        if len(known) == 0:
            raise InputError(f"series {table.ids[b]!r} has no known value to predict from")
        first, last, context = float(known[0]), float(known[-1]), self.frame.context
        if times[0] < first:
            early = table.clock.restore(times[:1])[0]
            raise InputError(f"series {table.ids[b]!r}: {early} lies before its first known value")
        jobs = []
        future = np.flatnonzero(times > last)
        if len(future):
            jobs.append((last, future))
        inside = np.flatnonzero(times <= last)
        blocks = np.floor((times[inside] - first) / (context / 2))
        for block in np.unique(blocks):
            chosen = inside[blocks == block]
            origin = min(last, first + (block + 1.5) * context / 2)
            if not ((known >= origin - context) & (known <= origin)).any():
                origin = float(known[known <= times[chosen[0]]][-1])  # a hole wider than a window
            jobs.append((origin, chosen))
        return jobs


def _pairs(table: SeriesTable) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(table.times, table.values, strict=True))


def _last_time(times: np.ndarray, values: np.ndarray) -> float:
    known = np.isfinite(values).any(axis=1)
    return float(times[known][-1])


def _last(values: np.ndarray) -> np.ndarray:
    return pd.DataFrame(values).ffill().to_numpy()[-1]


def _row(table: SeriesTable, series: Hashable | None) -> int:
    if series is None:
        return 0
    named = [b for b, who in enumerate(table.ids) if who == series or str(who) == str(series)]
    if not named:
        raise InputError(f"there is no series {series!r} in the table")
    return named[0]


def _with_grid(table: SeriesTable, step: float) -> SeriesTable:
    times, values = [], []
    for t, x in _pairs(table):
        count = (t[-1] - t[0]) / step
        if count > 1e6:
            raise InputError("every is so short that a series would have over a million rows")
        grid = t[0] + step * np.arange(int(count + 1e-9) + 1)
        # A grid point that is a row up to rounding is that row.
        near = np.abs(t[np.searchsorted(t, grid).clip(max=len(t) - 1)] - grid)
        near = np.minimum(near, np.abs(t[(np.searchsorted(t, grid) - 1).clip(min=0)] - grid))
        grid = grid[near > 1e-6 * step]
        merged = np.concatenate([t, grid])
        order = np.argsort(merged, kind="stable")
        times.append(merged[order])
        empty = np.full((len(grid), x.shape[1]), np.nan)
        values.append(np.concatenate([x, empty])[order])
    return SeriesTable(
        table.columns,
        table.clock,
        table.ids,
        tuple(times),
        tuple(values),
        table.static,
        table.statics,
        table.labels,
        table.notes,
        table.source,
    )
