"""Options turned into the parts of an integration."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pynode.engines.torch.controller import NORMS, ErrorNorm, Reduce, StepSize
from pynode.engines.torch.integrate import Integrator
from pynode.engines.torch.runge_kutta import RightHandSide
from pynode.engines.torch.steppers import METHODS, make_stepper
from pynode.options import SolveOptions, StepCallback, StepCallbacks


def build_integrator(
    rhs: RightHandSide,
    like: Tensor,
    options: SolveOptions,
    *,
    reduce: Reduce | None = None,
    tolerances: tuple[float | Tensor, float | Tensor] | None = None,
    taped: bool = False,
    transformed: bool = False,
    callbacks: StepCallbacks | None = None,
) -> Integrator:
    """An integrator for states like ``like``.

    Args:
        reduce: the error norm, where it is not the one that the options name.
        tolerances: rtol and atol, where they are per entry (N,).
        callbacks: functions of flat states to call at each step.
    """
    method = METHODS[options.solver]
    stepper = make_stepper(method, rhs, like, taped, options.tstops)
    norm = control = None
    if options.is_adaptive:
        rtol, atol = tolerances or (options.rtol, options.atol)
        if reduce is None:
            assert isinstance(options.norm, str)
            reduce = NORMS[options.norm]
        norm = ErrorNorm(rtol, atol, reduce, transformed)
        control = StepSize(options, method.error_order)
    dt = None if options.dt is None else min(options.dt, options.dt_max)
    if options.grid:
        dt = math.inf  # each step goes to the next stop
    return Integrator(stepper, norm, control, options.max_steps, dt, callbacks)


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
