"""Tables from files or memory, column by column, every cell checked."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pynode.data.clock import Clock
from pynode.errors import InputError

CHUNK = 200_000  # rows of a CSV file held as text at once
_TIME_NAMES = ("time", "t", "date", "datetime", "timestamp")
_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        time: the time; "" is to be guessed: ``time``, ``t``, ``date``, ``datetime``, ``timestamp``.
        values: what is to be modelled; () is every other column of numbers. In a long table, the
            one column of numbers.
        id: which series a row belongs to; None if all rows are one series.
        static: covariates that are the same in all rows of a series, numbers or text.
        label: the class of a series.
        variable: in a long table, which has a row for each value, the column that says which one.
        only: in a long table, the variables to use; None is all.

    Raises:
        InputError: a column is named twice, or a long table has not one column of numbers.
    """

    time: str = ""
    values: tuple[str, ...] = ()
    id: str | None = None
    static: tuple[str, ...] = ()
    label: str | None = None
    variable: str | None = None
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        named = [c for c in (self.time, *self.values, *self._others) if c]
        twice = sorted({c for c in named if named.count(c) > 1})
        if twice:
            raise InputError(f"the column {twice[0]!r} is named for two things: it can be only one")
        if self.variable is not None and len(self.values) > 1:
            raise InputError(
                f"a long table has one column of values, not {', '.join(self.values)}; to choose "
                "some of its variables, use only"
            )

    @property
    def _others(self) -> tuple[str, ...]:
        return tuple(c for c in (self.id, *self.static, self.label, self.variable) if c is not None)

    @property
    def kept(self) -> tuple[str, ...]:
        """All columns in use."""
        return (*self._others, self.time, *self.values)

    def resolved(
        self, header: Sequence[str], is_number: dict[str, bool], notes: list[str]
    ) -> Columns:
        """The same with everything named, and known to be there.

        Raises:
            InputError: a column is not there, or cannot be guessed.
        """
        known = [c for c in (self.time, *self.values, *self._others) if c]
        for name in known:
            if name not in header:
                raise InputError(
                    f"there is no column {name!r}; there are {', '.join(map(repr, header[:20]))}"
                )
        found = self
        if not self.time:
            guesses = [c for c in header if c.strip().lower() in _TIME_NAMES and c not in known]
            if not guesses:
                raise InputError(
                    "which column is the time? Name it; there are "
                    + ", ".join(map(repr, header[:20]))
                )
            notes.append(f"taken as the time: {guesses[0]!r}")
            found = replace(found, time=guesses[0])
        if not self.values:
            used = set(found.kept)
            guesses = [c for c in header if c not in used and is_number.get(c, False)]
            if not guesses:
                raise InputError("which columns are the values? None of the others holds numbers")
            if found.variable is not None and len(guesses) > 1:
                raise InputError(f"which column has the values: {', '.join(guesses)}? Name it")
            notes.append("taken as values: " + ", ".join(map(repr, guesses)))
            found = replace(found, values=tuple(guesses))
        return found


@dataclass(frozen=True)
class Text:
    """How a CSV file is written.

    Attributes:
        separator: between columns; None finds out from the header.
        decimal: the decimal mark.
        encoding: of its letters.
        missing: words for a missing value, besides the empty cell, NA, NaN, null and the like.
    """

    separator: str | None = None
    decimal: str = "."
    encoding: str = "utf-8"
    missing: tuple[str, ...] = ()


def read_table(
    source: str | Path | pd.DataFrame,
    columns: Columns,
    text: Text | None,
    clock: Clock | None,
    time_format: str | None,
    notes: list[str],
) -> tuple[pd.DataFrame, Columns, Clock]:
    """The columns in use, with times and values as float64.

    Returns:
        The table, its columns, all named, and the clock of its times.

    Raises:
        InputError: the table or a cell cannot be read.
    """
    text = text or Text()
    if isinstance(source, pd.DataFrame):
        header, chunks = _frame_chunks(source, text)
    else:
        header, chunks = _file_chunks(Path(source), columns, text, notes)
    parts: list[pd.DataFrame] = []
    row = 1
    for chunk in chunks:
        if text.decimal != "." and columns.time in chunk.columns:
            times = _numbers_or_text(chunk[columns.time], text)
            chunk = chunk.assign(**{columns.time: times})
        if row == 1:
            is_number = {str(c): _numbers_only(chunk[c], text) for c in chunk.columns}
            columns = columns.resolved(header, is_number, notes)
            if clock is None and len(chunk):
                clock = Clock.of(chunk[columns.time], time_format)
        if len(chunk):
            assert clock is not None
            parts.append(_checked(chunk, columns, clock, text, row))
        row += len(chunk)
    if not parts or clock is None:
        raise InputError("the table has no rows")
    frame = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    for name in columns.static:  # numbers, unless any chunk has text
        if not pd.api.types.is_numeric_dtype(frame[name].dtype):
            frame[name] = _numbers_or_text(frame[name], text)
    return frame, columns, clock


