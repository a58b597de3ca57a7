"""Independent runs in a few processes, one thread each, whose results do not depend on how many."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pynode.errors import PynodeError
from pynode.train.distributed import rank_and_size

Report = Callable[[Any], None]
Work = Callable[[Any, Report], Any]  # (item, report progress) -> result

_POLL_SECONDS = 1.0
_STOP_SECONDS = 60.0


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    items: Sequence[Any],
    work: Work,
    jobs: int,
    on_progress: Callable[[int, Any], None],
    on_done: Callable[[int, Any], None],
) -> dict[int, str]:
    """Call ``work`` on every item, in up to ``jobs`` processes of one thread each.

    Args:
        items: what to work on; begun in this order.
        work: a function of a module's top level. An item that fails by a PynodeError does not stop
            the others.
        jobs: 1 stays in this process, and so does every number under torchrun, whose processes
            share each item's training instead.
        on_progress, on_done: called in this process with the item's index and what was reported
            or returned.

    Returns:
        The messages of the items that failed, by index.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after every process has had the chance to save its state.
        RuntimeError: a process died.
    """
    if jobs == 1 or len(items) <= 1 or rank_and_size()[1] > 1:
        with one_thread():
            return _run_here(items, work, on_progress, on_done)
    return _run_in_processes(items, work, min(jobs, len(items)), on_progress, on_done)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: sums in another order would change results from machine to machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_here(
    items: Sequence[Any],
    work: Work,
    on_progress: Callable[[int, Any], None],
    on_done: Callable[[int, Any], None],
) -> dict[int, str]:
    failures = {}
    for index, item in enumerate(items):
        try:
            result = work(item, partial(on_progress, index))
        except PynodeError as error:
            failures[index] = str(error)
        else:
            on_done(index, result)
    return failures


def _run_in_processes(
    items: Sequence[Any],
    work: Work,
    jobs: int,
    on_progress: Callable[[int, Any], None],
    on_done: Callable[[int, Any], None],
) -> dict[int, str]:
    context = multiprocessing.get_context("spawn")  # forking after torch has threads is unsafe
    tasks, messages = context.Queue(), context.Queue()
    for task in [*enumerate(items), *[None] * jobs]:
        tasks.put(task)
    workers = [
        context.Process(target=_worker, args=(work, tasks, messages), daemon=True)
        for _ in range(jobs)
    ]
    failures: dict[int, str] = {}
    handlers = {"progress": on_progress, "done": on_done, "failed": failures.__setitem__}
    try:
        with _interrupts_ignored():
            for worker in workers:
                worker.start()
        finished = 0
        while finished < len(items):
            kind, index, content = _next_message(messages, workers)
            handlers[kind](index, content)
            finished += kind != "progress"
        for worker in workers:
            worker.join()
    except BaseException:
        _stop(workers, messages)
        raise
    return failures


def _worker(work: Work, tasks: Any, messages: Any) -> None:
    # Ctrl-C in a terminal reaches every process of the group. Only the parent listens to it, and
    # stops its workers by SIGTERM, once, so that nothing interrupts them while they save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_interrupt)
    torch.set_num_threads(1)
    try:
        while (task := tasks.get()) is not None:
            index, item = task
            try:
                result = work(item, partial(_send_progress, messages, index))
            except PynodeError as error:
                messages.put(("failed", index, str(error)))
            else:
                messages.put(("done", index, result))
    except KeyboardInterrupt:
        messages.cancel_join_thread()


def _send_progress(messages: Any, index: int, message: Any) -> None:
    messages.put(("progress", index, message))


def _raise_interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in here ignore SIGINT from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next_message(messages: Any, workers: Sequence[Any]) -> tuple[str, int, Any]:
    while True:
        try:
            return messages.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            died = [w.exitcode for w in workers if w.exitcode not in (None, 0)]
            if died:
                raise RuntimeError(
                    f"a worker process died with exit code {died[0]} (above, its own words, if it "
                    "had any; -9 is often a lack of memory: try --jobs 1)"
                ) from None


def _stop(workers: Sequence[Any], messages: Any) -> None:
    with _interrupts_ignored():
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join(_STOP_SECONDS)
            if worker.is_alive():
                worker.kill()
        messages.cancel_join_thread()
