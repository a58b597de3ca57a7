"""Measure every contender at every case: ``make bench``, or ``python -m benchmarks.run``.

Measuring happens in a process of its own (``worker.py``), one for each number of threads; where a
contender hangs or crashes, that process is ended, the row says so, and the rest goes on. Only with
the first number of threads are all kinds of gradients measured, then each contender's fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks import machine, report
from benchmarks.cases import Case, all_cases
from benchmarks.contenders import all_contenders, kind_of
from benchmarks.measure import Row

HERE = Path(__file__).resolve().parent
SINGLE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass
class Plan:
    """What is to be run.

    Attributes:
        cases, contenders: names.
        threads: numbers of threads, one run each.
        minutes: for all of it; cases that do not fit any more are rows that say so.
        limit: seconds after which one call of a contender is given up and its process ended; a
            ninth of it, where its Python can be interrupted.
        kinds: ``forward`` and kinds of gradients to measure; None for all.
    """

    cases: list[Case]
    contenders: list[str]
    threads: list[int]
    minutes: float
    limit: float
    device: str
    memory: bool
    quick: bool = False
    kinds: list[str] | None = None
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.minutes * 60 - (time.monotonic() - self.started)


@dataclass
class Found:
    """What came out: rows, and why contenders are missing."""

    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def environment(threads: int) -> dict[str, str]:
    """Variables that fix the threads of torch, BLAS, XLA and Julia, and jax's precision."""
    n = str(threads)
    own = {
        "OMP_NUM_THREADS": n,
        "MKL_NUM_THREADS": n,
        "OPENBLAS_NUM_THREADS": n,
        "PYTHON_JULIACALL_THREADS": n,
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
        ),
    }
    if threads == 1:
        own["XLA_FLAGS"] = SINGLE
    return {**os.environ, **own}


class Measuring:
    """Worker processes, one after the other, until all cases of a job are done."""

    def __init__(self, plan: Plan, threads: int, what: str, found: Found, budget: float) -> None:
        self.plan, self.threads, self.what, self.found = plan, threads, what, found
        self.budget = budget
        self.skip: list[tuple[str, str, str]] = []
        self.lost: list[Row] = []

    def run(self, cases: list[Case], contenders: list[str], until: float) -> None:
        """Measure; ``until`` is what must be left of the plan's seconds at the end."""
        todo = [case.name for case in cases]
        contenders = list(contenders)
        while todo and contenders:
            last = self._worker(todo, contenders, until)
            if last is None:
                break
            if last["contender"] == "":  # out of time
                self._note(todo, "not run: out of time")
                return
            entry = (last["case"], last["contender"], last["mode"])
            print(*entry, last["why"], file=sys.stderr, flush=True)
            if entry[2] == "start" or entry in self.skip or entry[2] == "reference":
                if self.what == "time":
                    self.found.missing[entry[1]] = last["why"]
                contenders = [c for c in contenders if c != entry[1]]
                if entry[2] == "reference":
                    self._note([entry[0]], "no reference")
                    todo.remove(entry[0])
            else:
                self.skip.append(entry)
                self.lost.append(Row(*entry, self.threads, note=last["why"]))
        if self.what == "time":
            self.found.rows += self.lost

    def _note(self, cases: Sequence[str], why: str) -> None:
        if self.what == "time":
            self.found.rows += [Row(case, "all", "all", self.threads, note=why) for case in cases]
            self.found.rows += self.lost
            self.lost = []

    def _worker(self, todo: list[str], contenders: list[str], until: float) -> dict | None:
        """One process; None when it did all, else what it was at, and why it ended."""
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "journal"
            journal.touch()
            job = {
                "what": self.what,
                "cases": todo,
                "contenders": contenders,
                "threads": self.threads,
                "device": self.plan.device,
                "quick": self.plan.quick,
                "budget": self.budget,
                "patience": self.plan.limit / 9,
                "skip": self.skip,
                "kinds": self.plan.kinds,
                "journal": str(journal),
                "cache": str(HERE / "results" / "reference"),
            }
            command = [sys.executable, "-m", "benchmarks.worker", json.dumps(job)]
            with (Path(folder) / "errors").open("w+") as errors:
                worker = subprocess.Popen(
                    command, env=environment(self.threads), stdout=errors, stderr=errors
                )
                try:
                    return self._watch(worker, journal, errors, todo, until)
                finally:
                    worker.kill()
                    worker.wait()

    def _watch(
        self, worker: subprocess.Popen, journal: Path, errors: Any, todo: list[str], until: float
    ) -> dict | None:
        last: dict[str, Any] = {"case": "", "contender": "python", "mode": "start"}
        since = time.monotonic()
        with journal.open() as file:
            lines = whole_lines(file)
            while True:
                ended = worker.poll() is not None
                while line := next(lines):
                    since = time.monotonic()
                    event = json.loads(line)
                    if event["event"] == "begin":
                        last = event
                    elif event["event"] == "end":
                        return None
                    self._take(event, todo)
                if ended:
                    errors.seek(0)
                    tail = errors.read()[-300:]
                    sys.stderr.write(tail)
                    return {**last, "why": f"the process ended with status {worker.returncode}"}
                limit = max(self.plan.limit, 60.0 * (last["mode"] == "start"))
                if time.monotonic() - since > limit:
                    return {**last, "why": f"given up after {limit:.0f} s"}
                if self.plan.left() < until:
                    return {**last, "contender": ""}
                time.sleep(0.05)

    def _take(self, event: dict[str, Any], todo: list[str]) -> None:
        kind = event["event"]
        if kind == "missing":
            self.found.missing[event["contender"]] = event["why"]
        elif kind == "case":
            self.found.rows += [Row(**row) for row in event["rows"]]
            print(f"{self.threads} threads: {event['case']}", flush=True)
        elif kind == "memory":
            for row in self.found.rows:
                same = (row.case, row.contender, row.mode) == tuple(
                    event[k] for k in ("case", "contender", "mode")
                )
                if same and row.threads == self.threads:
                    row.memory = event["bytes"]
        elif kind == "done":
            todo.remove(event["case"])


