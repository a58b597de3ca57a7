"""odeint_event, and odeint with event_fn: times, states, gradients, and solves without an event."""

import math

import pytest
import torch
from torch import nn
from twin_problems import ball, drop_time, float64, forced

import pynode.torchdiffeq as tde
from pynode.errors import GradientError, InputError
from pynode.torchdiffeq.methods import METHODS

INTERFACES = pytest.mark.parametrize("interface", [tde.odeint, tde.odeint_adjoint])
STEPPED = {"step_size": 0.01, "interp": "cubic"}


def ground(t, state):
    return state[0]


def start(height, grad=False):
    return float64(height, grad=grad)[0].reshape(()), float64(0.0)[0].reshape(())


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"scipy_solver"}))
def test_a_ball_hits_the_ground(method):
    options = STEPPED if METHODS[method].on_grid else None
    t, (height, speed) = tde.odeint_event(
        ball,
        start(10.0),
        float64(0.0)[0],
        event_fn=ground,
        method=method,
        options=options,
        rtol=1e-4,
    )
    tol = 2e-2 if method in ("euler", "implicit_euler") else 1e-3
    assert t.shape == () and height.shape == (2,)
    assert float(t) == pytest.approx(drop_time(10.0), rel=tol)
    assert abs(float(height[-1])) < 1e-6 and float(height[0]) == 10.0
    assert float(speed[-1]) == pytest.approx(-9.8 * drop_time(10.0), rel=tol)


@INTERFACES
def test_gradients_of_time_and_state(interface):
    """t* = sqrt(2h/g), v* = -sqrt(2gh); t0 moves t* along."""
    h = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    t0 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    g = torch.tensor(9.8, dtype=torch.float64, requires_grad=True)

    def fall(t, state):
        return state[1], -g + 0 * state[0]

    speed0 = torch.zeros((), dtype=torch.float64)
    t, (height, speed) = tde.odeint_event(
        fall, (h, speed0), t0, event_fn=ground, odeint_interface=interface
    )
    of_h, of_t0, of_g = torch.autograd.grad(t, [h, t0, g], retain_graph=True)
    assert float(of_h) == pytest.approx(drop_time(10.0) / 20, rel=1e-5)
    assert float(of_t0) == pytest.approx(1.0, rel=1e-5)
    assert float(of_g) == pytest.approx(-drop_time(10.0) / 19.6, rel=1e-5)
    (of_h,) = torch.autograd.grad(speed[-1], h, retain_graph=True)
    assert float(of_h) == pytest.approx(-9.8 / math.sqrt(196.0), rel=1e-5)
    (of_h,) = torch.autograd.grad(height[-1], h)
    assert abs(float(of_h)) < 1e-6, "the height at the event is always zero"


@INTERFACES
def test_parameters_of_the_event_function_get_gradients(interface):
    """torchdiffeq gives them none."""
    level = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    t, _ = tde.odeint_event(
        ball,
        start(10.0),
        float64(0.0)[0],
        event_fn=lambda t, state: state[0] - level,
        odeint_interface=lambda *a, **k: interface(
            *a, **k, **({"adjoint_params": ()} if interface is tde.odeint_adjoint else {})
        ),
    )
    t.backward()
    assert float(t.detach()) == pytest.approx(drop_time(8.0), rel=1e-6)
    assert float(level.grad) == pytest.approx(-1 / (9.8 * drop_time(8.0)), rel=1e-5)


def test_reverse_time():
    y0 = float64(0.2, grad=True)
    t, y = tde.odeint_event(
        forced, y0, float64(2.0)[0], event_fn=lambda t, y: (y - 0.5).sum(), reverse_time=True
    )
    assert float(t) == pytest.approx(1.0, rel=1e-6) and float(y[-1]) == pytest.approx(0.5)
    t.backward()
    # 1/y = c + t² with c = 1/y0 - 4: t = sqrt(2 - c), dt/dc = -1/(2t), dc/dy0 = -1/y0².
    assert float(y0.grad) == pytest.approx(0.5 * 25, rel=1e-5)


