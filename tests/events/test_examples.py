"""The examples of events and controls run, at a small size."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name))
        return capsys.readouterr().out

    yield run
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def test_bouncing_ball_is_as_in_closed_form(run):
    printed = run("bouncing_ball.py", "--steps", "0")
    errors = [float(x) for x in re.findall(r"largest .*: ([\d.e+-]+)", printed)]
    assert len(errors) == 2 and max(errors) < 1e-9


def test_neural_cde_trains(run):
    printed = run("neural_cde.py", "--series", "16", "--steps", "2")
    assert float(re.search(r"held-out accuracy ([\d.]+)", printed)[1]) >= 0.0
    assert "step 1: loss" in printed


@pytest.mark.slow
def test_neural_cde_tells_spirals_apart(run):
    printed = run("neural_cde.py")
    assert float(re.search(r"held-out accuracy ([\d.]+)", printed)[1]) > 0.95
