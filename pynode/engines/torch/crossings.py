"""Where conditions cross zero inside a step, found on its dense output.

In each accepted step the conditions are evaluated at Chebyshev points, as many as make the
polynomial through them exact where a condition is linear in the state (the dense output being a
polynomial of known degree). Where this polynomial has an extremum that might cross zero between
two points, the condition is evaluated there as well. So for conditions linear in state and time
every crossing of the dense output is found, any number in one step; for others, every crossing
that the polynomial resolves. Roots are then bracketed, and found to the spacing of numbers by
interpolation safeguarded by bisection. Nothing but stages of the dense output itself costs an
evaluation of the field.

Boyd 2002, Computing zeros on a real interval through Chebyshev expansion and polynomial
rootfinding, SIAM J. Numer. Anal. 40.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.engines.torch.scan import SAME, Root, Scan, answered, chebyshev_points, keeps_sign
from pynode.errors import EventError
from pynode.events import Event
from pynode.solution import Statistics
from pynode.state import StateLayout


@dataclass(frozen=True)
class Crossing:
    """One condition crosses zero.

    Attributes:
        index: of the condition among all entries of all events.
        event, entry: which event, and which entry of its condition.
        t: when.
        side: sign of the condition before.
        residual: size of the condition at the time found, and next to it.
        noise: values up to this size cannot be told from zero in a step's values.
        since: time since the same crossing ended the stretch before; infinite if another did.
    """

    index: int
    event: int
    entry: int
    t: float
    side: float
    residual: float
    noise: float
    since: float = math.inf


def crossing(root: Root, index: int, event: int, entry: int, before: Crossing | None) -> Crossing:
    """A root as a crossing.

    Args:
        before: that of the same condition which ended the stretch before.
    """
    since = math.inf if before is None else abs(root.t - before.t)
    return Crossing(index, event, entry, root.t, root.side, root.residual, root.noise, since)


class Watch:
    """Looks for events in one stretch of a solve, from a start to the first event that ends it.

    Args:
        events: what to look for.
        layout, args, stats: of the solve; evaluations of conditions are counted.
        dtype: of times.
        fired: the crossings that ended the stretch before this one.

    Attributes:
        dt: the step size to begin with, and then to go on with; None to have it chosen.
        attempts: steps attempted in all stretches so far.
        found: crossings that fired, in order; those at ``stop`` end the stretch.
        marks: the state (N,) at each.
        stop: the time at which the stretch ended, if an event ended it.
        slack: times that differ from ``stop`` by no more are the same.
        stalled: the event that fires again and again without time going on, if one does.
    """

    def __init__(
        self,
        events: Sequence[Event],
        layout: StateLayout,
        args: Any,
        stats: Statistics,
        dtype: torch.dtype,
        fired: Sequence[Crossing] = (),
    ) -> None:
        self.events, self.layout, self.args, self.stats = events, layout, args, stats
        self.dtype = dtype
        self.dt: float | None = None
        self.attempts = 0
        self.found: list[Crossing] = []
        self.marks: list[Tensor] = []
        self.stop: float | None = None
        self.slack = 0.0
        self._eps = torch.finfo(dtype).eps
        self.stalled: str | None = None
        self._started = {crossing.index: crossing for crossing in fired}
        self._fired = dict(self._started)
        self._event: list[int] = []
        self._entry: list[int] = []

    def following(self, fired: Sequence[Crossing]) -> Watch:
        """The watch over the stretch after this one, which ``fired`` ended."""
        after = Watch(self.events, self.layout, self.args, self.stats, self.dtype, fired)
        after.dt, after.attempts = self.dt, self.attempts
        return after

    def begin(self, t: float, z: Tensor) -> None:
        """Note on which side of zero each condition starts."""
        with torch.no_grad():
            values = [event.values(*self._point(t, z)) for event in self.events]
        self.stats.conditions += len(self.events)
        for i, value in enumerate(values):
            self._event += [i] * len(value)
            self._entry += range(len(value))
        self._sizes = [len(value) for value in values]
        self._last = self._to_host(values, [t])[0]
        self._sides = np.sign(self._last)
        for index, crossing in self._fired.items():
            if abs(self._last[index]) <= crossing.noise:
                self._sides[index] = 0.0

    def __call__(self, piece: Piece, rhs: RightHandSide) -> bool:
        """Whether an event ends the stretch inside this step."""
        nodes, to_coefficients = chebyshev_points(max(piece.degree + 1, 4))
        times = [piece.t + piece.dt * x for x in nodes[1:-1]] + [piece.t1]
        # With gradients on as the caller has them: stages that are only made here stay.
        states = piece.at_each(times, rhs).detach()
        g = np.concatenate([self._last[None], self._at_each(times, states)])
        coefficients = to_coefficients @ g
        quiet, side = keeps_sign(coefficients, self._sides)
        self._sides[quiet] = side[quiet]
        crossings: list[Crossing] = []
        self.slack = SAME * self._eps * max(abs(piece.t), abs(piece.t1))
        eps = torch.finfo(piece.z.dtype).eps
        scan = Scan(piece.t, piece.dt, piece.t1, [piece.t, *times], eps, self.slack)
        for index in map(int, np.flatnonzero(~quiet)):
            crossings += self._scan(scan, index, piece, rhs, g[:, index], coefficients[:, index])
        self._last = g[-1]
        self._fired = {}
        if self.stalled is not None:
            self.stop = piece.t
            return True
        return self._keep(sorted(crossings, key=lambda c: c.t * math.copysign(1, piece.dt)), piece)

    def _keep(self, crossings: list[Crossing], piece: Piece) -> bool:
        ending = [c for c in crossings if self.events[c.event].ends]
        end = ending[0].t if ending else None
        for crossing in crossings:
            if end is not None:
                if abs(crossing.t - end) <= self.slack:
                    crossing = replace(crossing, t=end)
                elif (crossing.t - end) * piece.dt > 0:
                    continue
            self.found.append(crossing)
            self.marks.append(piece.at(crossing.t, self._no_more_stages))
        self.stop = end
        return end is not None

    def value(self, index: int, t: float, z: Tensor) -> float:
        """One condition at one point."""
        event = self._event[index]
        with torch.no_grad():
            values = self.events[event].values(*self._point(t, z))
        self.stats.conditions += 1
        value = float(values[self._entry[index]])
        if not math.isfinite(value):
            raise self._bad(index, t)
        return value

    def size_of(self, event: int) -> int:
        """Number of entries of an event's condition."""
        return self._sizes[event]

    def _scan(
        self,
        scan: Scan,
        index: int,
        piece: Piece,
        rhs: RightHandSide,
        g: np.ndarray,
        coefficients: np.ndarray,
    ) -> list[Crossing]:
        """The crossings of one condition."""

        def value(t: float) -> float:
            with torch.no_grad():
                z = piece.at(t, rhs)
            return self.value(index, t, z)

        event = self.event_of(index)
        side, last = float(self._sides[index]), self._fired.get(index)
        scanned = answered(scan(g, coefficients, side, event.direction, last), value)
        self._sides[index] = scanned.side
        if scanned.stalled:
            self.stalled = event.name
        before = self._started.get(index)
        return [
            crossing(root, index, self._event[index], self._entry[index], before)
            for root in scanned.roots
        ]

    def event_of(self, index: int) -> Event:
        return self.events[self._event[index]]

    def _at_each(self, times: list[float], states: Tensor) -> np.ndarray:
        """All conditions (len(times), K) at states (len(times), N)."""
        found: list[Tensor] = []
        moments = torch.tensor(times, dtype=states.dtype).to(states.device).unbind()
        with torch.no_grad():
            for t, z in zip(moments, states.unbind(), strict=True):
                state = self.layout.restore(z)
                for event, size in zip(self.events, self._sizes, strict=True):
                    value = event.values(t, state, self.args)
                    if len(value) != size:
                        raise EventError(
                            f"the condition of event {event.name!r} returned {len(value)} values "
                            f"at t={float(t):.6g}, but {size} before: their number must stay the "
                            "same"
                        )
                    found.append(value)
        self.stats.conditions += len(found)
        return self._to_host(found, times)

    def _point(self, t: float, z: Tensor) -> tuple[Tensor, Any, Any]:
        time = torch.full((), t, dtype=z.dtype, device=z.device)
        return time, self.layout.restore(z.detach()), self.args

    def _to_host(self, values: list[Tensor], times: list[float]) -> np.ndarray:
        """Values as (len(times), K) numbers: one synchronisation."""
        both = torch.cat(values).detach().cpu().numpy().astype(np.float64)
        both = both.reshape(len(times), -1)
        bad = ~np.isfinite(both)
        if bad.any():
            row, index = (int(i[0]) for i in np.nonzero(bad))
            raise self._bad(index, times[row])
        return both

    def _bad(self, index: int, t: float) -> EventError:
        event = self.event_of(index)
        return EventError(
            f"the condition of event {event.name!r} is NaN or infinite at t={t:.6g} (entry "
            f"{self._entry[index]}): look for log, sqrt or division at the edge of their domain; "
            "it is evaluated a little beyond the event too"
        )

    @staticmethod
    def _no_more_stages(t: float, z: Tensor) -> Tensor:
        raise AssertionError("the step's dense output is complete by now")
