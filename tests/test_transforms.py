"""torch.func over solves, and higher derivatives, with sensitivity="discrete"."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve

pytestmark = pytest.mark.usefixtures("float64")
TIMES = [0.0, 0.4, 1.0]
SOLVERS = ["tsit5", "dop853"]


@pytest.fixture
def field(float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_over_initial_states(field, solver):
    node = NeuralODE(field, solver=solver, sensitivity="discrete", rtol=1e-8, atol=1e-10)
    z0 = torch.randn(5, 2)
    mapped = torch.func.vmap(lambda z: node(z, TIMES), out_dims=1)(z0)
    one_by_one = torch.stack([node(z, TIMES) for z in z0], dim=1)
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-6, atol=1e-8)


def test_nested_vmap_and_fixed_steps(field):
    node = NeuralODE(field, solver="rk4", dt=0.1, sensitivity="discrete")
    z0 = torch.randn(3, 4, 2)
    mapped = torch.func.vmap(torch.func.vmap(lambda z: node(z, TIMES)))(z0)
    torch.testing.assert_close(mapped.movedim(2, 0), node(z0, TIMES), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobian_of_the_flow(transform):
    """A linear field: the Jacobian is the matrix exponential."""
    matrix = torch.tensor([[-0.3, 1.0], [-1.0, -0.2]])

    def flow(z: Tensor) -> Tensor:
        return solve(
            lambda t, z: matrix @ z, z, [0.0, 1.0], sensitivity="discrete", rtol=1e-9, atol=1e-11
        ).zs[-1]

    jacobian = transform(flow)(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(jacobian, torch.linalg.matrix_exp(matrix), rtol=1e-7, atol=1e-8)


def test_grad_and_jvp_agree_with_autograd(field):
    node = NeuralODE(field, sensitivity="discrete", rtol=1e-8, atol=1e-10)

    def loss(z: Tensor) -> Tensor:
        return node(z, TIMES).sin().sum()

    z0, v = torch.randn(2), torch.randn(2)
    want = torch.autograd.grad(loss(z := z0.clone().requires_grad_()), z)[0]
    torch.testing.assert_close(torch.func.grad(loss)(z0), want)
    torch.testing.assert_close(torch.func.jvp(loss, (z0,), (v,))[1], want @ v)
    per_sample = torch.func.vmap(torch.func.grad(loss))(torch.stack([z0, z0]))
    torch.testing.assert_close(per_sample, torch.stack([want, want]), rtol=1e-6, atol=1e-8)


def test_gradients_of_swapped_parameters(field):
    """functional_call, as meta-learning uses it."""
    node = NeuralODE(field, sensitivity="discrete", rtol=1e-6, atol=1e-8)
    other = {k: torch.randn_like(v).requires_grad_() for k, v in node.named_parameters()}
    z0 = torch.randn(3, 2)
    zs = torch.func.functional_call(node, other, (z0, TIMES))
    grads = torch.autograd.grad(zs.sum(), list(other.values()))
    node.load_state_dict(other)
    want = torch.autograd.grad(node(z0, TIMES).sum(), list(node.parameters()))
    torch.testing.assert_close(grads, want)


@pytest.mark.parametrize("solver", ["rk4", "bs3", "tsit5"])
def test_double_backward(field, solver):
    node = NeuralODE(field, solver=solver, sensitivity="discrete", adaptive=False, dt=0.25)
    z0 = torch.randn(2, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: node(z, TIMES), z0)


def test_second_derivatives_in_time(float64):
    """z = z0 exp(a t²/2): first, second and mixed derivatives at the last time and at t0."""
    a = 0.7

    def value(z0: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        times = torch.stack([t0, t1])
        options = {"sensitivity": "discrete", "rtol": 1e-10, "atol": 1e-12}
        return solve(lambda t, z: a * t * z, z0, times, **options).zs[-1]

    def exact(z0: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return z0 * torch.exp(a * (t1**2 - t0**2) / 2)

    point = (torch.tensor(1.5), torch.tensor(0.3), torch.tensor(1.2))
    got = torch.autograd.functional.hessian(value, point)
    want = torch.autograd.functional.hessian(exact, point)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
