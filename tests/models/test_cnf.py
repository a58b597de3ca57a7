"""Continuous normalizing flows against closed forms, automatic differentiation and each other."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pynode.errors import InputError
from pynode.models.cnf import CNF, FlowRegularisation
from pynode.models.flows import CouplingFlow, PlanarFlow

MATRIX = torch.tensor([[0.4, -1.0], [0.7, 0.3]], dtype=torch.float64)


class LinearField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(MATRIX.clone())

    def forward(self, t, z):
        return z @ self.a.T


class Drift(nn.Module):
    """f = (t, 2): every integral along the path is known."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, t, z):
        return torch.stack([t, t * 0 + 2]).expand_as(z) + self.none * z


def linear_flow(**options):
    return CNF(2, field=LinearField(), duration=0.8, **{"rtol": 1e-7, "atol": 1e-7} | options)


def test_a_linear_field_carries_a_normal_distribution_to_another(float64):
    flow, x = linear_flow(), torch.randn(7, 2)
    m = torch.linalg.matrix_exp(0.8 * MATRIX)
    exact = MultivariateNormal(torch.zeros(2), m @ m.T).log_prob(x)
    assert torch.allclose(flow.log_prob(x), exact, atol=1e-5)
    assert torch.allclose(flow.to_base(x)[0], x @ torch.linalg.inv(m).T, atol=1e-5)
    assert flow.log_prob(x[0]).shape == () and flow.log_prob(x.reshape(7, 1, 2)).shape == (7, 1)


def test_log_det_is_that_of_the_map(float64):
    flow = CNF(3, hidden=(8,), rtol=1e-9, atol=1e-9)
    x = torch.randn(1, 3)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow.to_base(y)[0], x)[0, :, 0]
    assert flow.to_base(x)[1].item() == pytest.approx(jacobian.slogdet()[1].item(), abs=1e-7)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_keeps_its_noise(float64, noise):
    flow, x = linear_flow(noise=noise), torch.randn(1, 2)
    generator = torch.Generator().manual_seed(0)
    many = x.expand(4000, 2)
    estimates = flow.log_prob(many, trace="hutchinson", generator=generator)
    exact = flow.log_prob(x)
    error = (estimates.mean() - exact).abs() / (estimates.std() / math.sqrt(4000))
    assert error < 3.5
    # One ε a solve: εᵀAε is then one number all the way, of which there are two for signs.
    if noise == "rademacher":
        values = (estimates - exact).unique()
        near = 0.8 * (MATRIX[0, 1] + MATRIX[1, 0]).abs()
        assert torch.allclose(values.abs(), near.expand_as(values), atol=1e-6)


def test_inversion_and_path(float64):
    flow = CNF(2, hidden=(16,), rtol=1e-9, atol=1e-9)
    x = torch.randn(20, 2)
    z, _ = flow.to_base(x)
    assert torch.allclose(flow.to_data(z), x, atol=1e-5)
    path = flow.path(z, torch.tensor([0.0, 0.2, 0.5]))
    assert torch.allclose(path[0], z) and torch.allclose(path[-1], x, atol=1e-5)


def test_the_density_integrates_to_one():
    flow = CNF(2, hidden=(8,), rtol=1e-4, atol=1e-4)
    side = torch.linspace(-7, 7, 120)
    with torch.no_grad():
        p = flow.log_prob(torch.cartesian_prod(side, side)).exp()
    assert p.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1.0, abs=2e-3)


def test_samples_have_the_density(float64):
    flow = linear_flow()
    x = flow.sample((3, 20_000), generator=torch.Generator().manual_seed(1))
    m = torch.linalg.matrix_exp(0.8 * MATRIX)
    assert x.shape == (3, 20_000, 2) and not x.requires_grad
    assert torch.allclose(x.reshape(-1, 2).T.cov(), m @ m.T, atol=0.05)
    assert flow.rsample((4,)).requires_grad and flow.sample().shape == (2,)
    assert flow.event_shape == (2,) and flow.batch_shape == ()


