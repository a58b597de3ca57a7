"""ESDIRK methods, BDF and the switching solver: what Newton's iterations and histories add."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, solve
from pynode.engines.torch.bdf import BdfMethod, BdfStepper, leading
from pynode.engines.torch.controller import ErrorNorm, rms
from pynode.engines.torch.derivatives import StiffField
from pynode.engines.torch.esdirk_methods import ESDIRKS
from pynode.engines.torch.newton import Newton, Verdict
from pynode.engines.torch.runge_kutta import Jumps
from pynode.errors import GradientError, InputError, SolveError
from pynode.field import FlatField
from pynode.solution import Statistics
from pynode.state import StateLayout

pytestmark = pytest.mark.usefixtures("float64")

ADAPTIVE = ["trbdf2", "kvaerno3", "kencarp4", "kvaerno5", "fbdf", "auto"]
NEWTON = [name for name in ADAPTIVE if name != "auto"]
DISCRETE = ["trapezoid", "trbdf2", "kencarp4", "kvaerno5"]


def robertson(t: Tensor, y: Tensor, k=(0.04, 3e7, 1e4)) -> Tensor:
    a, b, c = y.unbind(dim=-1)
    r1, r2, r3 = k[0] * a, k[1] * b * b, k[2] * b * c
    return torch.stack([-r1 + r3, r1 - r2 - r3, r2], dim=-1)


def tracking(t: Tensor, y: Tensor, rate=1e3) -> Tensor:
    """Fast relaxation to cos t."""
    return -rate * (y - torch.cos(t))


def follows(t: float, rate: float = 1e3) -> float:
    """The solution of tracking, long after its start."""
    return (rate**2 * math.cos(t) + rate * math.sin(t)) / (rate**2 + 1)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_robertson_to_its_end(solver):
    """t = 1e11, where a = 2.0833e-8 (Hairer & Wanner, Solving ODEs II, section IV.10)."""
    rtol, wanted = (1e-4, 1e-2) if solver in ("trbdf2", "kvaerno3") else (1e-6, 1e-4)
    y0 = torch.tensor([1.0, 0.0, 0.0])
    sol = solve(robertson, y0, [0.0, 1e11], solver=solver, rtol=rtol, atol=rtol * 1e-8)
    exact = torch.tensor([0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050])
    assert ((sol.zs[-1] - exact) / exact).abs().max() < wanted
    assert sol.zs[-1].sum() == pytest.approx(1.0, abs=1e-9)
    assert sol.stats.accepted < 1000


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_error_follows_the_tolerance(solver):
    """Between steps too, on a problem whose stiffness hides what is not in the tolerance."""
    t = torch.linspace(0.5, 3.0, 26)
    exact = torch.tensor([follows(float(s)) for s in t]).unsqueeze(1)
    errors = []
    for rtol in (1e-4, 1e-7):
        sol = solve(tracking, torch.ones(1), t, t0=0.0, solver=solver, rtol=rtol, atol=rtol)
        errors.append(float((sol.zs - exact).abs().max()) / rtol)
    # What is stiff is left out of the filtered estimate of trbdf2, so it steps over cos t.
    assert max(errors) < (100 if solver == "trbdf2" else 30)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_backwards_in_time_and_onto_stops(solver):
    """The field jumps at 0.5, where a step ends and a multistep method forgets the past."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t > 0.5, 40.0 * z, torch.cos(t) * torch.ones_like(z))

    sol = solve(
        field, torch.ones(2, 1), [1.0, 0.0], solver=solver, rtol=1e-5, atol=1e-7, tstops=[0.5]
    )
    exact = math.exp(-20.0) - math.sin(0.5)
    torch.testing.assert_close(sol.zs[-1], torch.full((2, 1), exact), rtol=1e-4, atol=1e-5)
    assert 0.5 in sol.dense.trajectory.log.times


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_float32(solver):
    y0 = torch.ones(3, 2, dtype=torch.float32)
    sol = solve(tracking, y0, [0.0, 10.0], solver=solver, rtol=1e-4, atol=1e-5)
    assert sol.zs.dtype == torch.float32
    assert sol.zs[-1].sub(follows(10.0)).abs().max() < 1e-3
    assert sol.stats.rejected <= 0.1 * sol.stats.accepted


