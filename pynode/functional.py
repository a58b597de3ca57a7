"""Solving without a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pynode.errors import InputError
from pynode.events import Event
from pynode.field import UserField
from pynode.hybrid import run
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
    events: Sequence[Event] = (),
    dense: bool = True,
    **options: Any,
) -> Solution:
    """Solve dz/dt = f(t, z), z(t0) = z0.

    Args:
        field, z0, t, args, t0, events: see :class:`pynode.ODEProblem`, one of which may be given
            instead of them.
        dense: keep dense output for ``sol(s)``; it holds the stages of every step.
        options: fields of :class:`pynode.options.SolveOptions` (solver, rtol, dt, ...).

    Returns:
        A :class:`pynode.Solution` with ``zs`` of shape (T, *z0.shape).

    Raises:
        InputError: an argument does not fit.
        EventError: a condition or jump returned what cannot be used.
        FieldError: the field returned something that is no derivative of the state.
        SolveError: the solve failed (unless ``throw=False``).
    """
    chosen = SolveOptions.from_keywords({**options, "dense": dense})
    if isinstance(field, ODEProblem):
        if events:
            raise InputError("an ODEProblem holds its own events: give them there")
        return run(field, chosen)
    return run(ODEProblem(field, z0, t, args, t0, events), chosen)


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
