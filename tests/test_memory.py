"""What a solve keeps for its backward pass, measured in bytes of live tensors."""

import pytest
import torch
from torch import nn

from pynode import NeuralODE
from pynode.experiments.live_bytes import LiveBytes

WIDTH, STATE = 64, 256


@pytest.fixture(scope="module")
def field() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def peak(field: nn.Module, steps: int, **options) -> int:
    """Peak bytes of forward and backward over ``steps`` fixed steps."""
    node = NeuralODE(field, solver="rk4", adaptive=False, dt=1.0 / steps, **options)
    z0 = torch.randn(STATE, 1, requires_grad=True)
    with LiveBytes() as measured:
        zs = node(z0, [0.0, 1.0])
        zs.square().sum().backward()
    assert node.stats.accepted == steps
    return measured.peak


ACTIVATIONS = 4 * STATE * WIDTH * 4  # of the four stages of one step, in bytes


def test_discrete_grows_by_the_activations_of_every_step(field):
    few, many = (peak(field, n, sensitivity="discrete") for n in (20, 80))
    assert (many - few) / 60 > 0.9 * ACTIVATIONS


@pytest.mark.parametrize("keep", [2, 8])
def test_discrete_with_checkpoints_is_bounded(field, keep):
    """Sixteen times the steps, at most a few states more: no activations, no list of states."""
    few, many = (peak(field, n, sensitivity="discrete", checkpoints=keep) for n in (20, 320))
    levels = 8  # at most log2(320) levels of checkpoints
    assert many - few < levels * keep * STATE * 4
    assert many - few < ACTIVATIONS


@pytest.mark.parametrize("sensitivity", ["interpolating", "gauss"])
def test_adjoints_with_checkpoints_are_bounded(field, sensitivity):
    few, many = (peak(field, n, sensitivity=sensitivity, checkpoints=8) for n in (20, 320))
    assert many - few < ACTIVATIONS


@pytest.mark.parametrize("sensitivity", ["interpolating", "gauss"])
def test_adjoints_keep_the_stages_only(field, sensitivity):
    """Five vectors a step for rk4 (four stages and a state): no activations of the field."""
    few, many = (peak(field, n, sensitivity=sensitivity) for n in (20, 320))
    per_step = (many - few) / 300
    assert per_step < 5.5 * STATE * 4
    assert per_step < 0.1 * ACTIVATIONS


@pytest.mark.parametrize("sensitivity", ["backsolve", "reversible"])
def test_backsolve_and_reversible_are_constant(field, sensitivity):
    few, many = (peak(field, n, sensitivity=sensitivity) for n in (20, 320))
    assert many - few < STATE * 4


def test_a_solve_without_gradients_is_constant(field):
    def forward(steps: int) -> int:
        node = NeuralODE(field, solver="rk4", adaptive=False, dt=1.0 / steps)
        with torch.no_grad(), LiveBytes() as measured:
            node(torch.randn(STATE, 1), [0.0, 1.0])
        return measured.peak

    assert forward(320) - forward(20) < STATE * 4
