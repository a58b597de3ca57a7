"""Steps: how many are made, where they end, what they cost, and what they do not depend on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve, solvers
from pynode.catalogue import SolverInfo
from pynode.engines.torch import linearized
from pynode.engines.torch.controller import ErrorNorm, StepSize, rms
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.runge_kutta import ExplicitStepper, Jumps
from pynode.options import SolveOptions

EXPLICIT = [info for info in solvers() if not (info.stiff or info.separable)]
# fehlberg2's error estimate is 1/512 of a typical one, so that its errors say nothing here.
ADAPTIVE = [info for info in EXPLICIT if info.adaptive and info.name != "fehlberg2"]
pytestmark = pytest.mark.usefixtures("float64")


def each(infos: list[SolverInfo]):
    return pytest.mark.parametrize("info", infos, ids=lambda s: s.name)


class Counting:
    """A field that remembers the times at which it was evaluated."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field = field
        self.times: list[float] = []

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.times.append(float(t))
        return self.field(t, z)


def oscillator(t: Tensor, z: Tensor) -> Tensor:
    q, p = z.unbind(-1)
    return torch.stack([p, -q + 0.3 * torch.sin(2 * t)], dim=-1)


def start() -> Tensor:
    return torch.tensor([1.0, 0.3])


def step_ends(sol) -> list[float]:
    return sol.dense.trajectory.log.times


# --- what steps cost ---------------------------------------------------------------------------


@each(ADAPTIVE)
def test_evaluations_of_adaptive_steps(info):
    """One for the first stage, one for the first step size, then the method's own."""
    field = Counting(oscillator)
    sol = solve(field, start(), [0.0, 9.0], solver=info.name, rtol=1e-4, atol=1e-6)
    attempts = sol.stats.accepted + sol.stats.rejected
    tableau = TABLEAUS[info.name]
    if tableau.fsal:
        wanted = 2 + info.stages * attempts
    else:
        wanted = 2 + (info.stages - 1) * attempts + sol.stats.accepted - 1
    assert sol.stats.nfe == len(field.times) == wanted
    assert sol.stats.nfe_backward == sol.stats.vjp == 0


@each(EXPLICIT)
def test_evaluations_of_fixed_steps(info):
    field = Counting(oscillator)
    sol = solve(field, start(), [0.0, 2.0], solver=info.name, adaptive=False, dt=0.25)
    assert sol.stats.accepted == 8 and sol.stats.rejected == 0
    fsal = TABLEAUS[info.name].fsal
    assert sol.stats.nfe == len(field.times) == info.stages * 8 + fsal


@each(ADAPTIVE)
def test_rejected_steps_are_counted_and_cost_no_first_stage(info):
    """A first step that is far too long."""
    field = Counting(oscillator)
    sol = solve(field, start(), [0.0, 5.0], solver=info.name, dt=5.0, rtol=1e-4, atol=1e-6)
    assert sol.stats.rejected >= 1
    fsal = TABLEAUS[info.name].fsal
    attempts = sol.stats.accepted + sol.stats.rejected
    own = info.stages * attempts + 1 if fsal else (info.stages - 1) * attempts + sol.stats.accepted
    assert sol.stats.nfe == len(field.times) == own


@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating", "backsolve"])
def test_evaluations_are_all_counted_when_gradients_are_wanted(sensitivity):
    calls = 0

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return -self.rate * z * torch.cos(t)

    node = NeuralODE(Field(), sensitivity=sensitivity)
    # Of fewer numbers discrete gradients have all evaluations again, in one call.
    zs = node(torch.ones(linearized.MOST + 1), [0.0, 1.0, 2.0])
    assert node.stats.nfe == calls > 0
    zs.sum().backward()
    if sensitivity != "discrete":
        assert node.stats.nfe + node.stats.nfe_backward == calls
    assert node.stats.vjp > 0


@each([s for s in EXPLICIT if s.name in ("vern7", "dop853")])
def test_dense_output_costs_its_stages_once_a_step(info):
    extra = len(TABLEAUS[info.name].extra_c)
    field = Counting(oscillator)
    sol = solve(field, start(), [0.0, 1.0], solver=info.name, adaptive=False, dt=0.5)
    before = len(field.times)
    sol(torch.linspace(0.01, 0.49, 5))
    sol(torch.linspace(0.02, 0.48, 5))
    assert len(field.times) == before + extra == sol.stats.nfe
    sol(0.7)
    assert len(field.times) == before + 2 * extra == sol.stats.nfe


