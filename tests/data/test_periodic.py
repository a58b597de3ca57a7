import math
import sys

import pytest
import torch

from pynode.data.hopper import hopper
from pynode.data.periodic import OFFSET, WINDOW, periodic
from pynode.errors import InputError


def test_series_are_sines_on_one_grid():
    task = periodic(50, observed=30, seed=1)
    t, x = task.clean.times, task.clean.values[..., 0]
    assert t.shape == (50, 200) and torch.equal(t[0], t[7]) and (t[0, 99] < WINDOW < t[0, 100])
    assert abs(x.mean().item() - OFFSET) < 0.15
    # sin² + cos² = 1, with cos from a frequency that is fitted by the finest grid search
    frequency = torch.linspace(0.4, 0.8, 2001)
    waves = (2 * math.pi * frequency[:, None] * t[0]).sin()
    for one in x[:5]:
        residual = (one - waves) - (one - waves).mean(1, keepdim=True)
        assert residual.square().mean(1).min() < 1e-3


def test_observations_are_n_of_the_window_and_of_their_seed():
    task = periodic(20, observed=10, seed=2, noise=0.0)
    assert task.observed.times.shape == (20, 10) and (task.observed.times <= WINDOW).all()
    assert not torch.equal(task.observed.times[0], task.observed.times[1])
    slots = torch.searchsorted(
        task.clean.times[0].contiguous(), task.observed.times[3].contiguous()
    )
    assert torch.equal(task.clean.values[3, slots], task.observed.values[3])
    assert torch.equal(task.observed.values, periodic(20, 10, 0.0, seed=2).observed.values)
    for bad in ({"observed": 0}, {"observed": 101}, {"n_series": 0}, {"noise": -1.0}):
        with pytest.raises(InputError):
            periodic(**bad)


def test_hopper_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(InputError, match=r"pynode-ode\[hopper\]"):
        hopper(1)
    with pytest.raises(InputError, match="observed=101"):
        hopper(1, observed=101)


@pytest.mark.filterwarnings("ignore")
def test_hopper_is_the_published_task():
    """Linear interpolation has the error that it has on Rubanova et al.'s data at 10 %."""
    pytest.importorskip("dm_control")
    from pynode.models import build

    task = hopper(40, observed=10, seed=0)
    assert task.clean.values.shape == (40, 200, 14)
    assert task.clean.values.min() == 0.0 and task.clean.values.max() == 1.0
    values = build("linear", 14).predict(task.observed, task.clean.times).mean
    inside = (values - task.clean.values)[:, :100].square().mean().item()
    assert inside == pytest.approx(1.9e-3, rel=0.5)
    assert torch.equal(task.clean.values, hopper(40, observed=10, seed=0).clean.values)


def test_the_default_dtype_changes_nothing(float64):
    task = periodic(4, seed=3)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(task.observed.values, periodic(4, seed=3).observed.values)
