"""sensitivity="reversible": the forward map, its inverse, and the gradients."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.tableau import Tableau
from pynode.errors import GradientError, InputError, SolveError

pytestmark = pytest.mark.usefixtures("float64")
EXPLICIT = list(TABLEAUS)


class Driven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z) + torch.sin(2 * t) - 0.1 * z


@pytest.fixture
def field(float64) -> nn.Module:
    torch.manual_seed(0)
    return Driven()


def increment(tableau: Tableau, f, t: float, t1: float, z: Tensor) -> Tensor:
    h, stages = t1 - t, []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        inner = z + h * sum(a * k for a, k in zip(row, stages, strict=True)) if row else z
        stages.append(f(torch.tensor(t + c * h), inner))
    return h * sum(b * k for b, k in zip(tableau.b, stages, strict=True))


def forward_map(tableau: Tableau, f, times: list[float], z0: Tensor, coupling: float) -> Tensor:
    """The paper's equations, written down plainly: y at every time."""
    y = z = z0
    ys = [y]
    for t, t1 in itertools.pairwise(times):
        y = coupling * y + (1 - coupling) * z + increment(tableau, f, t, t1, z)
        z = z - increment(tableau, f, t1, t, y)
        ys.append(y)
    return torch.stack(ys)


@pytest.mark.parametrize("coupling", [None, 0.9, 1.0])
@pytest.mark.parametrize("solver", EXPLICIT)
def test_gradients_are_those_of_the_forward_map(field, solver, coupling):
    """To rounding, by autograd through the same steps; adaptive where these are few."""
    adaptive = TABLEAUS[solver].adaptive and TABLEAUS[solver].order > 2
    steps = {"rtol": 1e-4, "atol": 1e-5} if adaptive else {"adaptive": False, "dt": 0.11}
    z0 = torch.randn(2, 3, requires_grad=True)
    options = {"solver": solver, "sensitivity": "reversible", **steps}
    if coupling is not None:
        options["coupling"] = coupling
    with torch.no_grad():
        times = solve(field, z0, [0.0, 2.0], **options).dense.trajectory.log.times
    assert len(times) > 4
    zs = NeuralODE(field, **options)(z0, times)
    want = forward_map(TABLEAUS[solver], field, times, z0, coupling or 0.999)
    torch.testing.assert_close(zs, want, rtol=1e-12, atol=1e-12)
    inputs = [z0, *field.parameters()]
    weights = torch.randn(zs.shape)
    got = torch.autograd.grad((zs.sin() * weights).sum(), inputs)
    want = torch.autograd.grad((want.sin() * weights).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", ["rk4", "tsit5", "vern7", "dop853"])
def test_gradients_of_values_between_steps(field, solver):
    """Finite differences of what was computed, read off inside steps."""
    node = NeuralODE(field, solver=solver, sensitivity="reversible", adaptive=False, dt=0.3)
    times = torch.tensor([0.0, 0.1, 0.2, 0.45, 0.77, 1.0])
    z0 = torch.randn(2, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: node(z, times).sin().sum(dim=(1, 2)), z0)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["bs3", "tsit5", "vern7", "dop853"])
