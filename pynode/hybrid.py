"""Solves with events: stretches between them, and gradients across them.

A stretch is solved like any other problem, by any sensitivity, up to the first event that changes
the state or ends the solve. Its gradients are put together by autograd: the state at an event,
at the time that the forward pass found, is an output of the stretch; that time as a function of
everything before is given by the implicit function theorem,

.. math::
    g(t^*, z(t^*)) = 0 \\quad\\Rightarrow\\quad
    \\delta t^* = -\\frac{\\delta g}{\\partial_t g + \\partial_z g\\, f},

with δg the change of the condition at a fixed time; and the next stretch starts at t*, with the
gradient that every initial time has. (Hiskens, Pai 2000, Trajectory sensitivity analysis of hybrid
systems; Chen, Amos, Nickel 2021, Learning neural event functions for ODEs.)
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode import autograd
from pynode.autograd import Part, first_derivatives_only
from pynode.control import controls
from pynode.dense import DenseOutput
from pynode.engines.torch.crossings import Crossing, Watch
from pynode.engines.torch.trajectory import Trajectory
from pynode.errors import GradientError, InputError, SolveError
from pynode.events import Event, record
from pynode.field import FlatField
from pynode.hybrid_per_sample import RowHybrid
from pynode.options import SolveOptions
from pynode.precision import active_autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Solution, Statistics
from pynode.time_gradients import carry
from pynode.transforms import transforms_active


def run(problem: ODEProblem, options: SolveOptions) -> Solution:
    """Solve, with or without events; steps end where controls among args ask for it.

    Raises:
        InputError, GradientError: what was asked for does not go together with events or with
            a control.
        SolveError: the solve failed and ``options.throw`` is set.
    """
    options = _with_knots(problem, options)
    if not problem.events:
        return autograd.run(problem, options)
    _check(problem, options)
    if options.step_control == "per_sample":
        return _run_per_sample(problem.per_sample(), options)
    hybrid = Hybrid(problem, options)
    retcode, message, sample = hybrid.solve()
    solution = hybrid.solution(retcode, message)
    if options.throw and not solution.success:
        reached = float(hybrid.t.detach())
        raise SolveError(message, str(retcode), reached, sample, solution)
    return solution


def _run_per_sample(problem: ODEProblem, options: SolveOptions) -> Solution:
    rows = RowHybrid(problem, options)
    message, sample = rows.solve()
    solution = rows.solution(message)
    if options.throw and not solution.success:
        assert sample is not None
        reached = float(rows.samples.t[sample])
        failed = rows.samples.failed
        raise SolveError(message, str(solution.retcode), reached, sample, solution, failed)
    return solution


def _with_knots(problem: ODEProblem, options: SolveOptions) -> SolveOptions:
    """Options whose steps end where the controls among args ask for it."""
    if problem.args is None:
        return options
    found = controls(problem.args)
    if found and options.step_control != "joint":
        raise InputError(
            f"step_control={options.step_control!r} has no Control among args yet: use 'joint'"
        )
    knots = {t for control in found for t in control.knots}
    return replace(options, tstops=sorted({*options.tstops, *knots})) if knots else options


def _check(problem: ODEProblem, options: SolveOptions) -> None:
    if options.engine != "torch":
        raise InputError(f"engine={options.engine!r} has no events yet: use engine='torch'")
    if options.sensitivity == "reversible":
        raise InputError("sensitivity='reversible' has no events: use 'discrete' or 'gauss'")
    if options.step_control == "joint" and problem.times.per_sample:
        raise InputError(
            "with one step size for the whole batch, events need times (T,) that all samples "
            "share: use step_control='per_sample', or give the union of the samples' times and "
            "pick each sample's own from zs, or use sol(s)"
        )
    if transforms_active():
        raise GradientError(
            "events do not work under torch.func transforms or forward-mode AD, where the times "
            "at which they happen cannot be looked at: use torch.autograd"
        )


class Hybrid:
    """One solve with events: stretch after stretch.

    Attributes:
        t, z: where it has got to: a time, differentiable, and a flat state.
    """

    def __init__(self, problem: ODEProblem, options: SolveOptions) -> None:
        self.problem, self.options = problem, options
        self.layout = problem.layout
        self.stats = Statistics()
        autocast = active_autocast(self.layout.device)
        self.field = FlatField(
            problem.field, self.layout, problem.args, self.stats, autocast=autocast
        )
        self.time_dtype = torch.promote_types(problem.times.t.dtype, self.layout.dtype)
        self.t: Tensor = problem.times.t0
        self.z = self.layout.flatten(problem.z0)
        self._twice = options.sensitivity == "discrete" and options.checkpoints is None
        self._outputs: list[Tensor] = []
        self._firings: list[list[tuple[Tensor, Tensor, Tensor, int]]] = [[] for _ in problem.events]
        self._stretches: list[tuple[float, float, Trajectory]] = []
        self._no_gradient = ""

    def solve(self) -> tuple[Retcode, str, int | None]:
        """Go on to the last time, to a terminal event, or until it fails."""
        problem, options = self.problem, self.options
        times, done = problem.times, 0
        watch = Watch(problem.events, self.layout, problem.args, self.stats, self.time_dtype)
        for _ in range(options.max_events + 1):
            z = self.layout.restore(self.z)
            stretch = replace(problem, z0=z, t=times.t[done:], t0=self.t)
            part = autograd.integrate(stretch, options, self.stats, watch)
            forward = part.forward
            self._outputs.append(part.zs[: forward.reached])
            done += forward.reached
            self._note(float(self.t.detach()), watch, part)
            located = [
                self._locate(crossing, part.marks[i])  # type: ignore[index]
                for i, crossing in enumerate(watch.found)
            ]
            if forward.retcode is not Retcode.TERMINATED:
                self._record(watch.found, located)
                if forward.retcode is Retcode.SUCCESS:
                    self.t, self.z = times.t[-1], part.zs[-1]
                else:
                    self.t, self.z = self._time(forward.t), forward.final
                return forward.retcode, forward.message, forward.sample
            if watch.stalled is not None:
                return Retcode.MAX_EVENTS, self._accumulates(watch.stalled), None
            fired = self._jump(watch, located)
            if any(problem.events[crossing.event].terminal for crossing in fired):
                return Retcode.TERMINATED, "", None
            if done == len(times.t):
                return Retcode.SUCCESS, "", None
            watch = watch.following(fired)
        return Retcode.MAX_EVENTS, self._too_many(), None

    def solution(self, retcode: Retcode, message: str) -> Solution:
        times, layout = self.problem.times, self.layout
        found = torch.cat(self._outputs)
        missing = found.new_full((len(times.t) - len(found), layout.size), float("nan"))
        z0 = layout.flatten(self.problem.z0)
        like = times.t.detach().to(self.time_dtype)
        solution = Solution(
            ts=times.t,
            zs=layout.restore(torch.cat([found, missing])),
            stats=self.stats,
            retcode=retcode,
            message=message,
            events=tuple(
                record(event, layout, like, firings, z0)
                for event, firings in zip(self.problem.events, self._firings, strict=True)
            ),
            end=(self.t, layout.restore(self.z)),
        )
        if self._stretches:
            joined: Any = _Joined(self._stretches)
            solution.dense = DenseOutput(joined, layout, self._no_gradient)
        return solution

    def _note(self, start: float, watch: Watch, part: Part) -> None:
        """Keep the dense output of a stretch."""
        if part.dense is not None and watch.stalled is None:
            trajectory = part.dense.trajectory
            end = trajectory.t1 if watch.stop is None else watch.stop
            self._stretches.append((start, end, trajectory))
            self._no_gradient = self._no_gradient or part.dense.no_gradient

    def _time(self, t: float) -> Tensor:
        times = self.problem.times.t
        return torch.tensor(t, dtype=self.time_dtype, device=times.device)

    def _locate(self, crossing: Crossing, z: Tensor) -> tuple[Tensor, Tensor]:
        """Time and state of a crossing, as functions of what came before.

        Args:
            z: the state at the time that the forward pass found, held fixed.
        """
        t = self._time(crossing.t)
        if not torch.is_grad_enabled():
            return t, z
        event = self.problem.events[crossing.event]

        def g(t: Tensor, z: Tensor) -> Tensor:
            self.stats.conditions += 1
            time = t.to(z)
            state = self.layout.restore(z)
            return event.values(time, state, self.problem.args)[crossing.entry]

        if not g(t, z).requires_grad:
            return t, z
        shift = self._newton(g, t, z, event)
        if self._twice:
            # One step of Newton's is exact to first order, two to third.
            s = shift
            moved = carry(self.field, t.to(z), z, s, None)
            shift = s + self._newton(g, t + s, moved, event)
            return t + shift, carry(self.field, t.to(z), z, shift, None)
        shift = first_derivatives_only(shift, self.options.sensitivity)
        return t + shift, self._shifted(t, z, shift)

    def _newton(self, g: Any, t: Tensor, z: Tensor, event: Event) -> Tensor:
        """A step of Newton's towards g = 0 along the flow: zero, but for its derivatives."""
        t = t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
        z_here = z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
        value = g(t, z_here)
        of_t, of_z = torch.autograd.grad(
            value, (t, z_here), create_graph=self._twice, retain_graph=True, allow_unused=True
        )
        with torch.set_grad_enabled(self._twice):
            slope = torch.zeros_like(value) if of_t is None else of_t.to(value)
            if of_z is not None:
                slope = slope + (of_z * self.field(t.to(z), z_here)).sum()
        if not bool((1.0 / slope).isfinite()):
            return _Refused.apply(value, event.name, float(t.detach())).to(t)
        step = value / slope
        return (step.detach() - step).to(t)

    def _shifted(self, t: Tensor, z: Tensor, shift: Tensor) -> Tensor:
        """z carried along the flow for a duration of value zero, to the order that is kept."""
        if not shift.requires_grad:
            return z
        if self._twice:
            return carry(self.field, t.to(z), z, shift, None)
        with torch.no_grad():
            slope = self.field(t.to(z), z)
        return z + slope * shift.to(z)

    def _record(
        self,
        crossings: Sequence[Crossing],
        located: Sequence[tuple[Tensor, Tensor]],
        after: dict[int, Tensor] | None = None,
    ) -> None:
        for i, (crossing, (t, z)) in enumerate(zip(crossings, located, strict=True)):
            z_after = (after or {}).get(i, z)
            self._firings[crossing.event].append((t, z, z_after, crossing.entry))

    def _jump(self, watch: Watch, located: Sequence[tuple[Tensor, Tensor]]) -> list[Crossing]:
        """Apply the jumps of the events that ended the stretch, which are returned.

        Jumps at one time are applied in the order of the events. The times of two may have
        different derivatives though their values agree: between them the state is carried on.
        """
        events = self.problem.events
        ending = sorted(
            (
                i
                for i, crossing in enumerate(watch.found)
                if events[crossing.event].ends and crossing.t == watch.stop
            ),
            key=lambda i: (watch.found[i].event, watch.found[i].entry),
        )
        after: dict[int, Tensor] = {}
        self.t, self.z = located[ending[0]]
        for group in self._together(ending, watch, located):
            t = located[group[0]][0]
            self.z = self._shifted(t.detach(), self.z, t - self.t)
            self.t = t
            crossings = [watch.found[i] for i in group]
            index = crossings[0].event
            if events[index].jump is not None:
                self._apply(events[index], crossings, watch.size_of(index))
            after.update((i, self.z) for i in group)
        self._record(watch.found, located, after)
        return [watch.found[i] for i in ending]

    def _together(
        self, ending: list[int], watch: Watch, located: Sequence[tuple[Tensor, Tensor]]
    ) -> list[list[int]]:
        """Crossings whose jump can be made in one call: of one event, at times without gradient."""

        def key(i: int) -> tuple[int, int]:
            return watch.found[i].event, i if located[i][0].requires_grad else -1

        return [list(group) for _, group in itertools.groupby(ending, key)]

    def _apply(self, event: Event, crossings: list[Crossing], size: int) -> None:
        mask = torch.zeros(size, dtype=torch.bool, device=self.z.device)
        mask[[crossing.entry for crossing in crossings]] = True
        state = self.layout.restore(self.z)
        new = event.after(self.t.to(self.z), state, self.problem.args, mask, self.layout)
        self.z = self.layout.flatten(new)

    def _accumulates(self, name: str) -> str:
        count = sum(len(firings) for firings in self._firings)
        return (
            f"event {name!r} fires again and again at t={float(self.t.detach()):.10g}, after "
            f"{count} events: the time between two has shrunk below the spacing of numbers (as "
            "of a ball that comes to rest). End the solve before, by a terminal event at a small "
            "speed, say, or go on from there with a field that holds it at rest."
        )

    def _too_many(self) -> str:
        return (
            f"events changed the state more than max_events={self.options.max_events} times, the "
            f"last time at t={float(self.t.detach()):.10g}. If they accumulate, end the solve by a "
            "terminal event; else raise max_events."
        )


class _Joined:
    """Dense output of several stretches; at an event it is that before it."""

    def __init__(self, stretches: list[tuple[float, float, Trajectory]]) -> None:
        self._stretches = stretches
        self.t0, self.t1 = stretches[0][0], stretches[-1][1]
        self._direction = 1.0 if self.t1 > self.t0 else -1.0
        self._ends = [self._direction * end for _, end, _ in stretches]

    def at(self, t: float) -> Tensor:
        i = min(bisect_left(self._ends, self._direction * t), len(self._ends) - 1)
        return self._stretches[i][2].at(t)


class _Refused(torch.autograd.Function):
    """Zero, whose gradient does not exist."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, name: str, t: float) -> Tensor:
        ctx.name, ctx.t = name, t
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise GradientError(
            f"the condition of event {ctx.name!r} only touches zero at t={ctx.t:.6g}, with no "
            "slope: the time of the event, and all that follows, has no derivative there"
        )
