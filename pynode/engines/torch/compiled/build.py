"""C++ source to a loaded function, by the compiler of this machine, once: the result is kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynode.errors import CompileError

NATIVE = Path(__file__).parent / "native"
FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-w",
)  # fmt: skip
NO_COMPILER = (
    "compile=True needs a C++ compiler (g++ 11 or clang++ 14, or newer), and {what}. Install one "
    "(apt install g++, dnf install gcc-c++, xcode-select --install, conda install cxx-compiler), "
    "or name it in the environment variable CXX; or solve with compile=False"
)


@dataclass
class Counts:
    """Of this process: compilers started, and libraries found ready in the cache."""

    compiled: int = 0
    found: int = 0


counts = Counts()


@functools.cache
def load(source: str) -> Any:
    """The function ``pynode_run`` of a source.

    Raises:
        CompileError: there is no compiler, or it refused the source.
    """
    path = cache_folder() / f"{_key(source)}.so"
    if path.exists():
        counts.found += 1
    else:
        _compile(source, path)
        counts.compiled += 1
    try:
        function = ctypes.CDLL(str(path)).pynode_run
    except OSError as error:
        raise CompileError(f"compiled code cannot be loaded: {error}. Delete {path}") from None
    function.argtypes = [ctypes.c_void_p]
    return function


def cache_folder() -> Path:
    """Where compiled code is kept: $PYNODE_CACHE, or ``pynode`` in the user's cache folder."""
    given = os.environ.get("PYNODE_CACHE")
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pynode"


def compiler() -> str:
    """The path of the C++ compiler.

    Raises:
        CompileError: there is none.
    """
    named = os.environ.get("CXX")
    if named:
        found = shutil.which(named)
        if found is None:
            raise CompileError(NO_COMPILER.format(what=f"CXX={named} is not there"))
        return found
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise CompileError(NO_COMPILER.format(what="none was found"))


def _compile(source: str, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unit, library = Path(folder) / "unit.cpp", Path(folder) / "unit.so"
        unit.write_text(source, encoding="utf-8")
        command = [compiler(), *FLAGS, f"-I{NATIVE}", str(unit), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:300])
            raise CompileError(
                f"{command[0]} refused the code of the solve: {why.strip()}. If it is old, name "
                "another in the environment variable CXX; or solve with compile=False"
            )
        os.replace(library, path)  # whole or not at all, whoever else writes it


def _key(source: str) -> str:
    """Of all that the machine code depends on."""
    digest = hashlib.sha256()
    for part in (source, _headers(), " ".join(FLAGS), _machine(), os.environ.get("CXX", "")):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


@functools.cache
def _headers() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(NATIVE.glob("*.h")))


@functools.cache
def _machine() -> str:
    """The processor, for which the code is made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line.partition(":")[0].strip(): line for line in reversed(lines) if ":" in line}
    known = [told[name] for name in ("model name", "flags", "Features") if name in told]
    return " ".join([platform.machine(), platform.processor(), *known])
