"""Runs in processes: the same results, failures kept apart, a clean end."""

import os
import signal
import threading
import time

import pool_work
import pytest
import torch

from pynode.experiments.pool import run_all


def run(items, work, jobs):
    done, progress = {}, []
    failures = run_all(
        items, work, jobs, lambda i, message: progress.append((i, message)), done.__setitem__
    )
    return done, progress, failures


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_progress_and_failures(jobs):
    before = torch.get_num_threads()
    done, progress, failures = run([3, -1, 4], pool_work.square, jobs)
    assert done == {0: (9, 1), 2: (16, 1)}  # the square, and the number of threads
    assert failures == {1: "-1 is negative"}
    assert sorted(progress) == [(0, "working"), (1, "working"), (2, "working")]
    assert torch.get_num_threads() == before


def test_dead_worker_is_noticed():
    with pytest.raises(RuntimeError, match="died with exit code 7"):
        run([1, 2], pool_work.die, jobs=2)


def test_interrupt_reaches_every_worker_once(tmp_path):
    """Each worker gets to save its state, and the caller's Ctrl-C is passed on."""
    items = [str(tmp_path / "a"), str(tmp_path / "b")]
    ready = set()

    def on_progress(index, _):
        ready.add(index)
        if len(ready) == len(items):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(items, pool_work.wait_and_save, 2, on_progress, lambda *_: None)
    assert time.monotonic() - start < 30
    assert [(tmp_path / name).read_text() for name in "ab"] == ["saved", "saved"]
