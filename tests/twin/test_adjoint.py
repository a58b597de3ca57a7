"""odeint_adjoint: which tensors get gradients, and what its own options do."""

import math

import pytest
import torch
from torch import nn
from twin_problems import Growth, float64, forced

import pynode.torchdiffeq as tde
from pynode.errors import GradientError, InputError

ONE = float64(0.0, 1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.unused = nn.Linear(2, 2).double()
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return self.net(y) + torch.sin(t)


def gradients(run, **kwargs):
    torch.manual_seed(0)
    net = Net()
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 2, 4, dtype=torch.float64, requires_grad=True)
    y = run(net, y0, t, rtol=1e-9, atol=1e-11, **kwargs)
    (y * torch.randn(y.shape, dtype=torch.float64)).sum().backward()
    return [y0.grad, t.grad, *(p.grad for p in net.net.parameters())], net


def test_agrees_with_odeint():
    want, _ = gradients(tde.odeint)
    got, net = gradients(tde.odeint_adjoint)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    assert float(net.unused.weight.grad.abs().max()) == 0.0, "zeros, as in torchdiffeq"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"adjoint_method": "dopri8"},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.02}},
        {"adjoint_method": "gl6", "adjoint_options": {"step_size": 0.2}},
        {"adjoint_rtol": 1e-7, "adjoint_atol": 1e-9},
        {"adjoint_options": {"norm": "seminorm"}},
    ],
    ids=str,
)
def test_options_of_the_backward_solve(kwargs):
    want, _ = gradients(tde.odeint)
    got, _ = gradients(tde.odeint_adjoint, **kwargs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_adjoint_tolerances_and_seminorm_save_evaluations():
    def backward(**kwargs):
        torch.manual_seed(0)
        net = Net()
        y = tde.odeint_adjoint(net, torch.ones(2, dtype=torch.float64), ONE, **kwargs)
        net.nfe = 0
        y.sum().backward()
        return net.nfe

    tight = backward()
    assert backward(adjoint_rtol=1e-3, adjoint_atol=1e-3) < tight
    assert backward(adjoint_options={"norm": "seminorm"}) <= tight


def test_closed_over_tensors_get_gradients():
    """In torchdiffeq they get None without a word, and a func that is no module is refused."""
    a = float64(-0.7, grad=True)
    b = a * 1.0  # computed: its gradient goes on to a
    y = tde.odeint_adjoint(lambda t, y: b * y, float64(1.0), ONE)
    y[-1].sum().backward()
    assert float(a.grad) == pytest.approx(math.exp(-0.7), rel=1e-5)

    class Conditioned(nn.Module):
        def forward(self, t, y):
            return self.context * y

    func = Conditioned()
    c = float64(-0.7, grad=True)
    func.context = c.exp()
    tde.odeint_adjoint(func, float64(1.0), ONE)[-1].sum().backward()
    k = math.exp(-0.7)
    assert float(c.grad) == pytest.approx(k * math.exp(k), rel=1e-5)


def test_adjoint_params_are_all_that_count_where_given():
    func, other = Growth(), float64(1.0, grad=True)
    y0 = float64(1.0, grad=True)
    y = tde.odeint_adjoint(func, y0, ONE, adjoint_params=(p for p in [other]))
    y.sum().backward()
    assert func.theta.grad is None and float(other.grad) == 0.0
    assert float(y0.grad) == pytest.approx(1 + math.exp(-0.7), rel=1e-5)


def test_adjoint_norm_sees_state_adjoint_and_parameters():
    shapes = set()

    def norm(parts):
        shapes.add(tuple(tuple(part.shape) for part in parts))
        return max(part.abs().max() for part in parts)

    params = (torch.zeros(7, requires_grad=True), torch.zeros((), requires_grad=True))
    y0 = (torch.ones(()), torch.ones(2, 2))
    y = tde.odeint_adjoint(
        lambda t, y: (-y[0], -y[1]),
        y0,
        torch.tensor([0.0, 1.0]),
        adjoint_params=params,
        adjoint_options={"norm": norm},
    )
    y[0].sum().backward()
    assert shapes == {((), (), (2, 2), (), (2, 2), (7,), ())}


def test_a_norm_with_parameters_that_need_no_gradient():
    frozen = torch.zeros(3)
    with pytest.warns(UserWarning, match="without requiring gradient"):
        tde.odeint_adjoint(
            forced,
            float64(1.0),
            ONE,
            adjoint_params=(frozen,),
            adjoint_options={"norm": lambda parts: parts[1].abs().max()},
        )


def test_adjoint_callbacks():
    func = Growth()
    calls: dict[str, list] = {"step": [], "accept_step": [], "reject_step": []}
    for name, found in calls.items():
        record = lambda t, y, dt, found=found: found.append((float(t), len(y)))  # noqa: E731
        setattr(func, f"callback_{name}_adjoint", record)
    tde.odeint_adjoint(func, float64(1.0), ONE)[-1].sum().backward()
    assert calls["step"][0] == (1.0, 4), "t, y, adj_y and one parameter"
    assert len(calls["accept_step"]) + len(calls["reject_step"]) == len(calls["step"])


def test_grid_constructors_are_asked_again_on_the_way_back():
    asked = []

    def grid(func, y0, t):
        asked.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11, dtype=torch.float64)

    x0 = float64(1.0, grad=True)
    y = tde.odeint_adjoint(
        lambda t, y: y, x0, ONE, method="euler", options={"grid_constructor": grid}
    )
    y[1].sum().backward()
    assert asked == [[0.0, 1.0], [1.0, 0.0]]
    assert float(x0.grad) == pytest.approx(1.1**10, rel=1e-12)


def test_other_method_without_adjoint_options():
    with pytest.raises(InputError, match="cannot infer"):
        tde.odeint_adjoint(
            Growth(),
            float64(1.0),
            ONE,
            method="rk4",
            options={"step_size": 0.1},
            adjoint_method="dopri5",
        )


def test_an_unknown_norm():
    with pytest.raises(InputError, match="seminorm"):
        tde.odeint_adjoint(Growth(), float64(1.0), ONE, adjoint_options={"norm": "l2"})


def test_no_second_derivatives():
    y0 = float64(1.0, grad=True)
    y = tde.odeint_adjoint(Growth(), y0, ONE)
    (first,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="first derivatives only"):
        first.sum().backward()


def test_without_gradients_func_is_evaluated_as_by_odeint():
    counts = []
    for run in (tde.odeint, tde.odeint_adjoint):
        func = Growth()
        with torch.no_grad():
            run(func, float64(1.0), ONE)
        counts.append(len(func.times))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", ["implicit_euler", "trbdf2"])
def test_implicit_adjoint_needs_no_jacobian_of_all_parameters(method):
    """With 40 000 of them it would take 13 GB."""
    net = nn.Sequential(nn.Linear(2, 200), nn.Tanh(), nn.Linear(200, 200), nn.Linear(200, 2))
    y0 = torch.ones(2, 2, requires_grad=True)
    t = torch.tensor([0.0, 0.2])
    field = nn.ParameterList(net.parameters())
    y = tde.odeint_adjoint(
        lambda t, y: net(y), y0, t, method=method, options={"step_size": 0.1},
        adjoint_params=tuple(field),
    )  # fmt: skip
    y[-1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
