"""torch.func over solves, and higher derivatives, with sensitivity="discrete"."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve
from pynode.engines.torch.linear import lu_solve
from pynode.errors import InputError, SolveError

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


METHODS = {
    "tsit5": {"rtol": 1e-9, "atol": 1e-11},
    "dop853": {"rtol": 1e-9, "atol": 1e-11},
    "rodas5p": {"adaptive": False, "dt": 0.25},
    "rk4": {"dt": 0.1},
}
every_method = pytest.mark.parametrize("solver", list(METHODS))


def make(field: nn.Module, solver: str) -> NeuralODE:
    return NeuralODE(field, solver=solver, sensitivity="discrete", **METHODS[solver])


def by_hand(f, z: Tensor) -> Tensor:
    """The Jacobian of f at z, a row at a time, by plain autograd."""
    return torch.autograd.functional.jacobian(f, z)


@every_method
def test_jacobians_of_a_network_flow(field, solver):
    node, z0 = make(field, solver), torch.randn(2)

    def flow(z: Tensor) -> Tensor:
        return node(z, TIMES)[-1]

    want = by_hand(flow, z0)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(flow)(z0), want, rtol=1e-8, atol=1e-9)
    v = torch.randn(2)
    torch.testing.assert_close(torch.func.jvp(flow, (z0,), (v,))[1], want @ v, rtol=1e-8, atol=1e-9)
    batch = torch.randn(3, 2)
    mapped = torch.func.vmap(torch.func.jacrev(flow))(batch)
    each = torch.stack([by_hand(flow, z) for z in batch])
    torch.testing.assert_close(mapped, each, rtol=1e-6, atol=1e-7)


@every_method
def test_hessians(field, solver):
    node, z0 = make(field, solver), torch.randn(2)

    def loss(z: Tensor) -> Tensor:
        return node(z, TIMES).sin().sum()

    want = torch.autograd.functional.hessian(loss, z0)
    inner, outer = torch.func.jacrev, torch.func.jacfwd
    for hessian in (torch.func.hessian, lambda f: inner(inner(f)), lambda f: outer(outer(f))):
        torch.testing.assert_close(hessian(loss)(z0), want, rtol=1e-7, atol=1e-8)
    mapped = torch.func.vmap(torch.func.hessian(loss))(torch.stack([z0, z0]))
    torch.testing.assert_close(mapped, torch.stack([want, want]), rtol=1e-6, atol=1e-7)


@every_method
def test_ensemble_of_parameters(field, solver):
    """One vmapped solve for models of the same form, states and gradients, as one by one."""
    nodes = [make(field, solver)]
    for _ in range(2):
        other = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        nodes.append(make(other, solver))
    stacked, buffers = torch.func.stack_module_state(nodes)
    z0 = torch.randn(4, 2)

    def states(parameters: dict, buffer: dict) -> Tensor:
        return torch.func.functional_call(nodes[0], (parameters, buffer), (z0, TIMES))

    zs = torch.func.vmap(states)(stacked, buffers)
    want = torch.stack([node(z0, TIMES) for node in nodes])
    torch.testing.assert_close(zs, want, rtol=1e-6, atol=1e-7)
    grads = torch.autograd.grad(zs.square().sum(), list(stacked.values()))
    inside = torch.func.vmap(torch.func.grad(lambda p, b: states(p, b).square().sum()))(
        stacked, buffers
    )
    for name, got in zip(stacked, grads, strict=True):
        each = torch.stack(
            [
                torch.autograd.grad(node(z0, TIMES).square().sum(), node.get_parameter(name))[0]
                for node in nodes
            ]
        )
        torch.testing.assert_close(got, each, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(inside[name], each, rtol=1e-6, atol=1e-7)


@every_method
def test_gradients_of_parameters_for_each_sample(field, solver):
    node, z0 = make(field, solver), torch.randn(3, 2)
    parameters = dict(node.named_parameters())

    def loss(p: dict, z: Tensor) -> Tensor:
        return torch.func.functional_call(node, p, (z, TIMES)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, z0)
    for name, parameter in parameters.items():
        each = torch.stack(
            [torch.autograd.grad(node(z, TIMES).square().sum(), parameter)[0] for z in z0]
        )
        torch.testing.assert_close(got[name], each, rtol=1e-6, atol=1e-7)


def test_args_times_and_dual_numbers(field):
    """d/da, d/dt and forward-mode AD of z0 exp(-a t)."""
    options = {"sensitivity": "discrete", "rtol": 1e-10, "atol": 1e-12}

    def value(a: Tensor, t: Tensor) -> Tensor:
        return solve(lambda t, z, a: -a * z, torch.ones(1), t, a, **options).zs[-1, 0]

    a, t = torch.tensor(0.7), torch.tensor([0.0, 1.3])
    of_a, of_t = torch.func.grad(value, argnums=(0, 1))(a, t)
    end = torch.exp(-a * 1.3)
    torch.testing.assert_close(of_a, -1.3 * end, rtol=1e-8, atol=0)
    torch.testing.assert_close(of_t[1], -a * end, rtol=1e-8, atol=0)
    rates = torch.tensor([0.1, 0.7, 2.0])
    mapped = torch.func.vmap(lambda a: value(a, t))(rates)
    torch.testing.assert_close(mapped, torch.exp(-rates * 1.3), rtol=1e-8, atol=0)
    with torch.autograd.forward_ad.dual_level():
        dual = value(torch.autograd.forward_ad.make_dual(a, torch.ones(())), t)
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, -1.3 * end, rtol=1e-8, atol=0)


@pytest.mark.parametrize("solver", ["tsit5", "rk4"])
def test_a_sample_that_is_not_finite_is_an_error_under_vmap(solver):
    """Fixed or adaptive, mapped over alone or with a gradient inside."""
    node = NeuralODE(lambda t, z: z.log(), solver=solver, sensitivity="discrete", dt=0.1)
    z0 = torch.tensor([[2.0], [-1.0]])
    for f in (lambda z: node(z, TIMES), torch.func.grad(lambda z: node(z, TIMES).sum())):
        with pytest.raises(SolveError, match="NaN"):
            torch.func.vmap(f)(z0)


def test_times_may_not_be_mapped_over(field):
    node = NeuralODE(field, sensitivity="discrete")
    with pytest.raises(InputError, match="vmap"):
        torch.func.vmap(lambda t: node(torch.ones(2), t))(torch.tensor([TIMES, TIMES]))


def test_linear_systems_under_nested_transforms():
    """torch.linalg.lu_solve is wrong there; see pynode/engines/torch/linear.py."""
    torch.manual_seed(0)
    matrices = torch.randn(5, 2, 3, 3) + 3 * torch.eye(3)

    def twice(a: Tensor) -> Tensor:
        lu, pivots, _ = torch.linalg.lu_factor_ex(a)
        right = torch.ones(2, 3, 1)
        return lu_solve(lu, pivots, lu_solve(lu, pivots, right))

    def exact(a: Tensor) -> Tensor:
        inverse = torch.linalg.inv(a)
        return inverse @ inverse @ torch.ones(2, 3, 1)

    got = torch.func.vmap(torch.func.jacrev(twice))(matrices)
    want = torch.stack([torch.autograd.functional.jacobian(exact, a) for a in matrices])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(twice(matrices[0]), exact(matrices[0]))
