"""The examples that tell an experiment's story run, at a small size, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    threads = torch.get_num_threads()

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name))
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_noise_to_data(run):
    printed = run("noise_to_data.py", "--steps", "2")
    assert float(re.search(r"off by at most (\S+)", printed)[1]) < 1e-4


def test_resnet_to_ode(run):
    pytest.importorskip("sklearn")
    printed = run("resnet_to_ode.py", "--epochs", "1")
    off = [float(x) for x in re.findall(r"off by (\S+)", printed)]
    assert off == sorted(off, reverse=True) and off[-2] / off[-1] == pytest.approx(2.0, abs=0.3)


def test_time_or_gap(run):
    printed = run("time_or_gap.py", "--epochs", "1", "--series", "8")
    assert len(re.findall(r"RNN told \S+ +\d\.\d+", printed)) == 6


def test_fill_and_forecast(run):
    printed = run("fill_and_forecast.py", "--epochs", "1", "--series", "20")
    found = dict(re.findall(r"^(\w+) +(\d\.\d+)", printed, re.MULTILINE))
    assert set(found) == {"last_value", "linear", "rnn_dt", "latent_ode"}
    assert float(found["linear"]) < float(found["last_value"])


def test_which_gradient(run):
    printed = run("which_gradient.py")
    errors = re.findall(r"^(\w+) +(\d\S+) ", printed, re.MULTILINE)
    assert {name for name, _ in errors} >= {"discrete", "backsolve", "interpolating", "gauss"}
    assert all(float(error) < 1e-3 for _, error in errors)


def test_room_to_turn(run):
    printed = run("room_to_turn.py", "40")
    error = {name: float(x) for name, x in re.findall(r"^(\w+) +error ([\d.]+)", printed, re.M)}
    assert error["node"] > 0.25 and error["anode1"] < 0.1


@pytest.mark.slow
def test_gradient_memory(run):
    printed = run("gradient_memory.py")
    assert re.search(r"backsolve .* wrong$", printed, re.MULTILINE)
    assert re.search(r"discrete .* fine$", printed, re.MULTILINE)


@pytest.mark.slow
def test_keep_the_energy(run):
    printed = run("keep_the_energy.py")
    drift = dict(re.findall(r"^(\w+) .*, ([\d.]+) at t = 100", printed, re.MULTILINE))
    assert float(drift["hamiltonian"]) < float(drift["plain"])


@pytest.mark.slow
def test_choose_tolerance(run):
    pytest.importorskip("sklearn")
    accuracies = [float(x) for x in re.findall(r"accuracy ([\d.]+)", run("choose_tolerance.py"))]
    assert len(accuracies) == 9 and min(accuracies) > 0.9


@pytest.mark.slow
def test_find_the_equation(run):
    printed = run("find_the_equation.py")
    assert re.search(
        r"found:  u' = 1\.3\d u − 0\.[89]\d uv, v' = −1\.[78]\d v \+ 0\.[78]\d uv", printed
    )
