"""What goes wrong raises pynode's own exception with the cause and a remedy, and ends soon."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, Retcode, solve, solvers
from pynode.errors import FieldError, GradientError, InputError, PynodeError, SolveError

ADAPTIVE = [s.name for s in solvers() if s.adaptive and not s.stiff]
pytestmark = pytest.mark.usefixtures("float64")


class Bounded:
    """A field that may be evaluated only so often: what loops without bound fails here."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor], most: int) -> None:
        self.field, self.left = field, most

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.left -= 1
        assert self.left >= 0, "too many evaluations"
        return self.field(t, z)


def fails(field: Callable, z0: Any, t: Any, *, most: int = 5000, **options: Any) -> SolveError:
    with pytest.raises(SolveError) as caught:
        solve(Bounded(field, most), z0, t, **options)
    return caught.value


# --- the field is not finite -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_not_finite_from_the_start(solver, bad):
    error = fails(lambda t, z: bad * z, torch.ones(2, 3), [0.0, 1.0], solver=solver, most=2)
    assert error.retcode == "non_finite" and error.t == 0.0 and error.sample == 0
    assert "sample 0, state entry 0" in str(error) and "NaN or infinity" in str(error)
    assert "log, sqrt or division" in str(error)


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_sample_turns_bad_later(solver, bad):
    """The message names the sample, the entry, and the time up to eight digits.

    Midpoint, which does not evaluate the field at the end of a step, ends a step behind it.
    """

    def field(t: Tensor, z: Tensor) -> Tensor:
        dz = -z
        if t > 0.625:
            dz[2, 1] = bad
        return dz

    error = fails(field, torch.ones(4, 3), [0.0, 0.5, 2.0], solver=solver, rtol=1e-4)
    assert error.retcode == "non_finite" and error.sample == 2
    assert error.t == pytest.approx(0.625, abs=1e-2 if solver == "midpoint" else 1e-8)
    assert "sample 2, state entry 1" in str(error) and f"t={error.t:.6g}" in str(error)
    zs = error.solution.zs
    torch.testing.assert_close(
        zs[:2],
        torch.exp(-torch.tensor([0, 0.5])).reshape(2, 1, 1).expand(2, 4, 3),
        rtol=1e-3,
        atol=1e-4,
    )
    assert zs[2].isnan().all()


def test_a_sample_of_a_structure_is_named():
    def field(t: Tensor, z: dict) -> dict:
        bad = torch.zeros(3)
        bad[1] = math.nan
        return {"a": -z["a"], "b": bad * z["b"]}

    z0 = {"a": torch.ones(3, 2), "b": torch.ones(3)}
    error = fails(field, z0, [0.0, 1.0])
    assert error.sample == 1 and "sample 1, state entry 2" in str(error)


def test_a_sample_of_a_complex_state_is_named():
    def field(t: Tensor, z: Tensor) -> Tensor:
        return z * torch.tensor([[1.0], [math.nan]])

    assert fails(field, torch.ones(2, 2, dtype=torch.complex128), [0.0, 1.0]).sample == 1


