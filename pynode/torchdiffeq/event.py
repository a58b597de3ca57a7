"""Solves that end where an event function is zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pynode.engines.torch.build import build_integrator, custom_norm, flat_callbacks
from pynode.engines.torch.crossings import Watch
from pynode.engines.torch.failures import explain
from pynode.engines.torch.runge_kutta import Piece
from pynode.errors import InputError, SolveError
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
