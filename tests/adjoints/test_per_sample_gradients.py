"""Gradients through steps of each sample's own, against a loop of joint solves."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve
from pynode.errors import GradientError

pytestmark = pytest.mark.usefixtures("float64")
PER = {"step_control": "per_sample"}
TIGHT = {"rtol": 1e-9, "atol": 1e-11, "dense": False}


class Driven(nn.Module):
    """Time-dependent, with parameters, one of them unused, and args of all and of each sample."""

    def __init__(self, scalar: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.scalar = scalar

    def forward(self, t: Tensor, z: Tensor, args: dict) -> Tensor:
        assert not self.scalar or t.ndim == 0
        wave = torch.sin(2 * (t if t.ndim == 0 else t.unsqueeze(1)))
        hidden = torch.tanh(self.inner(z) + wave)
        return args["gain"] * self.outer(hidden) - args["leak"] * z


T = [
    [0.0, 0.3, 0.9, 2.0],
    [0.5, 0.7, 0.8],
    [1.0, 0.4, -0.7, -0.7],
    [0.0, 0.3],
    [0.2],
]


def case(scalar: bool = False):
    """Field, z0, times (each row its own leaf), gain of each sample, leak of all."""
    torch.manual_seed(3)
    field = Driven(scalar)
    z0 = torch.randn(5, 3, requires_grad=True)
    times = [torch.tensor(row, requires_grad=True) for row in T]
    gain, leak = torch.rand(5, 1, requires_grad=True), torch.rand(3, requires_grad=True)
    return field, z0, times, gain, leak


def loss(values: list[Tensor]) -> Tensor:
    """Of each sample's outputs (T_b, 3): all of them weigh in, each differently."""
    total = torch.zeros(())
    for b, own in enumerate(values):
        weights = torch.linspace(0.5 + b, 1.5, own.numel()).reshape(own.shape)
        total = total + (weights * own).sin().sum()
    return total


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


@pytest.fixture(scope="module")
def reference():
    """By autograd through joint solves of each sample alone at 1e-12."""
    torch.set_default_dtype(torch.float64)
    field, z0, times, gain, leak = case()
    values = []
    for b, row in enumerate(times):
        if len(row) == 1:
            values.append(z0[b : b + 1])
            continue
        args = {"gain": gain[b : b + 1], "leak": leak}
        options = {"solver": "dop853", "sensitivity": "discrete", "rtol": 1e-12, "atol": 1e-13}
        values.append(solve(field, z0[b : b + 1], row, args, **options).zs[:, 0])
    inputs = [z0, gain, leak, *times, *field.parameters()]
    found = gradients(loss(values), inputs)
    torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("scalar", [False, True], ids=["batched_t", "scalar_t"])
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
@pytest.mark.parametrize("solver", ["tsit5", "vern7", "dop853", "rodas5p"])
def test_equals_each_sample_alone(reference, solver, sensitivity, scalar):
    """For z0, parameters, args of both kinds, and all times, each sample's first among them."""
    field, z0, times, gain, leak = case(scalar)
    node = NeuralODE(field, solver=solver, sensitivity=sensitivity, rtol=1e-9, atol=1e-11, **PER)
    zs = node(z0, times, {"gain": gain, "leak": leak})
    values = [zs[: len(row), b] for b, row in enumerate(times)]
    got = gradients(loss(values), [z0, gain, leak, *times, *field.parameters()])
    for g, want in zip(got, reference, strict=True):
        torch.testing.assert_close(g, want, rtol=1e-6, atol=1e-6 * float(want.norm()) + 1e-12)
    if sensitivity == "gauss":
        assert node.stats.accepted_backward > 0 and node.stats.nfe_backward >= node.stats.vjp > 0
    else:
        assert 0 < node.stats.vjp < node.stats.nfe


