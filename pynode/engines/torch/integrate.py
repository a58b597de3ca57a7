"""The loop: from one time to another, by steps that are accepted or rejected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pynode.engines.torch.controller import ErrorNorm, maximum, to_host
from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.engines.torch.steppers import Stepper
from pynode.options import StepCallbacks
from pynode.solution import Retcode
from pynode.transforms import is_batched

OnStep = Callable[[Piece], bool | None]
"""Called with each accepted step; the integration ends with it where True comes back."""


class Control(Protocol):
    """Chooses step sizes: :class:`StepSize`, or a method's own.

    Attributes:
        restarts: after a stop the method begins anew, with a first step size.
        stretch: how much longer than proposed a step may be to end on a stop.
    """

    dt_min: float
    dt_max: float
    stretch: float
    restarts: bool

    def first(
        self, rhs: RightHandSide, t0: float, t1: float, z0: Tensor, f0: Tensor, norm: ErrorNorm
    ) -> float: ...

    def accepted(self, dt: float, error: float, cut: bool = False) -> float: ...

    def rejected(self, dt: float, error: float) -> float: ...


@dataclass
class End:
    """How and where an integration ended.

    Attributes:
        t, z: the last accepted time and state.
        dt: the size the next step would have had.
        entry: for a non-finite end, the flat state entry to blame, if one was found.
    """

    retcode: Retcode
    t: float
    z: Tensor
    dt: float
    entry: int | None = None


class Integrator:
    """Integrates with one stepper over any number of stretches, remembering the step size.

    Args:
        stepper: makes attempts.
        norm: error norm; None for fixed steps of size ``dt``.
        control: step-size controller; None for fixed steps.
        max_steps: largest number of attempts in one run.
        dt: first (or fixed) step size; None to have it chosen.
        callbacks: functions of flat states that are called at each step.

    Attributes:
        accepted, rejected: attempts in all runs.
        beside: the error, in units of the tolerance, of what is integrated beside the state, if
            there is such: asked for each step that the state's own error allows.
    """

    def __init__(
        self,
        stepper: Stepper,
        norm: ErrorNorm | None,
        control: Control | None,
        max_steps: int,
        dt: float | None,
        callbacks: StepCallbacks | None = None,
    ) -> None:
        self.stepper = stepper
        self.norm, self.control = norm, control
        self.max_steps = max_steps
        self.dt = dt
        self._callbacks = callbacks or StepCallbacks()
        self.accepted = 0
        self.rejected = 0
        self.beside: Callable[[Piece], float] | None = None
        self._limit = max_steps
        self._begun = False

    def run(
        self,
        t0: float,
        z0: Tensor,
        stops: Sequence[float],
        on_step: OnStep | None = None,
        first: Tensor | None = None,
    ) -> End:
        """Integrate from (t0, z0) through all ``stops``, each of which a step ends on."""
        self._limit = self.accepted + self.rejected + self.max_steps
        f0 = self.stepper.begin(t0, stops[0], z0, first)
        restarts = self.control is not None and self.control.restarts
        if self.dt is None or (restarts and self._begun):
            self.dt = self._choose_first(t0, stops[-1], z0, f0)
            if not math.isfinite(self.dt):
                return End(Retcode.NON_FINITE, t0, z0, self.dt, first_non_finite(f0, z0))
        self._begun = True
        t, z = t0, z0
        for i, stop in enumerate(stops):
            if i and restarts:
                f = self.stepper.begin(t, stop, z)
                dt = self._choose_first(t, stop, z, f)
                self.dt = dt if math.isfinite(dt) else self.dt
            end = self._stretch(t, z, stop, on_step)
            if end.retcode is not Retcode.SUCCESS:
                return end
            t, z = end.t, end.z
        return End(Retcode.SUCCESS, t, z, self.dt)

    def _choose_first(self, t0: float, t1: float, z0: Tensor, f0: Tensor) -> float:
        assert self.norm is not None and self.control is not None
        rhs = self.stepper.rhs
        if not math.isfinite(to_host(maximum(f0.detach()), self.norm.transformed)):
            return math.nan
        return self.control.first(rhs, t0, t1, z0, f0, self.norm)

    def _stretch(self, t: float, z: Tensor, stop: float, on_step: OnStep | None) -> End:
        """Steps up to ``stop``, which the last one lands on."""
        assert self.dt is not None
        direction = math.copysign(1.0, stop - t)
        stepper = self.stepper
        begin, count = t, 0
        sliver = 4 * math.ulp(max(abs(t), abs(stop)))
        slack = 1.0 + 1e-9 if self.control is None else self.control.stretch
        longest = math.inf if self.control is None else self.control.dt_max
        while (stop - t) * direction > 0:
            dt = self.dt
            lands = min(dt * slack, longest) + sliver >= abs(stop - t)
            if self.accepted + self.rejected >= self._limit:
                return End(Retcode.MAX_STEPS, t, z, dt)
            if not lands and dt < 8 * math.ulp(t):
                return End(Retcode.DT_UNDERFLOW, t, z, dt)
            if self.control is None:  # not t + dt: rounding would add up
                count += 1
                t1 = begin + direction * count * dt
            else:
                t1 = t + direction * dt
            if lands:
                t1 = stop
            if self._callbacks.attempt is not None:
                self._callbacks.attempt(t, z, t1 - t)
            piece = stepper.attempt(t, t1, z)
            error = self._judge(piece)
            if error > 1.0 or not math.isfinite(error):
                end = self._reject(piece, error)
                if end is not None:
                    return end
                continue
            self.accepted += 1
            if self._callbacks.accepted is not None:
                self._callbacks.accepted(t, z, piece.dt)
            if self.control is not None:
                # A step cut short by a stop says little about the size that the next may have.
                cut = lands and abs(piece.dt) < dt
                proposal = self.control.accepted(abs(piece.dt), error, cut)
                self.dt = max(proposal, dt) if cut else proposal
            if on_step is not None and on_step(piece):
                return End(Retcode.TERMINATED, t1, piece.z1, self.dt)
            stepper.advance()
            t, z = t1, piece.z1
        return End(Retcode.SUCCESS, t, z, self.dt)

    def _judge(self, piece: Piece) -> float:
        """Error in units of the tolerance; NaN for a step that is not finite."""
        if piece.failure is not None:
            return piece.failure
        if self.norm is not None:
            error = self.norm.of_step(piece, self.stepper.coefficients)
            if self.beside is not None and error <= 1.0:
                error = max(error, self.beside(piece))
            forced = self.control is not None and abs(piece.dt) <= self.control.dt_min
            return min(error, 1.0) if forced and math.isfinite(error) else error
        z1 = piece.z1.detach()
        if is_batched(z1):
            return to_host((z1 * 0.0).sum(), True)
        finite = math.isfinite(float(z1.sum())) or bool(z1.isfinite().all())
        return 0.0 if finite else math.nan

    def _reject(self, piece: Piece, error: float) -> End | None:
        self.rejected += 1
        if self._callbacks.rejected is not None:
            self._callbacks.rejected(piece.t, piece.z, piece.dt)
        if self.control is None:
            return _failed(piece, abs(piece.dt))
        self.dt = self.control.rejected(abs(piece.dt), error)
        smallest = max(8 * math.ulp(piece.t), 1e-30, self.control.dt_min)
        stuck = self.dt < smallest or abs(piece.dt) <= self.control.dt_min
        if not math.isfinite(error) and stuck:
            return _failed(piece, self.dt)
        return None


def _failed(piece: Piece, dt: float) -> End:
    """The end of a solve whose last attempt gave no finite step."""
    if piece.failure == math.inf:
        return End(Retcode.NOT_CONVERGED, piece.t, piece.z, dt)
    return End(Retcode.NON_FINITE, piece.t, piece.z, dt, first_non_finite(piece.stages, piece.z1))


def stops_between(start: float, end: float, tstops: Sequence[float]) -> list[float]:
    """Times that steps must end on: those of ``tstops`` inside, and the last time."""
    lo, hi = min(start, end), max(start, end)
    inside = sorted({s for s in tstops if lo < s < hi}, reverse=end < start)
    return [*inside, end]


def first_non_finite(*candidates: Tensor) -> int | None:
    """Index along the last dimension of the first entry that is NaN or infinite."""
    for x in candidates:
        if is_batched(x):
            return None
        bad = (~x.detach().isfinite()).reshape(-1, x.shape[-1]).any(dim=0).nonzero()
        if len(bad):
            return int(bad[0])
    return None
