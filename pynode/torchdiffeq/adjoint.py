"""odeint_adjoint: state, adjoint and gradient integrated backwards together.

Chen, Rubanova, Bettencourt, Duvenaud 2018, algorithm 1. Between two outputs the state starts anew
from what the forward pass found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engines.torch.adjoints import VJP
from pynode.errors import GradientError, InputError
from pynode.field import FlatField, trainable_tensors
from pynode.solution import Statistics
from pynode.state import StateLayout
from pynode.torchdiffeq.arguments import (
    Call,
    Func,
    check,
    mixed_norm,
    rms,
    step_callbacks,
    unflatten,
)
from pynode.torchdiffeq.event import integrate_until_event
from pynode.torchdiffeq.integrate import integrate


def odeint_adjoint(
    func: Func,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Func | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """As ``odeint``, with gradients by the adjoint equation and memory that does not grow.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: see
            :func:`pynode.torchdiffeq.odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method: of the backward solve; default: as forward.
        adjoint_options: of the backward solve; default: ``options`` without ``norm``. Its
            ``norm`` is ``"seminorm"``, which leaves the parameters' gradients out (Kidger, Chen,
            Lyons 2021), or a function of (t, y, adj_y, *adj_params).
        adjoint_params: tensors to differentiate by beside y0 and t; default: all that func
            depends on, parameters or not. (torchdiffeq's default: the parameters of the module
            ``func``.)

    Raises:
        InputError, SolveFailure: see :func:`pynode.torchdiffeq.odeint`.
    """
    method = "dopri5" if method is None else method
    backward = method if adjoint_method is None else adjoint_method
    if backward != method and options is not None and adjoint_options is None:
        raise InputError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`: "
            "pass `adjoint_options`, too"
        )
    if adjoint_options is None:
        adjoint_options = {k: v for k, v in (options or {}).items() if k != "norm"}
    call = check(func, y0, t, rtol, atol, method, options)
    params = _parameters(func, call, adjoint_params, adjoint_options)
    norm = _adjoint_norm(adjoint_options.get("norm"), call)
    adjoint = check(
        func,
        y0,
        t,
        _least(rtol if adjoint_rtol is None else adjoint_rtol),
        _least(atol if adjoint_atol is None else adjoint_atol),
        backward,
        {k: v for k, v in adjoint_options.items() if k != "norm"},
        suffix=None,
    )
    solve = _Solve(func, call, adjoint, norm, event_fn)
    times, states = _Adjoint.apply(solve, call.y0, call.t, *params)
    states = call.restore(states)
    return states if event_fn is None else (times, states)


@dataclass
class _Solve:
    """What forward and backward pass have to know."""

    func: Func
    call: Call
    adjoint: Call
    norm: Callable[[tuple[Tensor, ...]], Any]
    event_fn: Func | None


class _Adjoint(torch.autograd.Function):
    """``grad_fn.adjoint_options`` holds the options of the backward solve, as in torchdiffeq."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, y0: Tensor, t: Tensor, *params: Tensor) -> Any:
        call = replace(solve.call, y0=y0.detach(), t=t.detach())
        with torch.no_grad():
            if solve.event_fn is None:
                end, states = t[-1].clone(), integrate(call)
            else:
                end, states = integrate_until_event(call, solve.event_fn)
        times = t if solve.event_fn is None else torch.stack([t[0], end.to(t)])
        ctx.save_for_backward(times, states, *params)
        ctx.solve = solve
        ctx.adjoint_options = {**solve.adjoint.options, "norm": solve.norm}
        return end, states

    @staticmethod
    def backward(ctx: Any, grad_end: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        t, states, *params = ctx.saved_tensors
        with torch.no_grad():
            sweep = _Sweep(ctx.solve, ctx.adjoint_options["norm"], t, states.detach(), params)
            of_y0, of_t, of_params = sweep.run(grad.detach(), ctx.needs_input_grad[2])
        if ctx.solve.event_fn is not None and of_t is not None:
            of_t = torch.cat([of_t[:1], torch.zeros_like(ctx.solve.call.t[1:])])
        if torch.is_grad_enabled():
            of_y0, *of_params = _Once.apply(
                1 + len(params), of_y0, *of_params, grad, ctx.solve.call.y0, *params
            )
        return (None, of_y0, of_t, *of_params)


class _Once(torch.autograd.Function):
    """Passes the first tensors on, and says so when they are differentiated again."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise GradientError(
            "odeint_adjoint has first derivatives only: for double backward use odeint"
        )