def numeric(column: pd.Series, name: str, first_row: int, decimal: str = ".") -> np.ndarray:
    """A column as float64 with NaN where missing.

    Raises:
        InputError: a cell is not a finite number; the row is named.
    """
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        raise InputError(f"the column {name!r} holds timestamps, but numbers are needed")
    if pd.api.types.is_complex_dtype(column.dtype):
        raise InputError(f"the column {name!r} holds complex numbers, but real ones are needed")
    missing = column.isna().to_numpy()
    numbers = _to_numbers(column, decimal)
    bad = np.isnan(numbers) & ~missing
    if bad.any():
        i = int(bad.argmax())
        value = str(column.iloc[i])
        hint = "; is the decimal mark a comma?" if "," in value and decimal == "." else ""
        raise InputError(
            f"row {first_row + i}: {name!r} is {value[:40]!r}, which is not a number{hint}. If it "
            "means a missing value, name it as such"
        )
    infinite = np.isinf(numbers)
    if infinite.any():
        raise InputError(
            f"row {first_row + int(infinite.argmax())}: {name!r} is infinite: remove the row, or "
            "leave the cell empty"
        )
    return numbers


def _to_numbers(column: pd.Series, decimal: str) -> np.ndarray:
    if decimal != "." and not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype(str).str.replace(decimal, ".", regex=False).where(column.notna())
    try:
        numbers = pd.to_numeric(column, errors="coerce")
        if pd.api.types.is_complex_dtype(numbers.dtype):
            raise TypeError("complex")
        return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError, OverflowError):  # cells that are lists, huge integers, …
        return np.array([_number(cell) for cell in column], dtype=np.float64)


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        return np.nan


def _numbers_only(column: pd.Series, text: Text) -> bool:
    """Whether there are numbers in a column and nothing else."""
    if pd.api.types.is_bool_dtype(column.dtype) or column.isna().all():
        return False
    if pd.api.types.is_numeric_dtype(column.dtype):
        return not pd.api.types.is_complex_dtype(column.dtype)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return False
    numbers = _to_numbers(column, text.decimal)
    return not bool((np.isnan(numbers) & ~column.isna().to_numpy()).any())


def _numbers_or_text(column: pd.Series, text: Text) -> pd.Series:
    if _numbers_only(column, text):
        return pd.Series(_to_numbers(column, text.decimal), index=column.index, name=column.name)
    return column


def _checked(
    chunk: pd.DataFrame, columns: Columns, clock: Clock, text: Text, row: int
) -> pd.DataFrame:
    """The columns in use, with times and values as numbers."""
    parts: dict[Any, Any] = {columns.time: clock.numbers(chunk[columns.time], row)}
    for name in columns.values:
        parts[name] = numeric(chunk[name], name, row, text.decimal)
    keys = [c for c in (columns.id, columns.variable) if c is not None]
    for name in keys:
        missing = chunk[name].isna().to_numpy()
        if missing.any():
            raise InputError(f"row {row + int(missing.argmax())}: {name!r} is missing")
        try:
            chunk[name].map(hash)
        except TypeError:
            raise InputError(f"the column {name!r} holds things that are no names") from None
        parts[name] = chunk[name].to_numpy()
    for name in (*columns.static, *([columns.label] if columns.label else [])):
        parts[name] = chunk[name].to_numpy()
        if columns.static and name in columns.static:
            parts[name] = _numbers_or_text(chunk[name], text).to_numpy()
    return pd.DataFrame(parts)


# -- where tables come from -------------------------------------------------------------------


