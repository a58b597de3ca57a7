"""Every method: its order, its gradients, states of any kind, and what it refuses."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from twin_problems import Growth, float64, forced, forced_solution

import pynode.torchdiffeq as tde
from pynode.errors import FieldError, GradientError, InputError
from pynode.torchdiffeq.arguments import SolveFailure
from pynode.torchdiffeq.methods import METHODS

FIXED = {  # order
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,  # that of its fourth step, and one more
    "implicit_adams": 5,
    "fixed_adams": 5,
    "implicit_euler": 1,
    "implicit_midpoint": 2,
    "trapezoid": 2,
    "radauIIA3": 3,
    "gl4": 4,  # torchdiffeq's converges at order 1
    "radauIIA5": 5,
    "gl6": 6,
    "sdirk2": 2,
    "trbdf2": 2,
}
ADAPTIVE = {"dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun"}
IMPLICIT = {name for name, method in METHODS.items() if method.kind == "implicit"}

SIGNATURES = {
    "odeint": "func, y0, t, *, rtol=1e-07, atol=1e-09, method=None, options=None, event_fn=None",
    "odeint_adjoint": "func, y0, t, *, rtol=1e-07, atol=1e-09, method=None, options=None, "
    "event_fn=None, adjoint_rtol=None, adjoint_atol=None, adjoint_method=None, "
    "adjoint_options=None, adjoint_params=None",
    "odeint_dense": "func, y0, t0, t1, *, rtol=1e-07, atol=1e-09, method=None, options=None",
    "odeint_event": "func, y0, t0, *, event_fn, reverse_time=False, odeint_interface=*, **kwargs",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(tde, name)).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters]
    found = str(inspect.Signature(plain))[1:-1]
    if name == "odeint_event":
        assert (
            inspect.signature(tde.odeint_event).parameters["odeint_interface"].default is tde.odeint
        )
        found = found.replace(f"odeint_interface={tde.odeint}", "odeint_interface=*")
    assert found == SIGNATURES[name]


def test_exports():
    assert set(tde.__all__) == set(SIGNATURES)
    assert tde.__version__ == "0.2.5"
    assert set(METHODS) == {*FIXED, *ADAPTIVE, "scipy_solver"}


@pytest.mark.parametrize("method, order", FIXED.items())
def test_orders_of_fixed_steps(method, order):
    counts = {1: (64, 256), 2: (32, 128), 3: (24, 96), 4: (16, 64), 5: (24, 64), 6: (6, 18)}[order]
    if "adams" in method:
        counts = (80, 160)
    t, errors = float64(0.0, 2.0), []
    for n in counts:
        y = tde.odeint(forced, float64(1.0), t, method=method, options={"step_size": 2.0 / n})
        errors.append(float((y[-1] - forced_solution(t[-1])).abs()))
    found = math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])
    assert found > order - (0.5 if order < 5 else 1.0)
    if order < 5:
        assert found < order + 0.7


def test_adams_keeps_its_order_on_an_uneven_grid():
    """torchdiffeq uses the weights of even grids everywhere."""
    errors = []
    for n in (20, 60):
        grid = 2 * torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 1.5
        options = {"grid_constructor": lambda f, y, t, grid=grid: grid, "max_order": 4}
        y = tde.odeint(
            forced, float64(1.0), float64(0.0, 2.0), method="explicit_adams", options=options
        )
        errors.append(abs(float(y[-1]) - 0.2))
    assert math.log(errors[0] / errors[1]) / math.log(3) > 2.6


def test_adams_weights_are_the_classical_ones():
    from pynode.torchdiffeq.adams import adams_weights

    np.testing.assert_allclose(
        adams_weights([0.0, -1.0, -2.0, -3.0]), np.array([55, -59, 37, -9]) / 24, rtol=1e-13
    )
    np.testing.assert_allclose(
        adams_weights([1.0, 0.0, -1.0, -2.0, -3.0]),
        np.array([251, 646, -264, 106, -19]) / 720,
        rtol=1e-13,
    )


@pytest.mark.parametrize("method", sorted(ADAPTIVE - {"fehlberg2"}))
@pytest.mark.parametrize("backwards", [False, True])
def test_adaptive_methods_keep_the_tolerance(method, backwards):
    t = torch.linspace(0, 3, 50, dtype=torch.float64)
    t = t.flip(0) if backwards else t
    y = tde.odeint(forced, forced_solution(t[:1]), t, method=method, rtol=1e-6, atol=1e-6)
    # Backwards errors grow a hundredfold on the way.
    largest = 2e-4 if backwards else 3e-5
    assert float((y[:, 0] - forced_solution(t)).abs().max()) < largest, "between steps, too"


@pytest.mark.parametrize("solver", ["RK45", "LSODA", "DOP853", "Radau", "BDF", "RK23"])
def test_scipy(solver):
    t = float64(3.0, 1.0, 0.0)
    y = tde.odeint(
        forced, float64(0.1), t, method="scipy_solver", options={"solver": solver}, rtol=1e-6
    )
    assert float((y[:, 0] - forced_solution(t)).abs().max()) < 1e-3


def test_scipy_has_no_gradient_through_its_steps():
    y = tde.odeint(forced, float64(1.0, grad=True), float64(0.0, 1.0), method="scipy_solver")
    with pytest.raises(GradientError, match="odeint_adjoint"):
        y.sum().backward()


@pytest.mark.parametrize("adjoint", [False, True], ids=["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients(method, adjoint):
    """Of y0, θ, and times, on y' = θ y."""
    if method == "scipy_solver" and not adjoint:
        return
    func = Growth()
    y0, t = float64(1.5, 0.5, grad=True), float64(0.0, 0.5, 1.2, grad=True)
    options = {"step_size": 0.01} if METHODS[method].on_grid else {}
    if METHODS[method].kind == "adaptive":
        options = {"max_step": 0.05}
    run = tde.odeint_adjoint if adjoint else tde.odeint
    y = run(func, y0, t, method=method, rtol=1e-6, atol=1e-8, options=options)
    weights = float64(1.0, -2.0, 3.0)
    (y.sum(dim=1) * weights).sum().backward()
    theta, s = float(func.theta), t.detach()
    growth = torch.exp(theta * s)
    tol = 0.03 if FIXED.get(method) == 1 else 1e-3
    assert float(y0.grad[0]) == pytest.approx(float((weights * growth).sum()), rel=tol)
    wanted = 2.0 * float((weights * s * growth).sum())
    assert float(func.theta.grad) == pytest.approx(wanted, rel=tol)
    of_t = 2.0 * theta * weights * growth
    of_t[0] -= of_t.sum()
    torch.testing.assert_close(t.grad, of_t, rtol=tol, atol=tol)


