"""What needs a process of its own: the order of imports, threads, Ctrl-C, runs without Python."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from julia_cases import mlp, plain

from pynode import NeuralODE
from pynode.engines.julia import runtime
from pynode.export import load_parameters, results

pytestmark = pytest.mark.julia

SOLVE = """
import torch
from pynode import solve
zs = solve(lambda z: -z, torch.ones(2, dtype=torch.float64), [0.0, 1.0], engine="julia").zs
print(round(float(zs[-1, 0]), 4))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


@pytest.mark.parametrize("first", ["torch", "juliacall"])
def test_order_of_imports(first):
    done = python(f"import {first}\n{SOLVE}")
    assert done.stdout.split()[-1] == "0.3679", done.stderr
    assert done.returncode == 0


THREADS = """
import faulthandler, threading
import torch
from pynode import julia, solve

faulthandler.dump_traceback_later(300, exit=True)  # needs no lock of the interpreter's
julia.start()
from juliacall import Main

def work():
    z0 = torch.ones(2, dtype=torch.float64)
    zs = solve(lambda z: -z, z0, [0.0, 1.0], engine="julia").zs
    Main.GC.gc()
    print(round(float(zs[-1, 0]), 4), flush=True)

work()
others = [threading.Thread(target=work) for _ in range(3)]
for thread in others:
    thread.start()
for thread in others:
    thread.join()
work()
print(Main.seval("Threads.nthreads()"))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_of_python_and_of_julia(threads):
    """Each of Python's threads solves and collects Julia's garbage, and none waits for ever."""
    done = python(THREADS, PYTHON_JULIACALL_THREADS=threads)
    assert done.stdout.split() == ["0.3679"] * 5 + [threads], done.stderr
    assert done.returncode == 0, done.stderr


WAITS = """
import faulthandler, threading
from pynode import julia

faulthandler.dump_traceback_later(300, exit=True)
julia.start()
from juliacall import Main

work = "PyNode.Memory.listening(() -> success(`true`))"
thread = threading.Thread(target=lambda: print(Main.seval(work)))
thread.start()
thread.join()
"""


def test_another_thread_waits_for_a_process():
    """As it does while a compiler runs, say that of a GPU's kernels."""
    done = python(WAITS)
    assert done.stdout.split() == ["True"], done.stderr


COLLECTS = """
import threading
from pynode import julia

julia.start()
from juliacall import Main

thread = threading.Thread(target=lambda: Main.seval("sum(rand(10))"))
thread.start()
thread.join()
for _ in range(3):
    Main.GC.gc()
print("done")
"""


def test_garbage_is_collected_after_another_thread_has_called():
    done = python(COLLECTS)
    assert done.stdout.split() == ["done"], done.stderr


LONG = """
import torch, warnings
from pynode import solve
z0 = torch.ones(2, dtype=torch.float64)
fast = lambda t, z: torch.stack([z[1], -1e6 * z[0]])
solve(fast, z0, [0.0, 1e-6], engine="julia")
print("ready", flush=True)
try:
    solve(fast, z0, [0.0, 1e6], engine="julia", max_steps=10**12, rtol=1e-9)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(float(solve(fast, z0, [0.0, 1e-6], engine="julia").zs[0, 0]))
"""


def test_ctrl_c_ends_a_long_solve_and_julia_stays_usable():
    process = subprocess.Popen(
        [sys.executable, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(1.0)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["interrupted", "1.0"], err
    assert process.returncode == 0
    assert time.monotonic() - start < 30


def julia(folder, command: str, *options: str, flags=()) -> subprocess.CompletedProcess:
    found = runtime.status()
    script = runtime.package_path() / "bin" / "pynode.jl"
    assert found.executable is not None
    return subprocess.run(
        [
            found.executable,
            f"--project={found.project}",
            "--startup-file=no",
            *flags,
            str(script),
            command,
            str(folder),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("sensitivity", ["gauss", "discrete"])
def test_an_exported_run_without_parameters(sensitivity, tmp_path):
    field = mlp(3, 8).double().requires_grad_(False)
    node = NeuralODE(field, sensitivity=sensitivity, rtol=1e-8, atol=1e-8)
    z0, t = plain(4).double().requires_grad_(), torch.linspace(0, 1, 5, dtype=torch.float64)
    zs = node(z0, t)
    folder = node.export(tmp_path / "run", z0, t, targets=torch.zeros_like(zs))
    for command in ("solve", "gradient"):
        done = julia(folder, command)
        assert done.returncode == 0, done.stderr
    found = results(folder)
    torch.testing.assert_close(
        found["solution"]["zs"], zs.detach().reshape(5, -1), rtol=1e-6, atol=0
    )
    (grad,) = torch.autograd.grad(zs.sum(), z0)
    torch.testing.assert_close(found["gradient"]["z0"], grad.reshape(-1), rtol=1e-5, atol=0)
    assert found["gradient"]["p"].shape == (0,)
    done = julia(folder, "train")
    assert done.returncode == 2 and "no parameters to train" in done.stderr


def test_an_exported_run_without_python(tmp_path):
    """Solve, gradient and training in Julia alone agree with the torch engine's."""
    torch.manual_seed(0)
    field = mlp(3, 8).double()
    node = NeuralODE(field, rtol=1e-9, atol=1e-11, sensitivity="gauss")
    z0, t = plain(4).double(), torch.linspace(0, 1, 5, dtype=torch.float64)
    targets = torch.zeros(5, 4, 3, dtype=torch.float64)
    z0s = torch.stack([z0, 2 * z0])
    folder = node.export(tmp_path / "run", z0, t, targets=targets, z0s=z0s)
    for command in ("solve", "gradient", "ensemble"):
        done = julia(folder, command)
        assert done.returncode == 0, done.stderr
    found = results(folder)
    zs = node(z0, t)
    torch.testing.assert_close(
        found["solution"]["zs"], zs.detach().reshape(5, -1), rtol=1e-7, atol=1e-8
    )
    grads = torch.autograd.grad(zs.sum(), list(field.parameters()))
    flat = torch.cat([g.reshape(-1) for g in grads])
    torch.testing.assert_close(found["gradient"]["p"], flat, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(
            found["ensemble"]["zs"][1], node(2 * z0, t).reshape(5, -1), rtol=1e-6, atol=1e-7
        )
    # On two worker processes: the same numbers.
    done = julia(folder, "ensemble", flags=("-p", "2"))
    assert "2 trajectories on 2 processes, 0 failed" in done.stdout, done.stderr
    assert torch.equal(results(folder)["ensemble"]["zs"], found["ensemble"]["zs"])
    before = float((zs - targets).square().mean().detach())
    assert julia(folder, "train", "--epochs", "5", "--lr", "0.05").returncode == 0
    load_parameters(node, folder)
    after = float((node(z0, t) - targets).square().mean().detach())
    assert after < before
    np.testing.assert_allclose(after, float(results(folder)["parameters"]["loss"]), rtol=1e-5)
    shutil.rmtree(folder)
    assert julia(folder, "solve").returncode == 2
