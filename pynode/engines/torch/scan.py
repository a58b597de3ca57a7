"""The zeros of one condition in one step.

A scan asks for values of the condition by yielding times, so that the caller may answer many scans
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.polynomial import chebyshev

SAME = 4
"""Times at most this many roundings apart, in the precision of times, are one time."""

Result = TypeVar("Result")
Asking = Generator[float, float, Result]
"""Yields times at which it is sent the value of the condition."""

Point = tuple[float, float]
"""A time and the value of the condition then."""


class Before(Protocol):
    """A crossing that ended the stretch before, see :class:`~.crossings.Crossing`."""

    @property
    def t(self) -> float: ...

    @property
    def side(self) -> float: ...

    @property
    def residual(self) -> float: ...

    @property
    def since(self) -> float: ...


@dataclass(frozen=True)
class Root:
    """Where a condition crosses zero.

    Attributes:
        t: when.
        side: sign of the condition before.
        residual: size of the condition at the time found, and next to it.
        noise: values up to this size cannot be told from zero in a step's values.
    """

    t: float
    side: float
    residual: float
    noise: float


@dataclass(frozen=True)
class Scanned:
    """The zeros of a condition in a step.

    Attributes:
        side: sign of the condition at the end; 0 where it has not left zero yet.
        roots: those that fire, in order.
        stalled: it fires again and again without time going on.
    """

    side: float
    roots: list[Root]
    stalled: bool


def answered(asking: Asking[Result], value: Callable[[float], float]) -> Result:
    """What a generator comes to, each of its questions answered by ``value``."""
    try:
        t = next(asking)
        while True:
            t = asking.send(value(t))
    except StopIteration as end:
        result: Result = end.value
        return result


class Scan:
    """Looks for zeros of conditions in one step.

    Args:
        t, dt, t1: start, signed size and end of the step.
        times: where the conditions were evaluated, the start included.
        eps: rounding of states; ``slack``: times that differ by no more are the same.
    """

    def __init__(
        self, t: float, dt: float, t1: float, times: Sequence[float], eps: float, slack: float
    ) -> None:
        self.t, self.dt, self.times = t, dt, times
        self.eps, self.slack = eps, slack
        largest = max(abs(t), abs(t1))
        self.tolerance = max(2 * math.ulp(largest), 0.5 * eps * largest, abs(dt) * 1e-18)

    def __call__(
        self,
        g: np.ndarray,
        coefficients: np.ndarray,
        side: float,
        direction: int,
        last: Before | None,
    ) -> Asking[Scanned]:
        """The zeros of a condition with values ``g`` at ``times``.

        Args:
            coefficients: of the Chebyshev polynomial through these.
            side: sign before the step; 0 where the condition has yet to leave zero.
            direction: as an event's.
            last: the crossing of this condition that ended the stretch before this step.
        """
        scale = float(np.abs(g).max())
        points = [*zip(self.times, g.tolist(), strict=True)]
        points += yield from self._extrema(side, coefficients)
        if last is not None and side == 0.0:
            points += yield from self._first_moments(last)
        points.sort(key=lambda point: point[0] * math.copysign(1.0, self.dt))
        found = []
        before = points[0]
        for point in points[1:]:
            sign = float(np.sign(point[1]))
            if side == 0.0:
                side = sign
            elif sign != side:
                if direction in (0, -side):
                    found.append((yield from self._locate(side, before, point, scale)))
                side = sign
            before = point
        return Scanned(side, found, last is not None and self._stalls(last, points, found))

    def _extrema(self, side: float, coefficients: np.ndarray) -> Asking[list[Point]]:
        """Points between the nodes at which the condition may be on the other side of zero."""
        roots = chebyshev.chebroots(chebyshev.chebder(coefficients))
        real = roots[np.abs(roots.imag) < 1e-8].real
        inside = real[(real > -1.0) & (real < 1.0)]
        values = chebyshev.chebval(inside, coefficients)
        doubt = 10.0 * abs(coefficients[-1]) + 64 * self.eps * np.abs(coefficients).sum()
        found = []
        nodes = 2.0 * (np.array(self.times) - self.t) / self.dt - 1.0
        g = chebyshev.chebval(nodes, coefficients)
        for x, value in zip(inside.tolist(), values.tolist(), strict=True):
            t = self.t + 0.5 * (x + 1.0) * self.dt
            after = int(np.searchsorted(nodes, x))
            here = side if after <= 1 else float(np.sign(g[after - 1]))
            if here * value <= doubt and t not in self.times:
                found.append((t, (yield t)))
        return found

    def _first_moments(self, last: Before) -> Asking[list[Point]]:
        """Points soon after the start, where a condition that has just fired leaves zero.

        They find a way out and back that is short against the step, as of a ball that hardly
        bounces any more. Dense output is exact there relative to its change.
        """
        found = []
        for power in range(1, 16):
            t = self.t + self.dt * 10.0**-power
            if t != self.t:
                value = yield t
                found.append((t, value if abs(value) > last.residual else 0.0))
        return found

    def _stalls(self, last: Before, points: list[Point], found: list[Root]) -> bool:
        """Whether the event fires again and again without time going on.

        It fires at once; or it was back after next to no time, and now goes on through zero: the
        way out and back has become too short for the precision of numbers.
        """
        if found and abs(found[0].t - self.t) <= self.slack:
            return True
        first = next((g for _, g in points[1:] if g), 0.0)
        moment = max(400 * self.eps, 1e-11) * abs(last.t)
        return last.since <= moment and last.side * first < 0

    def _locate(self, side: float, before: Point, after: Point, scale: float) -> Asking[Root]:
        (_, near), (t, beyond) = yield from bracket(before, after, side, self.tolerance)
        residual = 8.0 * max(abs(near), abs(beyond))
        return Root(t, side, residual, residual + 64 * self.eps * scale)


def bracket(
    near: Point, beyond: Point, side: float, tolerance: float
) -> Asking[tuple[Point, Point]]:
    """Narrow (t, g(t)) on one side and beyond zero until the times are ``tolerance`` apart.

    Inverse quadratic interpolation or the secant, kept away from the ends so that both close in;
    bisection whenever two steps have not halved the bracket, so it takes at most about 3·log2
    of (width / tolerance) evaluations.

    Args:
        near: where g has the sign ``side``.
        beyond: where it has the other sign, or is zero.
    """
    third: Point | None = None
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
        value = yield x
        if np.sign(value) == side:
            third, near = near, (x, value)
        else:
            third, beyond = beyond, (x, value)
        slow = slow + 1 if abs(beyond[0] - near[0]) > 0.5 * width else 0
        width = abs(beyond[0] - near[0])


def _interpolate(near: Point, beyond: Point, third: Point | None) -> float:
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


def keeps_sign(coefficients: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which Chebyshev polynomials (degree + 1, K) certainly stay on their ``sides`` (K,) of zero.

    Returns:
        Which, and the signs (K,) of their means.
    """
    rest = np.abs(coefficients[1:]).sum(axis=0) * (1.0 + 1e-9)
    side = np.sign(coefficients[0])
    return (np.abs(coefficients[0]) > rest) & ((sides == 0) | (sides == side)), side


@lru_cache(maxsize=16)
def chebyshev_points(degree: int) -> tuple[list[float], np.ndarray]:
    """Chebyshev points of [0, 1], ends included, and values there to coefficients."""
    x = -np.cos(np.pi * np.arange(degree + 1) / degree)
    return (0.5 * (x + 1.0)).tolist(), np.linalg.inv(chebyshev.chebvander(x, degree))
