"""Solves that end where an event function is zero, and the event time's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pynode.engines.torch.build import build_integrator, custom_norm, flat_callbacks
from pynode.engines.torch.crossings import Watch
from pynode.engines.torch.failures import explain
from pynode.engines.torch.runge_kutta import Piece
from pynode.errors import GradientError, InputError, SolveError
from pynode.events import Event
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Statistics
from pynode.time_gradients import carry, zero_shift
from pynode.torchdiffeq.arguments import Call, Func, SolveFailure
from pynode.torchdiffeq.fixed import Interpolant, interpolation, march, perturbed, step_size
from pynode.torchdiffeq.integrate import adaptive_options, default_tolerance_allowed

MAX_STEPS, MAX_FIXED_STEPS = 100_000, 20_000
FAR = 1e300


def integrate_until_event(call: Call, event_fn: Func) -> tuple[Tensor, Tensor]:
    """Time of the first event (0-d, in t's dtype), and states at t[0] and there (2, *y0.shape).

    The event is where any entry of ``event_fn(t, y)`` first changes its sign, in adaptive steps
    however often it does so within one; in fixed steps signs are compared at their ends. The state
    carries gradients as one at a fixed time does; see ``odeint_event`` for the event time's.

    Raises:
        InputError: the call does not fit.
        SolveFailure: the solve failed, or found no event in ``max_num_steps`` steps.
    """
    if len(call.t) != 2:
        raise InputError(
            f"We require len(t) == 2 when in event handling mode, but got len(t)={len(call.t)}."
        )
    if call.method.kind == "scipy":
        raise InputError("scipy_solver has no events: use another method")
    problem = ODEProblem(call.func, call.y0, call.t)
    search = _Search(call, event_fn, problem)
    if search.happened:
        return call.t[0].detach(), torch.stack([call.y0, call.y0])
    field = FlatField(call.func, problem.layout, None, Statistics())
    z = problem.layout.flatten(call.y0)
    if problem.times.t0.requires_grad:
        shift = -zero_shift(problem.times.t0)
        z = carry(field, problem.times.start, z, shift, problem.layout.rows)
    try:
        run = _run_engine if call.method.kind in ("adaptive", "fixed") else _run_own
        with default_tolerance_allowed(call):
            t, found = run(call, problem, field, z, search)
    except SolveError as error:
        raise SolveFailure.of(error) from None
    restore = problem.layout.restore
    return torch.tensor(t, dtype=call.t.dtype, device=call.t.device), torch.stack(
        [restore(z), restore(found)]
    )


class _Search:
    """Looks for the first sign change of an event function."""

    def __init__(self, call: Call, event_fn: Func, problem: ODEProblem) -> None:
        self.call, self.event_fn, self.layout = call, event_fn, problem.layout
        self.direction = problem.times.direction
        z = self.layout.flatten(call.y0.detach())
        self._signs = torch.ones(())
        self._signs = torch.sign(self._values(problem.times.start, z))
        self.happened = bool((self._signs == 0).any())

    @torch.no_grad()
    def _values(self, t: float, z: Tensor) -> Tensor:
        time = torch.tensor(t, dtype=self.layout.dtype, device=z.device)
        state = self.call.restore(self.layout.restore(z.detach()))
        return torch.as_tensor(self.event_fn(time, state)) * self._signs

    def _fired(self, t: float, z: Tensor) -> bool:
        """Whether an entry has another sign than at the start."""
        return not bool((self._values(t, z) > 0).all())

    def watch(self) -> Watch:
        """pynode's search for events on dense output, for adaptive steps."""
        event = Event(self._least, terminal=True, name="event_fn")
        return Watch([event], self.layout, None, Statistics(), self.call.t.dtype)

    def _least(self, t: Tensor, state: Tensor) -> Tensor:
        values = torch.as_tensor(self.event_fn(t, self.call.restore(state))) * self._signs
        return values.amin().to(self.layout.dtype)

    def within(self, t: float, t1: float, at: Callable[[float], Tensor]) -> float | None:
        """The time of an event in a fixed step, by bisection, if one fires by its end."""
        with torch.no_grad():
            return self._bisect(t, t1, at) if self._fired(t1, at(t1)) else None

    def _bisect(self, a: float, b: float, at: Callable[[float], Tensor]) -> float:
        for _ in range(100):
            middle = 0.5 * (a + b)
            if middle in (a, b):
                break
            if self._fired(middle, at(middle)):
                b = middle
            else:
                a = middle
        return b


class _Found(Exception):
    """Ends a solve."""

    def __init__(self, t: float, z: Tensor) -> None:
        super().__init__()
        self.t, self.z = t, z


def _run_engine(
    call: Call, problem: ODEProblem, field: FlatField, z: Tensor, search: _Search
) -> tuple[float, Tensor]:
    """By pynode's steps, without an end in sight."""
    options = _options(call)
    norm = options.norm
    integrator = build_integrator(
        field,
        z,
        options,
        reduce=custom_norm(norm, problem.layout.restore) if callable(norm) else None,
        tolerances=problem.tolerances(options),
        taped=torch.is_grad_enabled(),
        callbacks=flat_callbacks(call.callbacks, problem.layout.restore),
    )
    watch = search.watch() if options.is_adaptive else None
    if watch is not None:
        watch.begin(problem.times.start, z)

    def on_step(piece: Piece) -> None:
        if watch is not None:
            if watch(piece, field):
                raise _Found(watch.found[-1].t, watch.marks[-1])
            return
        inside = _between(call, problem, piece.t, piece.t1, piece.z, piece.z1)
        t = search.within(piece.t, piece.t1, inside)
        if t is not None:
            raise _Found(t, inside(t))

    start, far = problem.times.start, search.direction * FAR
    stops = [s for s in sorted(options.tstops, reverse=far < 0) if (s - start) * far > 0]
    try:
        end = integrator.run(start, z, [*stops, far], on_step)
    except _Found as found:
        return found.t, found.z
    if end.retcode == "max_steps":
        raise _no_event(options.max_steps, end.t)
    sample, message = explain(end, options, problem.layout)
    raise SolveError(message, str(end.retcode), end.t, sample)


def _run_own(
    call: Call, problem: ODEProblem, field: FlatField, z: Tensor, search: _Search
) -> tuple[float, Tensor]:
    """By this package's own steps of one size."""
    start, before = problem.times.start, z
    size = math.copysign(_needed_step_size(call), search.direction)
    grid: Iterator[float] = (start + i * size for i in range(MAX_FIXED_STEPS + 1))
    t = start
    for t1, z1 in march(call, field, grid, z):
        inside = _between(call, problem, t, t1, before, z1)
        found = search.within(t, t1, inside)
        if found is not None:
            return found, inside(found)
        t, before = t1, z1
    raise _no_event(MAX_FIXED_STEPS, t)


def _between(
    call: Call, problem: ODEProblem, t: float, t1: float, z: Tensor, z1: Tensor
) -> Callable[[float], Tensor]:
    """The state (N,) at times inside a fixed step, as the option ``interp`` says."""
    layout = problem.layout
    inside = Interpolant(call, t, t1, layout.restore(z), layout.restore(z1))

    def at(s: float) -> Tensor:
        return z1 if s == t1 else layout.flatten(inside(s))

    return at


def _options(call: Call) -> SolveOptions:
    if call.method.kind == "adaptive":
        limit = int(call.number("max_num_steps", MAX_STEPS))
        return SolveOptions(**{**adaptive_options(call), "max_steps": limit})
    interpolation(call)
    if perturbed(call):
        raise InputError("perturb has no meaning with event_fn: the grid has no end")
    return SolveOptions(
        solver=call.method.solver,
        sensitivity="discrete",
        adaptive=False,
        dt=_needed_step_size(call),
        max_steps=MAX_FIXED_STEPS,
    )


def _needed_step_size(call: Call) -> float:
    size = step_size(call)
    if size is None:
        raise InputError("events with a fixed-step method need the option step_size")
    return size


def _no_event(steps: int, t: float) -> SolveError:
    return SolveError(
        f"no event in {steps} steps, up to t={t:.6g}: event_fn keeps its sign there. Look at "
        "event_fn and the direction of time, or raise max_num_steps",
        "max_steps",
        t,
    )


def odeint_event(
    func: Func,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Func,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] | None = None,
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
    from pynode.torchdiffeq.forward import odeint

    interface = odeint if odeint_interface is None else odeint_interface
    t0 = t0 if isinstance(t0, Tensor) else torch.tensor(float(t0), dtype=torch.float64)
    other = t0.reshape(-1).detach() + (-1.0 if reverse_time else 1.0)
    event_t, states = interface(
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
    slope = func(time, state(at_event))
    slopes = [slope] if single else list(slope)
    with torch.enable_grad():
        t = time.detach().requires_grad_()
        inputs = [y.detach().requires_grad_() for y in at_event]
        again = event_fn(t, state(inputs)).reshape(-1)[values.detach().abs().argmin()]
        of_t, *of_y = torch.autograd.grad(again, [t, *inputs], allow_unused=True)
    rate = torch.zeros((), dtype=time.dtype, device=time.device) if of_t is None else of_t
    for g, f in zip(of_y, slopes, strict=True):
        if g is not None:
            rate = rate + (g.conj() * f.detach()).real.sum()
    if float(rate) == 0.0:
        raise GradientError(
            "event_fn is stationary along the solution at the event, whose time has no derivative"
        )
    dt = -value / rate
    return dt - dt.detach(), [f.detach() for f in slopes]