@pytest.mark.parametrize("options", [{}, {"dt": 0.1}, {"solver": "rk4", "dt": 0.1}], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_to_begin_with(options, bad):
    z0 = torch.ones(3, 2)
    z0[1, 1] = bad
    for field in (lambda t, z: -z, lambda t, z: torch.ones_like(z)):
        error = fails(field, z0, [0.0, 1.0], **options)
        assert error.retcode == "non_finite" and error.sample == 1 and error.t == 0.0
        assert "began with" in str(error) and "sample 1, state entry 1" in str(error)


def test_steps_that_leave_the_domain_are_made_smaller():
    """sqrt(z) at a long first step is NaN; with smaller steps there is a solution."""
    field = Bounded(lambda t, z: -torch.sqrt(z), 500)
    sol = solve(field, torch.ones(1), [0.0, 1.5], dt=1.4, solver="dp5")
    assert float(sol.zs[-1]) == pytest.approx(0.0625, rel=1e-4)  # (1 - t/2)²


def test_fixed_steps_that_explode():
    error = fails(lambda t, z: 1e6 * z**3, torch.ones(2, 2), [0.0, 9.0], solver="rk4", dt=1.0)
    assert error.retcode == "non_finite" and error.sample == 0
    assert "dt" in str(error) and "adaptive" in str(error)


# --- the solution runs away --------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [s for s in ADAPTIVE if s not in ("midpoint", "heun", "fehlberg2")]
)
@pytest.mark.parametrize("pole", [1.0, 0.1, 40.0])
def test_blow_up_in_finite_time(solver, pole):
    """z' = z², z = 1/(pole - t)."""
    z0, t = torch.tensor([1 / pole]), [0.0, 0.5 * pole, 2 * pole]
    error = fails(lambda t, z: z * z, z0, t, solver=solver, rtol=1e-4, most=20_000)
    assert error.retcode in ("dt_underflow", "non_finite", "max_steps")
    assert error.t == pytest.approx(pole, rel=1e-3)
    assert float(error.solution.zs[1]) == pytest.approx(2 / pole, rel=1e-2)
    assert error.solution.zs[2].isnan().all()
    assert "blow up" in str(error) or "NaN or infinity" in str(error)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_state_that_overflows(solver):
    """Every stage is finite, only the state is not: that is no step to accept."""
    error = fails(
        lambda t, z: torch.full_like(z, 1e308),
        torch.ones(2, 2),
        [0, 10],
        solver=solver,
        most=20_000,
    )
    assert error.retcode == "non_finite"
    assert error.t == pytest.approx(1.797693, rel=1e-5)
    assert error.sample == 0


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_single_precision_state_that_overflows_in_the_last_step(solver):
    z0 = torch.ones(2, dtype=torch.float32)
    sol = solve(
        Bounded(lambda t, z: torch.full_like(z, 1e38), 200_000),
        z0,
        [0.0, 10.0],
        solver=solver,
        throw=False,
        rtol=1e-3,
        atol=1e-3,
        max_steps=500,
    )
    assert not sol.success and sol.zs[-1].isnan().all()


def test_max_steps():
    error = fails(lambda t, z: torch.cos(50 * t) * z, torch.ones(2), [0, 1, 9.0], max_steps=20)
    assert error.retcode == "max_steps" and error.sample is None and 0 < error.t < 9
    assert "max_steps=20" in str(error) and "raise max_steps" in str(error)
    assert error.solution.stats.accepted + error.solution.stats.rejected == 20


@pytest.mark.parametrize("steps, enough", [(9, False), (10, True)])
def test_max_steps_is_exact(steps, enough):
    options = {"solver": "rk4", "dt": 0.1, "max_steps": steps, "throw": False}
    assert solve(lambda z: -z, torch.ones(1), [0.0, 1.0], **options).success is enough


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_jump_that_no_step_can_resolve_ends(solver):
    """A field that is noise: every step is rejected until the step size is gone."""
    generator = torch.Generator().manual_seed(0)

    def noise(t: Tensor, z: Tensor) -> Tensor:
        return 1e6 * torch.randn(z.shape, generator=generator)

    z0 = torch.ones(3)
    error = fails(noise, z0, [1.0, 2.0], solver=solver, rtol=1e-10, atol=1e-12, max_steps=500)
    assert error.retcode in ("dt_underflow", "max_steps")


def test_step_underflow_at_fixed_steps():
    error = fails(lambda t, z: -z, torch.ones(1), [1e9, 1e9 + 1], solver="rk4", dt=1e-9)
    assert error.retcode == "dt_underflow"


# --- partial solutions -------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating", "backsolve"])
def test_partial_solution(sensitivity):
    z0 = torch.tensor([1.0, 0.5], requires_grad=True)
    t = torch.tensor([0.0, 0.3, 0.6, 1.1, 1.5])
    sol = solve(lambda z: z * z, z0, t, throw=False, sensitivity=sensitivity, rtol=1e-8)
    assert not sol.success and sol.retcode is Retcode.DT_UNDERFLOW
    assert "t=1" in sol.message and repr(sol).startswith("Solution(dt_underflow")
    want = 1 / (1 / z0.detach() - t[:3].unsqueeze(1))
    torch.testing.assert_close(sol.zs[:3].detach(), want, rtol=1e-6, atol=0)
    assert sol.zs[3:].isnan().all() and sol.zs.shape == (5, 2)
    with torch.no_grad():
        torch.testing.assert_close(sol(0.45), 1 / (1 / z0 - 0.45), rtol=1e-6, atol=0)
        with pytest.raises(InputError, match="outside"):
            sol(1.2)


