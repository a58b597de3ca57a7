"""Symplectic methods on states (q, p): orders, energy, time reversal, gradients, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve, solvers
from pynode.errors import FieldError, InputError

pytestmark = pytest.mark.usefixtures("float64")
METHODS = {info.name: info for info in solvers() if info.separable}
every_method = pytest.mark.parametrize("info", METHODS.values(), ids=list(METHODS))
END = 4.0


def driven(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A pendulum whose mass and torque change with time."""
    q, p = z
    return p * (1 + 0.3 * torch.sin(t)), -torch.sin(q) + 0.25 * torch.cos(2 * t)


def pendulum(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    q, p = z
    return p, -torch.sin(q)


def energy(z: tuple[Tensor, Tensor]) -> Tensor:
    q, p = z
    return p.square() / 2 - torch.cos(q)


def start() -> tuple[Tensor, Tensor]:
    return torch.tensor([1.0, 0.2, -0.7]), torch.tensor([0.1, 0.7, 0.4])


def distance(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.fixture
def exact(float64):
    return solve(driven, start(), [0.0, END], solver="dop853", rtol=1e-13, atol=1e-13)


@every_method
def test_orders_of_steps_and_dense_output(info, exact):
    """Also backwards: the last state, taken back to the start."""
    s = torch.linspace(0, END, 97)
    counts = (24, 96) if info.order < 6 else (16, 48)
    ends, between = [], []
    for n in counts:
        sol = solve(driven, start(), [0.0, END], solver=info.name, dt=END / n)
        assert sol.stats.accepted == n
        ends.append(distance([x[-1] for x in sol.zs], [x[-1] for x in exact.zs]))
        between.append(distance(sol(s), exact(s)))
    ratio = math.log(counts[1] / counts[0])
    assert math.log(ends[0] / ends[1]) / ratio == pytest.approx(info.order, abs=0.2)
    found = math.log(between[0] / between[1]) / ratio
    assert found > min(info.order, info.dense_order + 1) - 0.2
    assert info.dense_order >= info.order - 1


@every_method
def test_local_order_of_dense_output(info):
    """Where the steps' own error is much smaller: the pendulum from its exact solution."""
    inside = torch.linspace(0.05, 0.95, 19)
    sizes, errors = (0.4, 0.1) if info.order == 6 else (0.1, 0.02), []
    reference = solve(driven, start(), [0.0, 0.5], solver="dop853", rtol=1e-13, atol=1e-14)
    for h in sizes:
        sol = solve(driven, start(), [0.0, h], solver=info.name, dt=h)
        errors.append(distance(sol(h * inside), reference(h * inside)))
    found = math.log(errors[0] / errors[1]) / math.log(sizes[0] / sizes[1])
    assert found > min(info.dense_order, info.order) + 1 - 0.3


@every_method
def test_two_evaluations_a_substep(info):
    sol = solve(pendulum, start(), [0.0, 1.0], solver=info.name, dt=0.1)
    substeps = {"leapfrog": 1, "yoshida4": 3, "yoshida6": 7}[info.name]
    assert info.stages == 2 * substeps
    assert sol.stats.nfe == 1 + 2 + 10 * 2 * substeps  # f(z0), the probe, the steps


@pytest.mark.parametrize("structure", ["tuple", "dict", "dict, p first", "nested", "complex"])
def test_states_of_every_structure(structure):
    """The same motion, however q and p are handed over."""
    q, p = start()
    want = solve(pendulum, (q, p), [0.0, 1.0], solver="leapfrog", dt=0.05).zs
    options = {"solver": "leapfrog", "dt": 0.05, "dense": False}
    if structure == "tuple":
        pairs = solve(pendulum, (q[:, None], p[:, None]), [0.0, 1.0], **options).zs
        got = [x[..., 0] for x in pairs]
    elif structure.startswith("dict"):
        state = {"q": q, "p": p} if structure == "dict" else {"p": p, "q": q}

        def field(t, z):
            return {"q": z["p"], "p": -torch.sin(z["q"])}

        zs = solve(field, state, [0.0, 1.0], **options).zs
        got = [zs["q"], zs["p"]]
    elif structure == "nested":

        def field(t, z):
            (a, b), (u, v) = z
            return (u, v), (-torch.sin(a), -torch.sin(b))

        (a, b), (u, v) = solve(field, ((q[:1], q[1:]), (p[:1], p[1:])), [0.0, 1.0], **options).zs
        got = [torch.cat([a, b], -1), torch.cat([u, v], -1)]
    else:
        linear = solve(lambda t, z: (z[1], -z[0]), (q, p), [0.0, 1.0], **options).zs
        turned = solve(lambda t, z: (z[1], -z[0]), (q * 1j, p * 1j), [0.0, 1.0], **options).zs
        want, got = linear, [x.imag for x in turned]
    assert distance(got, want) < 1e-14


@every_method
def test_energy_does_not_drift(info):
    """Symplectic methods swing around the energy, rk4 loses it for good."""
    steps = 10_000 if info.order == 2 else 2500
    z0 = (torch.tensor([1.0]), torch.tensor([0.0]))
    times = torch.linspace(0, 0.2 * steps, 401)
    options = {"adaptive": False, "dt": 0.2, "dense": False, "throw": False}
    drifts = {}
    for name in (info.name, "rk4"):
        zs = solve(pendulum, z0, times, solver=name, **options, max_steps=20_000).zs
        error = (energy(zs) - energy(z0)).abs().squeeze(-1)
        drifts[name] = float(error[300:].mean()), float(error[1:100].mean())
    late, early = drifts[info.name]
    assert late < 1.3 * early
    late, early = drifts["rk4"]
    assert late > 3 * early


@every_method
def test_time_reversal(info):
    """Steps back from the end lead to the start, to rounding."""
    times = torch.linspace(0, 3, 4)
    options = {"solver": info.name, "dt": 0.1}
    there = solve(driven, start(), times, **options).zs
    back = solve(driven, tuple(x[-1] for x in there), times.flip(0), **options).zs
    assert distance([x.flip(0) for x in back], there) < 1e-12


class Springs(nn.Module):
    """A separable Hamiltonian network: dq = dT/dp, dp = -dV/dq."""

    def __init__(self) -> None:
        super().__init__()
        self.kinetic = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
        self.potential = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = z
        return self.kinetic(p), -self.potential(q)


@pytest.mark.parametrize("keep", [None, 1, 4])
@every_method
def test_discrete_gradients(info, keep):
    """Finite differences of what was computed, outputs between steps among it."""
    node = NeuralODE(Springs(), solver=info.name, dt=0.25, checkpoints=keep)
    assert node.options.sensitivity == "discrete"
    times = torch.tensor([0.0, 0.3, 1.0])

    weight = node.field.potential[0].weight

    def loss(q: Tensor, p: Tensor) -> Tensor:
        zs = node((q, p), times)
        return zs[0].sin().sum() + zs[1].square().sum()

    q, p = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (q, p))
    (got,) = torch.autograd.grad(loss(q, p), weight)
    values = []
    with torch.no_grad():
        for change in (1e-6, -2e-6):
            weight[2, 1] += change
            values.append(loss(q, p))
    torch.testing.assert_close(got[2, 1], (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sensitivity", ["interpolating", "gauss", "backsolve"])
def test_adjoints_by_another_solver(sensitivity):
    field, z0 = Springs(), tuple(torch.randn(3, 2, requires_grad=True) for _ in range(2))
    options = {"solver": "yoshida4", "dt": 0.02}
    adjoint = NeuralODE(field, sensitivity=sensitivity, adjoint_solver="rk4", **options)
    inputs = [*z0, *field.parameters()]
    grads = [
        torch.autograd.grad(sum(x[-1].sin().sum() for x in node(z0, [0.0, 1.0])), inputs)
        for node in (adjoint, NeuralODE(field, **options))
    ]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_vmap_over_states():
    q, p = torch.randn(4, 3), torch.randn(4, 3)
    options = {"solver": "yoshida4", "dt": 0.1, "sensitivity": "discrete", "dense": False}
    mapped = torch.func.vmap(lambda q, p: solve(driven, (q, p), [0.0, 1.0], **options).zs)(q, p)
    whole = solve(driven, (q, p), [0.0, 1.0], **options).zs
    assert distance([x.transpose(0, 1) for x in mapped], whole) < 1e-13


def test_a_jump_in_time():
    """The force is switched off half-way: steps end there, and each side sees its own value."""

    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = z
        return p, torch.where(t < 0.5, -q, torch.zeros_like(q))

    z0 = (torch.ones(1), torch.zeros(1))
    sol = solve(field, z0, [0.0, 0.5, 1.0], solver="leapfrog", dt=0.01, tstops=[0.5])
    q, p = math.cos(0.5), -math.sin(0.5)
    assert abs(float(sol.zs[1][-1]) - p) < 1e-4
    assert abs(float(sol.zs[0][-1]) - (q + 0.5 * p)) < 1e-4
    assert torch.equal(sol.zs[1][1], sol.zs[1][2])


@pytest.mark.parametrize("solver", list(METHODS))
@pytest.mark.parametrize(
    "field, name",
    [
        (lambda t, z: (z[1] + 0.1 * z[0], -z[0]), "dq"),
        (lambda t, z: (z[1], -z[0] - 0.1 * z[1]), "dp"),
    ],
    ids=["dq feels q", "dp feels p"],
)
def test_fields_that_are_not_separable(field, name, solver):
    with pytest.raises(FieldError, match=f"{name} changes with"):
        solve(field, start(), [0.0, 1.0], solver=solver, dt=0.1)


def test_refusals():
    with pytest.raises(InputError, match="positions and momenta"):
        solve(lambda t, z: z, torch.ones(2), [0.0, 1.0], solver="leapfrog", dt=0.1)
    with pytest.raises(InputError, match="no error estimate"):
        NeuralODE(pendulum, solver="leapfrog", adaptive=True)
    with pytest.raises(InputError, match="dt="):
        NeuralODE(pendulum, solver="leapfrog")
    with pytest.raises(InputError, match="separable"):
        NeuralODE(pendulum, solver="leapfrog", dt=0.1, sensitivity="interpolating")
    with pytest.raises(InputError, match="separable"):
        NeuralODE(pendulum, adjoint_solver="leapfrog", sensitivity="gauss")
    with pytest.raises(InputError, match="explicit Runge-Kutta"):
        NeuralODE(pendulum, solver="leapfrog", dt=0.1, sensitivity="reversible")