class _Sweep:
    """The backward pass: from each output to the one before it."""

    def __init__(
        self, solve: _Solve, norm: Callable, t: Tensor, states: Tensor, params: list[Tensor]
    ) -> None:
        self.call, self.adjoint, self.norm = solve.call, solve.adjoint, norm
        self.t, self.states = t, states
        self.layout = StateLayout(states[0])
        self.field = FlatField(self.call.func, self.layout, None, Statistics(), backward=True)
        self.flat = [self.layout.flatten(y) for y in states]
        self.vjp = VJP(self.field, params, self.flat[0])
        self.callbacks = step_callbacks(solve.func, solve.adjoint, "_adjoint", self._parts)

    def run(self, grad: Tensor, of_times: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        n, times = self.layout.size, self.t.tolist()
        cotangents = [self.layout.flatten(g) for g in grad]
        of_t = torch.zeros_like(self.t) if of_times else None
        a = cotangents[-1].clone()
        gradient = a.new_zeros(self.vjp.size)
        for i in range(len(times) - 1, 0, -1):
            if of_t is not None:
                of_t[i] = (self.field(times[i], self.flat[i]) * cotangents[i]).sum()
            y = self._back(i, torch.cat([self.flat[i], a, gradient]))
            a, gradient = y[n : 2 * n], y[2 * n :]
            if i == 1 and of_t is not None:
                of_t[0] = -(self.field(times[0], self.flat[0]) * a).sum()
            a = a + cotangents[i - 1]
        return self.layout.restore(a), of_t, self.vjp.unflatten(gradient)

    def _back(self, i: int, y: Tensor) -> Tensor:
        """State, adjoint and gradient at t[i - 1] from those at t[i]."""
        n = self.layout.size

        def func(t: Tensor, y: Tensor) -> Tensor:
            f, of_state, of_parameters = self.vjp(t, y[:n], y[n : 2 * n])  # type: ignore[arg-type]
            return torch.cat([f, -of_state, -of_parameters])

        call = replace(
            self.adjoint,
            func=func,
            y0=y,
            t=self.t[i - 1 : i + 1].detach().flip(0),
            norm=lambda x: self.norm(self._parts(x)),
            callbacks=self.callbacks,
            adjoint_of=self.field,
        )
        return integrate(call)[-1]

    def _parts(self, y: Tensor) -> tuple[Tensor, ...]:
        """(t, y, adj_y, *adj_params), as adjoint norms expect it; the entry for t is 0."""
        n = self.layout.size
        state, a = self.layout.restore(y[:n]), self.layout.restore(y[n : 2 * n])
        return (y.new_zeros(()), state, a, *self.vjp.unflatten(y[2 * n :]))


def _parameters(
    func: Func, call: Call, given: Iterable[Tensor] | None, options: dict[str, Any]
) -> list[Tensor]:
    if given is None:
        if not torch.is_grad_enabled():
            return []
        field = FlatField(call.func, StateLayout(call.y0), None, Statistics())
        flat = field.layout.flatten(call.y0)
        found, _ = trainable_tensors(field, float(call.t[0]), flat)
        return [*_replica_parameters(func), *found]
    params = tuple(given)
    kept = [p for p in params if p.requires_grad]
    if len(kept) < len(params) and callable(options.get("norm")):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. It is left out of the "
            "adjoint pass, and of the tensors that the adjoint norm sees.",
            stacklevel=3,
        )
    return kept


def _replica_parameters(func: Func) -> list[Tensor]:
    """The parameters of a DataParallel replica, which ``parameters()`` does not know of."""
    if not isinstance(func, nn.Module) or not getattr(func, "_is_replica", False):
        return []
    return [
        value
        for module in func.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.requires_grad
    ]


def _least(tolerance: Any) -> float:
    """The adjoint is another state, for which tolerances per entry mean nothing."""
    if isinstance(tolerance, Tensor):
        return float(tolerance.min())
    if isinstance(tolerance, tuple | list):
        return min(_least(part) for part in tolerance)
    return float(tolerance)


def _adjoint_norm(chosen: Any, call: Call) -> Callable[[tuple[Tensor, ...]], Any]:
    """A norm of (t, y, adj_y, *adj_params), in which the state is one tensor."""
    state_norm = rms if call.norm is None else call.norm
    if chosen is None or chosen == "seminorm":
        whole = chosen is None

        def norm(parts: tuple[Tensor, ...]) -> Any:
            t, y, a, *params = parts
            rest = mixed_norm(params) if whole else 0.0
            return max(t.abs(), state_norm(y), state_norm(a), rest)

        return norm
    if not callable(chosen):
        raise InputError(f"adjoint norm={chosen!r}: 'seminorm' or a function is needed")
    shapes = call.shapes
    if shapes is None:
        return chosen

    def unpacked(parts: tuple[Tensor, ...]) -> Any:
        t, y, a, *params = parts
        return chosen((t, *unflatten(y, shapes), *unflatten(a, shapes), *params))

    return unpacked