def test_partial_solution_has_no_silent_gradient():
    z0 = torch.ones(2, requires_grad=True)
    sol = solve(lambda z: z * z, z0, [0.0, 0.5, 2.0], throw=False)
    with pytest.raises(GradientError, match="failed"):
        sol.zs[1].sum().backward()


def test_partial_solution_of_structures_and_of_each_samples_times():
    def field(z: tuple) -> tuple:
        return z[0] ** 2, -z[1]

    t = torch.tensor([[0.0, 0.5, 1.5], [0.0, 1.7, math.nan]])
    z0 = (torch.ones(2, 1), torch.ones(2, dtype=torch.complex128))
    sol = solve(field, z0, t, throw=False)
    reached = torch.tensor([[True, True], [True, False], [False, False]])
    torch.testing.assert_close(sol.zs[0].isfinite().squeeze(-1), reached)
    torch.testing.assert_close(sol.zs[1].isfinite(), reached)


def test_nothing_was_solved():
    sol = solve(lambda z: math.nan * z, torch.ones(2), [0.0, 1.0], throw=False)
    torch.testing.assert_close(sol.zs[0], torch.ones(2))
    assert sol.zs[1].isnan().all()
    with pytest.raises(PynodeError):
        sol(0.5)


def test_the_module_raises_as_solve_does():
    node = NeuralODE(lambda z: z * z)
    with pytest.raises(SolveError, match="t=1"):
        node(torch.ones(2), [0.0, 2.0])


# --- the field does not fit --------------------------------------------------------------------


ONE = torch.ones(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "field, words",
    [
        (lambda t, z: z[0], [r"shape \(3,\)", r"shape \(2, 3\)"]),
        (lambda t, z: z.sum(), [r"shape \(\)", r"shape \(2, 3\)"]),
        (lambda t, z: z.unsqueeze(0), [r"shape \(1, 2, 3\)"]),
        (lambda t, z: z.float(), ["float32", "float64", "cast"]),
        (lambda t, z: z.to(torch.complex128), ["complex128", "cast"]),
        (lambda t, z: None, ["NoneType", "tensor is needed"]),
        (lambda t, z: 0.0, ["float", "tensor is needed"]),
        (lambda t, z: z.numpy(), ["ndarray", "tensor is needed"]),
        (lambda t, z: (z, z), ["tuple", "same structure"]),
        (lambda t, z: [z], ["list", "same structure"]),
        (lambda t, z: {"z": z}, ["dict", "same structure"]),
    ],
)
@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating"])
def test_fields_that_return_something_else(field, words, sensitivity):
    with pytest.raises(FieldError) as caught:
        solve(field, ONE, [0.0, 1.0], sensitivity=sensitivity)
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize(
    "field",
    [
        lambda t, z: z[0],
        lambda t, z: (z[0],),
        lambda t, z: (z[0], z[0]),
        lambda t, z: (z[1], z[0]),
        lambda t, z: [z[0], z[1]],
        lambda t, z: (z[0], None),
        lambda t, z: (z[0], z[1].double()),
        lambda t, z: (z[0], z[1], z[1]),
    ],
)
def test_fields_that_return_another_structure(field):
    with pytest.raises(FieldError, match="returned"):
        solve(field, (torch.ones(2).float(), torch.ones(3).float()), [0.0, 1.0])


def test_dict_states_are_matched_by_key():
    z0 = {"a": torch.ones(2), "b": torch.zeros(2)}
    sol = solve(lambda z: {"b": torch.ones(2), "a": 0 * z["a"]}, z0, [0.0, 1.0])
    torch.testing.assert_close(sol.zs["a"][-1], torch.ones(2))
    torch.testing.assert_close(sol.zs["b"][-1], torch.ones(2))
    with pytest.raises(FieldError, match="same structure"):
        solve(lambda z: {"a": z["a"], "c": z["b"]}, z0, [0.0, 1.0])


def test_a_field_of_one_parameter_that_wanted_the_time():
    with pytest.raises(FieldError, match=r"called as f\(z\)"):
        solve(lambda t: torch.ones(5), ONE, [0.0, 1.0])


