"""Folders for Julia, as far as they can be looked at without one."""

import json
import tomllib

import numpy as np
import pytest
import torch
from torch import nn

from pynode import NeuralODE
from pynode.errors import InputError

T = [0.0, 1.0]


def node(**options) -> NeuralODE:
    return NeuralODE(nn.Linear(2, 2), **options)


def test_what_decides_the_steps_is_written_down(tmp_path):
    node(solver="dp5", rtol=1e-4, controller="i", dt_max=0.5).export(tmp_path, torch.ones(2), T)
    written = tomllib.loads((tmp_path / "problem.toml").read_text())
    wanted = {"solver": "dp5", "rtol": 1e-4, "controller": "i", "dt_max": 0.5}
    assert wanted.items() <= written.items()


@pytest.mark.parametrize(
    "options",
    [{"controller": "pid"}, {"norm": "max"}, {"safety": 0.8}, {"dt_min": 1e-3}, {"grid": [0.5]}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_julia_does_not_have_are_errors(options, tmp_path):
    with pytest.raises(InputError, match="julia"):
        node(**options).export(tmp_path / "run", torch.ones(2), T)
    assert not (tmp_path / "run").exists()


def test_of_no_parameters_there_is_no_array(tmp_path):
    NeuralODE(lambda z: -z).export(tmp_path, torch.ones(2), T)
    assert set(np.load(tmp_path / "data.npz").files) == {"z0", "ts"}


def test_discrete_gradients_are_written_down_with_all_programs(tmp_path):
    node(sensitivity="discrete").export(tmp_path, torch.ones(2), T)
    written = tomllib.loads((tmp_path / "problem.toml").read_text())
    assert written["sensitivity"] == "discrete"
    programs = json.loads((tmp_path / "field.json").read_text())["programs"]
    assert set(programs) == {"f", "vjp_z", "vjp_p", "pullback"}
    stiff = node(sensitivity="discrete", solver="rodas5p")
    with pytest.raises(InputError, match="'discrete' for the stiff solver rodas5p"):
        stiff.export(tmp_path / "stiff", torch.ones(2), T)