@each(EXPLICIT)
def test_the_field_is_never_evaluated_outside_the_interval(info):
    """Many fields have a data range: not even rounding may leave it."""
    for end in np.linspace(0.3, 3.0, 13):
        for times in ([0.1, float(end)], [float(end), 0.1]):
            field = Counting(lambda t, z: torch.cos(3 * t) * z)
            options = {"rtol": 1e-3} if info.adaptive else {"dt": 0.07}
            solve(field, torch.ones(1), times, solver=info.name, dense=False, **options)
            assert min(field.times) >= min(times) and max(field.times) <= max(times)


# --- evaluation times --------------------------------------------------------------------------


@each(ADAPTIVE)
def test_evaluation_times_do_not_change_the_steps(info):
    options = {"solver": info.name, "rtol": 1e-4, "atol": 1e-6}
    few = solve(oscillator, start(), [0.0, 7.0], **options)
    many = solve(oscillator, start(), torch.linspace(0, 7, 1000), **options)
    assert step_ends(many) == step_ends(few)
    assert many.stats.accepted == few.stats.accepted
    torch.testing.assert_close(many.zs[-1], few.zs[-1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(many.zs, few(many.ts), rtol=1e-11, atol=1e-12)


@each(ADAPTIVE)
def test_evaluation_times_of_each_sample_do_not_change_the_steps(info):
    options = {"solver": info.name, "rtol": 1e-4, "atol": 1e-6}
    z0 = torch.randn(4, 2)
    few = solve(oscillator, z0, [0.0, 7.0], **options)
    times = torch.rand(4, 250).sort(dim=1).values * 7
    times[:, 0], times[0, -1] = 0.0, 7.0
    many = solve(oscillator, z0, times, **options)
    assert step_ends(many) == step_ends(few)
    for b in range(4):
        torch.testing.assert_close(many.zs[:, b], few(times[b])[:, b], rtol=1e-11, atol=1e-12)


@each(EXPLICIT)
def test_results_do_not_depend_on_the_other_times(info):
    options = {"solver": info.name, "adaptive": False, "dt": 0.3}
    wanted = [0.0, 0.31, 1.0, 2.5]
    other = sorted([*wanted, *np.linspace(0.001, 2.4, 57).tolist()])
    some = solve(oscillator, start(), wanted, **options).zs
    more = solve(oscillator, start(), other, **options).zs
    picked = more[[other.index(t) for t in wanted]]
    torch.testing.assert_close(picked, some, rtol=1e-13, atol=1e-13)


def test_repeated_times_repeat_values():
    sol = solve(oscillator, start(), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    torch.testing.assert_close(sol.zs[::2], sol.zs[1::2], rtol=0, atol=0)
    torch.testing.assert_close(sol.zs[0], start(), rtol=0, atol=0)


# --- tstops ------------------------------------------------------------------------------------


def jump(side: str) -> Callable[[Tensor, Tensor], Tensor]:
    """z' = z·(1 before t = 0.7, -2 after it); at the jump itself it belongs to one side."""
    before = torch.lt if side == "right" else torch.le
    return lambda t, z: torch.where(before(t, 0.7), 1.0, -2.0) * z


JUMPED = math.exp(0.7 - 2 * 0.8)  # at t = 1.5


@each(ADAPTIVE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_jump_at_a_tstop_costs_nothing(info, side):
    """Full accuracy, no more steps than the two smooth halves take, whatever the field at 0.7."""
    rtol = 1e-5 if info.order < 4 else 1e-10
    options = {"solver": info.name, "rtol": rtol, "atol": rtol * 1e-2}
    one = torch.ones(1)
    sol = solve(jump(side), one, [0.0, 0.5, 1.0, 1.5], tstops=[0.7], **options)
    halves = [
        solve(lambda t, z: z, one, [0.0, 0.7], **options),
        solve(lambda t, z: -2 * z, one, [0.7, 1.5], **options),
    ]
    assert 0.7 in step_ends(sol)
    assert float(sol.zs[-1]) == pytest.approx(JUMPED, rel=10 * rtol)
    assert float(sol.zs[1]) == pytest.approx(math.exp(0.5), rel=10 * rtol)
    assert float(sol(0.69)) == pytest.approx(math.exp(0.69), rel=20 * rtol)
    assert float(sol(0.71)) == pytest.approx(math.exp(0.7 - 0.02), rel=20 * rtol)
    assert sol.stats.accepted <= sum(half.stats.accepted for half in halves) + 2
    assert sol.stats.rejected <= 3


@each(EXPLICIT)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", ["forwards", "backwards"])
def test_fixed_steps_across_a_tstop_are_those_of_two_smooth_solves(info, side, way):
    options = {"solver": info.name, "adaptive": False, "dt": 0.25}
    z0, rates, times = torch.ones(1), [1.0, -2.0], [0.0, 0.7, 1.5]
    if way == "backwards":
        rates, times = rates[::-1], times[::-1]
    jumping = solve(jump(side), z0, times, tstops=[0.7], **options).zs
    middle = solve(lambda z: rates[0] * z, z0, times[:2], **options).zs[-1]
    end = solve(lambda z: rates[1] * z, middle, times[1:], **options).zs[-1]
    torch.testing.assert_close(jumping[1:], torch.stack([middle, end]), rtol=1e-13, atol=0)


def test_a_jump_in_float32():
    """The neighbours of the jump are those of the state's precision."""
    for side in ("left", "right"):
        one = torch.ones(1, dtype=torch.float32)
        sol = solve(jump(side), one, [0.0, 1.5], tstops=[0.7], rtol=1e-5, atol=1e-7)
        assert float(sol.zs[-1]) == pytest.approx(JUMPED, rel=2e-5)
        assert sol.stats.rejected <= 3


@pytest.mark.parametrize(
    "options",
    [
        {"sensitivity": "discrete"},
        {"sensitivity": "discrete", "checkpoints": 2},
        {"sensitivity": "interpolating"},
        {"sensitivity": "interpolating", "checkpoints": 2},
        {"sensitivity": "gauss"},
        {"sensitivity": "quadrature"},
        {"sensitivity": "backsolve"},
    ],
    ids=str,
)
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
def test_gradients_across_a_jump(options, fixed):
    """z(1.5) = z0 exp(0.7 a + 0.8 b)."""
    a, b, z0 = (torch.tensor(x, requires_grad=True) for x in (1.0, -2.0, 1.0))

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t < 0.7, a, b) * z

    steps = {"adaptive": False, "dt": 0.1} if fixed else {"rtol": 1e-9, "atol": 1e-11}
    sol = solve(field, z0, [0.0, 1.5], tstops=[0.7], **steps, **options)
    grads = torch.autograd.grad(sol.zs[-1], [z0, a, b])
    want = JUMPED * torch.tensor([1.0, 0.7, 0.8])
    torch.testing.assert_close(torch.stack(grads), want, rtol=1e-6 if fixed else 1e-8, atol=0)


def test_tstops_outside_doubled_and_in_any_order():
    stops = [5.0, -1.0, 0.6, 0.2, 0.6, 0.0, 1.0]
    for times in ([0.0, 1.0], [1.0, 0.0]):
        ends = step_ends(solve(oscillator, start(), times, tstops=stops))
        assert {0.2, 0.6} <= set(ends)
        assert sorted(ends) == sorted(set(ends)) and {ends[0], ends[-1]} == {0.0, 1.0}
    as_tensor = solve(oscillator, start(), [0.0, 1.0], tstops=torch.tensor([0.2, 0.6]))
    assert {0.2, 0.6} <= set(step_ends(as_tensor))


def test_a_step_cut_short_by_a_tstop_does_not_shorten_the_next():
    quiet = {"rtol": 1e-6, "atol": 1e-8, "solver": "tsit5"}
    without = solve(oscillator, start(), [0.0, 20.0], **quiet)
    stops = [8.0, 8.0 + 1e-9]
    with_stops = solve(oscillator, start(), [0.0, 20.0], tstops=stops, **quiet)
    assert with_stops.stats.accepted <= without.stats.accepted + 3
    assert with_stops.stats.rejected <= without.stats.rejected + 1


# --- fixed steps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start_time, end, dt, steps",
    [
        (0.0, 1.0, 0.1, 10),
        (0.0, 0.3, 0.1, 3),
        (0.0, 1.0, 0.3, 4),
        (0.0, 1.0, 7.0, 1),
        (5.0, -3.0, 0.01, 800),
        (0.0, 1000.0, 0.1, 10_000),
        (1000.0, 1010.0, 1e-3, 10_000),
        (1e7 + 0.7, 1e7 + 0.8, 1e-3, 100),
    ],
)
def test_number_of_fixed_steps(start_time, end, dt, steps):
    """Rounding adds neither a step nor a sliver, however many there are."""
    sol = solve(lambda z: 0 * z, torch.ones(1), [start_time, end], solver="euler", dt=dt)
    ends = np.array(step_ends(sol))
    assert sol.stats.accepted == steps
    assert ends[-1] == end
    sizes = abs(np.diff(ends))
    spacing = 4 * np.spacing(max(abs(start_time), abs(end)))
    np.testing.assert_allclose(sizes[:-1], dt, rtol=1e-12, atol=spacing)
    last = abs(end - start_time) - (steps - 1) * dt
    np.testing.assert_allclose(sizes[-1], last, rtol=1e-9, atol=2 * spacing)


def test_fixed_steps_start_anew_at_a_tstop():
    sol = solve(oscillator, start(), [0.0, 1.0], solver="rk4", dt=0.4, tstops=[0.5])
    np.testing.assert_allclose(step_ends(sol), [0.0, 0.4, 0.5, 0.9, 1.0], rtol=1e-14)


def test_euler_by_hand():
    sol = solve(lambda t, z: t * z, torch.tensor([2.0]), [0.0, 0.5, 1.0], solver="euler", dt=0.5)
    torch.testing.assert_close(sol.zs[:, 0], torch.tensor([2.0, 2.0, 2.5]))


# --- step-size control -------------------------------------------------------------------------


@each(ADAPTIVE)
@pytest.mark.parametrize("controller", ["i", "pi", "pid"])
def test_controllers_keep_the_error_near_the_tolerance(info, controller):
    exact = solve(oscillator, start(), [0.0, 10.0], solver="dop853", rtol=1e-13, atol=1e-13).zs[-1]
    errors, tolerances = [], [1e-3, 1e-5] if info.order < 4 else [1e-4, 1e-6, 1e-8]
    for tol in tolerances:
        options = {"rtol": tol, "atol": tol, "controller": controller, "solver": info.name}
        sol = solve(oscillator, start(), [0.0, 10.0], **options)
        errors.append(float((sol.zs[-1] - exact).abs().max()))
        assert errors[-1] < 50 * tol
        assert sol.stats.rejected <= 0.25 * sol.stats.accepted + 3
    assert errors[-1] < errors[0] / 20


@pytest.mark.parametrize(
    "kind, betas", [("i", (1, 0, 0)), ("pi", (0.7, -0.4, 0)), ("pid", (0.55, -0.27, 0.05))]
)
def test_controllers_by_their_formula(kind, betas):
    control = StepSize(SolveOptions(controller=kind), error_order=4)
    errors = [1.0, 1.0, 0.3, 0.8, 0.5]
    for n in range(2, 5):
        wanted = 0.9 * 2.0
        for beta, error in zip(betas, errors[n::-1], strict=False):
            wanted *= error ** (-beta / 5)
        assert control.accepted(2.0, errors[n]) == pytest.approx(wanted, rel=1e-12)
    assert control.rejected(2.0, 7.0) == pytest.approx(2.0 * 0.9 * 7.0**-0.2, rel=1e-12)
    assert control.rejected(2.0, 1e9) == pytest.approx(2.0 * 0.2)
    assert control.rejected(2.0, math.nan) == pytest.approx(2.0 * 0.1)
    assert control.accepted(2.0, 0.0) == 2.0, "no growth right after a rejection"
    assert StepSize(SolveOptions(controller=kind), 4).accepted(2.0, 1e-12) == 20.0, (
        "growth is limited"
    )
    assert StepSize(SolveOptions(controller=kind, dt_max=3.0), 4).accepted(2.0, 1e-9) == 3.0


def test_dop853_estimates_the_error_as_scipy_does():
    def field(t: float, z: Tensor) -> Tensor:
        return oscillator(torch.tensor(t), torch.as_tensor(z))

    theirs = scipy.integrate.DOP853(field, 0.0, start().numpy(), 9.0, first_step=0.5, rtol=1e-3)
    theirs.step()
    h = theirs.h_previous
    tableau, z0 = TABLEAUS["dop853"], start()
    stepper = ExplicitStepper(tableau, field, z0, False, Jumps((), z0.dtype))
    piece = stepper.attempt(0.0, h, z0)
    norm = ErrorNorm(1e-3, 1e-6, rms, False)
    scale = norm.scale(piece.z, piece.z1).numpy()
    wanted = theirs._estimate_error_norm(theirs.K, h, scale)
    assert norm.of_step(piece, stepper.coefficients) == pytest.approx(wanted, rel=1e-6)


def test_controllers_differ():
    counts = set()
    for controller in ("i", "pi", "pid"):
        sol = solve(oscillator, start(), [0.0, 20.0], controller=controller, rtol=1e-8, atol=1e-8)
        counts.add((sol.stats.nfe, float(sol.zs[-1, 0])))
    assert len(counts) == 3


def test_dt_is_the_first_step_and_dt_max_the_largest():
    sol = solve(oscillator, start(), [0.0, 5.0], dt=1e-3, dt_max=0.05, rtol=1e-4)
    sizes = np.diff(step_ends(sol))
    assert sizes[0] == pytest.approx(1e-3)
    assert sizes.max() <= 0.05 * (1 + 1e-9)
    assert sol.stats.accepted >= 100


def test_dt_max_holds_for_the_first_and_the_last_step_too():
    long = solve(lambda z: 0 * z, start(), [0.0, 1.0], dt=1.0, dt_max=0.1)
    assert np.diff(step_ends(long)).max() <= 0.1 * (1 + 1e-9)
    stretched = solve(lambda z: 0 * z, start(), [0.0, 0.1005], dt_max=0.1, dt=0.1)
    assert np.diff(step_ends(stretched)).max() <= 0.1 * (1 + 1e-9)


def test_no_sliver_is_left_at_the_end():
    """A step that would leave less than a hundredth of itself is stretched to the end."""
    sol = solve(lambda z: 0 * z, start(), [0.0, 1.005], dt=1.0)
    assert sol.stats.accepted == 1


@each(ADAPTIVE)
def test_long_quiet_intervals_are_crossed(info):
    """From 0 to 1e15: the first steps are far below the spacing of numbers at the end."""
    sol = solve(
        lambda t, z: torch.ones_like(z) / (1 + t) ** 2,
        torch.zeros(1),
        [0.0, 1e15],
        solver=info.name,
        rtol=1e-5,
        atol=1e-7,
    )
    assert float(sol.zs[-1]) == pytest.approx(1.0, rel=1e-3)


@each(ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_happens(info, dtype):
    """A field of zero, from a state of zero: the error estimate is exactly 0."""
    sol = solve(lambda z: 0 * z, torch.zeros(2, dtype=dtype), [0.0, 1.0], solver=info.name)
    assert sol.success and not sol.zs.any()
    assert sol.stats.accepted < 30 and sol.stats.rejected == 0


@each(ADAPTIVE)
def test_an_entry_of_zero_without_atol(info):
    """0/0 is no error."""
    z0 = torch.tensor([1.0, 0.0])
    options = {"solver": info.name, "rtol": 1e-5}
    sol = solve(lambda z: -z, z0, [0.0, 1.0], atol=0.0, **options)
    torch.testing.assert_close(sol.zs[-1], torch.tensor([math.exp(-1), 0]), rtol=1e-4, atol=0)
    sol = solve(lambda z: -z, z0, [0.0, 1.0], atol=torch.tensor([1e-8, 0.0]), **options)
    torch.testing.assert_close(sol.zs[-1], torch.tensor([math.exp(-1), 0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [1e12, 1e30, 1e150, 1e200])
def test_huge_fields(size):
    """Norms that overflow are not taken for a field that does."""
    dtype = torch.float32 if size < 1e38 else torch.float64
    z0 = torch.ones(2, dtype=dtype)
    sol = solve(lambda z: torch.full_like(z, size), z0, [0.0, 1.0], rtol=1e-4)
    torch.testing.assert_close(sol.zs[-1], torch.full_like(z0, size), rtol=1e-4, atol=0)


# --- norms and tolerances ----------------------------------------------------------------------


def many_quiet_and_one(t: Tensor, z: Tensor) -> Tensor:
    """99 entries at rest and one that oscillates."""
    dz = torch.zeros_like(z)
    dz[0], dz[1] = z[1], -z[0]
    return dz


def test_max_norm_is_stricter_than_rms():
    z0 = torch.zeros(100)
    z0[0] = 1.0
    steps = {
        norm: solve(many_quiet_and_one, z0, [0.0, 10.0], norm=norm, rtol=1e-6).stats.accepted
        for norm in ("rms", "max")
    }
    assert steps["max"] > 1.2 * steps["rms"]


def test_custom_norm_sees_the_users_structure():
    """A norm that leaves the second tensor out takes the steps of the first alone."""
    shapes = set()

    def field(t: Tensor, z: dict) -> dict:
        return {"slow": oscillator(t, z["slow"]), "fast": torch.cos(50 * t) + 0 * z["fast"]}

    def norm(z: dict) -> Tensor:
        shapes.add((tuple(z["slow"].shape), tuple(z["fast"].shape)))
        return z["slow"].square().mean().sqrt()

    z0 = {"slow": start(), "fast": torch.zeros(3, 1)}
    sol = solve(field, z0, [0.0, 8.0], norm=norm)
    alone = solve(oscillator, start(), [0.0, 8.0])
    assert shapes == {((2,), (3, 1))}
    np.testing.assert_allclose(step_ends(sol), step_ends(alone), rtol=1e-5)  # float32
    assert solve(field, z0, [0.0, 8.0]).stats.accepted > 3 * sol.stats.accepted


def test_custom_norm_gets_the_error_in_units_of_the_tolerance():
    """Any function of it, homogeneous or not: squares of errors up to 1 are up to 1."""
    plain = solve(oscillator, start(), [0.0, 8.0], norm="max", dt=0.1, controller="i")
    squared = solve(
        oscillator, start(), [0.0, 8.0], norm=lambda x: x.abs().max() ** 2, dt=0.1, controller="i"
    )
    numbers = solve(
        oscillator, start(), [0.0, 8.0], norm=lambda x: float(x.abs().max()), dt=0.1, controller="i"
    )
    assert step_ends(numbers) == step_ends(plain)
    assert 0.5 < squared.stats.accepted / plain.stats.accepted < 1.5


def test_tensor_atol_weighs_entries():
    z0 = torch.tensor([[1.0, 1e-3], [0.5, 2e-3]])

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-0.1 * z[:, 0], 1e-3 * torch.cos(40 * t) + 0 * z[:, 1]], dim=1)

    tight = solve(field, z0, [0.0, 5.0], rtol=0.0, atol=1e-7)
    weighed = solve(field, z0, [0.0, 5.0], rtol=0.0, atol=torch.tensor([1e-7, 1.0]), norm="max")
    assert tight.stats.accepted > 5 * weighed.stats.accepted
    exact = z0[:, 0] * math.exp(-0.5)
    torch.testing.assert_close(weighed.zs[-1, :, 0], exact, rtol=0, atol=1e-5)


def test_tensor_tolerances_of_a_complex_state():
    z0 = torch.tensor([1.0 + 0j, 0.5j])
    tensor = solve(lambda z: 1j * z, z0, [0.0, 3.0], atol=torch.full((2,), 1e-8))
    number = solve(lambda z: 1j * z, z0, [0.0, 3.0], atol=1e-8)
    torch.testing.assert_close(tensor.zs, number.zs, rtol=0, atol=1e-12)


# --- forms of fields and times -----------------------------------------------------------------


def test_forms_of_fields():
    z0, t = start(), [0.0, 0.5, 1.0]
    rate = torch.tensor(0.7)
    want = solve(lambda t, z: -rate * z, z0, t).zs

    class Callable_:
        def __call__(self, t: Tensor, z: Tensor, args: Tensor = rate) -> Tensor:
            return -args * z

    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = -rate * torch.eye(2)
    forms = {
        "f(z)": solve(lambda z: -rate * z, z0, t),
        "f(t, z, args)": solve(lambda t, z, args: -args["rate"] * z, z0, t, {"rate": rate}),
        "variadic": solve(lambda *xs: -rate * xs[1], z0, t),
        "object": solve(Callable_(), z0, t),
        "object with args": solve(Callable_(), z0, t, args=rate),
        "module": solve(linear, z0, t),
        "sequential": solve(nn.Sequential(linear), z0, t),
    }
    for name, sol in forms.items():
        torch.testing.assert_close(sol.zs, want, rtol=1e-12, atol=1e-12, msg=name)


def test_time_reaches_the_field_as_a_0d_tensor_of_the_states_real_dtype():
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        seen = set()

        def field(t: Tensor, z: Tensor, seen: set = seen) -> Tensor:
            seen.add((t.shape, t.dtype))
            return -z

        solve(field, torch.ones(2, dtype=dtype), [0.0, 1.0])
        assert seen == {(torch.Size([]), dtype.to_real() if dtype.is_complex else dtype)}


@pytest.mark.parametrize(
    "times",
    [
        [0, 1, 2],
        (0.0, 1.0, 2.0),
        range(3),
        np.arange(3),
        np.linspace(0, 2, 3),
        np.linspace(0, 2, 3, dtype=np.float32),
        torch.arange(3),
        torch.linspace(0, 2, 3, dtype=torch.float32),
        torch.linspace(0, 2, 3, dtype=torch.float64),
        [torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)],
        [0, torch.tensor(1.0), 2.0],
    ],
    ids=lambda t: f"{type(t).__name__}-{getattr(t, 'dtype', '')}",
)
def test_kinds_of_times(times):
    want = solve(oscillator, start(), torch.tensor([0.0, 1.0, 2.0])).zs
    sol = solve(oscillator, start(), times)
    torch.testing.assert_close(sol.zs, want, rtol=0, atol=0)
    assert sol.ts.tolist() == [0.0, 1.0, 2.0]


def test_times_in_a_list_keep_their_gradients():
    t0, t1 = (torch.tensor(x, requires_grad=True) for x in (0.0, 1.0))
    for times in ([t0, t1], [t0, 0.5, t1]):
        zs = solve(lambda t, z: z, torch.ones(()), times).zs
        grads = torch.stack(torch.autograd.grad(zs[-1], [t0, t1]))
        torch.testing.assert_close(grads, math.e * torch.tensor([-1.0, 1.0]), rtol=1e-5, atol=0)


def test_decreasing_times():
    t = [2.0, 1.5, 0.2, -1.0]
    sol = solve(lambda t, z: t * z, torch.ones(()), t, rtol=1e-9, atol=1e-12)
    want = torch.tensor([math.exp((s * s - 4) / 2) for s in t])
    torch.testing.assert_close(sol.zs, want, rtol=1e-7, atol=1e-10)
    assert (np.diff(step_ends(sol)) < 0).all()


@pytest.mark.parametrize("t0", [-1.0, 0, torch.tensor(-1.0), 3.0, np.float64(2.5)])
def test_a_start_away_from_the_times(t0):
    sol = solve(lambda t, z: t * z, torch.ones(()), [0.0, 1.0, 2.0][:: -1 if t0 > 1 else 1], t0=t0)
    want = torch.exp((sol.ts**2 - float(t0) ** 2) / 2)
    torch.testing.assert_close(sol.zs, want, rtol=1e-5, atol=1e-6)


def test_a_start_in_double_before_times_in_single_precision():
    """As float32 0.7 is a little less than 0.7, but it is meant to be the same."""
    t = torch.tensor([0.7, 1.0], dtype=torch.float32)
    sol = solve(oscillator, start(), t, t0=0.7)
    torch.testing.assert_close(sol.zs[0], start(), rtol=0, atol=0)


def test_a_single_time_with_a_start():
    sol = solve(lambda z: -z, torch.ones(()), [1.0], t0=0.0)
    torch.testing.assert_close(sol.zs, torch.tensor([math.exp(-1)]), rtol=1e-5, atol=0)


# --- solutions ---------------------------------------------------------------------------------


def test_repr_of_a_solution():
    sol = solve(oscillator, start(), [0.0, 1.0, 2.0], solver="rk4", dt=0.5)
    assert repr(sol) == "Solution(success, zs (3, 2); nfe 16; 4 steps accepted, 0 rejected)"
    assert repr(solve(lambda z: {"a": -z["a"]}, {"a": start()}, [0, 1])).startswith("Solution(succ")


def test_dense_output_has_the_shape_of_s():
    sol = solve(oscillator, torch.randn(3, 2), [0.0, 2.0])
    assert sol(0.5).shape == (3, 2)
    assert sol(torch.rand(4, 5)).shape == (4, 5, 3, 2)
    assert sol([0.1, 0.2]).shape == (2, 3, 2)
    torch.testing.assert_close(sol(torch.tensor([2.0, 0.5]))[1], sol(0.5), rtol=0, atol=0)