@pytest.mark.parametrize("solver", NEWTON)
def test_a_batch_costs_what_its_hardest_member_costs(solver):
    """512 systems; the matrices are one (3, 3) for each, and steps those of the stiffest."""
    shapes = []
    factor = torch.linalg.lu_factor_ex
    rates = torch.logspace(0, 5, 512)
    options = {"solver": solver, "rtol": 1e-4, "atol": 1e-6}

    def field(t, y, rate):
        return torch.stack([-rate * (y[:, 0] - torch.cos(t)), y[:, 0] - y[:, 1], -y[:, 2]], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "lu_factor_ex", lambda a: shapes.append(a.shape) or factor(a))
        every = solve(field, torch.ones(512, 3), [0.0, 5.0], rates, **options)
    assert set(shapes) == {(512, 3, 3)} and len(shapes) == every.stats.factorisations
    alone = [
        solve(field, torch.ones(1, 3), [0.0, 5.0], rates[i : i + 1], **options).stats
        for i in range(0, 512, 73)
    ]
    assert every.stats.accepted <= 1.2 * max(s.accepted for s in alone) + 5
    assert every.stats.nfe <= 1.5 * max(s.nfe for s in alone) + 20


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_given_jacobian_is_used(solver):
    calls = []

    def jac(t, y, rate):
        calls.append(t)
        return -rate.reshape(-1, 1, 1)

    rate = torch.tensor([1.0, 1e4])
    options = {"solver": solver, "rtol": 1e-6, "atol": 1e-8}
    sol = solve(
        lambda t, y, r: -r.unsqueeze(1) * y, torch.ones(2, 1), [0.0, 1.0], rate, jac=jac, **options
    )
    assert len(calls) == sol.stats.jacobians > 0
    torch.testing.assert_close(sol.zs[-1, 0], torch.exp(-rate[:1]), rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="shape"):
        solve(tracking, torch.ones(2), [0.0, 1.0], rtol=1e-4, solver=solver, jac=lambda t, y: y[:1])


