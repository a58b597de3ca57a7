"""Options turned into the parts of a per-sample integration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.engines.torch.per_sample.control import (
    ROW_NORMS,
    RowErrorNorm,
    RowReduce,
    RowStepSize,
)
from pynode.engines.torch.per_sample.field import RowField
from pynode.engines.torch.per_sample.integrate import RowIntegrator
from pynode.engines.torch.per_sample.rosenbrock import RosenbrockRowStepper, RowStiffField
from pynode.engines.torch.per_sample.step import ExplicitRowStepper, RowJumps, RowStepper
from pynode.engines.torch.rosenbrock import RosenbrockTableau
from pynode.engines.torch.steppers import METHODS
from pynode.engines.torch.tableau import Tableau
from pynode.options import SolveOptions
from pynode.state import StateLayout

Tolerance = float | Tensor


def make_row_stepper(
    options: SolveOptions, system: Any, like: Tensor, taped: bool = False
) -> RowStepper:
    """A stepper of the method that the options name.

    Args:
        system: f on some of the samples; for an implicit method with its derivatives.
        like: states (n, D).
    """
    method = METHODS[options.solver]
    jumps = RowJumps(options.tstops, like.dtype)
    if isinstance(method, RosenbrockTableau):
        return RosenbrockRowStepper(method, system, like, jumps)
    assert isinstance(method, Tableau)  # options have been checked
    return ExplicitRowStepper(method, system, like, taped, jumps)


def as_row_system(options: SolveOptions, field: RowField) -> Any:
    """The field as the method's stepper wants it."""
    stiff = isinstance(METHODS[options.solver], RosenbrockTableau)
    return RowStiffField(field, options.jac) if stiff else field


def build_row_integrator(
    system: Any,
    like: Tensor,
    options: SolveOptions,
    tolerances: tuple[Tolerance, Tolerance],
    reduce: RowReduce | None = None,
) -> RowIntegrator:
    """An integrator for states like ``like`` (B, D).

    Args:
        tolerances: rtol and atol, numbers or (B, D).
        reduce: the error norm, where it is not the one that the options name.
    """
    method = METHODS[options.solver]
    norm = control = None
    if options.is_adaptive:
        if reduce is None:
            assert isinstance(options.norm, str)
            reduce = ROW_NORMS[options.norm]
        norm = RowErrorNorm(*tolerances, reduce)
        control = RowStepSize(options, method.error_order, len(like))
    dt = None if options.dt is None else min(options.dt, options.dt_max)
    stepper = make_row_stepper(options, system, like)
    return RowIntegrator(stepper, norm, control, options.max_steps, dt)


def row_norm(options: SolveOptions, layout: StateLayout) -> RowReduce | None:
    """A user's norm of a state for each sample, a batch of one."""
    norm = options.norm
    if not callable(norm):
        return None

    def one(x: Tensor) -> Tensor:
        return x.new_tensor(0.0) + norm(layout.of_rows(1).restore(x))

    return torch.func.vmap(one)