@pytest.mark.parametrize(
    "field, args, words",
    [
        (lambda: 0.0, None, "0 positional"),
        (lambda a, b, c, d: a, None, "4 positional"),
        (lambda t, z, args: z, None, "no args were given"),
        (lambda t, z: z, ONE, "define it as"),
        (lambda z: z, ONE, "define it as"),
        (3.0, None, "cannot be called"),
        (None, None, "cannot be called"),
    ],
)
def test_fields_with_other_parameters(field, args, words):
    with pytest.raises(InputError, match=words):
        solve(field, ONE, [0.0, 1.0], args)


def test_errors_of_the_field_itself_pass_through():
    class Mine(Exception):
        pass

    def field(t: Tensor, z: Tensor) -> Tensor:
        raise Mine

    with pytest.raises(Mine):
        solve(field, ONE, [0.0, 1.0])


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "z0, words",
    [
        (torch.ones(2, dtype=torch.int64), "integers have no derivative"),
        (torch.ones(2, dtype=torch.bool), "integers have no derivative"),
        (torch.ones(0), "no entries"),
        (torch.ones(3, 0), "no entries"),
        ((), "nothing"),
        ({}, "nothing"),
        (None, "NoneType"),
        (1.0, "torch.as_tensor"),
        ([1.0, 2.0], "torch.as_tensor"),
        ((torch.ones(2), 1.0), "torch.as_tensor"),
        ((torch.ones(2).float(), torch.ones(2).double()), "mixes precisions"),
        ((torch.ones(2).float(), torch.ones(2, dtype=torch.complex128)), "mixes precisions"),
        ((torch.ones(2), torch.ones(2, dtype=torch.int32)), "integers"),
    ],
)
def test_states_that_cannot_be(z0, words):
    with pytest.raises(InputError, match=words):
        solve(lambda z: z, z0, [0.0, 1.0])


# --- times -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t, t0, words",
    [
        ([0.0, 2.0, 1.0], None, r"t\[1\]=2 is followed by t\[2\]=1"),
        ([0.0, -2.0, -1.0], None, "must decrease"),
        ([1.0, 0.0, 2.0], None, "between the times"),
        ([0.0, 1.0], 0.5, "between the times"),
        ([0.0, 2.0, 1.0], -1.0, "must increase"),
        ([0.0, math.nan], None, "NaN or infinity"),
        ([0.0, math.inf], None, "NaN or infinity"),
        ([1.0, 1.0], None, "two or more distinct"),
        ([1.0], None, "two or more distinct"),
        ([1.0], 1.0, "two or more distinct"),
        ([], None, "shape"),
        (1.0, None, "shape"),
        (torch.zeros(1, 2, 3), None, "shape"),
        (None, None, "cannot be read"),
        ("times", None, "cannot be read"),
        ([[0.0, 1.0], [0.0]], None, "cannot be read"),
        ([0.0, 1.0 + 2.0j], None, "cannot be read"),
        (torch.zeros(2, dtype=torch.complex64), None, "complex"),
        ([torch.zeros(2, dtype=torch.complex64)], None, "complex"),
        ([torch.zeros(2), torch.zeros(())], None, "1-D tensors"),
        ([torch.zeros(2, 2)], None, "1-D tensors"),
        ([0.0, 1.0], math.nan, "t0 must be"),
        ([0.0, 1.0], math.inf, "t0 must be"),
        ([0.0, 1.0], torch.zeros(2), "t0 must be"),
        ([0.0, 1.0], "now", "t0 must be"),
        ([0.0, 1.0], [0.0], "t0 must be"),
    ],
    ids=str,
)
def test_times_that_cannot_be(t, t0, words):
    with pytest.raises(InputError, match=words):
        solve(lambda z: z, ONE, t, t0=t0)


@pytest.mark.parametrize(
    "t, words",
    [
        ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], "3 samples"),
        ([[0.0, 1.0], [0.5, 1.0]], "give t0="),
        ([[0.0, 1.0], [0.0, math.inf]], "sample 1 hold infinity"),
        ([[0.0, math.nan, 1.0], [0.0, 1.0, 2.0]], "sample 0: NaN may only pad"),
        ([[math.nan, math.nan], [0.0, 1.0]], "at least one time"),
        ([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], r"sample 1, t\[1\]=2"),
        ([[0.0, 1.0], [0.0, -1.0]], "between the times"),
        ([[0.0, math.nan], [0.0, 0.0]], "two or more distinct"),
        ([torch.tensor([0.0, 1.0]), torch.tensor([])], "at least one time"),
        ([torch.tensor([0.0, 1.0])], "1 samples"),
    ],
    ids=str,
)
def test_times_of_each_sample_that_cannot_be(t, words):
    with pytest.raises(InputError, match=words):
        solve(lambda z: z, ONE, t)


