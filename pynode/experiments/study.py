"""What every experiment has in common: scales, runs, the folder of results, tables.

An experiment says what its runs are (a frozen dataclass for each, its *spec*), how one is done, and
how the rows that come back become a table and a figure; `Study` does the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pynode
from pynode import plots
from pynode.errors import InputError, PynodeError
from pynode.experiments.pool import available_cores, run_all
from pynode.train.distributed import is_main, rank_and_size
from pynode.train.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Work = Callable[[Any, Path], Row]  # (spec, a folder of its own for arrays and weights) -> row

# Student's t, two-sided 95 %, by degrees of freedom from 1; the last one serves for all above.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over seeds."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        n = len(values)
        mean = math.fsum(values) / n
        variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
        return cls(mean, math.sqrt(variance), n)

    @property
    def half_width(self) -> float:
        """Half the 95 % confidence interval of the mean; infinite for one value."""
        if self.n < 2:
            return math.inf
        return _T95[min(self.n - 1, len(_T95)) - 1] * self.sd / math.sqrt(self.n)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        mean = format(self.mean, spec)
        return f"{mean} ± {format(self.sd, spec)}" if self.n > 1 else mean

    def __str__(self) -> str:
        return format(self)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def add_common_arguments(parser: argparse.ArgumentParser, scales: Mapping[str, Any]) -> None:
    """``--scale``, ``--out``, ``--resume``, ``--jobs`` and an option for each number of a scale.

    Args:
        parser: of the experiment.
        scales: frozen dataclasses of one type by name, the first one the default; each of their
            fields of type int or float can be given as an option of the field's name.
    """
    add = parser.add_argument
    default = next(iter(scales))
    add("--scale", choices=scales, default=default, help="size of the runs (default: %(default)s)")
    for field in dataclasses.fields(scales[default]):
        kind = type(getattr(scales[default], field.name))
        if kind in (int, float):
            values = ", ".join(f"{name} {getattr(s, field.name):g}" for name, s in scales.items())
            option = "--" + field.name.replace("_", "-")
            metavar = "N" if kind is int else "X"
            add(option, type=kind, metavar=metavar, help=f"{field.name} ({values})")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all results")
    add("--resume", action="store_true", help="keep the runs that are finished in --out")
    add(
        "--jobs",
        type=int,
        default=min(2, available_cores()),
        metavar="N",
        help="processes, one thread each (default: %(default)s)",
    )


def scale_of(arguments: argparse.Namespace, scales: Mapping[str, Any]) -> Any:
    """The scale asked for, with the options that were given in place of its values.

    Raises:
        InputError: a number below 1 where the scale has a whole number, or a negative one.
    """
    scale = scales[arguments.scale]
    given = {
        field.name: value
        for field in dataclasses.fields(scale)
        if (value := getattr(arguments, field.name, None)) is not None
    }
    for name, value in given.items():
        least = 1 if isinstance(value, int) else 0
        if not value >= least:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: must be at least {least}")
    return dataclasses.replace(scale, **given)


def metadata(experiment: str, jobs: int) -> Row:
    """What ran where and when, for ``metrics.json``."""
    return {
        "experiment": experiment,
        "command": shlex.join(["pynode", *sys.argv[1:]]),
        "pynode": pynode.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "cores": available_cores(),
        "jobs": jobs,
        "threads_per_job": 1,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def say(text: str) -> None:
    """A line for the person who waits; results alone go to stdout."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Study:
    """The runs of one experiment and what becomes of them.

    Attributes:
        name: as in the table of experiments.
        specs: one frozen dataclass for each run, longest first; its ``name`` is the run's folder.
        work: a function of a module's top level (worker processes import it).
        config: what was asked for, written to ``metrics.json``.
        table: rows, in the order of ``specs``, to the whole text of ``table.md``.
        figure: rows and the folder that holds ``runs/NAME/`` to the figure.
    """

    name: str
    specs: Sequence[Any]
    work: Work
    config: Row
    table: Callable[[Sequence[Row]], str]
    figure: Callable[[Sequence[Row], Path], Figure]

    def run(self, arguments: argparse.Namespace) -> int:
        """Do what is not done yet and write ``metrics.json``, ``table.md`` and ``figure.png``.

        Raises:
            InputError: ``--out`` is a file, ``--jobs`` below 1, or several processes of torchrun.
            PynodeError: runs failed; the results of the others are written.
        """
        out: Path = arguments.out
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; it must be a folder, or not be there")
        if arguments.jobs < 1:
            raise InputError(f"--jobs {arguments.jobs}: must be at least 1")
        if rank_and_size()[1] > 1:
            raise InputError(
                f"{self.name} is many small runs: share them out by --jobs N, without torchrun"
            )
        rows = self._finished(out) if arguments.resume else {}
        todo = [spec for spec in self.specs if spec.name not in rows]
        say(f"{self.name}: {len(todo)} runs with --jobs {arguments.jobs}, {len(rows)} taken over")
        failures = self._work(todo, rows, arguments)
        self._write([rows[s.name] for s in self.specs if s.name in rows], arguments)
        if failures:
            listed = "\n  ".join(f"{todo[i].name}: {text}" for i, text in failures.items())
            raise PynodeError(
                f"{len(failures)} of {len(self.specs)} runs failed; the results of the others are "
                f"in {out}:\n  {listed}"
            )
        return 0

    def _work(
        self, todo: Sequence[Any], rows: dict[str, Row], arguments: argparse.Namespace
    ) -> dict[int, str]:
        began = time.perf_counter()

        def take(index: int, row: Row) -> None:
            rows[todo[index].name] = row
            seconds = time.perf_counter() - began
            say(f"{self.name}: {todo[index].name} done, {len(rows)} of {len(self.specs)}, "
                f"{seconds:.0f} s")  # fmt: skip

        items = [(spec, arguments.out / "runs" / spec.name) for spec in todo]
        work = partial(_run_and_keep, self.work)
        try:
            return run_all(items, work, arguments.jobs, lambda *_: None, take)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {len(rows)} of {len(self.specs)} runs are finished in "
                f"{arguments.out}; the same command with --resume keeps them"
            ) from None

    def _finished(self, out: Path) -> dict[str, Row]:
        rows = {}
        for spec in self.specs:
            file = out / "runs" / spec.name / "row.json"
            if file.exists():
                kept = json.loads(file.read_text())
                if kept["spec"] == _plain(spec):
                    rows[spec.name] = kept["row"]
        return rows

    def _write(self, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
        if not rows:
            return
        out = arguments.out
        meta = metadata(self.name, arguments.jobs)
        write_json(out / "metrics.json", {"meta": meta, "config": self.config, "rows": list(rows)})
        text = _as_page(self.table(rows), meta["command"])
        write_text(out / "table.md", text)
        plots.save(self.figure(rows, out), out / "figure.png")
        print(text)
        say(f"In {out}: figure.png, metrics.json, table.md")


def _as_page(table: str, command: str) -> str:
    """The table with the figure below its title, and what made it at the end."""
    title, _, rest = table.partition("\n")
    return f"{title}\n\n![](figure.png)\n{rest.rstrip()}\n\nMade by `{command}`.\n"


def _run_and_keep(work: Work, item: tuple[Any, Path], report: Callable[[Any], None]) -> Row:
    spec, folder = item
    folder.mkdir(parents=True, exist_ok=True)
    row = dataclasses.asdict(spec) | work(spec, folder)
    write_json(folder / "row.json", {"spec": _plain(spec), "row": row})
    return row


def _plain(spec: Any) -> Row:
    """The spec as JSON gives it back: tuples are lists there."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(spec).items()
    }
