"""A person's own table of irregular time series: read, checked, and laid out one by one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pynode.data.clock import Clock
from pynode.data.tables import Columns, Text, numeric, read_table
from pynode.errors import InputError

MAX_CATEGORIES = 20  # of a static covariate that is text


@dataclass(frozen=True)
class Static:
    """A covariate that is the same throughout a series, as numbers.

    Attributes:
        name: its column.
        categories: of one that is text, which becomes one 0/1 number for each; empty for numbers.
        mean, scale: of one that is a number, which is counted from the mean in units of the scale.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return max(1, len(self.categories))


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """The series of a table.

    Attributes:
        columns: which columns they came from; of a long table, as if it were wide.
        clock: what their times mean.
        ids: B names of series, as in the table; ``(None,)`` where it has no id column.
        times: B arrays (n_b,), strictly increasing, in the clock's numbers.
        values: B arrays (n_b, C), NaN where missing.
        static: (B, S) covariates as ``statics`` say, NaN where missing.
        statics: the covariates.
        labels: B labels; empty without a label column.
        notes: what was done to the table that its owner may not expect, in words.
        source: the columns as they are in the table, all named.
    """

    columns: Columns
    clock: Clock
    ids: tuple[Hashable, ...]
    times: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    static: np.ndarray
    statics: tuple[Static, ...] = ()
    labels: tuple[Any, ...] = ()
    notes: tuple[str, ...] = field(default=())
    source: Columns = field(default_factory=Columns)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the C values."""
        return self.columns.values

    @property
    def n_observed(self) -> int:
        """Number of observed values."""
        return sum(int(np.isfinite(x).sum()) for x in self.values)

    @property
    def missing_rates(self) -> dict[str, float]:
        """Share of rows in which each value is missing."""
        stacked = np.concatenate(self.values)
        return dict(zip(self.names, np.isnan(stacked).mean(axis=0).tolist(), strict=True))

    @property
    def gaps(self) -> np.ndarray:
        """All times between one row and the next of the same series."""
        return np.concatenate([np.diff(t) for t in self.times])

    def __getitem__(self, rows: Sequence[int]) -> SeriesTable:
        """Some of the series."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            times=tuple(self.times[i] for i in rows),
            values=tuple(self.values[i] for i in rows),
            static=self.static[list(rows)],
            labels=tuple(self.labels[i] for i in rows) if self.labels else (),
        )

    def cut(self, after: float = -np.inf, until: float = np.inf) -> SeriesTable:
        """The rows with ``after`` < time <= ``until``; series without any value left are left out.

        Raises:
            InputError: nothing is left.
        """
        times, values, kept = [], [], []
        for b, (t, x) in enumerate(zip(self.times, self.values, strict=True)):
            inside = (t > after) & (t <= until)
            if np.isfinite(x[inside]).any():
                kept.append(b)
                times.append(t[inside])
                values.append(x[inside])
        if not kept:
            raise InputError("no value lies in that part of the times")
        return replace(self[kept], times=tuple(times), values=tuple(values))


def read_series(
    source: str | Path | pd.DataFrame,
    columns: Columns | None = None,
    *,
    text: Text | None = None,
    clock: Clock | None = None,
    statics: Sequence[Static] | None = None,
    time_format: str | None = None,
    need_values: bool = True,
) -> SeriesTable:
    """Read a table of series.

    Rows need no order: they are sorted by time. Rows of one series at one time are merged, each
    value being the mean of those that are there. Rows without any value stay: they say where one
    was missing. What was done is in ``notes``.

    Args:
        source: a CSV or Parquet file, or a DataFrame.
        columns: which columns hold what; what is not given is guessed and noted.
        text: how a CSV file is written.
        clock, statics: of an earlier table that this one must be like; default: found out.
        time_format: of timestamps as text, as for ``strptime``; default: ISO 8601.
        need_values: refuse series without any value; else they are kept.

    Raises:
        InputError: the table cannot be used; the message says which column and row, and what to
            do.
    """
    notes: list[str] = []
    format = clock.format if clock is not None else time_format
    frame, columns, clock = read_table(source, columns or Columns(), text, clock, format, notes)
    source_columns = columns
    if columns.variable is not None:
        frame, columns = _widened(frame, columns)
        source_columns = replace(source_columns, only=columns.values)
    frame = _sorted(frame, columns, notes)
    frame = _merged(frame, columns, notes)
    if need_values:
        frame = _without_empty(frame, columns, notes)
    return replace(_laid_out(frame, columns, clock, statics, notes), source=source_columns)


def _widened(frame: pd.DataFrame, columns: Columns) -> tuple[pd.DataFrame, Columns]:
    """From a row a value to a row a moment."""
    assert columns.variable is not None
    (value,) = columns.values
    found = [str(v) for v in pd.unique(frame[columns.variable])]
    names = tuple(columns.only or found)
    unknown = [n for n in names if n not in found]
    if unknown and columns.only is not None and len(unknown) == len(names):
        raise InputError(
            f"the column {columns.variable!r} names none of {', '.join(unknown)}; it names "
            f"{', '.join(found[:10])}"
        )
    parts = frame[[c for c in columns.kept if c not in (columns.variable, value)]].copy()
    variable, numbers = frame[columns.variable].astype(str), frame[value]
    for name in names:
        parts[name] = numbers.where(variable == name)
    wide = Columns(
        time=columns.time,
        values=names,
        id=columns.id,
        static=columns.static,
        label=columns.label,
    )
    return parts, wide


