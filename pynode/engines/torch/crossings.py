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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.errors import EventError
from pynode.events import Event
from pynode.solution import Statistics
from pynode.state import StateLayout

SAME = 4
"""Times at most this many roundings apart, in the precision of times, are one time."""


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
        nodes, to_coefficients = _chebyshev(max(piece.degree + 1, 4))
        times = [piece.t + piece.dt * x for x in nodes[1:-1]] + [piece.t1]
        # With gradients on as the caller has them: stages that are only made here stay.
        states = piece.at_each(times, rhs).detach()
        g = np.concatenate([self._last[None], self._at_each(times, states)])
        coefficients = to_coefficients @ g
        rest = np.abs(coefficients[1:]).sum(axis=0) * (1.0 + 1e-9)
        side = np.sign(coefficients[0])
        quiet = (np.abs(coefficients[0]) > rest) & ((self._sides == 0) | (self._sides == side))
        self._sides[quiet] = side[quiet]
        crossings: list[Crossing] = []
        self.slack = SAME * self._eps * max(abs(piece.t), abs(piece.t1))
        scan = _Scan(self, piece, rhs, [piece.t, *times])
        for index in np.flatnonzero(~quiet):
            crossings += scan(int(index), g[:, index], coefficients[:, index])
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

    def crossing(
        self, index: int, t: float, side: float, residual: float, noise: float
    ) -> Crossing:
        before = self._started.get(index)
        since = math.inf if before is None else abs(t - before.t)
        event, entry = self._event[index], self._entry[index]
        return Crossing(index, event, entry, t, side, residual, noise, since)

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


class _Scan:
    """The crossings of single conditions in one step."""

    def __init__(
        self, watch: Watch, piece: Piece, rhs: RightHandSide, times: Sequence[float]
    ) -> None:
        self.watch, self.piece, self.rhs, self.times = watch, piece, rhs, times
        self.eps = torch.finfo(piece.z.dtype).eps
        largest = max(abs(piece.t), abs(piece.t1))
        self.tolerance = max(2 * math.ulp(largest), 0.5 * self.eps * largest, abs(piece.dt) * 1e-18)

    def value(self, index: int, t: float) -> float:
        with torch.no_grad():
            z = self.piece.at(t, self.rhs)
        return self.watch.value(index, t, z)

    def __call__(self, index: int, g: np.ndarray, coefficients: np.ndarray) -> list[Crossing]:
        watch = self.watch
        side = float(watch._sides[index])
        scale = float(np.abs(g).max())
        points = [
            *zip(self.times, g.tolist(), strict=True),
            *self._extrema(index, side, coefficients),
        ]
        last = watch._fired.get(index)
        if last is not None and side == 0.0:
            points += self._first_moments(last)
        points.sort(key=lambda point: point[0] * math.copysign(1.0, self.piece.dt))
        found = []
        direction = watch.event_of(index).direction
        before = points[0]
        for point in points[1:]:
            sign = float(np.sign(point[1]))
            if side == 0.0:
                side = sign
            elif sign != side:
                if direction in (0, -side):
                    found.append(self._locate(index, side, before, point, scale))
                side = sign
            before = point
        watch._sides[index] = side
        if last is not None and self._stalls(last, points, found):
            watch.stalled = watch.event_of(index).name
        return found

    def _extrema(
        self, index: int, side: float, coefficients: np.ndarray
    ) -> list[tuple[float, float]]:
        """Points between the nodes at which the condition may be on the other side of zero."""
        roots = chebyshev.chebroots(chebyshev.chebder(coefficients))
        real = roots[np.abs(roots.imag) < 1e-8].real
        inside = real[(real > -1.0) & (real < 1.0)]
        values = chebyshev.chebval(inside, coefficients)
        doubt = 10.0 * abs(coefficients[-1]) + 64 * self.eps * np.abs(coefficients).sum()
        found = []
        nodes = np.array(self.times)
        g = chebyshev.chebval(_to_unit(nodes, self.piece), coefficients)
        for x, value in zip(inside.tolist(), values.tolist(), strict=True):
            t = self.piece.t + 0.5 * (x + 1.0) * self.piece.dt
            after = int(np.searchsorted(_to_unit(nodes, self.piece), x))
            here = side if after <= 1 else float(np.sign(g[after - 1]))
            if here * value <= doubt and t not in self.times:
                found.append((t, self.value(index, t)))
        return found

    def _first_moments(self, last: Crossing) -> list[tuple[float, float]]:
        """Points soon after the start, where a condition that has just fired leaves zero.

        They find a way out and back that is short against the step, as of a ball that hardly
        bounces any more. Dense output is exact there relative to its change.
        """
        found = []
        for power in range(1, 16):
            t = self.piece.t + self.piece.dt * 10.0**-power
            if t != self.piece.t:
                value = self.value(last.index, t)
                found.append((t, value if abs(value) > last.residual else 0.0))
        return found

    def _stalls(
        self, last: Crossing, points: list[tuple[float, float]], found: list[Crossing]
    ) -> bool:
        """Whether the event fires again and again without time going on.

        It fires at once; or it was back after next to no time, and now goes on through zero: the
        way out and back has become too short for the precision of numbers.
        """
        if found and abs(found[0].t - self.piece.t) <= self.watch.slack:
            return True
        first = next((g for _, g in points[1:] if g), 0.0)
        moment = max(400 * self.eps, 1e-11) * abs(last.t)
        return last.since <= moment and last.side * first < 0

    def _locate(
        self,
        index: int,
        side: float,
        before: tuple[float, float],
        after: tuple[float, float],
        scale: float,
    ) -> Crossing:
        (_, near), (t, beyond) = bracket(
            lambda t: self.value(index, t), before, after, side, self.tolerance
        )
        residual = 8.0 * max(abs(near), abs(beyond))
        noise = residual + 64 * self.eps * scale
        return self.watch.crossing(index, t, side, residual, noise)