@pytest.mark.parametrize("solver", NEWTON)
def test_a_wrong_jacobian_costs_rejected_steps_not_accuracy(solver):
    options = {"solver": solver, "rtol": 1e-4, "atol": 1e-6}

    def field(t: Tensor, y: Tensor) -> Tensor:
        return tracking(t, y, 30.0)

    right = solve(field, torch.ones(1), [0.0, 1.0], **options)
    wrong = solve(field, torch.ones(1), [0.0, 1.0], jac=lambda t, y: 30 * torch.eye(1), **options)
    assert right.stats.newton_failures == 0
    assert 0 < wrong.stats.newton_failures <= wrong.stats.rejected
    torch.testing.assert_close(wrong.zs[-1], right.zs[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ESDIRKS)
def test_fixed_steps_that_do_not_converge_say_so(name):
    with pytest.raises(SolveError, match="Newton's iteration does not converge") as caught:
        solve(
            tracking,
            torch.ones(3, 1),
            [0.0, 4.0],
            jac=lambda t, y: 1e3 * torch.eye(1),
            solver=name,
            adaptive=False,
            dt=1.0,
        )
    assert caught.value.retcode == "not_converged"


@pytest.mark.parametrize("solver, gamma", [("kvaerno5", 0.26), ("kencarp4", 0.25), ("fbdf", 1.0)])
def test_a_singular_matrix_rejects_the_step(solver, gamma):
    """I − hγJ is exactly 0 in the first attempt."""
    rate = 1 / (gamma * 0.5)
    sol = solve(lambda t, y: rate * y, torch.ones(2, 2), [0.0, 1.0], solver=solver, dt=0.5)
    assert sol.stats.newton_failures > 0 and sol.stats.rejected > 0
    torch.testing.assert_close(sol.zs[-1], torch.full((2, 2), math.exp(rate)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_nan_is_found_and_named(solver):
    def field(t: Tensor, y: Tensor) -> Tensor:
        spoilt = torch.zeros_like(y)
        spoilt[1, 0] = math.nan
        return torch.where(t > 0.5, spoilt, -y)

    sol = solve(field, torch.ones(3, 2), [0.0, 1.0], solver=solver, throw=False)
    assert sol.retcode == "non_finite" and "sample 1" in sol.message
    assert "t=0.5" in sol.message


def test_samples_that_have_converged_are_left_alone():
    """One sample is linear, the other needs more iterations: the first has its first iterate."""
    field = FlatField(
        lambda z: torch.stack([-z[0], -2.0 * z[1] ** 3]),
        StateLayout(torch.ones(2, 1)),
        None,
        Statistics(),
    )
    system = StiffField(field)
    newton = Newton(system, ErrorNorm(1e-6, 1e-8, rms, False), 40, False)
    z = torch.ones(2)
    newton.prepare(0.0, z, system(0.0, z), 0.2)
    before = system.stats.nfe
    w, verdict = newton.solve(0.2, z, 0.2, torch.zeros(2))
    assert verdict is Verdict.CONVERGED
    assert system.stats.nfe - before == newton.iterations > 3
    assert float(w[0]) == pytest.approx(-0.2 / 1.2, abs=1e-15)
    residual = w[1] + 0.2 * 2.0 * (1 + w[1]) ** 3
    assert abs(float(residual)) < 1e-6


@pytest.mark.parametrize("order", range(1, 6))
def test_bdf_formulas_have_their_orders_on_uneven_steps(order):
    """One step of order k from exact values errs by O(h^(k+1)); its estimate is of that size."""
    ratios = [1.0, 0.7, 1.3, 0.9, 1.6, 1.1]

    def step(h: float) -> tuple[float, float]:
        layout = StateLayout(torch.ones(1))
        field = FlatField(lambda t, z: -2 * t * z * z, layout, None, Statistics())
        norm = ErrorNorm(1e-11, 1e-12, rms, False)
        stepper = BdfStepper(
            BdfMethod(), StiffField(field), False, Jumps((), torch.float64), norm, False
        )
        times = 0.4 - h * np.cumsum([0.0, *ratios])[: order + 1]
        exact = [torch.tensor([1 / (1 + s * s)]) for s in times]
        stepper.begin(0.4, 1.0, exact[0])
        stepper.newton.most = 20
        stepper.times, stepper.values, stepper.order = list(times), exact, order
        piece = stepper.attempt(0.4, 0.4 + h, exact[0])
        assert piece.failure is None and piece.error is not None
        return float(piece.z1 - 1 / (1 + (0.4 + h) ** 2)), float(piece.error)

    sizes = np.geomspace(0.04, 0.012, 5)
    errors, estimates = np.abs([step(h) for h in sizes]).T
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(order + 1, abs=0.4)
    assert 0.7 < estimates[-1] / errors[-1] < 8 * leading(order)


def test_bdf_uses_high_orders_and_few_evaluations():
    orders = []
    advance = BdfStepper.advance

    def record(self) -> None:
        orders.append(self.order)
        advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BdfStepper, "advance", record)
        sol = solve(
            robertson, torch.tensor([1.0, 0, 0]), [0.0, 1e5], solver="fbdf", rtol=1e-6, atol=1e-10
        )
    assert orders[0] == 1 and max(orders) == 5
    assert sol.stats.nfe < 3 * sol.stats.accepted


class TestAuto:
    def test_it_switches_to_the_stiff_method_and_back(self):
        """Stiff until t = 2, then a plain oscillation."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            x, v = y.unbind(-1)
            rate = torch.where(t < 2.0, 2e4, 1.0)
            return torch.stack([-rate * (x - torch.cos(t)), -v], dim=-1)

        sol = solve(field, torch.ones(2), [0.0, 20.0], solver="auto", tstops=[2.0])
        assert sol.stats.switches == 2 and 0 < sol.stats.jacobians < sol.stats.accepted
        exact = 0.5 * (math.cos(20.0) + math.sin(20.0))
        assert float(sol.zs[-1, 0]) == pytest.approx(exact, abs=1e-5)

    def test_a_problem_that_is_not_stiff_never_switches(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for rtol in (1e-3, 1e-6):
            options = {"rtol": rtol, "atol": rtol}
            auto = solve(net, torch.randn(16, 2), [0.0, 10.0], solver="auto", **options)
            assert auto.stats.switches == 0 and auto.stats.jacobians == 0

    def test_one_stiff_sample_is_enough(self):
        rates = torch.ones(64, 1)
        rates[17] = 1e5
        sol = solve(
            lambda t, y, r: tracking(t, y, r), torch.ones(64, 1), [0.0, 5.0], rates, solver="auto"
        )
        assert sol.stats.switches == 1 and sol.stats.accepted < 300
        assert float(sol.zs[-1, 17]) == pytest.approx(follows(5.0, 1e5), abs=1e-6)


def loss_of(options: dict, y0: Tensor, k: Tensor) -> Tensor:
    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        u, v = y.unbind(-1)
        return torch.stack([-50 * (u - torch.cos(k * t)), -k * u * torch.sin(v)], dim=-1)

    zs = NeuralODE(field, **options)(y0, torch.tensor([0.0, 0.35, 1.0]), k)
    return zs[1:].sin().sum()


@pytest.mark.parametrize("solver", DISCRETE)
def test_discrete_is_the_derivative_of_fixed_steps(solver):
    """Against differences of what was computed: the implicit function theorem, not the ODE."""
    options = {"solver": solver, "sensitivity": "discrete", "adaptive": False, "dt": 0.125}
    y0, k = Y0.clone().requires_grad_(), K.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y, k: loss_of(options, y, k), (y0, k), atol=1e-7)


@pytest.mark.parametrize("solver", DISCRETE)
def test_checkpoints_change_nothing(solver):
    options = {"solver": solver, "sensitivity": "discrete", "adaptive": False, "dt": 0.05}
    y0, k = Y0.clone().requires_grad_(), K.clone().requires_grad_()
    whole = torch.autograd.grad(loss_of(options, y0, k), [y0, k])
    again = torch.autograd.grad(loss_of({**options, "checkpoints": 3}, y0, k), [y0, k])
    for got, want in zip(again, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


Y0 = torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=torch.float64)
K = torch.tensor(1.3, dtype=torch.float64)
QUICK = {"gauss": {"kvaerno5", "fbdf", "auto"}, "quadrature": {"kencarp4"}}
CASES = [
    pytest.param(
        solver,
        sensitivity,
        marks=[] if solver in QUICK.get(sensitivity, ADAPTIVE) else pytest.mark.slow,
    )
    for sensitivity in ("discrete", "gauss", "quadrature", "checkpoints")
    for solver in ADAPTIVE
]


@pytest.fixture(scope="module")
def exact() -> list[Tensor]:
    """The gradients of loss_of by the discrete gradient of Rodas5P at 1e-11."""
    tight = {"solver": "rodas5p", "sensitivity": "discrete", "rtol": 1e-11, "atol": 1e-13}
    inputs = [Y0.clone().requires_grad_(), K.clone().requires_grad_()]
    return list(torch.autograd.grad(loss_of(tight, *inputs), inputs))


@pytest.mark.parametrize("solver, sensitivity", CASES)
def test_gradients(solver, sensitivity, exact):
    rtol, wanted = (1e-5, 1e-3) if solver in ("trbdf2", "kvaerno3") else (1e-6, 1e-4)
    options = {"solver": solver, "rtol": rtol, "atol": rtol * 1e-2}
    if sensitivity == "checkpoints":
        if solver in ("fbdf", "auto"):
            with pytest.raises(InputError, match="one-step"):
                NeuralODE(nn.Linear(2, 2), solver=solver, checkpoints=3)
            return
        options |= {"sensitivity": "discrete", "checkpoints": 3, "rtol": 10 * rtol}
        wanted *= 10
    else:
        options["sensitivity"] = sensitivity
    y0, k = Y0.clone().requires_grad_(), K.clone().requires_grad_()
    grads = torch.autograd.grad(loss_of(options, y0, k), [y0, k])
    for got, want in zip(grads, exact, strict=True):
        assert (got - want).norm() / want.norm() < wanted


@pytest.mark.parametrize("solver", ["kvaerno5", "fbdf"])
def test_transforms(solver):
    """torch.func sees through Newton's iterations: reverse, forward, and a batch by vmap."""
    options = {"solver": solver, "sensitivity": "discrete", "rtol": 1e-6, "atol": 1e-8}
    k = torch.tensor(1.3)
    ys = torch.tensor([[1.0, 0.5], [0.3, -1.0]])

    def loss(y: Tensor, k: Tensor) -> Tensor:
        return loss_of(options, y, k)

    leaf = ys[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf, k), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(ys[0], k), want)
    torch.testing.assert_close(torch.func.jacfwd(loss)(ys[0], k), want)
    together = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(ys, k)
    torch.testing.assert_close(together[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", NEWTON)
def test_second_derivatives_are_refused_not_wrong(solver):
    options = {"solver": solver, "sensitivity": "discrete", "rtol": 1e-3, "atol": 1e-4}
    y0 = torch.tensor([1.0, 0.5], requires_grad=True)
    k = torch.tensor(1.3)
    (first,) = torch.autograd.grad(loss_of(options, y0, k), y0, create_graph=True)
    with pytest.raises(GradientError, match="second derivatives"):
        first.sum().backward()
    with pytest.raises(GradientError, match="second derivatives"):
        torch.func.hessian(lambda y: loss_of(options, y, k))(y0.detach())


@pytest.mark.parametrize("solver", ["fbdf", "auto"])
def test_what_these_solvers_refuse(solver):
    field = nn.Linear(2, 2)
    with pytest.raises(InputError, match="cannot be fixed"):
        NeuralODE(field, solver=solver, adaptive=False, dt=0.1)
    with pytest.raises(InputError, match="cannot be fixed"):
        NeuralODE(field, solver="rk4", dt=0.1, adjoint_solver=solver)
    with pytest.raises(InputError, match="checkpoints"):
        NeuralODE(field, solver=solver, checkpoints=4)
    with pytest.raises(InputError, match="gauss"):
        NeuralODE(field, solver=solver, sensitivity="backsolve")
    if solver == "fbdf":
        with pytest.raises(InputError, match="controller"):
            NeuralODE(field, solver=solver, controller="pid")


@pytest.mark.parametrize("forward, backward", [("kvaerno5", "fbdf"), ("kvaerno5", "tsit5")])
def test_another_solver_for_the_adjoint(forward, backward):
    """Options that only the forward solver knows do not reach the backward one."""
    rate = torch.tensor(3.0, requires_grad=True)
    node = NeuralODE(
        lambda t, y, r: -r * y,
        solver=forward,
        adjoint_solver=backward,
        sensitivity="gauss",
        jac=lambda t, y, r: -r.detach() * torch.eye(1),
        checkpoints=3,
        controller="pid",
    )
    (grad,) = torch.autograd.grad(node(torch.ones(2, 1), [0.0, 1.0], rate)[-1].sum(), rate)
    assert float(grad) == pytest.approx(-2 * math.exp(-3.0), rel=1e-5)
