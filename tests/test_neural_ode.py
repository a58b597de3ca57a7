"""NeuralODE and solve() as users meet them."""

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import NeuralODE, ODEProblem, sensitivities, solve, solvers
from pynode.errors import GradientError, InputError

SENSITIVITIES = [info.name for info in sensitivities()]
TIMES = torch.linspace(0.0, 1.0, 5)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


class WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z) * torch.cos(t)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_trains(sensitivity):
    """Some steps of gradient descent lower the loss by a lot."""
    node = NeuralODE(WithTime(), sensitivity=sensitivity, rtol=1e-4, atol=1e-5)
    z0 = torch.randn(16, 2)
    target = torch.stack([z0 * torch.exp(-t) for t in TIMES])
    optimiser = torch.optim.Adam(node.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (node(z0, TIMES) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_shape_and_first_output():
    z0 = torch.randn(3, 2)
    zs = NeuralODE(mlp())(z0, TIMES)
    assert zs.shape == (5, 3, 2)
    assert torch.equal(zs[0], z0)


def test_sequential_is_called_with_the_state_only():
    field = mlp()
    zs = solve(field, torch.ones(2), TIMES).zs
    same = solve(lambda t, z: field(z), torch.ones(2), TIMES).zs
    assert torch.equal(zs, same)


def test_problem_object_is_the_same_as_its_parts():
    field = mlp()
    problem = ODEProblem(field, torch.ones(2), TIMES)
    assert torch.equal(
        solve(problem, solver="dp5").zs, solve(field, torch.ones(2), TIMES, solver="dp5").zs
    )


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_structured_states(kind, sensitivity, float64):
    """A state in pieces evolves, and has gradients, as the same state in one piece."""
    w = torch.randn(5, 5, requires_grad=True)

    def split(flat: Tensor):
        x, y = flat[..., :2], flat[..., 2:]
        return {"tuple": (x, y), "dict": {"x": x, "y": y}, "nested": {"a": (x, [y])}}[kind]

    def join(state) -> Tensor:
        leaves = torch.utils._pytree.tree_leaves(state)
        return torch.cat(leaves, dim=-1)

    def field(t, state):
        return split(torch.tanh(join(state) @ w))

    z0 = torch.randn(4, 5, requires_grad=True)
    options = {"sensitivity": sensitivity, "rtol": 1e-8, "atol": 1e-10}
    parts = solve(field, split(z0), TIMES.double(), **options)
    whole = solve(lambda t, z: torch.tanh(z @ w), z0, TIMES.double(), **options)
    torch.testing.assert_close(join(parts.zs), whole.zs, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(join(parts.zs).sin().sum(), [z0, w])
    want = torch.autograd.grad(whole.zs.sin().sum(), [z0, w])
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(join(parts(0.3)), whole(0.3), rtol=1e-8, atol=1e-10)


def test_complex_and_real_tensors_in_one_state(float64):
    z0 = (torch.ones(3, dtype=torch.complex128), torch.ones(3))
    sol = solve(lambda t, s: (1j * s[0], -s[1]), z0, [0.0, 1.0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sol.zs[0][-1], torch.full((3,), np.exp(1j)), rtol=1e-8, atol=0)
    torch.testing.assert_close(sol.zs[1][-1], torch.full((3,), np.exp(-1.0)), rtol=1e-8, atol=0)


GLOBAL_WEIGHT = torch.tensor(0.5, requires_grad=True)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
class TestClosedOverTensors:
    """torchdiffeq's odeint_adjoint silently gives None for all of these."""

    def check(self, field, tensors, sensitivity):
        zs = solve(field, torch.ones(2), TIMES, sensitivity=sensitivity).zs
        grads = torch.autograd.grad(zs[-1].sum(), tensors)
        # dz/dt = -w z with w = 0.5: dz(1)/dw = -exp(-0.5), for two entries.
        torch.testing.assert_close(
            grads[0].sum(), torch.tensor(-2 * float(np.exp(-0.5))), rtol=1e-3, atol=1e-4
        )

    def test_leaf_in_a_closure(self, sensitivity):
        w = torch.tensor(0.5, requires_grad=True)
        self.check(lambda t, z: -w * z, [w], sensitivity)

    def test_module_in_a_closure(self, sensitivity):
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, -0.5)
        zs = solve(
            lambda t, z: net(z.unsqueeze(-1)).squeeze(-1),
            torch.ones(2),
            TIMES,
            sensitivity=sensitivity,
        ).zs
        (grad,) = torch.autograd.grad(zs[-1].sum(), [net.weight])
        torch.testing.assert_close(
            grad.sum(), torch.tensor(2 * float(np.exp(-0.5))), rtol=1e-3, atol=1e-4
        )

    def test_global(self, sensitivity):
        self.check(lambda t, z: -GLOBAL_WEIGHT * z, [GLOBAL_WEIGHT], sensitivity)

    def test_partial(self, sensitivity):
        w = torch.tensor(0.5, requires_grad=True)
        self.check(partial(lambda k, t, z: -k * z, w), [w], sensitivity)

    def test_bound_method_of_a_plain_object(self, sensitivity):
        class Physics:
            def __init__(self) -> None:
                self.w = torch.tensor(0.5, requires_grad=True)

            def field(self, t, z):
                return -self.w * z

        physics = Physics()
        self.check(physics.field, [physics.w], sensitivity)

    def test_computed_from_parameters(self, sensitivity):
        """A hypernetwork: the field closes over something with a history."""
        raw = torch.tensor(0.25, requires_grad=True)
        w = raw.sqrt()
        self.check_history(lambda t, z: -w * z, raw, sensitivity)

    def test_global_function_of_parameters(self, sensitivity):
        raw = torch.tensor(0.25, requires_grad=True)
        holder = {"w": raw.sqrt()}
        self.check_history(
            eval("lambda t, z: -holder['w'] * z", {"holder": holder}), raw, sensitivity
        )

    def check_history(self, field, raw, sensitivity):
        zs = solve(field, torch.ones(2), TIMES, sensitivity=sensitivity).zs
        (grad,) = torch.autograd.grad(zs[-1].sum(), [raw])
        # dw/draw = 1 / (2 sqrt(raw)) = 1
        torch.testing.assert_close(
            grad, torch.tensor(-2 * float(np.exp(-0.5))), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_args_may_be_any_nest(sensitivity, float64):
    inner = torch.tensor([0.3, 0.4], requires_grad=True)
    hyper = inner.exp()
    args = {"a": [hyper, 2], "name": "text", "b": (torch.tensor(1.0), None)}

    def field(t, z, args):
        assert args["name"] == "text"
        return -args["a"][0] * z * args["b"][0]

    zs = solve(
        field, torch.ones(2), TIMES.double(), args, sensitivity=sensitivity, rtol=1e-9, atol=1e-11
    ).zs
    (grad,) = torch.autograd.grad(zs[-1].sum(), [inner])
    want = -torch.exp(-hyper) * hyper
    torch.testing.assert_close(grad, want.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sensitivity", [s for s in SENSITIVITIES if s != "discrete"])
class TestAdjointLimits:
    def test_double_backward_says_what_to_do(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        z0 = torch.ones(2, requires_grad=True)
        (grad,) = torch.autograd.grad(node(z0, TIMES).sum(), [z0], create_graph=True)
        with pytest.raises(GradientError, match="discrete"):
            grad.sum().backward()

    def test_first_derivatives_with_create_graph_are_right(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        z0 = torch.ones(2, requires_grad=True)
        (a,) = torch.autograd.grad(node(z0, TIMES).sum(), [z0], create_graph=True)
        (b,) = torch.autograd.grad(node(z0, TIMES).sum(), [z0])
        torch.testing.assert_close(a, b)

    def test_func_transforms_say_what_to_do(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        with pytest.raises(GradientError, match="discrete"):
            torch.func.vmap(lambda z: node(z, TIMES))(torch.ones(3, 2))

    def test_swapped_parameters_are_noticed(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        other = {k: v.detach().clone().requires_grad_() for k, v in node.named_parameters()}
        zs = torch.func.functional_call(node, other, (torch.ones(2), TIMES))
        with pytest.raises(GradientError, match="functional_call"):
            zs.sum().backward()

    def test_changed_parameters_are_noticed(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        loss = node(torch.ones(2), TIMES).sum()
        with torch.no_grad():
            next(node.parameters()).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_dense_output_does_not_lose_gradients_silently(self, sensitivity):
        node = NeuralODE(WithTime(), sensitivity=sensitivity)
        sol = node.solve(torch.ones(2), TIMES)
        with pytest.raises(GradientError, match="no_grad"):
            sol(0.5)
        with torch.no_grad():
            assert sol(0.5).shape == (2,)

    def test_gradient_of_a_failed_solve(self, sensitivity):
        z0 = torch.ones(2, requires_grad=True)
        sol = solve(lambda t, z: z, z0, TIMES, sensitivity=sensitivity, max_steps=1, throw=False)
        with pytest.raises(GradientError, match="max_steps"):
            sol.zs[0].sum().backward()


def test_dense_output_is_differentiable_with_discrete(float64):
    z0 = torch.tensor([1.0], requires_grad=True)
    sol = solve(lambda t, z: -z, z0, [0.0, 1.0], sensitivity="discrete", rtol=1e-9, atol=1e-11)
    (grad,) = torch.autograd.grad(sol(torch.tensor([0.25, 0.5])).sum(), [z0])
    torch.testing.assert_close(grad, torch.exp(torch.tensor([-0.25])) + np.exp(-0.5))


def test_dense_output_shapes_and_bounds():
    sol = solve(lambda t, z: -z, torch.ones(3, 2), [0.0, 1.0])
    assert sol(0.5).shape == (3, 2)
    assert sol(torch.rand(4, 5)).shape == (4, 5, 3, 2)
    with pytest.raises(InputError, match="outside"):
        sol(1.5)
    with pytest.raises(InputError, match="dense"):
        solve(lambda t, z: -z, torch.ones(2), [0.0, 1.0], dense=False)(0.5)


def test_no_grad_builds_no_graph():
    node = NeuralODE(mlp())
    with torch.no_grad():
        zs = node(torch.ones(2), TIMES)
    assert not zs.requires_grad
    assert node(torch.ones(2), TIMES).requires_grad


class TestAsAModule:
    def test_state_dict_holds_the_field_only(self):
        node, other = NeuralODE(WithTime()), NeuralODE(WithTime())
        assert all(key.startswith("field.") for key in node.state_dict())
        other.load_state_dict(node.state_dict())
        z0 = torch.ones(2)
        assert torch.equal(node(z0, TIMES), other(z0, TIMES))

    def test_deepcopy_and_pickle(self):
        node = NeuralODE(WithTime(), solver="vern7", rtol=1e-5)
        node(torch.ones(2), TIMES).sum().backward()
        for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
            assert torch.equal(twin(torch.ones(2), TIMES), node(torch.ones(2), TIMES))
            assert twin.options == node.options

    def test_torch_save(self):
        node = NeuralODE(WithTime())
        buffer = io.BytesIO()
        torch.save(node, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
        assert torch.equal(twin(torch.ones(2), TIMES), node(torch.ones(2), TIMES))

    def test_to_double(self):
        node = NeuralODE(WithTime()).double()
        assert node(torch.ones(2).double(), TIMES).dtype == torch.float64

    def test_inside_a_sequential_and_stats(self):
        node = NeuralODE(WithTime())
        node(torch.ones(2), TIMES).sum().backward()
        assert node.stats.nfe > 0 < node.stats.vjp
        assert "tsit5" in repr(node)

    def test_bare_function_as_a_field(self):
        node = NeuralODE(lambda t, z: -z)
        assert list(node.parameters()) == []
        torch.testing.assert_close(
            node(torch.ones(1), [0.0, 1.0])[-1], torch.exp(torch.tensor([-1.0])), rtol=1e-5, atol=0
        )


class TestCatalogue:
    def test_solvers_are_data(self):
        by_name = {info.name: info for info in solvers()}
        assert set(by_name) >= {
            "euler",
            "midpoint",
            "heun",
            "rk4",
            "bs3",
            "dp5",
            "tsit5",
            "vern7",
            "dop853",
        }
        assert by_name["dp5"].order == 5 and by_name["dp5"].adaptive and not by_name["dp5"].stiff
        assert all(info.reference and info.engines for info in solvers())

    def test_aliases_are_the_same_solver(self):
        z0 = torch.ones(2)
        for alias, name in (("dopri5", "dp5"), ("bosh3", "bs3"), ("dp8", "dop853")):
            a = solve(lambda t, z: -z, z0, TIMES, solver=alias).zs
            assert torch.equal(a, solve(lambda t, z: -z, z0, TIMES, solver=name).zs)

    def test_sensitivities_are_data(self):
        assert {info.name for info in sensitivities()} >= {
            "discrete",
            "backsolve",
            "interpolating",
            "gauss",
            "quadrature",
        }
        assert all(info.reference and info.memory for info in sensitivities())


def test_import_starts_nothing_and_is_light():
    """import pynode imports neither juliacall nor matplotlib, and little beside torch."""
    code = (
        "import sys, torch, time; a = time.perf_counter(); import pynode; "
        "print(time.perf_counter() - a); "
        "print([m for m in ('juliacall', 'juliapkg', 'matplotlib', 'pandas', 'scipy') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert pynode.__version__


@pytest.mark.parametrize("sensitivity", ["interpolating", "backsolve"])
def test_joint_adjoints_by_implicit_methods_are_refused_in_julia(sensitivity):
    options = {"engine": "julia", "solver": "rodas5p", "sensitivity": sensitivity}
    with pytest.raises(InputError, match="'gauss' or 'quadrature'"):
        NeuralODE(nn.Linear(2, 2), **options)
    NeuralODE(nn.Linear(2, 2), adjoint_solver="tsit5", **options)


@pytest.mark.parametrize("sensitivity", ["discrete", "reversible"])
@pytest.mark.parametrize(
    "option",
    [{"adjoint_rtol": 1e-3}, {"adjoint_solver": "bs3"}, {"adjoint_seminorm": True}],
    ids=str,
)
def test_options_of_an_adjoint_solve_that_there_is_not(sensitivity, option):
    with pytest.raises(InputError, match=f"{next(iter(option))}= has no meaning"):
        NeuralODE(nn.Linear(2, 2), sensitivity=sensitivity, **option)