def test_times_of_each_sample_need_a_batch():
    t = [[0.0, 1.0], [0.0, 2.0]]
    for z0 in (torch.ones(()), torch.ones(3, 2), (torch.ones(2), torch.ones(3, 2))):
        with pytest.raises(InputError, match="first dimension must be the batch"):
            solve(lambda z: z, z0, t)


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"solver": "dopri6"}, "tsit5"),
        ({"sensitivity": "adjoint"}, "interpolating"),
        ({"engine": "jax"}, "torch"),
        ({"step_control": "none"}, "joint"),
        ({"controller": "pidd"}, "'pid'"),
        ({"norm": "l1"}, "'max'"),
        ({"tol": 1e-3}, "unknown option tol; known: .*rtol"),
        ({"rtol": -1e-3}, "rtol=-0.001: a tolerance"),
        ({"atol": -1.0}, "a tolerance"),
        ({"atol": math.nan}, "a tolerance"),
        ({"rtol": math.inf}, "a tolerance"),
        ({"rtol": "tight"}, "a tolerance"),
        ({"atol": torch.tensor([1e-3, -1e-3, 1e-3])}, "a tolerance"),
        ({"adjoint_rtol": -1.0}, "a tolerance"),
        ({"rtol": 0.0, "atol": 0.0}, "both 0"),
        ({"rtol": 0, "atol": torch.zeros(3)}, "both 0"),
        ({"atol": torch.ones(5)}, "does not broadcast"),
        ({"solver": "euler"}, "give their size as dt"),
        ({"solver": "rk4"}, "give their size as dt"),
        ({"adaptive": False}, "give their size as dt"),
        ({"solver": "rk4", "adaptive": True, "dt": 0.1}, "no error estimate"),
        ({"dt": -0.1}, "positive number"),
        ({"dt": 0.0}, "positive number"),
        ({"dt": math.nan}, "positive number"),
        ({"dt": math.inf}, "infinite"),
        ({"dt": "small"}, "positive number"),
        ({"dt_max": 0.0}, "positive number"),
        ({"max_steps": 0}, "whole number"),
        ({"max_steps": 10.5}, "whole number"),
        ({"checkpoints": 0}, "whole number"),
        ({"checkpoints": 3, "sensitivity": "backsolve"}, "no meaning"),
        ({"tstops": [math.nan]}, "NaN"),
        ({"tstops": 0.5}, "sequence"),
        ({"tstops": ["soon"]}, "sequence"),
        ({"jac": lambda t, z: z}, "explicit"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        solve(lambda z: -z, ONE, [0.0, 1.0], **options)
    if "atol" not in options:
        with pytest.raises(InputError, match=words):
            NeuralODE(nn.Linear(3, 3), **options)


def test_a_tensor_tolerance_needs_a_tensor_state():
    with pytest.raises(InputError, match="give one number"):
        solve(lambda z: z, (ONE, ONE), [0.0, 1.0], atol=torch.ones(3))


def test_single_precision_below_its_rounding_warns():
    with pytest.warns(UserWarning, match="below the rounding of torch.float32"):
        solve(lambda z: -z, ONE.float(), [0.0, 0.1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("s", [-0.1, 1.1, math.nan, math.inf])
def test_dense_output_outside(s):
    sol = solve(lambda z: -z, ONE, [0.0, 1.0])
    with pytest.raises(InputError, match="outside"):
        sol(s)
    with pytest.raises(InputError, match="no dense output"):
        solve(lambda z: -z, ONE, [0.0, 1.0], dense=False)(0.5)


def test_every_exception_is_pynodes_and_a_standard_one():
    for error, standard in (
        (InputError, ValueError),
        (FieldError, ValueError),
        (SolveError, RuntimeError),
        (GradientError, RuntimeError),
    ):
        assert issubclass(error, PynodeError) and issubclass(error, standard)
