"""The command line: what it prints, and its exit status."""

import subprocess
import sys

import pytest

import pynode
from pynode.cli import main
from pynode.errors import InputError
from pynode.experiments import spiral


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"pynode {pynode.__version__} (torch ")


def test_solvers(capsys):
    assert main(["solvers"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["solver", "order", "adaptive"]
    assert [line.split()[0] for line in lines] == [s.name for s in pynode.solvers()]
    (tsit5,) = (line for line in lines if line.startswith("tsit5"))
    assert tsit5.split()[1:6] == ["5", "yes", "no", "torch,", "julia"]


def test_sensitivities(capsys):
    assert main(["sensitivities"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [s.name for s in pynode.sensitivities()]


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "experiment" in capsys.readouterr().out
    assert main(["experiment", "spiral", "--help"]) == 0
    assert "--observed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "required: COMMAND"),
        (["juliet"], "invalid choice: 'juliet'"),
        (["experiment", "circle"], "invalid choice: 'circle'"),
        (["experiment", "spiral"], "--out"),
        (["experiment", "spiral", "--out", "x", "--models", "lstm"], "invalid choice: 'lstm'"),
        (["experiment", "spiral", "--out", "x", "--engine", "numpy"], "invalid choice: 'numpy'"),
        (["experiment", "spiral", "--out", "x", "--scale", "huge"], "invalid choice: 'huge'"),
        (["experiment", "spiral", "--out", "x", "--seeds", "two"], "invalid int value: 'two'"),
        (["experiment", "spiral", "--out", "x", "--observed", "101"], "--observed 101: must be in"),
        (["experiment", "spiral", "--out", "x", "--missing", "1"], "--missing 1.0: must be in"),
        (["experiment", "spiral", "--out", "x", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["experiment", "spiral", "--out", "x", "--series", "5"], "--series 5: must be at least"),
        (["experiment", "spiral", "--out", "x", "--epochs", "0"], "--epochs 0: must be at least"),
        (["experiment", "spiral", "--out", "x", "--jobs", "0"], "--jobs 0: must be at least 1"),
    ],
)
def test_mistakes(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["experiment", "spiral", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raised, status, said",
    [
        (InputError("the cause and the remedy"), 2, "pynode: error: the cause and the remedy"),
        (KeyboardInterrupt("how to go on"), 130, "pynode: how to go on"),
        (KeyboardInterrupt(), 130, "pynode: interrupted"),
    ],
)
def test_exceptions_become_exit_statuses(raised, status, said, capsys, monkeypatch, tmp_path):
    def run(_):
        raise raised

    monkeypatch.setattr(spiral, "run", run)
    assert main(["experiment", "spiral", "--out", str(tmp_path)]) == status
    assert said in capsys.readouterr().err


def test_other_exceptions_keep_their_traceback(monkeypatch, tmp_path):
    def run(_):
        raise ZeroDivisionError

    monkeypatch.setattr(spiral, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["experiment", "spiral", "--out", str(tmp_path)])


def test_python_dash_m():
    command = [sys.executable, "-m", "pynode"]
    done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{done.stdout.strip()}\n")
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_importing_pynode_is_light():
    code = "import sys, pynode, pynode.plots; print({'matplotlib', 'juliacall'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
