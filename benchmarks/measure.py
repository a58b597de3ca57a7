"""How times and memory are taken: interleaved, warm, and only of right answers."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task
from benchmarks.reference import slope_error, state_error

BLOCK = 0.01
"""Seconds: shorter runs are repeated to last this long, and their mean is one time."""
WARM = 10
"""One of so many repeats is made before the clock starts, and at least one of what is SHORT."""
SHORT = 0.1
ROUNDS = 15
SLOW = 2.0
"""Seconds: of what takes longer, and whose first call is like the others, one is made."""
WORST = 100.0
"""Errors above this many tolerances: no time is reported."""


@dataclass
class Row:
    """One contender at one mode of one case.

    Attributes:
        times: seconds, one of each round.
        cold: seconds of the first call, compilation included.
        error, gradient_error: in units of rtol, see ``reference.py``.
        memory: peak bytes during a warm call, above what was held before it.
        note: why there are no times, or what is to be known about them.
    """

    case: str
    contender: str
    mode: str
    threads: int
    solver: str = ""
    times: list[float] = field(default_factory=list)
    cold: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    memory: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.times) if self.times else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def clean(text: str) -> str:
    """An error's first line without paths of this machine."""
    line = str(text).strip().partition("\n")[0]
    return re.sub(r"(/[\w.+-]+){2,}", "…", line)[:240]


def judge(case: Case, row: Row, task: Task, raw: Any, truth: tuple[np.ndarray, Any]) -> None:
    """Compare what was computed with the reference; a bad answer is noted and gets no time."""
    zs, grads = task.read(raw)
    true, slopes = truth
    row.error = state_error(zs[:, case.checked], true) / case.rtol
    errors = [("states", row.error)]
    if grads is not None:
        row.gradient_error = slope_error(case, *grads, slopes) / case.rtol
        errors.append(("gradient", row.gradient_error))
    for what, error in errors:
        if not error <= WORST:  # NaN is not
            row.note = f"{what} wrong by {error:.3g} × rtol: no time reported"


def measure_case(
    case: Case,
    entries: Iterable[tuple[Contender, str]],
    truth: tuple[np.ndarray, Any],
    threads: int,
    device: str,
    budget: float,
    begin: Callable[[Case, str, str], None] = lambda *_: None,
    patience: float = math.inf,
) -> list[Row]:
    """Times of all entries (contender, mode), taking turns.

    Args:
        budget: seconds for the rounds of each entry; at least two. An entry that takes longer than
            that gets its second call's time, or its first one's where that says as much.
        begin: called before each entry's first call.
        patience: seconds after which a first call is given up.
    """
    rows: list[Row] = []
    ready: list[tuple[Row, Task, int, int]] = []
    for contender, mode in entries:
        begin(case, contender.name, mode)
        row = Row(case.name, contender.name, mode, threads)
        rows.append(row)
        try:
            task = contender.prepare(case, mode, device)
            row.solver = task.solver
            with given_up_after(math.inf if contender.compiles else patience):
                row.cold, raw = _timed(task.run)
            judge(case, row, task, raw, truth)
            slow = row.cold > SLOW and contender.eager
            if slow and not row.note:
                row.times.append(row.cold)
            else:
                row.counts = task.counts(raw)
            del raw
            if row.note or slow:
                continue
            warm = max(_timed(task.run)[0], 1e-6)
        except Exception as error:  # a peer may raise anything; its row says what
            row.note = clean(f"{type(error).__name__}: {error}")
            continue
        if warm > max(budget, 1.0):
            row.times.append(warm)
            continue
        # One more run settles what the first warm one still allocated.
        warm = warm if warm > 1 else max(_timed(task.run)[0], 1e-6)
        repeats = max(1, round(BLOCK / warm))
        rounds = min(ROUNDS, max(2, int(budget / (warm * repeats))))
        ready.append((row, task, repeats, rounds))
    gc.collect()
    gc.freeze()  # else each collection would walk through all that the libraries hold
    for k in range(max((rounds for *_, rounds in ready), default=0)):
        for row, task, repeats, rounds in ready:
            if k < rounds:
                begin(case, row.contender, row.mode)
                before = max(repeats // WARM, int(row.times[-1] < SHORT) if row.times else 1)
                row.times.append(_mean_time(task.run, repeats, before))
    return rows


@contextmanager
def given_up_after(seconds: float) -> Iterator[None]:
    """Ends what runs in Python's own code by TimeoutError; compiled code is not interrupted.

    Here a hanging peer costs the time and its row. Else the whole process has to be ended, and the
    case begun again.
    """
    if seconds == math.inf or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"given up after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    raw = run()
    return time.perf_counter() - start, raw


def _mean_time(run: Callable[[], Any], repeats: int, before: int) -> float:
    """Seconds a call, after so many that are not counted: the contender before and the collection
    have emptied the processor's caches."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(before):
            run()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def keep_freed_memory(keep: bool) -> None:
    """Whether malloc keeps what is freed, for times, or gives large blocks back, for peak memory.

    glibc decides by what was freed before, so that one and the same gradient of a flow took 18 or
    52 ms: memory that was given back costs a page fault for each 4 kB when it is got again, and
    operations on tensors of 128 kB then take three times as long. Nothing on other systems.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(trim_threshold, 1 << 30 if keep else 1 << 17)
        libc.mallopt(mmap_threshold, 1 << 25 if keep else 1 << 17)


def peak_memory(contender: Contender, case: Case, mode: str, device: str) -> int | None:
    """Peak bytes during a warm call, above what was held before it.

    On Linux by the kernel's high-water mark, which is set back before the call; on CUDA by torch's
    own count. None where neither is there.
    """
    task = contender.prepare(case, mode, device)
    for _ in range(2):
        raw = task.run()
    del raw
    gc.collect()
    if device != "cpu":
        if "jax" in sys.modules and "diffrax" in contender.name:
            return None
        import torch

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task.run()
        return int(torch.cuda.max_memory_allocated() - before)
    if not sys.platform.startswith("linux"):
        return None
    # Freed memory that the C library keeps would hide what the call needs.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    raw = task.run()
    peak = _status("VmHWM")
    del raw
    return max(0, peak - before)


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
