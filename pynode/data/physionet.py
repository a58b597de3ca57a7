"""Reader of the PhysioNet/Computing in Cardiology Challenge 2012's files.

A record is a text file ``RecordID.txt`` with the lines ``Time,Parameter,Value``, times as ``hh:mm``
since admission; the general descriptors stand at 00:00, -1 meaning unknown. Outcomes are in files
``Outcomes*.txt``. Silva, Moody, Scott, Celi, Mark 2012, Predicting In-Hospital Mortality of ICU
Patients. The data are not part of this package: https://physionet.org/content/challenge-2012/
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from pynode.data.frames import SeriesTable, read_series
from pynode.data.tables import Columns
from pynode.errors import InputError

DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")  # at admission
LABEL = "In-hospital_death"
_CLOCK = re.compile(r"(\d{2,3}):([0-5]\d)")


def read_physionet2012(folder: str | Path, label: bool = True) -> SeriesTable:
    """All records in a folder: times in hours, a value for each parameter, covariates, labels.

    Args:
        folder: with the records, and with the outcomes in it or beside it.
        label: whether to read who died in hospital; records without an outcome are left out.

    Raises:
        InputError: there is no record, or a line of one cannot be read (file and line are named).
    """
    frame = physionet2012_frame(folder)
    parameters = sorted(set(frame.columns) - {"RecordID", "hours", *DESCRIPTORS})
    if not parameters:
        raise InputError(f"the records in {folder} hold nothing but descriptors")
    if label:
        frame = frame.merge(_outcomes(Path(folder)), on="RecordID", how="inner")
        if frame.empty:
            raise InputError(f"no record in {folder} has an outcome")
    columns = Columns(
        time="hours",
        values=tuple(parameters),
        id="RecordID",
        static=tuple(d for d in DESCRIPTORS if d in frame.columns),
        label=LABEL if label else None,
    )
    return read_series(frame, columns)


def physionet2012_frame(folder: str | Path) -> pd.DataFrame:
    """All records in a folder as one wide table, see :func:`read_physionet2012`."""
    files = sorted(p for p in Path(folder).glob("*.txt") if p.stem.isdigit())
    if not files:
        raise InputError(f"there is no record (a file as 132539.txt) in {folder}")
    return pd.concat([_record(path) for path in files], ignore_index=True)


def _record(path: Path) -> pd.DataFrame:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text") from None
    if not lines or lines[0].strip() != "Time,Parameter,Value":
        raise InputError(f"{path}: the first line must be Time,Parameter,Value")
    descriptors: dict[str, float] = {}
    moments: dict[float, dict[str, list[float]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        hours, name, value = _cells(path, number, line)
        if name in ("RecordID", ""):
            continue
        if hours == 0 and name in DESCRIPTORS and name not in descriptors:
            descriptors[name] = np.nan if value == -1 else value
            continue
        # Weight is measured again later on; it is a parameter then.
        name = f"{name} measured" if name in DESCRIPTORS else name
        moments.setdefault(hours, {}).setdefault(name, []).append(value)
    rows = [
        {"hours": t, **{name: float(np.mean(x)) for name, x in found.items()}}
        for t, found in moments.items()
    ]
    frame = pd.DataFrame(rows or [{"hours": 0.0}])
    return frame.assign(RecordID=int(path.stem), **descriptors)


def _cells(path: Path, number: int, line: str) -> tuple[float, str, float]:
    cells = [c.strip() for c in line.split(",")]
    clock = _CLOCK.fullmatch(cells[0]) if len(cells) == 3 else None
    try:
        if clock is None:
            raise ValueError
        value = float(cells[2])
        if not np.isfinite(value):
            raise ValueError
    except ValueError:
        raise InputError(f"{path}, line {number}: {line[:60]!r} is not as 00:07,HR,73") from None
    return int(clock[1]) + int(clock[2]) / 60, cells[1], value


def _outcomes(folder: Path) -> pd.DataFrame:
    files = sorted(folder.glob("Outcomes*.txt")) or sorted(folder.parent.glob("Outcomes*.txt"))
    if not files:
        raise InputError(f"there is no file Outcomes*.txt in {folder} or beside it")
    try:
        frame = pd.concat([pd.read_csv(path) for path in files], ignore_index=True)
        return frame[["RecordID", LABEL]].drop_duplicates("RecordID")
    except (KeyError, ValueError) as error:
        raise InputError(f"{files[0]}: {str(error).splitlines()[0]}") from None