@pytest.mark.parametrize("method", sorted(IMPLICIT))
def test_implicit_gradients_are_exact(method):
    """Of the computed numbers, by differences: the implicit function theorem, not iterations."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def run(y):
        t = float64(0.0, 1.0)
        return tde.odeint(lambda t, y: net(y) * 3, y, t, method=method, options={"step_size": 0.5})

    assert torch.autograd.gradcheck(run, (y0,), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["implicit_euler", "trbdf2", "radauIIA5"])
def test_implicit_methods_on_a_stiff_problem(method):
    """y' = -1e5 (y - cos t): explicit steps of this size explode."""
    y0, t = torch.ones(4, 1, dtype=torch.float64), float64(0.0, 1.0)
    y = tde.odeint(
        lambda t, y: -1e5 * (y - torch.cos(t)), y0, t, method=method, options={"step_size": 0.1}
    )
    assert float((y[-1] - math.cos(1.0)).abs().max()) < 1e-4


@pytest.mark.parametrize("method", ["gl4", "sdirk2"])
def test_implicit_methods_with_coupled_rows(method):
    """The first dimension need not be a batch: here it is space, in a heat equation."""
    y0 = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)

    def heat(t, y):
        return 40 * (torch.roll(y, 1, 0) - 2 * y + torch.roll(y, -1, 0))

    def run(y):
        t = float64(0.0, 0.4)
        return tde.odeint(heat, y, t, method=method, options={"step_size": 0.1})[-1]

    assert torch.autograd.gradcheck(run, (y0,), rtol=1e-5, atol=1e-7)
    assert float((run(y0) - y0.mean(dim=0)).abs().max()) < 0.2


