"""Observed orders: of the steps and of the dense output, on problems with known solutions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pynode import solve, solvers
from pynode.catalogue import SolverInfo
from pynode.options import StepCallbacks

# Those for states (q, p) have their own problems, in test_symplectic.py.
SOLVERS = {info.name: info for info in solvers() if not info.separable}
every_solver = pytest.mark.parametrize("info", SOLVERS.values(), ids=list(SOLVERS))
ONE_STEP = {name: info for name, info in SOLVERS.items() if info.one_step}
every_one_step = pytest.mark.parametrize("info", ONE_STEP.values(), ids=list(ONE_STEP))
NONLINEAR_STEPS = {
    1: (200, 1000),
    2: (60, 240),
    3: (60, 200),
    4: (24, 80),
    5: (90, 220),
    7: (75, 120),
    8: (12, 28),
}
LINEAR_STEPS = {
    1: (64, 512),
    2: (32, 256),
    3: (32, 128),
    4: (24, 96),
    5: (30, 100),
    7: (8, 20),
    8: (6, 16),
}
"""Numbers of steps, fewest and most, by order: above rounding and inside the asymptotic range."""

END = 4.0
STARTS = ((1.0, 0.2, 0.9), (0.5, 0.5, 1.0))
"""More than one, since the error of a single solution passes through zero at some step size."""


def rigid_body(t: Tensor, z: Tensor) -> Tensor:
    """Euler's equations with a driving torque: nonlinear, and they depend on time."""
    a, b, c = z.unbind(-1)
    return torch.stack([-2 * b * c, 1.25 * a * c, -0.5 * a * b + 0.25 * torch.sin(t)], dim=-1)


@pytest.fixture(scope="module")
def reference() -> Callable[[np.ndarray], np.ndarray]:
    """The rigid body by scipy's DOP853 at 1e-13."""

    def numpy_field(t: float, z: np.ndarray) -> np.ndarray:
        a, b, c = z.reshape(-1, 3).T
        torque = 0.25 * np.sin(t)
        return np.stack([-2 * b * c, 1.25 * a * c, -0.5 * a * b + torque], axis=1).ravel()

    def at(times: np.ndarray) -> np.ndarray:
        found = solve_ivp(
            numpy_field,
            (0, END),
            np.ravel(STARTS),
            "DOP853",
            t_eval=times,
            rtol=1e-13,
            atol=1e-14,
        )
        return found.y.T.reshape(-1, len(STARTS), 3)

    return at


def counts(steps: tuple[int, int]) -> np.ndarray:
    return np.unique(np.geomspace(*steps, 5).round().astype(int))


def slope(ns: np.ndarray, errors: list[float]) -> float:
    assert min(errors) > 1e-14, "the finest steps are in the rounding"
    return -float(np.polyfit(np.log(ns), np.log(errors), 1)[0])


def fixed(field, z0: Tensor, t, info: SolverInfo, n: int, span: float):
    sol = solve(field, z0, t, solver=info.name, adaptive=False, dt=span / n)
    assert sol.stats.accepted == n
    return sol


@every_one_step
def test_order_on_a_nonlinear_problem(info, reference):
    exact = reference(np.array([END]))[0]
    z0 = torch.tensor(STARTS, dtype=torch.float64)
    ns = counts(NONLINEAR_STEPS[info.order])
    errors = [
        float(
            np.linalg.norm(fixed(rigid_body, z0, [0.0, END], info, n, END).zs[-1].numpy() - exact)
        )
        for n in ns
    ]
    assert slope(ns, errors) == pytest.approx(info.order, abs=0.3)


@every_one_step
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_order_on_a_random_linear_system(info, dtype):
    """z' = A z, backwards in time; the solution is the matrix exponential."""
    torch.manual_seed(3)
    matrix = torch.randn(6, 10, 10, dtype=dtype) / math.sqrt(10)
    z0 = torch.randn(6, 10, 1, dtype=dtype)
    exact = torch.linalg.matrix_exp(-2.0 * matrix) @ z0
    # Rodas5P is of order 6 here, and sooner in the rounding.
    ns = counts(LINEAR_STEPS[info.order]) // (3 if info.name == "rodas5p" else 1)
    errors = [
        float((fixed(lambda z: matrix @ z, z0, [1.0, -1.0], info, n, 2.0).zs[-1] - exact).norm())
        for n in ns
    ]
    found = slope(ns, errors)
    assert found > info.order - 0.3
    assert found < info.order + (1.3 if info.name == "rodas5p" else 0.3)


