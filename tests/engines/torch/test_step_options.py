"""Grids of fixed steps, least step sizes, factor limits, and functions called at each step."""

import itertools
import math

import pytest
import torch

from pynode import solve
from pynode.errors import InputError, SolveError
from pynode.options import StepCallbacks

pytestmark = pytest.mark.usefixtures("float64")
GRID = [0.0, 0.1, 0.3, 0.7, 1.0, 5.0]


def decay(t, z):
    return -z


def step_ends(sol) -> list[float]:
    return sol.dense.steps


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.0], [0.05, 0.5, 0.9]])
def test_steps_go_from_one_grid_point_to_the_next(times):
    sol = solve(decay, torch.ones(1), times, solver="rk4", grid=GRID)
    low, high = min(times), max(times)
    inside = [t for t in GRID if low < t < high]
    assert sorted(step_ends(sol)) == [low, *inside, high]


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "interpolating", "gauss"])
def test_gradients_on_a_grid(sensitivity):
    grid = torch.linspace(0, 1, 30).tolist()
    z0 = torch.ones(2, requires_grad=True)
    solve(decay, z0, [0.0, 1.0], solver="rk4", grid=grid, sensitivity=sensitivity).zs[
        -1
    ].sum().backward()
    torch.testing.assert_close(z0.grad, torch.full((2,), math.exp(-1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{"dt": 0.1}, {"adaptive": True}])
def test_a_grid_excludes_other_step_sizes(options):
    with pytest.raises(InputError, match="grid"):
        solve(decay, torch.ones(1), [0.0, 1.0], grid=GRID, **options)


def test_least_step_size():
    sol = solve(decay, torch.ones(1), [0.0, 1.0], rtol=1e-14, atol=1e-14, dt_min=0.125)
    assert sol.stats.accepted == 8 and sol.stats.rejected == 0
    with pytest.raises(InputError, match="dt_min"):
        solve(decay, torch.ones(1), [0.0, 1.0], dt_min=2.0, dt_max=1.0)


def test_nan_ends_a_solve_with_a_least_step_size():
    with pytest.raises(SolveError, match="NaN") as caught:
        solve(
            lambda t, z: z * torch.where(t > 0.5, math.nan, 1.0),
            torch.ones(1),
            [0.0, 1.0],
            dt_min=0.01,
        )
    assert caught.value.t == pytest.approx(0.5, abs=0.02)


def test_factor_limits():
    sol = solve(decay, torch.ones(1), [0.0, 1.0], dt=1e-6, grow=1.5)
    times = step_ends(sol)
    sizes = [b - a for a, b in itertools.pairwise(times)]
    assert all(b <= 1.5 * a * (1 + 1e-6) for a, b in itertools.pairwise(sizes))
    for bad in ({"safety": 0.0}, {"shrink": 1.0}, {"grow": 1.0}):
        with pytest.raises(InputError, match="safety"):
            solve(decay, torch.ones(1), [0.0, 1.0], **bad)


@pytest.mark.parametrize("how", [{}, {"step_control": "per_sample"}, {"compile": True}], ids=str)
def test_a_rejected_step_is_not_stretched_to_its_length_again(how):
    """With so little safety the size after a rejection, stretched, could be the one before it, and
    so for ever."""
    for end in torch.linspace(0.3, 2.3, 60, dtype=torch.float64):
        times, z0 = torch.stack([0 * end, end]), torch.ones(2, 1, dtype=torch.float64)
        options = {"rtol": 1e-5, "atol": 1e-6, "controller": "i", "safety": 0.99, **how}
        solution = solve(lambda t, z: 3 * z * torch.cos(5 * t), z0, times, **options)
        assert solution.stats.rejected < 50


def test_callbacks_see_the_forward_solve_only():
    seen: dict[str, list] = {"attempt": [], "accepted": [], "rejected": []}

    def record(name):
        return lambda t, z, dt: seen[name].append((t, tuple(x.shape for x in z), dt))

    callbacks = StepCallbacks(*(record(name) for name in seen))
    z0 = (torch.ones(2, 3, requires_grad=True), torch.ones(()))
    sol = solve(
        lambda t, z: (-50 * t * z[0], -z[1]),
        z0,
        [1.0, 0.0],
        dt=0.9,
        callbacks=callbacks,
        sensitivity="interpolating",
    )
    before = {name: len(found) for name, found in seen.items()}
    sol.zs[0].sum().backward()
    assert {name: len(found) for name, found in seen.items()} == before
    assert before["accepted"] == sol.stats.accepted and before["rejected"] == sol.stats.rejected > 0
    assert before["attempt"] == before["accepted"] + before["rejected"]
    assert all(shapes == ((2, 3), ()) and dt < 0 for _, shapes, dt in seen["attempt"])


def test_float32_sums_do_not_drift():
    """Added term by term, the stages would round to the state's spacing several times a step."""
    n = 4000
    z = solve(
        lambda t, z: torch.full_like(z, 0.2), torch.full((1,), 3.2, dtype=torch.float32),
        [0.0, 8.0], solver="rk4_38", dt=8.0 / n, adaptive=False,
    ).zs[-1]  # fmt: skip
    spacing = torch.finfo(torch.float32).eps * 4
    assert abs(float(z) - 4.8) < 0.3 * n * spacing