def bracket(
    g: Callable[[float], float],
    near: tuple[float, float],
    beyond: tuple[float, float],
    side: float,
    tolerance: float,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Narrow (t, g(t)) on one side and beyond zero until the times are ``tolerance`` apart.

    Inverse quadratic interpolation or the secant, kept away from the ends so that both close in;
    bisection whenever two steps have not halved the bracket, so it takes at most about 3·log2
    of (width / tolerance) evaluations.

    Args:
        near: where g has the sign ``side``.
        beyond: where it has the other sign, or is zero.
    """
    third: tuple[float, float] | None = None
    width, slow, plateau = abs(beyond[0] - near[0]), 0, False
    while True:
        a, b = near[0], beyond[0]
        gap = b - a
        if abs(gap) <= tolerance or a + 0.5 * gap in (a, b):
            return near, beyond
        if beyond[1] == 0.0:  # the first time at which it is zero
            x = a + 0.5 * gap if plateau else b - math.copysign(0.99 * tolerance, gap)
            plateau = True
        elif slow >= 2:
            x, slow = a + 0.5 * gap, 0
        else:
            x = _interpolate(near, beyond, third)
            margin = min(0.5 * tolerance, 0.5 * abs(gap))
            fraction = min(max((x - a) / gap, margin / abs(gap)), 1.0 - margin / abs(gap))
            x = a + fraction * gap
        if x in (a, b):
            x = a + 0.5 * gap
        value = g(x)
        if np.sign(value) == side:
            third, near = near, (x, value)
        else:
            third, beyond = beyond, (x, value)
        slow = slow + 1 if abs(beyond[0] - near[0]) > 0.5 * width else 0
        width = abs(beyond[0] - near[0])


def _interpolate(
    near: tuple[float, float], beyond: tuple[float, float], third: tuple[float, float] | None
) -> float:
    (a, fa), (b, fb) = near, beyond
    secant = a - fa * (b - a) / (fb - fa)
    if third is None or third[1] in (fa, fb):
        return secant
    c, fc = third
    x = (
        a * fb * fc / ((fa - fb) * (fa - fc))
        + b * fa * fc / ((fb - fa) * (fb - fc))
        + c * fa * fb / ((fc - fa) * (fc - fb))
    )
    return x if min(a, b) < x < max(a, b) else secant


def _to_unit(t: np.ndarray, piece: Piece) -> np.ndarray:
    return 2.0 * (t - piece.t) / piece.dt - 1.0


@lru_cache(maxsize=16)
def _chebyshev(degree: int) -> tuple[list[float], np.ndarray]:
    """Chebyshev points of [0, 1], ends included, and values there to coefficients."""
    x = -np.cos(np.pi * np.arange(degree + 1) / degree)
    return (0.5 * (x + 1.0)).tolist(), np.linalg.inv(chebyshev.chebvander(x, degree))
