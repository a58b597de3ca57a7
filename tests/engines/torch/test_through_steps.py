"""through_steps=True: the gradient of the whole computation, step-size control and all."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve
from pynode.errors import GradientError, InputError

pytestmark = pytest.mark.usefixtures("float64")
SOLVERS = ["heun", "bs3", "dp5", "tsit5", "vern7", "dop853"]


class Swing(nn.Module):
    """A driven pendulum, for which step sizes vary."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        q, p = z.unbind(-1)
        return torch.stack([p, -self.rate * torch.sin(q) + torch.sin(5 * t) ** 3], dim=-1)


def central(f, x: Tensor, eps: float = 1e-6) -> Tensor:
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        unit = torch.zeros_like(x)
        unit.view(-1)[i] = eps
        found.view(-1)[i] = (f(x + unit) - f(x - unit)) / (2 * eps)
    return found


@pytest.mark.parametrize("controller", ["i", "pi", "pid"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_finite_differences_of_what_was_computed(solver, controller):
    """With tolerances so loose that the step sizes' part can be told apart."""
    times = torch.tensor([0.0, 0.7, 1.9, 4.0])
    options = {"solver": solver, "controller": controller, "rtol": 3e-2, "atol": 3e-2}
    node = NeuralODE(Swing(), sensitivity="discrete", through_steps=True, **options)
    frozen = NeuralODE(node.field, sensitivity="discrete", **options)

    def loss(z: Tensor, which: NeuralODE = node) -> Tensor:
        return (which(z, times) * torch.tensor([1.0, 2.0])).sum()

    z0 = torch.tensor([[1.2, -0.4], [0.3, 0.8]])
    with torch.no_grad():
        want = central(lambda z: loss(z), z0)
    z0.requires_grad_()
    (got,) = torch.autograd.grad(loss(z0), z0)
    (part,) = torch.autograd.grad(loss(z0, frozen), z0)
    torch.testing.assert_close(got, want, rtol=3e-6, atol=1e-6)
    assert (part - want).norm() > 1e-5 * want.norm()


@pytest.mark.parametrize("options", [{}, {"tstops": [0.61]}, {"dt": 0.5}, {"dt_max": 0.3}])
def test_parameters_stops_and_rejections(options):
    """Steps cut by a stop, a first step that is given and too large, and a bound."""
    node = NeuralODE(
        Swing(), sensitivity="discrete", through_steps=True, rtol=1e-3, atol=1e-3, **options
    )
    rate = node.field.rate
    times = torch.tensor([0.0, 0.5, 2.0])

    def loss(value: Tensor) -> Tensor:
        with torch.no_grad():
            rate.copy_(value)
        return node(torch.tensor([1.0, 0.0]), times).square().sum()

    with torch.no_grad():
        want = central(loss, torch.tensor(2.3))
    (got,) = torch.autograd.grad(loss(torch.tensor(2.3)), rate)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    if "dt" in options:
        assert node.stats.rejected > 0


def test_the_solution_is_the_same():
    z0 = torch.tensor([1.0, 0.2], requires_grad=True)
    for solver in SOLVERS:
        options = {"solver": solver, "sensitivity": "discrete", "rtol": 1e-5}
        sol = solve(Swing(), z0, [0.0, 1.0, 3.0], through_steps=True, **options)
        usual = solve(Swing(), z0, [0.0, 1.0, 3.0], **options)
        torch.testing.assert_close(sol.zs, usual.zs, rtol=1e-11, atol=1e-12)
        assert sol.stats == usual.stats
        torch.testing.assert_close(sol(0.77), usual(0.77), rtol=1e-11, atol=1e-12)


def test_second_derivatives_and_times_of_samples():
    node = NeuralODE(Swing(), sensitivity="discrete", through_steps=True, rtol=1e-2, atol=1e-2)
    z0 = torch.tensor([[1.2, -0.4], [0.3, 0.8]], requires_grad=True)
    times = [torch.tensor([0.0, 0.8, 1.1]), torch.tensor([0.0, 1.5])]

    def loss(z: Tensor) -> Tensor:
        return node(z, times).nansum().sin()

    assert torch.autograd.gradcheck(loss, z0)
    assert torch.autograd.gradgradcheck(lambda z: node(z, [0.0, 0.9]).sum(), z0)


def test_where_it_has_no_meaning():
    for options, said in (
        ({"sensitivity": "gauss"}, "discrete"),
        ({"sensitivity": "discrete", "checkpoints": 2}, "discrete"),
        ({"sensitivity": "discrete", "solver": "rk4", "dt": 0.1}, "fixed steps"),
        ({"sensitivity": "discrete", "solver": "rodas5p"}, "explicit"),
    ):
        with pytest.raises(InputError, match=said):
            NeuralODE(Swing(), through_steps=True, **options)
    node = NeuralODE(Swing(), sensitivity="discrete", through_steps=True)
    with pytest.raises(GradientError, match="through_steps"):
        torch.func.vmap(lambda z: node(z, [0.0, 1.0]))(torch.ones(2, 2))