def _sorted(frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    keys = [columns.time] if columns.id is None else [columns.id, columns.time]
    same = slice(None)
    if columns.id is not None:
        # Series stay in the order in which the table first names them.
        codes, _ = pd.factorize(frame[columns.id])
        frame = frame.assign(**{columns.id: pd.Categorical.from_codes(codes, _)})
        same = codes[1:] == codes[:-1]
    backwards = int((np.diff(frame[columns.time].to_numpy())[same] < 0).sum())
    if backwards:
        notes.append(f"the times went back in {backwards} places: rows were sorted by time")
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def _merged(frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """One row a moment of a series."""
    keys = [columns.time] if columns.id is None else [columns.id, columns.time]
    repeated = frame.duplicated(keys).to_numpy()
    if not repeated.any():
        return frame
    values = list(columns.values)
    if columns.variable is None and frame[values].notna().to_numpy()[repeated].any():
        count = frame.groupby(keys, observed=True)[values].count().to_numpy()
        if (count > 1).any():
            notes.append(
                f"{int(repeated.sum())} rows repeat a time of their series: values of one time "
                "were averaged"
            )
    groups = frame.groupby(keys, observed=True, sort=True)
    others = [c for c in columns.kept if c not in keys and c not in values]
    merged = groups[values].mean()
    for name in others:
        merged[name] = groups[name].first()
    return merged.reset_index()


def _without_empty(frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    values = list(columns.values)
    there = frame[values].notna()
    if not there.to_numpy().any():
        raise InputError(f"there is no value at all: {', '.join(values)} are missing in every row")
    for name in values:
        if not there[name].any():
            raise InputError(f"the column {name!r} has no value at all: leave it out")
    if columns.id is None:
        return frame
    full = there.any(axis=1).groupby(frame[columns.id], observed=True).transform("any")
    empty = frame.loc[~full, columns.id].unique()
    if len(empty):
        listed = ", ".join(map(str, empty[:3])) + ("…" if len(empty) > 3 else "")
        notes.append(f"{len(empty)} series without any value were left out: {listed}")
    return frame[full].reset_index(drop=True)


def _laid_out(
    frame: pd.DataFrame,
    columns: Columns,
    clock: Clock,
    statics: Sequence[Static] | None,
    notes: list[str],
) -> SeriesTable:
    if columns.id is None:
        starts, ids = np.array([0]), (None,)
    else:
        codes = frame[columns.id].cat.codes.to_numpy()
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        ids = tuple(frame[columns.id].iloc[starts].tolist())
    borders = starts[1:]
    for name in (*columns.static, *([columns.label] if columns.label else [])):
        _check_constant(frame, columns, name)
    firsts = _first_known(frame, columns)
    if statics is None:
        statics = [_static(firsts[name], name) for name in columns.static]
    encoded = [_encoded(firsts[s.name], s, ids) for s in statics]
    labels = tuple(firsts[columns.label].tolist()) if columns.label else ()
    return SeriesTable(
        columns=columns,
        clock=clock,
        ids=ids,
        times=tuple(np.split(frame[columns.time].to_numpy(), borders)),
        values=tuple(np.split(frame[list(columns.values)].to_numpy(dtype=np.float64), borders)),
        static=np.concatenate([np.empty((len(ids), 0)), *encoded], axis=1),
        statics=tuple(statics),
        labels=labels,
        notes=tuple(notes),
    )


def _check_constant(frame: pd.DataFrame, columns: Columns, name: str) -> None:
    known = frame[name].notna()
    if columns.id is None:
        varying = frame.loc[known, name].nunique() > 1
        where = ""
    else:
        counts = frame[known].groupby(columns.id, observed=True)[name].nunique()
        varying = bool((counts > 1).any())
        where = f" in series {counts.index[counts > 1][0]!r}" if varying else ""
    if varying:
        what = "label" if name == columns.label else "static covariate"
        raise InputError(
            f"the {what} {name!r} changes{where}: it must be one value a series"
            + ("" if name == columns.label else "; what changes in time belongs among the values")
        )


def _first_known(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    names = [*columns.static, *([columns.label] if columns.label else [])]
    if columns.id is None:
        return pd.DataFrame({n: [next(iter(frame[n].dropna()), None)] for n in names})
    return frame.groupby(columns.id, observed=True, sort=True)[names].first() if names else frame


def _static(column: pd.Series, name: str) -> Static:
    if pd.api.types.is_numeric_dtype(column.dtype):
        known = numeric(column, name, 1)
        known = known[np.isfinite(known)]
        mean, scale = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
        if not np.isfinite(scale):
            raise InputError(f"the static covariate {name!r} is too large to be worked with")
        return Static(name, (), mean, scale if scale > 1e-9 * max(abs(mean), 1e-290) else 1.0)
    found = sorted({str(v) for v in column.dropna()})
    if len(found) > MAX_CATEGORIES:
        raise InputError(
            f"the static covariate {name!r} is text with {len(found)} different values; at most "
            f"{MAX_CATEGORIES} can be told apart"
        )
    return Static(name, tuple(found) or ("",))


def _encoded(column: pd.Series, static: Static, ids: Sequence[Hashable]) -> np.ndarray:
    """(B, width) numbers."""
    if not static.categories:
        numbers = (numeric(column, static.name, 1) - static.mean) / static.scale
        return numbers[:, None]
    text = column.astype(object).where(column.notna(), None)
    rows = []
    for who, value in zip(ids, text, strict=True):
        if value is not None and str(value) not in static.categories:
            raise InputError(
                f"series {who!r}: {static.name!r} is {str(value)!r}, which the model has not "
                f"seen; it knows {', '.join(static.categories)}"
            )
        hole = np.nan if value is None else 0.0
        rows.append([1.0 if str(value) == c else hole for c in static.categories])
    return np.array(rows, dtype=np.float64).reshape(len(ids), static.width)
