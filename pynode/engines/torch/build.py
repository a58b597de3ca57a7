"""Options turned into the parts of an integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from torch import Tensor

from pynode.engines.torch.bdf import BdfStepper
from pynode.engines.torch.bdf_control import BdfControl
from pynode.engines.torch.controller import NORMS, ErrorNorm, Reduce, StepSize
from pynode.engines.torch.integrate import Control, Integrator
from pynode.engines.torch.reversible import reversible_stepper
from pynode.engines.torch.runge_kutta import Jumps, RightHandSide
from pynode.engines.torch.steppers import METHODS, Stepper, make_stepper
from pynode.engines.torch.tableau import Tableau
from pynode.engines.torch.through_steps import StepTape, TapedNorm, TapedStepper, TapedStepSize
from pynode.options import SolveOptions, StepCallback, StepCallbacks

EXACT = 1e-5
"""The part of the tolerance that Newton's iterations may err by where steps are made again."""


def build_integrator(
    rhs: RightHandSide,
    like: Tensor,
    options: SolveOptions,
    *,
    reduce: Reduce | None = None,
    tolerances: tuple[float | Tensor, float | Tensor] | None = None,
    taped: bool = False,
    transformed: bool = False,
    stops: Collection[float] = (),
    callbacks: StepCallbacks | None = None,
) -> Integrator:
    """An integrator for states like ``like``.

    Args:
        reduce: the error norm, where it is not the one that the options name.
        tolerances: rtol and atol, where they are per entry (N,).
        stops: times that steps must end on.
        callbacks: functions of flat states to call at each step.
    """
    if taped and options.through_steps:
        return _through_steps(rhs, like, options, reduce, tolerances, stops, callbacks)
    method = METHODS[options.solver]
    norm: ErrorNorm | None = None
    control: Control | None = None
    if options.is_adaptive:
        rtol, atol = tolerances or (options.rtol, options.atol)
        norm = ErrorNorm(rtol, atol, reduce or _named(options.norm), transformed)
        if options.sensitivity == "discrete" and options.checkpoints is not None:
            norm.kappa = EXACT  # the backward pass makes the same steps again
        control = StepSize(options, method.error_order)
    stepper: Stepper
    if options.coupling is not None:
        assert isinstance(method, Tableau)
        stepper = reversible_stepper(method, rhs, like, taped, options.tstops, options.coupling)
    else:
        stepper = make_stepper(method, rhs, like, taped, options.tstops, norm, transformed)
    if isinstance(stepper, BdfStepper):
        assert norm is not None
        control = BdfControl(options, stepper, norm)
    dt = _given_step(options)
    return Integrator(stepper, norm, control, options.max_steps, dt, callbacks)


def _through_steps(
    rhs: RightHandSide,
    like: Tensor,
    options: SolveOptions,
    reduce: Reduce | None,
    tolerances: tuple[float | Tensor, float | Tensor] | None,
    stops: Collection[float],
    callbacks: StepCallbacks | None,
) -> Integrator:
    method = METHODS[options.solver]
    assert isinstance(method, Tableau)
    tape = StepTape(like.device)
    jumps = Jumps(options.tstops, like.dtype)
    stepper = TapedStepper(method, rhs, like, jumps, tape, stops)
    rtol, atol = tolerances or (options.rtol, options.atol)
    norm = TapedNorm(rtol, atol, reduce or _named(options.norm), tape)
    control = TapedStepSize(options, method.error_order, tape)
    dt = _given_step(options)
    return Integrator(stepper, norm, control, options.max_steps, dt, callbacks)


def _named(norm: str | Callable) -> Reduce:
    assert isinstance(norm, str)
    return NORMS[norm]


def _given_step(options: SolveOptions) -> float | None:
    if options.grid:
        return math.inf  # each step goes to the next stop
    return None if options.dt is None else min(options.dt, options.dt_max)


def flat_callbacks(
    callbacks: StepCallbacks | None, restore: Callable[[Tensor], object]
) -> StepCallbacks | None:
    """A user's functions of states as ones of flat vectors."""
    if callbacks is None:
        return None

    def flat(user: StepCallback | None) -> StepCallback | None:
        return None if user is None else lambda t, z, dt: user(t, restore(z), dt)

    return StepCallbacks(
        flat(callbacks.attempt), flat(callbacks.accepted), flat(callbacks.rejected)
    )


def custom_norm(norm: Callable, restore: Callable[[Tensor], object]) -> Reduce:
    """A user's norm of a state as one of flat vectors."""

    def reduce(x: Tensor) -> Tensor:
        return x.new_tensor(0.0) + norm(restore(x))

    return reduce