def test_gauss_is_the_default():
    assert NeuralODE(nn.Linear(2, 2), **PER).options.sensitivity == "gauss"


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_initial_times(sensitivity):
    """t0 beside the evaluation times: one for all, or each sample's own; shared times as well."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.cos(z + t.reshape(-1, 1))

    z0 = torch.randn(3, 2)
    for t0 in (torch.tensor(0.1), torch.tensor([0.1, 0.2, -0.3])):
        for t in (torch.tensor([1.0, 1.5]), torch.rand(3, 2).cumsum(1) + 0.5):
            own = t0.clone().requires_grad_(), t.clone().requires_grad_()
            zs = solve(field, z0, own[1], t0=own[0], sensitivity=sensitivity, **PER, **TIGHT).zs
            got = torch.autograd.grad(zs.sin().sum(), own)
            wanted = torch.zeros(())
            for b in range(3):
                start = own[0] if t0.ndim == 0 else own[0][b]
                row = own[1] if t.ndim == 1 else own[1][b]
                options = {"sensitivity": "discrete", "t0": start, **TIGHT}
                alone = solve(field, z0[b : b + 1], row, **options)
                wanted = wanted + alone.zs.sin().sum()
            want = torch.autograd.grad(wanted, own)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
def test_jumps(solver):
    """Steps land on tstops on the way back as well."""
    gain = torch.tensor(1.5, requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return gain * torch.where(t > 1.0, -3.0, 0.5).reshape(-1, 1) * z

    z0 = torch.rand(3, 1) + 0.5
    t = torch.tensor([[0.0, 2.0], [0.0, 0.8], [1.6, 0.3]])
    zs = solve(field, z0, t, tstops=[1.0], solver=solver, **PER, **TIGHT).zs
    (got,) = torch.autograd.grad(zs[1].sum(), gain)
    exponents = torch.tensor([[0.5 - 3.0], [0.4], [0.6 * 3.0 - 0.7 * 0.5]])
    want = (z0 * exponents * torch.exp(gain.detach() * exponents)).sum()
    torch.testing.assert_close(got, want, rtol=1e-7, atol=0)


def test_second_derivatives():
    rate = torch.tensor(0.7, requires_grad=True)
    z0, t = torch.ones(2, 1), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    options = {"sensitivity": "discrete", **PER, **TIGHT}
    zs = solve(lambda z: -rate * z, z0, t, **options).zs
    (first,) = torch.autograd.grad(zs[1].sum(), rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    r = rate.detach()
    want = torch.exp(-r) + 4 * torch.exp(-2 * r)
    torch.testing.assert_close(second, want, rtol=1e-7, atol=0)
    zs = solve(lambda z: -rate * z, z0, t, **PER, **TIGHT).zs
    (first,) = torch.autograd.grad(zs[1].sum(), rate, create_graph=True)
    with pytest.raises(GradientError, match="first derivatives only"):
        torch.autograd.grad(first, rate)


def test_nothing_rejected_is_on_the_tape():
    """An attempt that leaves the field's domain is rejected, and its NaN is in no gradient."""
    rate = torch.tensor(1.0, requires_grad=True)
    seen = []

    def field(z: Tensor) -> Tensor:
        seen.append(bool((z < 0).any()))
        return -rate * torch.sqrt(z)

    z0, t = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0, 1.5], [0.0, 3.0]])
    options = {"sensitivity": "discrete", "dt": 5.0, "rtol": 1e-6, **PER}
    zs = solve(field, z0, t, **options).zs
    assert any(seen)
    (got,) = torch.autograd.grad(zs[1].sum(), rate)
    want = (-t[:, 1:] * (z0.sqrt() - t[:, 1:] / 2)).sum()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_structured_and_complex_states(sensitivity):
    def field(t: Tensor, state: tuple) -> tuple:
        x, c = state
        return -x * w[0] + torch.sin(t).unsqueeze(1), 1j * w[1] * c * x

    w = torch.tensor([0.5, 2.0], requires_grad=True)
    z0 = torch.randn(3, 1, requires_grad=True), torch.randn(3, 1) + 1j * torch.randn(3, 1)
    t = torch.tensor([[0.0, 1.0], [0.5, 2.0], [1.0, 0.0]])

    def total(zs: tuple) -> Tensor:
        return zs[0][1].sin().sum() + zs[1][1].abs().sum() + zs[1][1].real.sum()

    zs = solve(field, z0, t, sensitivity=sensitivity, **PER, **TIGHT).zs
    got = torch.autograd.grad(total(zs), [w, z0[0]])
    parts = []
    for b in range(3):
        own = z0[0][b : b + 1], z0[1][b : b + 1]
        alone = solve(
            lambda t, s: field(t.reshape(1), s), own, t[b], sensitivity="discrete", **TIGHT
        )
        parts.append(total(alone.zs))
    want = torch.autograd.grad(sum(parts), [w, z0[0]])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_trains():
    """Irregular series, each with a start of its own, in single precision."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    node = NeuralODE(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), rtol=1e-4, **PER)
    t0 = torch.rand(8, 1) * 5
    t = t0 + torch.rand(8, 6).cumsum(dim=1) - torch.zeros(8, 1)
    t = torch.cat([t0, t], dim=1)
    target = torch.stack([t.cos(), -t.sin()], dim=2).transpose(0, 1)
    optimiser = torch.optim.Adam(node.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        error = (node(target[0], t) - target).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        losses.append(error.item())
    assert losses[-1] < 0.05 * losses[0]