@every_one_step
def test_order_of_dense_output(info, reference):
    """The largest error anywhere between steps falls at the stated order or faster."""
    times = np.linspace(0, END, 211)
    exact = reference(times)
    z0 = torch.tensor(STARTS, dtype=torch.float64)
    # Between steps the rounding is larger: the weights there are up to 1e3.
    ns = counts((20, 50) if info.order == 7 else NONLINEAR_STEPS[info.order])
    errors = []
    for n in ns:
        sol = fixed(rigid_body, z0, [0.0, END], info, n, END)
        errors.append(float(abs(sol(torch.tensor(times)).numpy() - exact).max()))
    found = slope(ns, errors)
    assert found > min(info.dense_order, info.order) - 0.3
    assert info.dense_order >= info.order - 1


@every_one_step
def test_local_order_of_dense_output(info):
    """Inside one step the error is O(h^(dense_order + 1)), measured where the step is exact.

    z' = -2 t z², z = 1/(1 + t²), from t = 0.3.
    """
    largest, smallest = {7: (0.25, 0.1), 4: (0.1, 0.03)}.get(info.dense_order, (0.03, 0.005))
    errors, sizes = [], np.geomspace(largest, smallest, 6)
    z0 = torch.tensor([1 / 1.09], dtype=torch.float64)
    inside = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for h in sizes:
        sol = solve(
            lambda t, z: -2 * t * z * z,
            z0,
            [0.3, 0.3 + h],
            solver=info.name,
            adaptive=False,
            dt=float(h),
        )
        s = 0.3 + float(h) * inside
        errors.append(float((sol(s)[:, 0] - 1 / (1 + s * s)).abs().max()))
    found = slope(1 / sizes, errors)
    assert found > info.dense_order + 1 - 0.3


@pytest.mark.parametrize(
    "info", [s for s in SOLVERS.values() if s.adaptive and s.order > 2], ids=lambda s: s.name
)
def test_dense_output_is_nearly_as_good_as_the_steps(info, reference):
    """Where torchdiffeq's dopri8 errs 2.6e-6 between steps and 6.8e-10 at their ends (ANCHORS)."""
    loose = info.order == 3
    rtol = 1e-7 if loose else 1e-9
    times = np.linspace(0, END, 401)
    exact = reference(times)
    z0 = torch.tensor(STARTS, dtype=torch.float64)
    sol = solve(rigid_body, z0, [0.0, END], solver=info.name, rtol=rtol, atol=rtol)
    between = float(abs(sol(torch.tensor(times)).numpy() - exact).max())
    ends = np.array(sol.dense.trajectory.log.times)
    at_ends = float(abs(sol(torch.tensor(ends)).numpy() - reference(ends)).max())
    assert between < 20 * max(at_ends, rtol)


@every_solver
def test_dense_output_is_continuous_and_meets_the_outputs(info):
    z0 = torch.tensor(STARTS, dtype=torch.float64)
    t = torch.linspace(0, END, 7, dtype=torch.float64)
    steps = {"adaptive": False, "dt": 0.13} if info.one_step else {"dense": True}
    sol = solve(rigid_body, z0, t, solver=info.name, **steps)
    torch.testing.assert_close(sol(t), sol.zs, rtol=1e-12, atol=1e-12)
    ends = torch.tensor(sol.dense.trajectory.log.times[1:-1], dtype=torch.float64)
    torch.testing.assert_close(sol(ends - 1e-11), sol(ends + 1e-11), rtol=0, atol=1e-9)


ADAPTIVE = {name: info for name, info in SOLVERS.items() if info.adaptive}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_time_that_the_field_names_costs_no_steps(name, float64):
    """As many steps as with the time as an entry of the state: f_t enters the error rightly."""

    def follow(y: Tensor, t: Tensor) -> Tensor:
        return -10.0 * (y - torch.cos(t))

    def with_time(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([follow(z[0], z[1]), torch.ones(())])

    options = {"solver": name, "rtol": 1e-3, "atol": 1e-5, "sensitivity": "discrete"}
    named = solve(lambda t, y: follow(y, t), torch.ones(1), [0.0, 5.0], **options)
    entry = solve(with_time, torch.tensor([1.0, 0.0]), [0.0, 5.0], **options)
    # The entry t has no error and halves the mean square.
    assert named.stats.accepted <= 1.5 * entry.stats.accepted + 3


def test_no_sliver_of_a_step_is_left_over(float64):
    """A step that would end just before the last time ends on it."""
    shortest = 1.0
    for end in np.linspace(1.0, 2.0, 60):
        sizes: list[float] = []
        solve(
            lambda t, y: -y * torch.cos(t),
            torch.ones(2),
            [0.0, end],
            solver="dp5",
            callbacks=StepCallbacks(accepted=lambda t, z, dt, sizes=sizes: sizes.append(dt)),
        )
        shortest = min(shortest, sizes[-1] / sizes[-2])
    assert shortest > 0.04
