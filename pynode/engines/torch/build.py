"""Options turned into the parts of an integration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pynode.engines.torch.bdf import BdfStepper
from pynode.engines.torch.bdf_control import BdfControl
from pynode.engines.torch.controller import NORMS, ErrorNorm, Reduce, StepSize
from pynode.engines.torch.integrate import Control, Integrator
from pynode.engines.torch.runge_kutta import RightHandSide
from pynode.engines.torch.steppers import METHODS, make_stepper
from pynode.options import SolveOptions

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
) -> Integrator:
    """An integrator for states like ``like``.

    Args:
        reduce: the error norm, where it is not the one that the options name.
        tolerances: rtol and atol, where they are per entry (N,).
    """
    method = METHODS[options.solver]
    norm: ErrorNorm | None = None
    control: Control | None = None
    if options.is_adaptive:
        rtol, atol = tolerances or (options.rtol, options.atol)
        if reduce is None:
            assert isinstance(options.norm, str)
            reduce = NORMS[options.norm]
        norm = ErrorNorm(rtol, atol, reduce, transformed)
        if options.sensitivity == "discrete" and options.checkpoints is not None:
            norm.kappa = EXACT  # the backward pass makes the same steps again
        control = StepSize(options.controller, method.error_order, options.dt_max)
    stepper = make_stepper(method, rhs, like, taped, options.tstops, norm, transformed)
    if isinstance(stepper, BdfStepper):
        assert norm is not None
        control = BdfControl(stepper, norm, options.dt_max)
    dt = None if options.dt is None else min(options.dt, options.dt_max)
    return Integrator(stepper, norm, control, options.max_steps, dt)


def custom_norm(norm: Callable, restore: Callable[[Tensor], object]) -> Reduce:
    """A user's norm of a state as one of flat vectors."""

    def reduce(x: Tensor) -> Tensor:
        return x.new_tensor(0.0) + norm(restore(x))

    return reduce
