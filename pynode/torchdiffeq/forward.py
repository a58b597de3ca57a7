"""odeint: gradients through the solver's steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.torchdiffeq.arguments import Func, check
from pynode.torchdiffeq.event import integrate_until_event
from pynode.torchdiffeq.integrate import integrate


def odeint(
    func: Func,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Func | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, with gradients through the solver's steps.

    Args:
        func: dy/dt from a 0-d tensor t and the state y.
        y0: the state, a tensor of any shape, or a tuple of them.
        t: (T,) times, strictly increasing or decreasing, the first of which y0 holds at.
        rtol, atol: tolerances, numbers or tensors that broadcast against y0; for a tuple of
            states also a tuple of them.
        method: one of :data:`pynode.torchdiffeq.methods.METHODS`; default ``dopri5``.
        options: of the method, see ``docs/from-torchdiffeq.md``.
        event_fn: solve until ``event_fn(t, y)`` is zero; t[0], and the direction to t[1], count.

    Returns:
        The states at all times, (T, *y0.shape), for a tuple a tuple of them. With ``event_fn``
        the event's time (0-d), and the states at t[0] and there, (2, *y0.shape).

    Raises:
        InputError: an argument or option does not fit.
        SolveFailure: the solve failed; a :class:`pynode.errors.SolveError`.
    """
    call = check(func, y0, t, rtol, atol, method, options)
    if event_fn is not None:
        event_t, states = integrate_until_event(call, event_fn)
        return event_t, call.restore(states)
    return call.restore(integrate(call))
