"""A solve by graphs, from the host: chunks of attempts, and what to read off after each."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from pynode.engines.torch.controller import stretch
from pynode.engines.torch.graphed.attempt import Attempt
from pynode.engines.torch.graphed.control import (
    DONE,
    DT_UNDERFLOW,
    MAX_STEPS,
    NON_FINITE,
    RUNNING,
)
from pynode.engines.torch.graphed.log import Block
from pynode.engines.torch.integrate import End, first_non_finite, stops_between
from pynode.engines.torch.runge_kutta import Jumps
from pynode.engines.torch.steppers import make_stepper
from pynode.field import FlatField
from pynode.options import CONTROLLERS, SolveOptions
from pynode.solution import Retcode
from pynode.times import Times

RETCODES = {
    DONE: Retcode.SUCCESS,
    MAX_STEPS: Retcode.MAX_STEPS,
    DT_UNDERFLOW: Retcode.DT_UNDERFLOW,
    NON_FINITE: Retcode.NON_FINITE,
}
FIRST_CHUNK = 8
"""Attempts before the host looks for the first time, where it knows nothing."""


class Run:
    """One solve.

    Args:
        attempt: whose fixed memory it uses.
        expected: attempts to expect in each stretch; afterwards, those that it took.
        z0: (N,)
        tolerances: rtol and atol, numbers or (N,).
    """

    def __init__(
        self,
        attempt: Attempt,
        expected: list[int],
        times: Times,
        options: SolveOptions,
        z0: Tensor,
        tolerances: tuple[float | Tensor, float | Tensor],
    ) -> None:
        self._attempt, self._expected, self._options = attempt, expected, options
        self._times, self._direction = times, times.direction
        self._stops = stops_between(times.start, times.end, options.stops)
        self._jumps = Jumps(options.tstops, z0.dtype)
        dt = math.inf if options.grid else options.dt
        self._state = {
            "t": times.start, "dt": 1.0 if dt is None else min(dt, options.dt_max), "past": 1.0,
            "before": 1.0, "refused": 0.0, "accepted": 0.0, "rejected": 0.0, "status": RUNNING,
            "row": 0.0, "count": 0.0, "size": 0.0,
        }  # fmt: skip
        self._given = self._constants(dt is not None)
        self.evaluations = 0
        attempt.z.copy_(z0)
        for buffer, value in zip((attempt.rtol, attempt.atol), tolerances, strict=True):
            buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)

    @property
    def accepted(self) -> int:
        return int(self._state["accepted"])

    @property
    def rejected(self) -> int:
        return int(self._state["rejected"])

    def blocks(self) -> Iterator[Block]:
        """Solve; yields the accepted steps as they are read off."""
        start = self._times.start
        for i, stop in enumerate(self._stops):
            spent = self.accepted + self.rejected
            if spent >= self._options.max_steps:
                self._state["status"] = MAX_STEPS
                return
            first, last = self._jumps.ends(start, stop)
            begins = i == 0 or start in self._jumps
            self._enter(start, stop, first, last, begins)
            yield from self._stretch(i, stop, begins, first)
            if self._state["status"] != DONE:
                return
            self._expected[i : i + 1] = [self.accepted + self.rejected - spent]
            start = stop

    def end(self, field: FlatField) -> End:
        """How it ended; ``field`` is evaluated to find the entry to blame, where there is one."""
        s, attempt = self._state, self._attempt
        retcode, z, entry = RETCODES[int(s["status"])], attempt.z.clone(), None
        dt = s["dt"] if self._options.is_adaptive else s["size"]
        if retcode is Retcode.NON_FINITE and not self.accepted + self.rejected:
            entry = first_non_finite(attempt.k, z)
        elif retcode is Retcode.NON_FINITE:
            stepper = make_stepper(attempt.method, field, z, False, self._options.tstops, None)
            piece = stepper.attempt(s["t"], s["t"] + self._direction * s["size"], z)
            entry = first_non_finite(piece.stages, piece.z1)
        return End(retcode, s["t"], z, dt, entry)

    def _enter(self, start: float, stop: float, first: float, last: float, begins: bool) -> None:
        """Begin a stretch."""
        attempt = self._attempt
        self._given |= {"start": start, "end": stop, "first": first, "last": last}
        self._state |= {"status": RUNNING, "row": 0.0, "count": 0.0}
        attempt.write(self._given, self._state)
        if not self._given["has_dt"]:
            assert attempt.choose is not None
            attempt.choose()
            self.evaluations += 2
            self._given["has_dt"] = 1.0
        elif begins and attempt.method.fsal:
            attempt.begin()
            self.evaluations += 1

    def _stretch(self, i: int, stop: float, begins: bool, first: float) -> Iterator[Block]:
        attempt, count = self._attempt, len(self._attempt.stages) - self._attempt.method.fsal
        left = self._first_guess(i, stop)
        while self._state["status"] == RUNNING:
            before = self.accepted + self.rejected
            attempt.attempt(min(max(left, 1), attempt.capacity))
            self._state, times = attempt.read()
            made = self.accepted + self.rejected - before
            self.evaluations += made * count
            if times:
                yield Block(times, attempt.log[: len(times)].clone(), begins, first)
                attempt.empty_log()
                begins = False
            left = max(left - attempt.capacity, self._guess(stop))

    def _first_guess(self, i: int, stop: float) -> int:
        """How many attempts a stretch may take."""
        if not self._options.is_adaptive:
            return self._guess(stop)
        return self._expected[i] if i < len(self._expected) else FIRST_CHUNK

    def _guess(self, stop: float) -> int:
        """How many more, if they go on like the last one."""
        ahead = abs(stop - self._state["t"]) / self._state["dt"]
        return min(math.ceil(ahead * (1 - 1e-9)), self._attempt.capacity)

    def _constants(self, has_dt: bool) -> dict[str, float]:
        o, method = self._options, self._attempt.method
        order = method.error_order + 1
        b1, b2, b3 = (beta / order for beta in CONTROLLERS[o.controller])
        adaptive = o.is_adaptive
        return {
            "direction": self._direction, "stretch": stretch(o) if adaptive else 1.0 + 1e-9,
            "longest": o.dt_max if adaptive else math.inf, "far": self._times.end,
            "b1": b1, "b2": b2, "b3": b3, "elementary": 1.0 / order, "safety": o.safety,
            "shrink": o.shrink, "grow": o.grow, "dt_min": o.dt_min if adaptive else 0.0,
            "dt_max": o.dt_max, "attempts": o.max_steps, "has_dt": float(has_dt),
        }  # fmt: skip
