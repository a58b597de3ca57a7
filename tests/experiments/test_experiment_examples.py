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