def test_any_entry_ends_the_solve():
    """Of conditions of both signs, the first to change its own."""
    event_fn = lambda t, state: torch.stack([state[0] - 2.0, -7.0 - state[1], t - 5.0])  # noqa: E731
    t = tde.odeint(ball, start(10.0), float64(0.0, 1.0), event_fn=event_fn)[0]
    assert float(t) == pytest.approx(7.0 / 9.8, rel=1e-8), "the speed is first"
    t = tde.odeint_event(ball, start(3.0), float64(0.0)[0], event_fn=event_fn)[0]
    assert float(t) == pytest.approx(drop_time(1.0), rel=1e-8), "here the height"


def test_two_crossings_within_one_step():
    """The steps of a linear problem get so long that torchdiffeq goes past both."""
    t, _ = tde.odeint_event(
        lambda t, y: torch.ones_like(y),
        float64(0.0),
        float64(0.0)[0],
        event_fn=lambda t, y: ((y - 50.0) * (y - 52.0)).sum(),
    )
    assert float(t) == pytest.approx(50.0, rel=1e-9)


def test_an_event_at_the_start_is_found_there():
    t, (height, _) = tde.odeint_event(ball, start(0.0), float64(0.3)[0], event_fn=ground)
    assert float(t) == 0.3 and height.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "method, options, most",
    [
        ("dopri5", {"max_num_steps": 50}, 50),
        ("rk4", {"step_size": 0.1}, 20_000),
        ("explicit_adams", {"step_size": 0.1}, 20_000),
    ],
)
def test_an_event_that_never_comes(method, options, most, monkeypatch):
    """torchdiffeq's adaptive methods go on for ever."""
    if most > 1000:
        most = 100
        monkeypatch.setattr("pynode.torchdiffeq.event.MAX_FIXED_STEPS", most)
    with pytest.raises(AssertionError, match=f"no event in {most} steps"):
        tde.odeint_event(
            lambda t, y: -y,
            float64(1.0),
            float64(0.0)[0],
            event_fn=lambda t, y: y.sum() + 1,
            method=method,
            options=options,
        )


def test_nan_on_the_way():
    with pytest.raises(AssertionError, match="NaN"):
        tde.odeint_event(
            lambda t, y: y * math.nan, float64(1.0), float64(0.0)[0], event_fn=lambda t, y: y.sum()
        )


def test_a_grazing_event_has_no_derivative():
    y0 = float64(1.0, grad=True)
    with pytest.raises(GradientError, match="stationary"):
        tde.odeint_event(
            lambda t, y: -torch.ones_like(y),
            y0,
            float64(0.0)[0],
            event_fn=lambda t, y: (torch.sign(y.detach() - 0.5) + 0 * y).sum(),
        )


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"t": float64(0.0, 1.0, 2.0)}, "len"),
        ({"method": "rk4"}, "step_size"),
        ({"method": "scipy_solver"}, "no events"),
        ({"method": "rk4", "options": {"step_size": 0.1, "perturb": True}}, "perturb"),
    ],
)
def test_errors(kwargs, match):
    t = kwargs.pop("t", float64(0.0, 1.0))
    with pytest.raises(InputError, match=match):
        tde.odeint(forced, float64(1.0), t, event_fn=lambda t, y: y.sum() - 0.5, **kwargs)


def test_a_bouncing_ball_keeps_its_gradient():
    """Three bounces, each with a fresh solve, as in torchdiffeq's examples."""
    h = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    state, t = (h, torch.zeros_like(h)), torch.zeros((), dtype=torch.float64)
    for _ in range(3):
        t, (height, speed) = tde.odeint_event(ball, state, t, event_fn=ground)
        state = (height[-1] + 1e-7, -0.9 * speed[-1])
    fall = drop_time(10.0)
    assert float(t) == pytest.approx(fall * (1 + 2 * 0.9 + 2 * 0.81), rel=1e-5)
    t.backward()
    assert float(h.grad) == pytest.approx(float(t.detach()) / 20, rel=1e-4)
