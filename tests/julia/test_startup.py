"""Start-up of the julia engine where there is no Julia, or the wrong one: what is said, and that
nothing is downloaded. Each case in a process of its own, since Julia starts once a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pynode.engines.julia import runtime

NO_JULIA = {
    "PYTHON_JULIACALL_EXE": None,
    "PYTHON_JULIACALL_PROJECT": None,
    "PYTHON_JULIAPKG_EXE": None,
    # A setup that is not there, wherever the machine may have one.
    "PYTHON_JULIAPKG_PROJECT": "/nonexistent/julia_env",
}
START = "import pynode, pynode.julia; pynode.julia.start()"


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    env = {**os.environ, **NO_JULIA, **environment}
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120
    )


def script(path: Path, prints: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)
    return str(path)


def manifest(project: Path, *packages: str) -> str:
    project.mkdir()
    entries = "".join(f'[[deps.{name}]]\nversion = "1.0.0"\n' for name in packages)
    (project / "Manifest.toml").write_text(f'manifest_format = "2.0"\n{entries}')
    return str(project)


def fails_with(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pynode.errors.JuliaError")
    for word in words:
        assert word in last, last


def test_import_starts_nothing():
    done = python(
        "import sys, pynode, pynode.julia; "
        "print([m for m in ('juliacall', 'juliapkg', 'matplotlib') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_no_julia_says_what_to_run():
    fails_with(python(START), "pynode julia install", "/nonexistent/julia_env")


@pytest.mark.parametrize("only", ["PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"])
def test_one_variable_of_the_two(only):
    fails_with(python(START, **{only: sys.executable}), "set together")


def test_an_executable_that_is_not_there(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": str(tmp_path / "julia"),
        "PYTHON_JULIACALL_PROJECT": str(tmp_path),
    }
    fails_with(python(START, **variables), "does not run", str(tmp_path / "julia"))


def test_an_executable_that_is_no_julia(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "hello"),
        "PYTHON_JULIACALL_PROJECT": str(tmp_path),
    }
    fails_with(python(START, **variables), "is no Julia", "hello")


def test_a_julia_that_is_too_old(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "julia version 1.9.4"),
        "PYTHON_JULIACALL_PROJECT": str(tmp_path),
    }
    fails_with(python(START, **variables), "1.9.4", "1.10.3")


def test_a_project_that_is_not_there(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "julia version 1.10.8"),
        "PYTHON_JULIACALL_PROJECT": str(tmp_path / "nowhere"),
    }
    fails_with(python(START, **variables), "is not a directory")


def test_a_half_installed_project(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "julia version 1.10.8"),
        "PYTHON_JULIACALL_PROJECT": manifest(tmp_path / "env", "PythonCall"),
    }
    fails_with(python(START, **variables), "no package PyNode", "Pkg.develop")


def test_a_julia_that_dies_while_starting(tmp_path):
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "julia version 1.10.8"),
        "PYTHON_JULIACALL_PROJECT": manifest(tmp_path / "env", "PythonCall", "PyNode"),
    }
    fails_with(python(START, **variables), "did not start", "pynode julia status")


def test_a_broken_juliacall():
    code = "import sys; sys.modules['juliapkg'] = None; " + START
    fails_with(python(code), "not whole")


def test_a_failed_start_is_told_again_not_tried_again(tmp_path):
    code = (
        "import pynode.julia\n"
        "for _ in range(2):\n"
        "    try: pynode.julia.start()\n"
        "    except Exception as error: print(id(error))"
    )
    variables = {
        "PYTHON_JULIACALL_EXE": script(tmp_path / "julia", "julia version 1.10.8"),
        "PYTHON_JULIACALL_PROJECT": manifest(tmp_path / "env", "PythonCall", "PyNode"),
    }
    first, second = python(code, **variables).stdout.split()
    assert first == second


def test_a_killed_package_server_is_an_error_with_its_cause(tmp_path):
    """The setup fails in Julia's package manager: status 2, no traceback, and why."""
    julia = tmp_path / "julia"
    julia.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "julia version 1.10.8";; '
        '*Libdl*) printf "/lib/libjulia.so\\0/bin";; '
        '*) echo "could not download https://pkg" >&2; exit 1;; esac\n'
    )
    julia.chmod(0o755)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in NO_JULIA},
        "PYTHON_JULIAPKG_EXE": str(julia),
        "PYTHON_JULIAPKG_PROJECT": str(tmp_path / "env"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pynode", "julia", "install"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2
    assert "could not download" in done.stderr
    assert "package server out of reach" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_command_without_julia():
    done = subprocess.run(
        [sys.executable, "-m", "pynode", "julia", "status"],
        capture_output=True,
        text=True,
        env={
            **{k: v for k, v in os.environ.items() if k not in NO_JULIA},
            **{k: v for k, v in NO_JULIA.items() if v},
        },
        timeout=120,
    )
    assert done.returncode == 1
    assert "not found" in done.stdout
    assert "pynode julia install" in done.stdout


def test_the_julia_package_is_found():
    assert (runtime.package_path() / "src" / "PyNode.jl").is_file()
