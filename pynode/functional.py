"""Solving without a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.autograd import run
from pynode.field import UserField
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Solution
from pynode.state import State


def solve(
    field: UserField | ODEProblem,
    z0: State = None,
    t: Any = None,
    args: Any = None,
    *,
    t0: float | Tensor | None = None,
    dense: bool = True,
    **options: Any,
) -> Solution:
    """Solve dz/dt = f(t, z), z(t0) = z0.

    Args:
        field, z0, t, args, t0: see :class:`pynode.ODEProblem`, one of which may be given
            instead of them.
        dense: keep dense output for ``sol(s)``; it holds the stages of every step.
        options: fields of :class:`pynode.options.SolveOptions` (solver, rtol, dt, ...).

    Returns:
        A :class:`pynode.Solution` with ``zs`` of shape (T, *z0.shape).

    Raises:
        InputError: an argument does not fit.
        FieldError: the field returned something that is no derivative of the state.
        SolveError: the solve failed (unless ``throw=False``).
    """
    chosen = SolveOptions.from_keywords({**options, "dense": dense})
    problem = field if isinstance(field, ODEProblem) else ODEProblem(field, z0, t, args, t0)
    return run(problem, chosen)


def odeint(
    field: UserField,
    z0: State,
    t: Any,
    args: Any = None,
    *,
    t0: float | Tensor | None = None,
    **options: Any,
) -> State:
    """As :func:`solve`, but only the states: (T, *z0.shape)."""
    return solve(field, z0, t, args, t0=t0, dense=False, **options).zs
