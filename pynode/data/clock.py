"""Times of a table, numbers or timestamps, as numbers, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pynode.errors import InputError

_MICROSECONDS = 86_400e6  # in a day
_ZONE = re.compile(r"(?:Z|[+-]\d\d:?(?:\d\d)?)$")
_DURATION = re.compile(r"\s*([0-9.eE+-]+)\s*([A-Za-z]*)\s*")
# In days. A month and a year are the Gregorian calendar's mean ones.
_UNITS = {
    "ms": 1 / 86_400_000,
    "s": 1 / 86_400,
    "min": 1 / 1440,
    "h": 1 / 24,
    "d": 1.0,
    "w": 7.0,
    "mo": 365.2425 / 12,
    "y": 365.2425,
}


@dataclass(frozen=True)
class Clock:
    """What a table's time column means.

    Inside, all times are float64: the numbers themselves, or days since 1970-01-01 UTC.

    Attributes:
        timestamps: whether the column holds timestamps; else plain numbers.
        zone: the zone that results are given in, None for timestamps without one.
        format: of timestamps that are strings, as for ``strptime``; None is ISO 8601.
    """

    timestamps: bool
    zone: str | None = None
    format: str | None = None

    @staticmethod
    def of(column: pd.Series, format: str | None = None) -> Clock:
        """The clock that reads this column.

        Raises:
            InputError: it holds neither numbers nor timestamps.
        """
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            return Clock(True, str(column.dt.tz))
        if pd.api.types.is_datetime64_dtype(column.dtype):
            return Clock(True)
        if pd.api.types.is_bool_dtype(column.dtype):
            raise InputError(f"the time column {column.name!r} holds True and False")
        if pd.api.types.is_numeric_dtype(column.dtype) and format is None:
            return Clock(False)
        known = column.dropna()
        if known.empty:
            raise InputError(f"the time column {column.name!r} is empty")
        first = known.iloc[0]
        if isinstance(first, pd.Timestamp):  # a column of objects, perhaps of several zones
            return Clock(True, None if first.tzinfo is None else "UTC")
        text = str(first).strip()
        if format is None and not np.isnan(pd.to_numeric(pd.Series([text]), errors="coerce")[0]):
            return Clock(False)
        has_zone = "%z" in format if format is not None else _ZONE.search(text[10:])
        return Clock(True, "UTC" if has_zone else None, format)

    def numbers(self, column: pd.Series, first_row: int = 1) -> np.ndarray:
        """The column as float64.

        Args:
            column: times.
            first_row: number of its first row, for messages.

        Raises:
            InputError: a time is missing, infinite or cannot be read; the row is named.
        """
        missing = column.isna().to_numpy()
        if missing.any():
            row = first_row + int(missing.argmax())
            raise InputError(
                f"row {row}: the time ({column.name!r}) is missing: every row needs one; "
                "remove the row"
            )
        numbers = self._stamps(column, first_row) if self.timestamps else _floats(column, first_row)
        infinite = ~np.isfinite(numbers)
        if infinite.any():
            row = first_row + int(infinite.argmax())
            raise InputError(f"row {row}: the time ({column.name!r}) is not a finite number")
        return numbers

    def _stamps(self, column: pd.Series, first_row: int) -> np.ndarray:
        aware = self.zone is not None
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            is_aware = isinstance(column.dtype, pd.DatetimeTZDtype)
            if is_aware != aware:
                raise InputError(_mixed(column.name, first_row, is_aware))
            stamps = column.dt.tz_convert("UTC") if aware else column.dt.tz_localize("UTC")
        else:
            if pd.api.types.is_numeric_dtype(column.dtype):
                raise InputError(
                    f"row {first_row}: the time ({column.name!r}) is a number, but timestamps "
                    "were expected"
                )
            text = column.astype(str).str.strip()
            if self.format is None:
                zones = text.str.slice(10).str.contains(_ZONE).to_numpy()
                if (zones != aware).any():
                    row = int((zones != aware).argmax())
                    raise InputError(_mixed(column.name, first_row + row, bool(zones[row])))
            stamps = self._parsed(text, first_row)
        return stamps.dt.as_unit("us").astype("int64").to_numpy() / _MICROSECONDS

    def _parsed(self, text: pd.Series, first_row: int) -> pd.Series:
        format = "ISO8601" if self.format is None else self.format
        try:
            stamps = pd.to_datetime(text, format=format, utc=True, errors="coerce")
        except (ValueError, TypeError, OverflowError) as error:  # the format itself is wrong
            raise InputError(f"time format {format!r}: {error}") from None
        bad = stamps.isna().to_numpy()
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"row {first_row + row}: the time ({text.name!r}) is {text.iloc[row]!r}, which "
                f"does not read as {'ISO 8601' if self.format is None else self.format}: give the "
                "time format, for example %d/%m/%Y"
            )
        return stamps

    def restore(self, numbers: np.ndarray) -> Any:
        """Times as they stand in the table: floats, or timestamps in the table's zone."""
        if not self.timestamps:
            return np.asarray(numbers, dtype=np.float64)
        # Whole microseconds: float64 days around now are exact to about one.
        micro = np.round(np.asarray(numbers, dtype=np.float64) * _MICROSECONDS).astype("int64")
        stamps = pd.DatetimeIndex(micro.astype("datetime64[us]"))
        return stamps if self.zone is None else stamps.tz_localize("UTC").tz_convert(self.zone)

    def duration(self, value: Any, name: str = "duration") -> float:
        """A length of time as a positive number of the clock's units.

        Args:
            value: a number (only where times are numbers), a ``Timedelta``, or text as ``"12h"``,
                with ms, s, min, h, d, w, mo or y.
            name: of the option, for messages.

        Raises:
            InputError: it is not positive, or has a unit where times have none, or none where
                they have one.
        """
        number = self._duration(value, name)
        if not (np.isfinite(number) and number > 0):
            raise InputError(f"{name}={value!r}: a positive length of time is needed")
        return float(number)

    def _duration(self, value: Any, name: str) -> float:
        if isinstance(value, str):
            found = _DURATION.fullmatch(value)
            unit = found[2].lower() if found else ""
            try:
                if not found or (unit and unit not in _UNITS):
                    raise ValueError
                number = float(found[1])
            except ValueError:
                example = f" and one of {', '.join(_UNITS)}, as 12h" if self.timestamps else ""
                raise InputError(
                    f"{name}={value!r} is no length of time: write a number{example}"
                ) from None
            if unit and self.timestamps:
                return number * _UNITS[unit]
            value = pd.Timedelta(0) if unit else number
        if hasattr(value, "total_seconds"):
            if not self.timestamps:
                raise InputError(f"{name}: the table's times are plain numbers, so give a number")
            return value.total_seconds() / 86_400
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise InputError(f"{name}={value!r} is no length of time")
        if self.timestamps:
            raise InputError(
                f"{name}={value}: the table's times are timestamps, so give a unit, as "
                f"{value:g}d (of {', '.join(_UNITS)})"
            )
        return float(value)

    def say(self, duration: float) -> str:
        """A length of time in words."""
        if not self.timestamps:
            return f"{duration:.4g}"
        fitting = [u for u in ("ms", "s", "min", "h", "d", "w", "y") if duration >= 2 * _UNITS[u]]
        unit = fitting[-1] if fitting else "ms"
        return f"{duration / _UNITS[unit]:.4g} {unit}"

    def at(self, value: Any, name: str = "time") -> float:
        """A single time as a number; InputError if it cannot be read."""
        column = pd.Series([value], name=name)
        return float(self.many(column)[0])

    def many(self, values: Any) -> np.ndarray:
        """Times that a caller gave, as numbers."""
        column = values if isinstance(values, pd.Series) else pd.Series(values, name="at")
        if self.timestamps and not pd.api.types.is_datetime64_any_dtype(column.dtype):
            column = column.astype(str) if len(column) else column
        if self.timestamps and self.zone is not None and not _is_aware(column):
            raise InputError(
                f"the table's times have a zone ({self.zone}): give times with a zone too"
            )
        return self.numbers(column)


def _is_aware(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return True
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return False
    return bool(column.astype(str).str.strip().str.slice(10).str.contains(_ZONE).all())


def _mixed(name: Any, row: int, aware: bool) -> str:
    has = "a zone, those before it" if aware else "no zone, those before it"
    return (
        f"row {row}: the time ({name!r}) has {has} {'none' if aware else 'do'}: give all of them "
        "a zone, or none"
    )


def _floats(column: pd.Series, first_row: int) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        raise InputError(
            f"row {first_row}: the time ({column.name!r}) is a timestamp, but plain numbers were "
            "expected"
        )
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.isnan(numbers)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"row {first_row + row}: the time ({column.name!r}) is {column.iloc[row]!r}, but "
            "those before it are numbers"
        )
    return numbers