def whole_lines(file: TextIO) -> Iterator[str]:
    """Lines of a file that another process writes; an empty one where there is no whole one yet."""
    begun = ""
    while True:
        begun += file.readline()
        if begun.endswith("\n"):
            yield begun
            begun = ""
        else:
            yield ""


def measure(plan: Plan) -> Found:
    """Everything: each number of threads, then the memory of each contender by itself."""
    found = Found()
    budget = _budget(plan)
    for threads in plan.threads:
        # Some of the time is kept for what comes later: more threads, and memory.
        kept = (0.15 if threads != plan.threads[-1] else 0.0) + (0.14 if plan.memory else 0.0)
        cases = [c for c in plan.cases if c.parallel or threads == plan.threads[0]]
        measuring = Measuring(plan, threads, "time", found, budget)
        if threads != plan.threads[0]:
            measuring.skip += slower_gradients(found.rows)
        measuring.run(cases, plan.contenders, kept * plan.minutes * 60)
    for name in plan.contenders if plan.memory else ():
        cases = [case for case in plan.cases if case.memory]
        if name not in found.missing:
            Measuring(plan, plan.threads[0], "memory", found, 0).run(cases, [name], 5)
    return found


def slower_gradients(rows: list[Row]) -> list[tuple[str, str, str]]:
    """What another kind of gradient of the same contender beats, and what has no time: that one
    number of threads has shown. What all are compared with is kept."""
    found = []
    for row in rows:
        best = report.fastest([r for r in rows if r.case == row.case], row.contender, "gradient")
        base = row.contender == report.BASE and row.mode == report.BACKPROP
        if kind_of(row.mode) and row is not best and not base:
            found.append((row.case, row.contender, row.mode))
    return found


def _budget(plan: Plan) -> float:
    """Seconds for the rounds of each row: a tenth of the time, shared by all rows."""
    wanted = [c for c in all_contenders() if c.name in plan.contenders]
    rows = 0
    for case in plan.cases:
        times = len(plan.threads) if case.parallel else 1
        rows += times * sum(len(c.modes(case)) for c in wanted)
    return min(8.0, plan.minutes * 60 / 10 / max(rows, 1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases, one thread, 5 minutes")
    parser.add_argument("--cases", help="names or beginnings of names, by commas; default: all")
    parser.add_argument("--contenders", help="names, by commas; default: all")
    parser.add_argument("--kinds", help="forward and kinds of gradients, by commas; default: all")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--threads", help="e.g. 1,8; default: 1 and all; with --quick 1")
    parser.add_argument("--minutes", type=float, help="default: 29; with --quick 4.5")
    parser.add_argument("--limit", type=float, help="seconds for one call; default: 90, 45")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--add", action="store_true", help="to the results that are in --out")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.* too")
    parser.add_argument("--list", action="store_true", help="print cases and contenders")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    cases = all_cases(options.quick)
    if options.cases:
        heads = tuple(options.cases.split(","))
        cases = [case for case in cases if case.name.startswith(heads)]
    names = [c.name for c in all_contenders()]
    wanted = options.contenders.split(",") if options.contenders else names
    unknown = [name for name in wanted if name not in names]
    if unknown or not cases:
        raise SystemExit(f"unknown contender {unknown} or no such case; try --list")
    cores = machine.cores()
    threads = [1] if options.quick or cores == 1 else [1, cores]
    if options.threads:
        threads = [int(n) for n in options.threads.split(",")]
    return Plan(
        cases,
        wanted,
        threads,
        options.minutes or (4.5 if options.quick else 29),
        options.limit or (45 if options.quick else 90),
        options.device,
        memory=any(case.memory for case in cases) and not options.no_memory,
        quick=options.quick,
        kinds=options.kinds.split(",") if options.kinds else None,
    )


def earlier_results(path: Path, plan: Plan) -> report.Result:
    """What --add adds to; the program ends, before anything is measured, where that cannot be."""
    if not path.exists():
        raise SystemExit(f"--add: there are no results in {path.parent} yet; leave it out")
    earlier = report.Result.load_json(path)
    now = machine.describe(plan.device), machine.versions()
    if (earlier.machine, earlier.versions) != now:
        raise SystemExit("--add: the results there are of another machine or other versions")
    return earlier


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print("cases:", *(f"  {c.name:24} {c.title}" for c in all_cases()), sep="\n")
        print("contenders:", *(f"  {c.name}" for c in all_contenders()), sep="\n")
        return 0
    plan = chosen(options)
    name = f"{plan.device}-{'quick' if options.quick else 'full'}"
    earlier = earlier_results(options.out / f"{name}.json", plan) if options.add else None
    before = machine.load()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYNODE_CACHE"] = folder  # nothing is compiled yet: cold is cold
        found = measure(plan)
    result = report.Result(
        machine=machine.describe(plan.device),
        versions=machine.versions(),
        load=(before, machine.load()),
        seconds=time.monotonic() - plan.started,
        quick=options.quick,
        rows=found.rows,
        missing=found.missing,
        titles={case.name: case.title for case in plan.cases},
        growth={case.name: case.growth for case in plan.cases if case.growth},
        device=plan.device,
    )
    if earlier is not None:
        result = result.beside(earlier)
    for path in report.write(result, options.out, name):
        print(path)
    if options.docs:
        page = "performance" if plan.device == "cpu" else f"performance-{plan.device}"
        report.write(result, HERE.parent / "docs", page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