def _frame_chunks(frame: pd.DataFrame, text: Text) -> tuple[list[str], Iterator[pd.DataFrame]]:
    header = [str(c) for c in frame.columns]
    _check_header(header)
    frame = frame.set_axis(header, axis="columns")
    if text.missing:
        frame = frame.replace(list(text.missing), np.nan)
    return header, iter([frame.reset_index(drop=True)])


def _file_chunks(
    path: Path, columns: Columns, text: Text, notes: list[str]
) -> tuple[list[str], Iterator[pd.DataFrame]]:
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a CSV or Parquet file is needed")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet_chunks(path, columns)
    return _csv_chunks(path, columns, text, notes)


def _parquet_chunks(path: Path, columns: Columns) -> tuple[list[str], Iterator[pd.DataFrame]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"reading {path} needs pyarrow: pip install 'pynode-ode[parquet]', or save it as CSV"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        header = [str(name) for name in file.schema_arrow.names]
        _check_header(header)
        wanted = _wanted(header, columns)
        frame = file.read(columns=wanted).to_pandas()
    except InputError:
        raise
    except Exception as error:  # pyarrow has many kinds for a damaged file
        raise InputError(f"{path} cannot be read as Parquet: {_first_line(error)}") from None
    if not set(header) >= set(wanted):
        frame = frame.reset_index()
    return header, iter([frame.reset_index(drop=True)])


def _csv_chunks(
    path: Path, columns: Columns, text: Text, notes: list[str]
) -> tuple[list[str], Iterator[pd.DataFrame]]:
    options: dict[str, Any] = {"encoding": text.encoding, "dtype": str, "skipinitialspace": True}
    with _reading(path, text):
        first = pd.read_csv(path, sep="\0", header=None, nrows=1, quoting=csv.QUOTE_NONE, **options)
        separator = text.separator or _separator(str(first.iloc[0, 0]))
        if text.separator is None and separator != ",":
            notes.append(f"columns are separated by {separator!r}")
        options["sep"] = separator
        header_row = pd.read_csv(path, header=None, nrows=1, na_filter=False, **options)
        header = [str(c).strip() for c in header_row.iloc[0]]
    _check_header(header)
    wanted = _wanted(header, columns)
    # All columns are read, and most dropped: told which to read, pandas hides lines that are too
    # long.
    reader = _guarded(
        path,
        text,
        wanted,
        lambda: pd.read_csv(
            path,
            header=0,
            names=header,
            na_values=list(text.missing),
            chunksize=CHUNK,
            index_col=False,
            **options,
        ),
    )
    return header, reader


def _wanted(header: Sequence[str], columns: Columns) -> list[str]:
    """The columns to read: those in use, or all where some are to be guessed."""
    if not columns.time or not columns.values:
        return list(header)
    return [c for c in header if c in columns.kept]


def _separator(line: str) -> str:
    if "," in line:
        return ","
    return max(_SEPARATORS, key=line.count)


def _check_header(header: Sequence[str]) -> None:
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        raise InputError(f"the table has two columns {twice[0]!r}: rename one")


class _reading:
    """What goes wrong in reading a file, as InputError."""

    def __init__(self, path: Path, text: Text) -> None:
        self.path, self.text = path, text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, InputError) or not isinstance(error, Exception):
            return
        path = self.path
        if isinstance(error, pd.errors.EmptyDataError | IndexError):
            raise InputError(f"{path} is empty") from None
        if isinstance(error, UnicodeError):
            raise InputError(
                f"{path} is not written in {self.text.encoding} ({_first_line(error)}): give its "
                "encoding; latin-1 reads what old spreadsheets write"
            ) from None
        if isinstance(error, LookupError):
            raise InputError(f"there is no encoding {self.text.encoding!r}") from None
        raise InputError(f"{path} cannot be read as CSV: {_first_line(error)}") from None


def _guarded(
    path: Path, text: Text, wanted: list[str], opened: Callable[[], Any]
) -> Iterator[pd.DataFrame]:
    with _reading(path, text), opened() as reader:
        empty = True
        while (chunk := _next(reader)) is not None:
            if len(chunk):
                empty = False
                yield chunk[wanted]
        if empty:
            raise InputError(f"{path} has a header, but no rows")


def _next(reader: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    with warnings.catch_warnings():
        # "Length of header or names does not match length of data": cells would be lost.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return next(reader, None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
