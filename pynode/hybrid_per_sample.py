"""Solves with events where every sample steps, jumps and ends by itself.

As in ``hybrid.py``, in rounds: in each, every sample that is still on its way is solved from its
last event to its next one, with steps of its own; then the events' times are made functions of what
came before, and the jumps made, of all samples together. There are as many rounds as the busiest
sample has events that change its state or end it, and gradients are those of a chain of solves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import autograd
from pynode.autograd import Part, first_derivatives_only
from pynode.dense import OwnDenseOutput
from pynode.engines.torch.crossings import Crossing
from pynode.engines.torch.failures import together
from pynode.engines.torch.per_sample.crossings import RowWatch
from pynode.engines.torch.per_sample.engine import PerSampleEngine
from pynode.engines.torch.per_sample.field import At, RowField
from pynode.engines.torch.per_sample.outputs import as_index
from pynode.engines.torch.per_sample.trajectory import JoinedRows, RowTrajectory
from pynode.errors import GradientError
from pynode.events import Event, EventRecord
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Retcode, SampleOutcomes, Solution, Statistics


class RowHybrid:
    """One solve with events and steps per sample: round after round.

    Args:
        problem: one of :meth:`ODEProblem.per_sample`.

    Attributes:
        t, z: where each sample has got to: times (B,), differentiable, and states (B, D).
        active: (B,), which samples are still on their way.
        samples: how each fared.
    """

    def __init__(self, problem: ODEProblem, options: SolveOptions) -> None:
        self.problem, self.options = problem, options
        self.layout, self.times = problem.layout, problem.times
        self.stats = Statistics()
        self.engine = PerSampleEngine()
        self.rows: int = problem.times.samples
        self.time_dtype = torch.promote_types(self.times.t.dtype, self.layout.dtype)
        self.t: Tensor = self.times.t0.to(self.time_dtype)
        self.z = self.layout.flatten(problem.z0).reshape(self.rows, -1)
        self.active = np.ones(self.rows, dtype=bool)
        self._done = np.zeros(self.rows, dtype=np.int64)
        self._outputs: list[tuple[np.ndarray, np.ndarray, Tensor]] = []
        self._firings: list[list[_Firings]] = [[] for _ in problem.events]
        self._stretches: list[RowTrajectory] = []
        self._ends: list[np.ndarray] = []
        self._no_gradient = ""
        none = torch.zeros(self.rows, dtype=torch.int64)
        self.samples = SampleOutcomes(
            [Retcode.SUCCESS] * self.rows, none, none, none, none, none, attempts=0
        )

    def solve(self) -> tuple[str, int | None]:
        """Go on until every sample is at its last time, at a terminal event, or has failed.

        Returns:
            A message about samples that failed, and the first that did.
        """
        problem = self.problem
        watch = RowWatch(problem.events, self.layout, problem.args, self.stats, self.time_dtype)
        for _ in range(self.options.max_events + 1):
            part = autograd.integrate(self._stretch(), self.options, self.stats, watch, self.engine)
            self._collect(part, watch)
            fired = self._events(part, watch)
            self._note(part)
            if not self.active.any():
                break
            watch = watch.following(fired)
        for row in np.flatnonzero(self.active).tolist():
            self._fail(row, Retcode.MAX_EVENTS, self._too_many(row))
        self.samples.t = self.t.detach().to("cpu", torch.float64)
        messages = self.samples.messages
        if not messages:
            return "", None
        worst = next(iter(messages))
        return together(messages, worst, self.rows), worst

    def solution(self, message: str) -> Solution:
        layout, times, retcodes = self.layout, self.times, self.samples.retcodes
        retcode = Retcode.SUCCESS
        if self.samples.failed:
            retcode = retcodes[next(iter(self.samples.messages))]
        elif set(retcodes) == {Retcode.TERMINATED}:
            retcode = Retcode.TERMINATED
        solution = Solution(
            ts=times.given,
            zs=layout.restore(self._assembled()),
            stats=self.stats,
            retcode=retcode,
            message=message,
            samples=self.samples,
            events=tuple(
                self._record(event, firings)
                for event, firings in zip(self.problem.events, self._firings, strict=True)
            ),
            end=(self.t, layout.restore(self.z.reshape(-1))),
        )
        if self._stretches:
            ends = np.stack(self._ends)
            joined = JoinedRows(self._stretches, times.start, ends, times.direction)
            z0 = self.problem.z0
            solution.dense = OwnDenseOutput(joined, layout, times, z0, self._no_gradient)
        return solution

    def _stretch(self) -> ODEProblem:
        """The problem from where the samples are; those that have ended stay there."""
        if not self._outputs:
            return self.problem
        (going,) = as_index(self.z, self.active.copy())  # autograd keeps it
        z = torch.where(going.unsqueeze(1), self.z, self.z.detach())
        t = torch.where(going.to(self.t.device), self.t, self.t.detach())
        done = np.where(self.active, self._done, self.times.counts)
        return self.problem.stretch(self.layout.restore(z.reshape(-1)), self.times.rest(t, done))

    def _collect(self, part: Part, watch: RowWatch) -> None:
        """Take in a round's outputs and counts; samples that need no more of them leave."""
        now, samples = part.forward.samples, self.samples
        assert now is not None
        zs = part.zs.reshape(len(part.zs), self.rows, -1)
        reached = now.outputs.numpy()
        sample = np.repeat(np.arange(self.rows), reached)
        slot = np.arange(len(sample)) - np.repeat(np.cumsum(reached) - reached, reached)
        self._outputs.append((slot + self._done[sample], sample, zs[as_index(zs, slot, sample)]))
        for name in ("outputs", "nfe", "accepted", "rejected", "attempts"):
            setattr(samples, name, getattr(samples, name) + getattr(now, name))
        stopped = ~np.isnan(watch.stop)
        complete = np.flatnonzero(self.active & ~stopped)
        failed = [row for row in now.messages if self.active[row]]
        complete = np.setdiff1d(complete, failed)
        last = self.times.counts - 1
        if len(complete):
            t = self.times.t[as_index(self.times.t, complete, last[complete])]
            index = as_index(zs, (last - self._done)[complete], complete)
            self._put(complete, t, zs[index])
        if failed:
            final = part.forward.final.detach().reshape(self.rows, -1)
            rows = np.array(failed)
            self._put(rows, now.t[failed], final[as_index(final, rows)])
            for row in failed:
                self._fail(row, now.retcodes[row], now.messages[row])
        for row, name in watch.stalled.items():
            self._fail(row, Retcode.MAX_EVENTS, self._accumulates(row, name))
        self._done = self._done + reached
        self.active &= stopped

    def _events(self, part: Part, watch: RowWatch) -> list[Crossing]:
        """Record what happened and make jumps; returns the crossings that samples go on from."""
        events, found = self.problem.events, watch.found
        if not found:
            return []
        assert part.marks is not None
        t, z = self._locate(watch, part.marks)
        ending = [
            i
            for i, c in enumerate(found)
            if events[c.event].ends and c.t == watch.stop[c.entry] and c.entry not in watch.stalled
        ]
        after = self._jump(found, ending, t, z) if ending else z
        for event, firings in enumerate(self._firings):
            some = [i for i, c in enumerate(found) if c.event == event]
            if some:
                firings.append(
                    _Firings([found[i].entry for i in some], t[some], z[some], after[some])
                )
        fired = [found[i] for i in ending]
        for c in fired:
            if events[c.event].terminal:
                self.samples.retcodes[c.entry] = Retcode.TERMINATED
                self.active[c.entry] = False
        self.active &= self._done < self.times.counts
        return [c for c in fired if self.active[c.entry]]

    def _locate(self, watch: RowWatch, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Times (M,) and states (M, D) of crossings, as functions of what came before.

        Args:
            marks: the states at the times that the forward pass found, held fixed.
        """
        found = watch.found
        t = torch.tensor([c.t for c in found], dtype=self.time_dtype, device=self.t.device)
        if not torch.is_grad_enabled():
            return t, marks
        waves: dict[tuple[int, int], list[int]] = defaultdict(list)
        turns: dict[int, int] = defaultdict(int)
        for i, c in enumerate(found):  # in none of which a sample comes twice
            waves[c.event, turns[c.index]].append(i)
            turns[c.index] += 1
        field = self._field()
        shifted = False
        shifts, slopes = t.new_zeros(len(found)), torch.zeros_like(marks)
        for (event, _), some in waves.items():
            moved = self._newton(
                watch, field, self.problem.events[event], some, t[some], marks[some]
            )
            if moved is not None:
                (index,) = as_index(marks, np.array(some))
                shifts = shifts.index_copy(0, index.to(t.device), moved[0])
                slopes = slopes.index_copy(0, index, moved[1])
                shifted = True
        if not shifted:
            return t, marks
        shifts = first_derivatives_only(shifts, self.options.sensitivity)
        return t + shifts, marks + slopes * shifts.to(marks).unsqueeze(1)

    def _field(self) -> RowField:
        problem = self.problem
        field = self.engine.field(problem, self.options, problem.args, self.stats, None)
        assert isinstance(field, RowField)
        return field

    def _newton(
        self,
        watch: RowWatch,
        field: RowField,
        event: Event,
        some: list[int],
        t: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor] | None:
        """Steps (m,) of Newton's towards g = 0 along the flow: zero, but for their derivatives.

        Returns:
            The steps, and the slopes f (m, D); None where nothing is differentiated.
        """
        rows = np.array([watch.found[i].entry for i in some])

        def g(t: Tensor, z: Tensor) -> Tensor:
            self.stats.conditions += 1
            time, full, index = watch.embed(rows, t, z)
            state = self.layout.restore(full.reshape(-1))
            return event.of_samples(time, state, self.problem.args)[index]

        if not g(t.to(z), z).requires_grad:
            return None
        t_here = t.to(z).detach().requires_grad_()
        z_here = z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
        value = g(t_here, z_here)
        of_t, of_z = torch.autograd.grad(
            value.sum(), (t_here, z_here), retain_graph=True, allow_unused=True
        )
        with torch.no_grad():
            f = field(At(t.detach().to("cpu", torch.float64).numpy(), rows), z.detach())
            slope = torch.zeros_like(value) if of_t is None else of_t
            if of_z is not None:
                slope = slope + (of_z * f).sum(dim=1)
            inverse = 1.0 / slope
        bad = ~inverse.isfinite()
        step = value * torch.where(bad, 0.0, inverse)
        shift = step.detach() - step
        if bool(bad.any()):
            shift = shift + _Refused.apply(value, bad, event.name, t.detach(), rows)
        return shift.to(t), f

    def _jump(self, found: Sequence[Crossing], ending: list[int], t: Tensor, z: Tensor) -> Tensor:
        """Apply the jumps of the events that ended samples; the states (M, D) after each crossing.

        Jumps of one sample at one time are applied in the order of the events. The times of two
        may have different derivatives though their values agree: between them the state is
        carried on.
        """
        events = self.problem.events
        ending = sorted(ending, key=lambda i: found[i].event)
        first: dict[int, int] = {}
        for i in ending:
            first.setdefault(found[i].entry, i)
        self._put(np.array([*first]), t[[*first.values()]], z[[*first.values()]])
        after = z
        for event in sorted({found[i].event for i in ending}):
            some = [i for i in ending if found[i].event == event]
            rows = np.array([found[i].entry for i in some])
            self._carry([i for i in some if first[found[i].entry] != i], found, t)
            if events[event].jump is not None:
                self._apply(events[event], rows)
            places, at = as_index(z, np.array(some), rows)
            after = after.index_copy(0, places, self.z[at])
        return after

    def _carry(self, some: list[int], found: Sequence[Crossing], t: Tensor) -> None:
        """Carry samples from one event on to another at the same time."""
        if not some or not (t.requires_grad or self.t.requires_grad):
            return
        rows = np.array([found[i].entry for i in some])
        (at,) = as_index(self.z, rows)
        times, z = t[some], self.z[at]
        with torch.no_grad():
            moment = At(times.detach().to("cpu", torch.float64).numpy(), rows)
            f = self._field()(moment, z.detach())
        shift = times - self.t[at.to(times.device)]
        self._put(rows, times, z + f * (shift - shift.detach()).to(z).unsqueeze(1))

    def _apply(self, event: Event, rows: np.ndarray) -> None:
        mask = torch.zeros(self.rows, dtype=torch.bool, device=self.z.device)
        mask[as_index(mask, rows)] = True
        column = mask.unsqueeze(1)
        # The others are there to fill the batch: nothing of them may reach a gradient.
        z = torch.where(column, self.z, torch.nan_to_num(self.z.detach()))
        t = torch.where(mask, self.t.to(z), self.t.detach().to(z))
        state, args = self.layout.restore(z.reshape(-1)), self.problem.args
        new = event.after(t, state, args, mask, self.layout, per_sample=True)
        new = self.layout.flatten(new).reshape(self.z.shape)
        self.z = torch.where(column, new, self.z)

    def _put(self, rows: np.ndarray, t: Tensor, z: Tensor) -> None:
        """Where some samples are now."""
        (at,) = as_index(self.z, rows)
        t = t.to(self.t.device, self.time_dtype)
        self.t = self.t.index_copy(0, at.to(self.t.device), t)
        self.z = self.z.index_copy(0, at, z)

    def _fail(self, row: int, retcode: Retcode, message: str) -> None:
        self.samples.retcodes[row], self.samples.messages[row] = retcode, message
        self.active[row] = False

    def _note(self, part: Part) -> None:
        """Keep the dense output of a round."""
        if part.dense is not None:
            self._stretches.append(part.dense.trajectory)
            self._ends.append(self.t.detach().to("cpu", torch.float64).numpy())
            self._no_gradient = self._no_gradient or part.dense.no_gradient

    def _assembled(self) -> Tensor:
        """All outputs (T, B·D), NaN where a sample did not get."""
        slots, samples, values = zip(*self._outputs, strict=True)
        found = torch.cat(values)
        zs = found.new_full((self.times.values.shape[1], *self.z.shape), float("nan"))
        where = as_index(found, np.concatenate(slots), np.concatenate(samples))
        return zs.index_put(where, found).reshape(len(zs), -1)

    def _record(self, event: Event, firings: list[_Firings]) -> EventRecord:
        layout = self.layout.of_rows(1)
        rows = torch.tensor([row for part in firings for row in part.rows], dtype=torch.int64)
        order = rows.argsort(stable=True)

        def joined(parts: list[Tensor], none: Tensor) -> Tensor:
            return torch.cat([none.detach()[:0], *parts])[order.to(none.device)]

        def states(parts: list[Tensor]) -> Any:
            flat = layout.restore(joined(parts, self.z))
            return pytree.tree_map(lambda x: x.squeeze(1), flat)

        return EventRecord(
            event.name,
            joined([part.t for part in firings], self.t),
            states([part.z for part in firings]),
            states([part.after for part in firings]),
            rows[order],
        )

    def _accumulates(self, row: int, name: str) -> str:
        return (
            f"sample {row}: event {name!r} fires again and again at "
            f"t={float(self.t[row].detach()):.10g}: the time between two has shrunk below the "
            "spacing of numbers (as of a ball that comes to rest). End the sample before, by a "
            "terminal event at a small speed, say, or go on from there with a field that holds it "
            "at rest."
        )

    def _too_many(self, row: int) -> str:
        return (
            f"sample {row}: events changed the state more than "
            f"max_events={self.options.max_events} times, the last time at "
            f"t={float(self.t[row].detach()):.10g}. If they accumulate, end the sample by a "
            "terminal event; else raise max_events."
        )


@dataclass
class _Firings:
    """Firings of one event in one round: samples, times (m,), states (m, D) before and after."""

    rows: list[int]
    t: Tensor
    z: Tensor
    after: Tensor


class _Refused(torch.autograd.Function):
    """Zeros, of which some have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, bad: Tensor, name: str, t: Tensor, rows: np.ndarray
    ) -> Tensor:
        ctx.bad, ctx.name, ctx.t, ctx.rows = bad, name, t, rows
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        asked = (ctx.bad & (grad != 0)).nonzero().reshape(-1).tolist()
        if asked:
            i = asked[0]
            raise GradientError(
                f"the condition of event {ctx.name!r} only touches zero at t={float(ctx.t[i]):.6g} "
                f"(sample {ctx.rows[i]}), with no slope: the time of the event, and all that "
                "follows, has no derivative there"
            )
        return torch.zeros_like(grad), None, None, None, None