def test_dense_output_is_continuous_and_meets_the_outputs(field, solver):
    times = torch.linspace(0, 2, 9)
    sol = solve(field, torch.randn(3), times, solver=solver, sensitivity="reversible", rtol=1e-5)
    torch.testing.assert_close(sol(times), sol.zs, rtol=1e-12, atol=1e-12)
    ends = torch.tensor(sol.dense.trajectory.log.times[1:-1])
    torch.testing.assert_close(sol(ends - 1e-11), sol(ends + 1e-11), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", EXPLICIT)
def test_order(solver):
    """The base method's order, at the ends of steps and between them."""
    tableau = TABLEAUS[solver]
    few = {1: 100, 2: 60, 3: 30, 4: 30, 5: 16, 7: 6, 8: 5}[tableau.order]
    z0 = torch.tensor([1.0, 0.0])

    def errors(n: int) -> tuple[float, float]:
        sol = solve(
            lambda t, z: torch.stack([z[1], -torch.sin(z[0]) + 0.2 * torch.cos(t)]),
            z0,
            [0.0, 3.0],
            solver=solver,
            sensitivity="reversible",
            adaptive=False,
            dt=3.0 / n,
        )
        s = torch.linspace(0, 3, 97)
        return float((sol.zs[-1] - exact(3.0)).norm()), float((sol(s) - exact(s)).norm())

    reference = solve(
        lambda t, z: torch.stack([z[1], -torch.sin(z[0]) + 0.2 * torch.cos(t)]),
        z0,
        [0.0, 3.0],
        solver="dop853",
        rtol=1e-13,
        atol=1e-14,
    )

    def exact(t) -> Tensor:
        return reference(t)

    with torch.no_grad():
        coarse, fine = errors(few), errors(4 * few)
    end, between = (math.log(a / b) / math.log(4) for a, b in zip(coarse, fine, strict=True))
    assert end > tableau.order - 0.4
    assert between > min(tableau.order, tableau.interpolant_order) - 0.4


def test_solving_without_gradients_gives_the_same(field):
    node = NeuralODE(field, sensitivity="reversible")
    z0, times = torch.randn(4, 3), [0.0, 0.3, 1.0]
    with torch.no_grad():
        plain = node(z0, times)
    assert torch.equal(plain, node(z0.requires_grad_(), times))
    assert not torch.equal(plain, NeuralODE(field)(z0, times))


def test_tstops_backwards_in_time():
    """A field that jumps: steps end there, and are undone from there."""
    rate = torch.tensor(0.7, requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return rate * z * torch.where(t < 0.5, -1.0, 2.0)

    z0 = torch.ones(1, requires_grad=True)
    options = {"sensitivity": "reversible", "tstops": [0.5], "rtol": 1e-9, "atol": 1e-11}
    zs = NeuralODE(field, **options)(z0, [1.0, 0.0])
    exact = z0 * torch.exp(-rate * 0.5)
    torch.testing.assert_close(zs[-1], exact, rtol=1e-8, atol=0)
    got = torch.autograd.grad(zs[-1], [z0, rate])
    torch.testing.assert_close(got, torch.autograd.grad(exact, [z0, rate]), rtol=1e-8, atol=0)


def contracting(t: Tensor, z: Tensor) -> Tensor:
    """Solutions contract by e^-60 in a unit of time: they cannot be followed back."""
    return -60.0 * (z - torch.cos(3 * t))


def test_rounding_that_grows_is_an_error():
    z0 = torch.tensor([2.0], requires_grad=True)
    options = {"sensitivity": "reversible", "adaptive": False, "dt": 0.005}
    zs = NeuralODE(contracting, **options)(z0, [0.0, 1.0])
    with pytest.raises(GradientError, match="away from z0"):
        zs[-1].sum().backward()


def test_coupled_states_that_drift_apart_are_an_error():
    """The base method's estimate does not see it: without the gap in it, the state is wrong."""
    z0 = torch.tensor([2.0], requires_grad=True)
    with pytest.raises(SolveError, match="drifted apart"):
        NeuralODE(contracting, sensitivity="reversible", rtol=1e-6, atol=1e-8)(z0, [0.0, 1.0])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"solver": "rodas5p"}, "explicit Runge-Kutta"),
        ({"coupling": 0.0}, "above 0"),
        ({"coupling": 1.5}, "above 0"),
        ({"checkpoints": 3}, "keeps no states"),
        ({"adjoint_rtol": 1e-3}, "adjoint_rtol"),
        ({"sensitivity": "gauss", "coupling": 0.9}, "reversible"),
    ],
)
def test_options_without_a_meaning(options, said):
    with pytest.raises(InputError, match=said):
        NeuralODE(lambda z: z, **{"sensitivity": "reversible", **options})