def test_implicit_methods_refuse_second_derivatives():
    y0 = float64(1.0, grad=True)
    y = tde.odeint(forced, y0, float64(0.0, 1.0), method="gl4", options={"step_size": 0.2})
    with pytest.raises(GradientError, match="first derivatives only"):
        torch.autograd.grad(y[-1].sum(), y0, create_graph=True)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "trapezoid", "implicit_adams"])
@pytest.mark.parametrize("adjoint", [False, True], ids=["odeint", "odeint_adjoint"])
def test_tuples_and_complex_states(method, adjoint):
    t = float64(0.0, 0.5)
    options = {"step_size": 0.005} if METHODS[method].on_grid else None
    a = torch.ones(2, 3, dtype=torch.complex128, requires_grad=True)
    b = torch.ones((), dtype=torch.complex128, requires_grad=True)

    def func(t, y):
        return 1j * y[0], -y[1]

    run = tde.odeint_adjoint if adjoint else tde.odeint
    kwargs = {"adjoint_params": ()} if adjoint else {}
    ya, yb = run(func, (a, b), t, method=method, options=options, **kwargs)
    assert ya.shape == (2, 2, 3) and yb.shape == (2,)
    torch.testing.assert_close(ya[-1], torch.exp(0.5j * torch.ones_like(ya[-1])), rtol=0, atol=1e-5)
    assert abs(complex(yb[-1].detach()) - math.exp(-0.5)) < 1e-5
    (ya[-1].real.sum() + yb[-1].real).backward()
    assert complex(a.grad[0, 0]) == pytest.approx(complex(math.cos(0.5), -math.sin(0.5)), abs=1e-4)
    assert complex(b.grad) == pytest.approx(math.exp(-0.5), abs=1e-4)


def test_tuple_tolerances_apply_part_by_part():
    exact = math.exp(-1.0)

    def run(rtol, atol):
        y = tde.odeint(
            lambda t, y: (-y[0], -y[1]),
            (torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
            float64(0.0, 1.0),
            rtol=rtol,
            atol=atol,
            options={"norm": lambda parts: parts[0].abs().max() + 0 * parts[1].sum()},
        )
        return abs(float(y[0][-1]) - exact)

    assert run((1e-10, 1e-2), (1e-10, 1e-2)) < 1e-8 < run((1e-2, 1e-10), (1e-2, 1e-10))


def test_float32_by_default_tolerances_is_not_warned_about(recwarn):
    y = tde.odeint(lambda t, y: -y, torch.ones(3), torch.tensor([0.0, 1.0]))
    assert y.dtype == torch.float32 and not recwarn.list


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"method": "dopri6"}, InputError, "Invalid method"),
        ({"options": {"step_size": 0.1}}, InputError, "no option step_size"),
        ({"method": "rk4", "options": {"first_step": 0.1}}, InputError, "no option first_step"),
        ({"t": float64(0.0, 1.0, 0.5)}, InputError, "strictly increasing"),
        ({"t": float64(0.0, 0.0)}, InputError, "strictly increasing"),
        ({"t": [0.0, 1.0]}, InputError, "torch.Tensor"),
        ({"t": torch.tensor([0, 1])}, TypeError, "floating point"),
        ({"y0": [torch.ones(1)]}, InputError, "tuple of tensors"),
        ({"rtol": float64(1e-3, grad=True)}, InputError, "cannot require gradient"),
        ({"method": "rk4", "options": {"interp": "spline"}}, InputError, "spline"),
        ({"method": "rk4", "options": {"step_size": -1}}, InputError, "positive"),
        ({"method": "explicit_adams", "options": {"max_order": 13}}, InputError, "from 1 to 12"),
        ({"func": lambda t, y: y + 1j}, FieldError, "complex"),
        ({"func": lambda t, y: y.sum()}, FieldError, "shape"),
        ({"func": lambda t, y: y * math.nan}, SolveFailure, "NaN"),
        ({"func": lambda t, y: y * y, "t": float64(0.0, 2.0)}, AssertionError, "blow up|NaN"),
        (
            {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}},
            InputError,
            "mutually exclusive",
        ),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t * 2}},
            InputError,
            "begin and end",
        ),
    ],
)
def test_errors(change, error, match):
    call = {"func": forced, "y0": float64(1.0, 1.0), "t": float64(0.0, 1.0), **change}
    with pytest.raises(error, match=match):
        tde.odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)
