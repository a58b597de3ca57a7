"""Finding, installing and starting Julia. Nothing here happens at import, and nothing silently.

Julia runs inside this process, by juliacall. Which Julia is decided by two environment variables,
``PYTHON_JULIACALL_EXE`` and ``PYTHON_JULIACALL_PROJECT``, set together; without them it is the one
that ``pynode julia install`` found or installed, in an environment of its own beside Python's.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynode.errors import JuliaError

OLDEST = (1, 10, 3)
PACKAGE_UUID = "ad005afd-751d-425d-ae28-903ef8cdbe90"
HOW = (
    "Run `pynode julia install`, which finds a Julia or downloads one, and its packages (about "
    "3 GB); or set PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT to a Julia and a project "
    "that has PyNode and PythonCall. engine='torch' needs no Julia."
)

_lock = threading.RLock()
_package: Any = None
_failure: JuliaError | None = None


@dataclass(frozen=True)
class JuliaStatus:
    """What is known of Julia without starting it.

    Attributes:
        executable, version: the Julia that would run, if one was found.
        project: the environment with the packages.
        ready: whether a start can be expected to succeed.
        running: whether it runs in this process already.
        problem: what is missing, where it is not ready.
    """

    executable: str | None
    version: str | None
    project: str | None
    ready: bool
    running: bool
    problem: str = ""

    def __str__(self) -> str:
        rows = {
            "julia": f"{self.version or 'none'} ({self.executable or 'not found'})",
            "project": self.project or "none",
            "ready": "yes" if self.ready else f"no: {self.problem}",
            "running": "yes" if self.running else "no",
        }
        return "\n".join(f"{name:8} {value}" for name, value in rows.items())


def package_path() -> Path:
    """The Julia package PyNode: inside an installed pynode, or beside it in a checkout.

    Raises:
        JuliaError: it is in neither place.
    """
    here = Path(__file__).resolve().parents[2]
    for path in (here / "_julia", here.parent / "julia"):
        if (path / "Project.toml").is_file():
            return path
    raise JuliaError(f"the Julia package is neither in {here / '_julia'} nor beside {here}")


def status() -> JuliaStatus:
    """Look, without starting or downloading anything."""
    running = _package is not None
    exe, project = (
        os.environ.get("PYTHON_JULIACALL_EXE"),
        os.environ.get("PYTHON_JULIACALL_PROJECT"),
    )
    try:
        found = _given(exe, project) if exe or project else _resolved()
    except JuliaError as error:
        return JuliaStatus(exe, None, project, False, running, str(error))
    return JuliaStatus(*found, True, running)


def _given(exe: str | None, project: str | None) -> tuple[str, str, str]:
    """The Julia of the environment variables, after a look at both."""
    if not (exe and project):
        raise JuliaError(
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT must be set together, or neither"
        )
    version = _version_of(exe)
    if not Path(project).is_dir():
        raise JuliaError(f"PYTHON_JULIACALL_PROJECT={project} is not a directory")
    present = _packages_in(Path(project))
    missing = [name for name in ("PyNode", "PythonCall") if name not in present]
    if missing:
        raise JuliaError(
            f"the project {project} has no package {' and no '.join(missing)}. In Julia: "
            f'Pkg.activate("{project}"); Pkg.develop(path="{package_path()}"); '
            'Pkg.add("PythonCall")'
        )
    return exe, version, project


def _version_of(exe: str) -> str:
    try:
        done = subprocess.run(
            [exe, "--startup-file=no", "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JuliaError(f"PYTHON_JULIACALL_EXE={exe} does not run: {error}") from None
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
    if done.returncode or not found:
        raise JuliaError(f"PYTHON_JULIACALL_EXE={exe} is no Julia: it printed {done.stdout!r}")
    numbers = tuple(int(x) for x in found.groups())
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise JuliaError(f"{exe} is Julia {found.group()}, but {oldest} or newer is needed")
    return found.group()


def _packages_in(project: Path) -> set[str]:
    for name in ("Manifest.toml", "JuliaManifest.toml"):
        if (project / name).is_file():
            manifest = tomllib.loads((project / name).read_text())
            return set(manifest.get("deps", manifest))
    return set()


def _resolved() -> tuple[str, str, str]:
    """The Julia that juliapkg resolved before."""
    try:
        deps, state = (importlib.import_module(f"juliapkg.{x}") for x in ("deps", "state"))
    except ImportError as error:
        raise JuliaError(
            f"the Python package juliacall is not whole ({error}): reinstall it"
        ) from None
    with _offline(state.STATE):
        found = deps.can_skip_resolve()
    project = state.STATE["project"]
    if not found:
        raise JuliaError(f"no Julia has been set up for this Python (looked in {project}). {HOW}")
    if "PyNode" not in _packages_in(Path(project)):
        raise JuliaError(f"the setup of {project} was not finished. {HOW}")
    return found["executable"], found["version"], project


@contextmanager
def _offline(state: dict[str, Any]) -> Iterator[None]:
    """Nothing is downloaded inside; what had been chosen before is put back."""
    before = state["offline"]
    state["offline"] = True
    try:
        yield
    finally:
        state["offline"] = before


def install(packages: tuple[str, ...] = ()) -> JuliaStatus:
    """Find or download Julia and its packages, and precompile them. Takes minutes.

    Args:
        packages: optional ones beside PyNode: ``"DiffEqGPU"`` for ensembles, ``"CUDA"``.

    Raises:
        JuliaError: it failed; the message says at what.
    """
    import juliapkg

    path = package_path()
    try:
        juliapkg.require_julia("^1.10.3")
        juliapkg.add("PyNode", PACKAGE_UUID, dev=True, path=str(path))
        for name in packages:
            juliapkg.add(name, OPTIONAL[name])
        # Forced: juliapkg does not see that the package's own Project.toml has changed.
        juliapkg.resolve(force=True)
    except subprocess.CalledProcessError as error:
        raise JuliaError(
            f"Julia stopped with status {error.returncode} while it set up its packages; what it "
            "printed above says why (often: no network, or a package server out of reach). "
            "Nothing of pynode was changed: mend the cause and run the command again."
        ) from None
    except Exception as error:
        raise JuliaError(f"the setup of Julia failed: {error}") from error
    return status()


OPTIONAL = {
    "DiffEqGPU": "071ae1c0-96b5-11e9-1965-c90190d839ea",
    "CUDA": "052768ef-5323-5732-b1bb-66c8b64840ba",
}
"""Packages that extend PyNode when they are there."""


def test() -> int:
    """Run the Julia package's own tests in a process of their own; gives its exit status.

    Raises:
        JuliaError: there is no Julia to run them with.
    """
    found = status()
    if not found.ready:
        raise JuliaError(found.problem)
    julia = [str(found.executable), f"--project={found.project}", "--startup-file=no"]
    # Pkg's own --check-bounds=yes would have every package compiled a second time.
    script = 'import Pkg; Pkg.test("PyNode"; julia_args=["--check-bounds=auto"])'
    code = subprocess.run([*julia, "-e", script]).returncode
    if code == 0 and "DiffEqGPU" in _packages_in(Path(str(found.project))):
        code = subprocess.run([*julia, str(package_path() / "test" / "kernels.jl")]).returncode
    return code


def start() -> Any:
    """Start Julia in this process, once, and load PyNode; the first solve does it otherwise.

    Takes some seconds. The number of threads is that of ``PYTHON_JULIACALL_THREADS``.

    Returns:
        The Julia module PyNode.

    Raises:
        JuliaError: there is no Julia, it is too old, or it failed to start; says what to run.
    """
    global _package, _failure
    with _lock:
        if _package is not None:
            return _package
        if _failure is not None:  # a second try in one process cannot succeed
            raise _failure
        found = status()
        if not found.ready:
            raise JuliaError(f"engine='julia' cannot start: {found.problem}")
        try:
            _package = _load()
        except JuliaError as error:
            _failure = error
            raise
        return _package


def load(*packages: str) -> None:
    """Load Julia packages that extend PyNode (starts Julia if need be).

    Raises:
        JuliaError: one is not there, or does not load.
    """
    memory = start().Memory
    for name in packages:
        with _lock:
            if name in _loaded:
                continue
            try:
                memory.load(name)
            except Exception as error:
                raise JuliaError(
                    f"the Julia package {name} does not load ({str(error).splitlines()[0]}): "
                    f"run `pynode julia install --with {name}`, or add it to your own project"
                ) from error
            _loaded.add(name)


_loaded: set[str] = set()


def _load() -> Any:
    os.environ["PYTHON_JULIAPKG_OFFLINE"] = "yes"  # for the processes that juliacall may start
    if "juliapkg.state" in sys.modules:
        sys.modules["juliapkg.state"].STATE["offline"] = True
    # Julia's garbage collector stops its threads by signals, and every thread of Python's that
    # calls Julia is one of them: without, the next collection ends the process.
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes")
    try:
        with warnings.catch_warnings():
            # Both orders are tested on Linux; elsewhere juliacall's warning is worth having.
            if sys.platform == "linux":
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
            main = importlib.import_module("juliacall").Main
            main.seval("using PyNode")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise JuliaError(
            f"Julia did not start: {error}. `pynode julia status` says what was found. {HOW}"
        ) from error
    if os.environ["PYTHON_JULIACALL_HANDLE_SIGNALS"] == "yes":
        _take_back_interrupts()
    _let_other_threads_collect(main)
    return main.PyNode


def _let_other_threads_collect(main: Any) -> None:
    """Tell Julia that its first thread, this one, runs no Julia code while it runs Python code.

    Else a garbage collection in another thread's call waits for this thread to get to a safe point,
    and this one for the interpreter's lock, which the other holds: for ever. Every way into Julia
    (a ``@cfunction``) takes it back on entering and says it again on leaving.
    """
    if main.seval("Threads.threadid()") != 1:
        raise JuliaError(
            "Julia was started by another thread, which imported juliacall: call "
            "pynode.julia.start() in that thread first"
        )
    enter, leave = (main.seval(f"UInt(cglobal(:jl_gc_safe_{x}))") for x in ("enter", "leave"))
    before = ctypes.PYFUNCTYPE(ctypes.c_int8)(enter)()
    thread = threading.get_ident()

    @atexit.register  # runs before juliacall's, which ends Julia and was registered earlier
    def _end() -> None:
        if threading.get_ident() == thread:
            ctypes.PYFUNCTYPE(None, ctypes.c_int8)(leave)(before)


def _take_back_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, after Julia has taken all signals."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def running() -> bool:
    """Whether Julia runs in this process."""
    return _package is not None
