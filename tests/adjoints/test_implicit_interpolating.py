"""The interpolating adjoint by implicit methods: the parameters' integral beside the state."""

import math

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, Statistics
from pynode.errors import InputError

pytestmark = pytest.mark.usefixtures("float64")


class Robertson(nn.Module):
    """Robertson 1966, rate constants scaled to about one."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.04, 3.0, 1.0]))

    def forward(self, z: Tensor) -> Tensor:
        (x, y, w), (k1, k2, k3) = z.unbind(-1), self.rates
        a, b, c = k1 * x, 1e4 * k2 * y * w, 3e7 * k3 * y * y
        return torch.stack([b - a, a - b - c, c], dim=-1)


class Decay(nn.Module):
    """Time scales from 1 to 1/2000, coupled, driven."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.0, 50.0, 2000.0]))
        self.coupling = nn.Parameter(0.3 * torch.sin(torch.arange(9.0)).reshape(3, 3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rates * (torch.sin(t) - z) + z @ self.coupling


CASES = {
    "robertson": (Robertson, [[1.0, 0.0, 0.0], [0.9, 0.0, 0.1]], [0.0, 1e-2, 4.0]),
    "decay": (Decay, [[0.3, 0.7, 0.2], [0.9, 0.1, 0.5]], [0.0, 0.1, 1.0]),
}


def gradients(case: str, **options) -> tuple[list[Tensor], Statistics]:
    make, z0, times = CASES[case]
    field, start = make(), torch.tensor(z0, requires_grad=True)
    node = NeuralODE(field, **options)
    zs = node(start, times)
    weights = torch.linspace(0.5, 1.5, zs.numel()).view_as(zs)
    scale = torch.tensor([1.0, 1e4, 1.0]) if case == "robertson" else 1.0
    loss = (weights * scale * zs).sin().sum()
    return list(torch.autograd.grad(loss, [start, *field.parameters()])), node.stats


@pytest.fixture(scope="module")
def references():
    torch.set_default_dtype(torch.float64)
    tight = {"solver": "rodas5p", "sensitivity": "discrete", "rtol": 1e-11, "atol": 1e-13}
    found = {case: gradients(case, **tight)[0] for case in CASES}
    torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("solver", ["rodas5p", "kvaerno5", "fbdf"])
@pytest.mark.parametrize("case", CASES)
def test_against_a_tight_reference(references, case, solver):
    options = {"solver": solver, "sensitivity": "interpolating", "rtol": 1e-8, "atol": 1e-10}
    found, stats = gradients(case, **options)
    for got, wanted in zip(found, references[case], strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    assert stats.accepted_backward > 0 and stats.jacobians > 0
    _, half = gradients(case, **options, adjoint_seminorm=True)
    assert half.accepted_backward + half.rejected_backward <= (
        stats.accepted_backward + stats.rejected_backward
    )


class Ripple(nn.Module):
    """z' = -z + θ·sin(60 t) at θ = 0: nothing moves fast but the integrand a·sin(60 t)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -z + self.theta * torch.sin(60 * t)


def ripple(**options) -> tuple[float, int]:
    """Relative error of dz(3)/dθ, and backward steps."""
    field = Ripple()
    options = {"solver": "kvaerno5", "rtol": 1e-5, "atol": 1e-7, **options}
    node = NeuralODE(field, **options)
    node(torch.ones(1, 1), [0.0, 3.0])[-1].sum().backward()
    end, w = 3.0, 60.0
    wanted = (math.sin(w * end) - w * math.cos(w * end) + w * math.exp(-end)) / (
        1 + w * w
    )  # ∫ exp(t − 3) sin(60 t) dt
    assert field.theta.grad is not None
    steps = node.stats.accepted_backward + node.stats.rejected_backward
    return abs(float(field.theta.grad) / wanted - 1), steps


@pytest.mark.parametrize("solver", ["rodas5p", "kvaerno5"])
def test_the_parameters_integral_takes_part_in_error_control(solver):
    """Rules that trust the steps of the state alone miss it."""
    error, steps = ripple(sensitivity="interpolating", solver=solver)
    blind, few = ripple(sensitivity="interpolating", adjoint_seminorm=True, solver=solver)
    assert error < 1e-4 < blind
    assert few < steps


def test_checkpoints():
    options = {"solver": "kvaerno5", "sensitivity": "interpolating", "rtol": 1e-5, "atol": 1e-7}
    whole, _ = gradients("decay", **options)
    rebuilt, _ = gradients("decay", **options, checkpoints=5)
    for a, b in zip(whole, rebuilt, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_fixed_steps():
    error, steps = ripple(sensitivity="interpolating", adaptive=False, dt=0.03)
    assert error < 1e-6 and steps == 100


def test_a_field_without_parameters():
    z0 = torch.ones(2, 1, requires_grad=True)
    node = NeuralODE(lambda z: -z, solver="rodas5p", sensitivity="interpolating", rtol=1e-9)
    node(z0, [0.0, 1.0])[-1].sum().backward()
    assert z0.grad.reshape(-1).tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-7)


def test_backsolve_is_refused():
    with pytest.raises(InputError, match="interpolating"):
        NeuralODE(Decay(), solver="rodas5p", sensitivity="backsolve")