def test_penalties_are_the_integrals(float64):
    # Along f = (t, 2) over [0, 0.5]: ‖f‖² = t² + 4, d²z/dt² = (1, 0), no Jacobian.
    everything = FlowRegularisation(kinetic=1.0, jacobian=1.0, taylor=1.0)
    flow = CNF(2, field=Drift(), duration=0.5, regularisation=everything)
    terms = flow.loss(torch.randn(5, 2))
    assert terms.parts["kinetic"] == pytest.approx(0.5**3 / 3 + 2.0, abs=1e-5)
    assert terms.parts["taylor"] == pytest.approx(0.5, abs=1e-5)
    assert terms.parts["jacobian"] == pytest.approx(0.0, abs=1e-9)
    assert terms.total.item() == pytest.approx(sum(terms.parts.values()), abs=1e-9)


@pytest.mark.parametrize(("order", "power"), [(2, 2), (3, 3)])
def test_taylor_penalty_of_a_linear_field(float64, order, power):
    # dᴷz/dtᴷ = Aᴷz
    regularisation = FlowRegularisation(taylor=1.0, taylor_order=order)
    flow = linear_flow(regularisation=regularisation)
    x = torch.randn(1, 2)
    t = torch.linspace(0, 0.8, 201)
    z = flow.path(flow.to_base(x)[0], t)[:, 0]
    squares = (z @ torch.linalg.matrix_power(MATRIX, power).T).square().sum(1)
    assert flow.loss(x).parts["taylor"] == pytest.approx(
        torch.trapezoid(squares, t).item(), rel=1e-4
    )


def test_jacobian_penalty_is_exact_with_the_exact_trace(float64):
    flow = linear_flow(regularisation=FlowRegularisation(jacobian=1.0))
    expected = 0.8 * MATRIX.square().sum().item()
    assert flow.loss(torch.randn(3, 2)).parts["jacobian"] == pytest.approx(expected, rel=1e-4)


def test_steer_ends_elsewhere_in_training_only(float64):
    flow, x = linear_flow(regularisation=FlowRegularisation(steer=0.3)), torch.randn(4, 2)
    draws = {round(flow.loss(x).parts["nll"], 8) for _ in range(4)}
    assert len(draws) == 4
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients_of_the_loss(float64, trace):
    regularisation = FlowRegularisation(kinetic=0.1, jacobian=0.1, taylor=0.1)
    flow = linear_flow(trace=trace, regularisation=regularisation)
    x, entry = torch.randn(4, 2), (0, 1)

    def loss():
        return flow.loss(x, generator=torch.Generator().manual_seed(3)).total

    loss().backward()
    a, h = flow.field.a, 1e-4
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            a[entry] += sign * h
        found.append(loss().item())
        with torch.no_grad():
            a[entry] -= sign * h
    assert a.grad[entry].item() == pytest.approx((found[0] - found[1]) / (2 * h), rel=1e-5)


def test_the_adjoint_gives_the_same_gradient(float64):
    x, gradients = torch.randn(4, 2), []
    for sensitivity in ("discrete", "interpolating"):
        flow = linear_flow(sensitivity=sensitivity)
        flow.loss(x).total.backward()
        gradients.append(flow.field.a.grad)
    assert torch.allclose(*gradients, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CNF(0),
        lambda: CNF(2, duration=0.0),
        lambda: CNF(2, trace="guess"),
        lambda: CNF(2, noise="pink"),
        lambda: CNF(2, regularisation=FlowRegularisation(steer=0.5)),
        lambda: FlowRegularisation(kinetic=-1.0),
        lambda: FlowRegularisation(taylor_order=1),
        lambda: CNF(2).log_prob(torch.zeros(4, 3)),
        lambda: CNF(2).log_prob(torch.zeros(4, 2), trace="guess"),
        lambda: CouplingFlow(1, 2, 4),
        lambda: PlanarFlow(2, 0),
    ],
)
def test_mistakes(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("flow", [PlanarFlow(3, 4), CouplingFlow(3, 4, 6)], ids=["planar", "cpl"])
def test_flows_of_layers_know_their_volume(flow):
    flow = flow.double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow.to_base(y)[0], x)[0, :, 0]
    assert flow.to_base(x)[1].item() == pytest.approx(jacobian.slogdet()[1].item(), abs=1e-9)


def test_coupling_inverts():
    flow, x = CouplingFlow(3, 5, 6), torch.randn(6, 3)
    assert torch.allclose(flow.to_data(flow.to_base(x)[0]), x, atol=1e-5)
    assert flow.sample((2, 3)).shape == (2, 3, 3)
