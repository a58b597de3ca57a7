"""What each option does, by its effect."""

import itertools
import math

import pytest
import torch
from twin_problems import Growth, float64, forced, forced_solution

import pynode.torchdiffeq as tde
from pynode.errors import InputError
from pynode.torchdiffeq.methods import METHODS

ONE = float64(0.0, 1.0)


class Recorder:
    """f = -y, with torchdiffeq's callbacks."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.accepted: list[tuple[float, float]] = []
        self.rejected: list[tuple[float, float]] = []
        self.states: list[object] = []

    def __call__(self, t, y):
        return -y if isinstance(y, torch.Tensor) else tuple(-part for part in y)

    def callback_step(self, t0, y0, dt):
        self.steps.append((float(t0), float(dt)))
        self.states.append(y0)

    def callback_accept_step(self, t0, y0, dt):
        self.accepted.append((float(t0), float(dt)))

    def callback_reject_step(self, t0, y0, dt):
        self.rejected.append((float(t0), float(dt)))


def steps_of(func=None, y0=None, t=ONE, **kwargs) -> list[tuple[float, float]]:
    recorder = Recorder()
    tde.odeint(recorder, float64(1.0) if y0 is None else y0, t, **kwargs)
    return recorder.accepted or recorder.steps


# --- adaptive methods --------------------------------------------------------------------------


def test_first_step():
    assert steps_of(options={"first_step": 1e-3})[0] == (0.0, 1e-3)
    assert steps_of(options={"first_step": torch.tensor(1e-3)})[0][1] == pytest.approx(1e-3)


def test_max_step():
    steps = steps_of(rtol=1e-2, options={"max_step": 0.06})
    assert max(dt for _, dt in steps) < 0.0600001 and len(steps) >= 16


def test_min_step_is_accepted_whatever_its_error():
    recorder = Recorder()
    y = tde.odeint(recorder, float64(1.0), ONE, rtol=1e-13, atol=1e-13, options={"min_step": 0.25})
    assert len(recorder.accepted) == 4 and not recorder.rejected
    assert float(y[-1]) == pytest.approx(math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
def test_step_t_and_jump_t_are_landed_on(backwards):
    t = ONE.flip(0) if backwards else ONE
    steps = steps_of(t=t, options={"step_t": float64(0.37), "jump_t": float64(0.71)})
    assert {0.37, 0.71} <= {round(t0, 12) for t0, _ in steps}


def test_jump_t_saves_steps_at_a_jump():
    def jump(t, y):
        counts.append(1)
        return -0.5 * y if t < 0.5 else y * y

    found = []
    for options in ({}, {"jump_t": float64(0.5)}):
        counts = []
        y = tde.odeint(jump, float64(1.0), ONE, rtol=1e-8, atol=1e-8, options=options)
        found.append(len(counts))
        a = math.exp(-0.25)
        assert float(y[-1]) == pytest.approx(1 / (1 / a - 0.5), rel=1e-6)
    assert found[1] < 0.7 * found[0]


def test_step_t_and_jump_t_must_differ():
    with pytest.raises(InputError, match="repeated"):
        tde.odeint(forced, float64(1.0), ONE, options={"step_t": ONE[1:], "jump_t": ONE[1:]})


def test_safety_and_factors():
    options = {"first_step": 1e-6, "ifactor": 2.0}
    sizes = [dt for _, dt in steps_of(options=options)]
    assert all(b <= 2.0 * a * (1 + 1e-12) for a, b in itertools.pairwise(sizes))
    assert len(steps_of(options={"safety": 0.3})) > len(steps_of(options={"safety": 0.9}))
    recorder = Recorder()
    tde.odeint(recorder, float64(1.0), ONE, rtol=1e-12, options={"first_step": 1.0, "dfactor": 0.5})
    (_, first), (_, second) = recorder.steps[:2]
    assert second == 0.5 * first


def test_max_num_steps():
    with pytest.raises(AssertionError, match="max_steps=3"):
        tde.odeint(forced, float64(1.0), ONE, rtol=1e-10, options={"max_num_steps": 3})


def test_norm_sees_the_users_structure():
    seen = []

    def norm(state):
        seen.append(state)
        return max(part.abs().max() for part in state)

    y0 = (torch.ones(2, 3), torch.ones(()))
    tde.odeint(lambda t, y: (-y[0], y[1]), y0, ONE, options={"norm": norm})
    assert seen and all(s[0].shape == (2, 3) and s[1].shape == () for s in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_time(dtype):
    y = tde.odeint(forced, float64(1.0), ONE, options={"dtype": dtype})
    assert float(y[-1]) == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(InputError, match="dtype"):
        tde.odeint(forced, float64(1.0), ONE, options={"dtype": torch.int64})


# --- fixed steps -------------------------------------------------------------------------------


def test_without_options_steps_go_from_time_to_time():
    t = float64(0.0, 0.1, 0.4, 1.0)
    assert [t0 for t0, _ in steps_of(t=t, method="rk4")] == [0.0, 0.1, 0.4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backwards", [False, True])
def test_step_size(dtype, backwards):
    t = torch.tensor([0.0, 0.3, 1.0], dtype=dtype)
    steps = steps_of(t=t.flip(0) if backwards else t, method="euler", options={"step_size": 0.1})
    assert len(steps) == 10 and all(dt == pytest.approx(0.1, rel=1e-5) for _, dt in steps)
    steps = steps_of(t=t, method="euler", options={"step_size": 0.4})
    assert [round(dt, 5) for _, dt in steps] == [0.4, 0.4, 0.2], "the last one is shortened"


def test_grid_constructor():
    def grid(func, y0, t):
        assert t.tolist() == [1.0, 0.0] and y0.shape == (1,)
        return float64(1.0, 0.5, 0.2, 0.0)

    steps = steps_of(t=ONE.flip(0), method="midpoint", options={"grid_constructor": grid})
    assert [t0 for t0, _ in steps] == [1.0, 0.5, 0.2]


def test_interp():
    t = float64(0.0, 0.25, 1.0)
    euler = {"method": "rk4", "options": {"step_size": 0.5}}
    y = tde.odeint(forced, float64(1.0), t, **euler)
    ends = tde.odeint(forced, float64(1.0), float64(0.0, 0.5, 1.0), **euler)
    torch.testing.assert_close(y[1], 0.5 * (ends[0] + ends[1]))
    euler["options"]["interp"] = "cubic"
    cubic = tde.odeint(forced, float64(1.0), t, **euler)
    errors = [abs(float(x[1] - forced_solution(t[1]))) for x in (y, cubic)]
    assert errors[1] < 0.1 * errors[0]
    torch.testing.assert_close(y[[0, 2]], cubic[[0, 2]])


def test_interp_is_differentiable_in_time_and_state():
    t, y0 = float64(0.0, 0.3, 0.9, grad=True), float64(1.0, grad=True)
    for interp in ("linear", "cubic"):
        options = {"step_size": 0.02, "interp": interp}
        y = tde.odeint(forced, y0, t, method="rk4", options=options)
        of_y0, of_t = torch.autograd.grad(y[1].sum(), [y0, t])
        z = 1 / 1.09
        assert float(of_t[1]) == pytest.approx(-0.6 * z * z, rel=0.05)
        assert float(of_y0) == pytest.approx(z * z, rel=1e-3)


@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams", "trapezoid"])
@pytest.mark.parametrize("perturb", [False, True])
def test_perturb(method, perturb):
    func = Growth()
    tde.odeint(
        func, float64(1.0), ONE, method=method, options={"step_size": 0.5, "perturb": perturb}
    )
    on_grid = {0.0, 0.5} & set(func.times)
    assert not on_grid if perturb else on_grid == {0.0, 0.5}
    near = {round(t, 9) for t in func.times}
    assert {0.0, 0.5} <= near


def test_max_iters_bounds_newton_and_the_corrector():
    with pytest.raises(AssertionError, match="max_iters=1"):
        tde.odeint(forced, float64(1.0), ONE, method="gl4", options={"max_iters": 1})
    options = {"max_iters": 1, "step_size": 0.1}
    with pytest.warns(UserWarning, match="max_iters=1"):
        tde.odeint(forced, float64(1.0), ONE, method="implicit_adams", options=options)


def test_low_max_order_reduces_to_rk4():
    options = {"step_size": 0.1, "max_order": 3}
    with pytest.warns(UserWarning, match="reduces to `rk4`"):
        y = tde.odeint(forced, float64(1.0), ONE, method="explicit_adams", options=options)
    rk4 = tde.odeint(forced, float64(1.0), ONE, method="rk4", options={"step_size": 0.1})
    torch.testing.assert_close(y, rk4, rtol=1e-14, atol=0)


# --- all methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_time_is_no_integration(method):
    y0 = torch.rand(2, 2)
    torch.testing.assert_close(tde.odeint(forced, y0, torch.tensor([0.4]), method=method)[0], y0)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "gl6"])
def test_callbacks_see_every_step(method):
    recorder = Recorder()
    if METHODS[method].on_grid:
        recorder.callback_accept_step = recorder.callback_reject_step = None
    y0 = (torch.ones(2), torch.ones(()))
    t = torch.tensor([1.0, 0.0])
    tde.odeint(recorder, y0, t, method=method, rtol=1e-5)
    assert recorder.steps[0][0] == 1.0 and all(dt > 0 for _, dt in recorder.steps)
    assert all(s[0].shape == (2,) and s[1].shape == () for s in recorder.states)
    if method == "dopri5":
        assert len(recorder.accepted) + len(recorder.rejected) == len(recorder.steps)


@pytest.mark.parametrize("method", ["rk4", "scipy_solver", "gl4"])
def test_callbacks_that_a_method_does_not_call_are_warned_about(method):
    with pytest.warns(UserWarning, match="does not support callbacks"):
        tde.odeint(Recorder(), float64(1.0), ONE, method=method)


def test_odeint_dense():
    y0 = float64(1.0, grad=True)
    dense = tde.odeint_dense(forced, y0, torch.tensor(0.0), torch.tensor(3.0), rtol=1e-9)
    s = torch.linspace(0, 3, 40, dtype=torch.float64)
    assert dense(s).shape == (40, 1)
    assert float((dense(s)[:, 0] - forced_solution(s)).abs().max()) < 1e-7
    torch.testing.assert_close(dense(torch.tensor(1.3)), dense(s.new_tensor([1.3]))[0])
    dense(torch.tensor(1.0)).sum().backward()
    assert float(y0.grad) == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(InputError, match="adaptive"):
        tde.odeint_dense(forced, y0, torch.tensor(0.0), torch.tensor(3.0), method="rk4")
