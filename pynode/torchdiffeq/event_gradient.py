"""odeint_event: the event's time as a function of all that the solve depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import GradientError
from pynode.torchdiffeq.arguments import Func
from pynode.torchdiffeq.forward import odeint


def odeint_event(
    func: Func,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Func,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    r"""Solve from t0 until ``event_fn(t, y)`` is zero, with gradients of the event's time.

    With :math:`g(t, y; \theta) = 0` at the event, :math:`dt^*` is
    :math:`-(g_y\,dy + g_\theta\,d\theta) / (g_t + g_y f)`, dy being the change of the solution at
    a fixed time; tensors that ``event_fn`` depends on have gradients too.

    Args:
        func, y0: see :func:`pynode.torchdiffeq.odeint`.
        t0: the initial time, a 0-d tensor.
        event_fn: of t and y, to a tensor; any entry may end the solve.
        reverse_time: solve towards smaller t.
        odeint_interface: ``odeint`` (the default) or ``odeint_adjoint``.
        kwargs: of that function.

    Returns:
        The event's time (0-d), and the states at t0 and there, (2, *y0.shape).

    Raises:
        InputError, SolveFailure: see :func:`pynode.torchdiffeq.odeint`; among failures is that no
            event was found in ``max_num_steps`` steps (default 100 000; 20 000 fixed ones).
    """
    t0 = t0 if isinstance(t0, Tensor) else torch.tensor(float(t0), dtype=torch.float64)
    other = t0.reshape(-1).detach() + (-1.0 if reverse_time else 1.0)
    event_t, states = odeint_interface(
        func, y0, torch.cat([t0.reshape(-1), other]), event_fn=event_fn, **kwargs
    )
    event_t = event_t.detach()
    parts = (states,) if isinstance(states, Tensor) else states
    at_event = [part[-1] for part in parts]
    if torch.is_grad_enabled():
        shift = _event_shift(func, event_fn, event_t, at_event, isinstance(states, Tensor))
        if shift is not None:
            dt, slopes = shift
            event_t = event_t + dt.to(event_t)
            at_event = [y + dt.to(f.real) * f for y, f in zip(at_event, slopes, strict=True)]
    ends = tuple(
        torch.cat([part[:-1], y.unsqueeze(0)]) for part, y in zip(parts, at_event, strict=True)
    )
    return event_t, ends[0] if isinstance(states, Tensor) else ends


def _event_shift(
    func: Func, event_fn: Func, event_t: Tensor, at_event: list[Tensor], single: bool
) -> tuple[Tensor, list[Tensor]] | None:
    """Zero, with the event time's derivatives, and dy/dt there; None where nothing needs them."""
    time = event_t.to(at_event[0].real.dtype)

    def state(parts: list[Tensor]) -> Any:
        return parts[0] if single else tuple(parts)

    values = event_fn(time, state(at_event)).reshape(-1)
    # Of several entries, the one that ended the solve.
    value = values[values.detach().abs().argmin()]
    if not value.requires_grad:
        return None
    with torch.no_grad():
        slope = func(time, state(at_event))
    slopes = [slope] if single else list(slope)
    with torch.enable_grad():
        t = time.detach().requires_grad_()
        inputs = [y.detach().requires_grad_() for y in at_event]
        again = event_fn(t, state(inputs)).reshape(-1)[values.detach().abs().argmin()]
        of_t, *of_y = torch.autograd.grad(again, [t, *inputs], allow_unused=True)
    rate = torch.zeros_like(time) if of_t is None else of_t.detach()
    for g, f in zip(of_y, slopes, strict=True):
        if g is not None:
            rate = rate + (g.detach().conj() * f).real.sum()
    if float(rate) == 0.0:
        raise GradientError(
            "event_fn is stationary along the solution at the event, whose time has no derivative"
        )
    dt = -value / rate
    return dt - dt.detach(), slopes
