"""The loop: every sample from its own time to its own, by steps of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.integrate import End, first_non_finite
from pynode.engines.torch.per_sample.control import (
    RowErrorNorm,
    RowStepSize,
    first_step_sizes,
    to_host,
)
from pynode.engines.torch.per_sample.field import At
from pynode.engines.torch.per_sample.step import RowStep, RowStepper
from pynode.solution import Retcode

OnAccept = Callable[[RowStep, np.ndarray | None], np.ndarray | None]
"""Called after each attempt with the step and the positions accepted (None: all); returns which
(n,) samples are to end with this step, or None. The step's dense output (after ``take`` and
``extend``) is valid until the next attempt."""

OnStop = Callable[[Tensor, np.ndarray, np.ndarray, np.ndarray], Tensor]
"""From states (n, D), positions of samples that reached a stop, which samples they are, and the
numbers of their stops, to states (n, D): a jump of the state."""


@dataclass
class Stops:
    """Times that each sample's steps must end on.

    Attributes:
        times: (B, K), in each sample's order.
        counts: (B,), how many of them there are.
    """

    times: np.ndarray
    counts: np.ndarray


@dataclass
class Outcome:
    """How B integrations ended.

    Attributes:
        t, z: the last accepted times (B,) and states (B, D).
        ends: for each sample that failed, how.
        h: (B,), the size that the next step would have had; NaN for samples that made none.
        accepted, rejected: (B,), attempts.
        attempts: of all samples together: turns of the loop.
    """

    t: np.ndarray
    z: Tensor
    h: np.ndarray
    ends: dict[int, End]
    accepted: np.ndarray
    rejected: np.ndarray
    attempts: int = 0


class _Active:
    """The samples that are still on their way, as arrays (n,)."""

    NAMES = (
        "rows",
        "t",
        "h",
        "k",
        "count",
        "stop",
        "direction",
        "sliver",
        "begin",
        "since",
        "accepted",
    )

    def __init__(self, rows: np.ndarray, t: np.ndarray, stops: Stops) -> None:
        self.rows, self.t = rows, t
        self.stops = stops
        zeros = np.zeros(len(rows), dtype=np.int64)
        self.k, self.count, self.since, self.accepted = zeros, zeros, zeros, zeros.copy()
        self.h = np.full(len(rows), np.nan)
        self.aim(np.ones(len(rows), dtype=bool))

    def aim(self, some: np.ndarray) -> None:
        """Towards the stops ``k``; ``some`` begin a new stretch."""
        self.stop = self.stops.times[self.rows, self.k]
        self.direction = np.sign(self.stop - self.t)
        sliver = 4 * np.spacing(np.maximum(np.abs(self.t), np.abs(self.stop)))
        if some.all():
            self.sliver, self.begin, self.count = sliver, self.t, np.zeros_like(self.k)
        else:
            self.sliver = np.where(some, sliver, self.sliver)
            self.begin = np.where(some, self.t, self.begin)
            self.count = np.where(some, 0, self.count)
        self._note()

    def _note(self) -> None:
        """Bounds that spare a look at every sample at every step."""
        self.oldest = int(self.since.min()) if len(self.since) else 0
        self.smallest = 2 * float(self.sliver.max()) if len(self.since) else 0.0

    def spent(self, attempts: np.ndarray) -> None:
        """Count attempts that were made before."""
        self.since = self.since - attempts
        self._note()

    def keep(self, keep: np.ndarray) -> None:
        for name in self.NAMES:
            setattr(self, name, getattr(self, name)[keep])
        self._note()


class RowIntegrator:
    """Integrates every sample by itself, remembering nothing between runs.

    Args:
        stepper: makes attempts.
        norm: error norm; None for fixed steps of size ``dt``.
        control: step-size controller; None for fixed steps.
        max_steps: largest number of attempts of a sample; with ``on_stop``, between two stops.
        dt: first (or fixed) step size, or one for each sample (B,); None to have it chosen.
    """

    def __init__(
        self,
        stepper: RowStepper,
        norm: RowErrorNorm | None,
        control: RowStepSize | None,
        max_steps: int,
        dt: float | np.ndarray | None,
    ) -> None:
        self.stepper = stepper
        self.norm, self.control = norm, control
        self.max_steps = max_steps
        self.dt = dt

    @np.errstate(all="ignore")
    def run(
        self,
        start: np.ndarray,
        z0: Tensor,
        stops: Stops,
        horizon: np.ndarray,
        on_accept: OnAccept | None = None,
        on_stop: OnStop | None = None,
        first: Tensor | None = None,
        spent: np.ndarray | None = None,
    ) -> Outcome:
        """Integrate from (start, z0) through all stops.

        Args:
            start: (B,).
            z0: (B, D).
            horizon: (B,), the time that the first step size is chosen for.
            first: f(start, z0), if it is known already.
            spent: (B,), attempts that count towards ``max_steps`` already.
        """
        count = np.zeros(len(start), dtype=np.int64)
        size = np.full(len(start), np.nan)
        outcome = Outcome(start.copy(), z0, size, {}, count, count.copy())
        self._z, self._count = z0, len(start)
        a = self._active = _Active(np.arange(len(start)), start, stops)
        self._outcome, self._final = outcome, z0.detach().clone()
        if spent is not None:
            a.spent(spent)
        moving = (a.stop != a.t) & (stops.counts > 0)
        if not moving.all():
            if first is not None:
                first = first[torch.from_numpy(np.flatnonzero(moving)).to(z0.device)]
            self._leave(moving)
        if len(a.rows):
            self._begin(horizon[a.rows], first)
        while len(a.rows):
            self._turn(on_accept, on_stop)
        outcome.z = self._final
        return outcome

    def _begin(self, horizon: np.ndarray, first: Tensor | None) -> None:
        a, z = self._active, self._z
        at = At(a.t, a.rows)
        f0 = self.stepper.begin(at, a.direction > 0, z, first)
        if self.dt is not None:
            a.h = np.full(self._count, self.dt)[a.rows]
            return
        assert self.norm is not None and self.control is not None
        finite = f0.detach().isfinite().all(dim=1).cpu().numpy()
        order = self.stepper.order_of_error
        h = first_step_sizes(self.stepper.rhs, at, horizon, z, f0, order, self.norm)
        a.h = np.minimum(np.where(finite, h, np.nan), self.control.dt_max)
        if not finite.all():
            for i in np.flatnonzero(~finite).tolist():
                entry = first_non_finite(f0[i], z[i])
                self._fail(i, Retcode.NON_FINITE, math.nan, entry)
            self._leave(finite)

    def _turn(self, on_accept: OnAccept | None, on_stop: OnStop | None) -> None:
        """One attempt of every sample."""
        a, stepper = self._active, self.stepper
        lands = self._lands()
        if self._refuse(lands):
            return
        if self.control is None:  # not t + dt: rounding would add up
            a.count = a.count + 1
            t1 = a.begin + a.direction * (a.count * a.h)
        else:
            t1 = a.t + a.direction * a.h
        t1 = np.where(lands, a.stop, t1)
        step = stepper.attempt(a.rows, a.t, t1, self._z)
        error = self._judge(step)
        accept = error <= 1.0  # not so for NaN
        every = np.count_nonzero(accept) == len(accept)
        size = np.abs(step.dt)
        self._outcome.attempts += 1
        a.accepted += accept
        h = a.h
        if self.control is not None:
            a.h = self.control.next(h, size, error, accept, lands)
        if every:
            mask, some = None, None
            self._z, a.t = step.z1, t1
        else:
            mask = torch.from_numpy(accept).to(step.z.device).unsqueeze(1)
            some = np.flatnonzero(accept)
            self._z, a.t = torch.where(mask, step.z1, step.z), np.where(accept, t1, a.t)
        ended = None
        if on_accept is not None and (some is None or len(some)):
            ended = on_accept(step, some)
        stepper.advance(accept, mask)
        stay = None if every else self._hopeless(step, error, accept)
        reached = accept & lands
        if np.count_nonzero(reached):
            going = self._arrive(reached, on_stop)
            stay = going if stay is None else stay & going
        if ended is not None:
            stay = ~ended if stay is None else stay & ~ended
        if stay is not None and not stay.all():
            self._leave(stay)

    def _lands(self) -> np.ndarray:
        a = self._active
        if self.control is None:
            reach = a.h * (1.0 + 1e-9)
        else:
            reach = a.h * self.control.stretch
            if self.control.dt_max < math.inf:
                reach = np.minimum(reach, self.control.dt_max)
        return reach + a.sliver >= np.abs(a.stop - a.t)

    def _refuse(self, lands: np.ndarray) -> bool:
        """Let samples go that may not go on; whether there were any."""
        a, attempts = self._active, self._outcome.attempts
        if attempts - a.oldest < self.max_steps and float(a.h.min()) >= a.smallest:
            return False
        too_many = attempts - a.since >= self.max_steps
        too_small = ~lands & (a.h < 8 * np.spacing(np.abs(a.t)))
        refused = too_many | too_small
        if not refused.any():
            return False
        for i in np.flatnonzero(refused).tolist():
            retcode = Retcode.MAX_STEPS if too_many[i] else Retcode.DT_UNDERFLOW
            self._fail(i, retcode, a.h[i], None)
        self._leave(~refused)
        return True

    def _judge(self, step: RowStep) -> np.ndarray:
        """Errors in units of the tolerance; NaN for steps that are not finite."""
        if self.norm is not None:
            return self.norm.of_step(step, self.stepper.coefficients)
        finite = step.z1.detach().isfinite().all(dim=1)
        return np.where(to_host(finite), 0.0, np.nan)

    def _hopeless(self, step: RowStep, error: np.ndarray, accept: np.ndarray) -> np.ndarray | None:
        """Which samples stay, after those whose every step is not finite have failed."""
        a = self._active
        bad = ~accept & ~np.isfinite(error)
        if not np.count_nonzero(bad):
            return None
        if self.control is not None:
            bad &= a.h < np.maximum(8 * np.spacing(np.abs(a.t)), 1e-30)
        for i in np.flatnonzero(bad).tolist():
            if self.control is None:
                entry, h = first_non_finite(step.z1[i]), abs(step.dt[i])
            else:
                entry, h = first_non_finite(step.stages[:, i], step.z1[i]), a.h[i]
            self._fail(i, Retcode.NON_FINITE, h, entry)
        return ~bad

    def _arrive(self, reached: np.ndarray, on_stop: OnStop | None) -> np.ndarray:
        """Turn to the next stops; which samples have one."""
        a = self._active
        a.k = a.k + reached
        if on_stop is not None:
            some = np.flatnonzero(reached)
            self._z = on_stop(self._z, some, a.rows[some], a.k[some] - 1)
            self.stepper.refresh(reached)
            a.since = np.where(reached, self._outcome.attempts, a.since)
        going = a.k < a.stops.counts[a.rows]
        if a.stops.times.shape[1] > 1:
            a.k = np.minimum(a.k, a.stops.times.shape[1] - 1)
            a.aim(reached)
        return going

    def _fail(self, i: int, retcode: Retcode, dt: float, entry: int | None) -> None:
        a = self._active
        z = self._z[i].detach()
        end = End(retcode, float(a.t[i]), z, float(dt), entry)
        self._outcome.ends[int(a.rows[i])] = end

    def _leave(self, keep: np.ndarray) -> None:
        """Go on with some of the samples."""
        a, outcome = self._active, self._outcome
        gone = np.flatnonzero(~keep)
        who = a.rows[gone]
        outcome.t[who], outcome.h[who] = a.t[gone], a.h[gone]
        outcome.accepted[who] = a.accepted[gone]
        outcome.rejected[who] = outcome.attempts - a.accepted[gone]
        device = self._z.device
        rows = torch.from_numpy(who).to(device)
        self._final[rows] = self._z.detach()[torch.from_numpy(gone).to(device)]
        index = torch.from_numpy(np.flatnonzero(keep)).to(device)
        self._z = self._z[index]
        self.stepper.keep(keep, index)
        if self.norm is not None:
            self.norm.keep(index)
        if self.control is not None:
            self.control.keep(keep)
        a.keep(keep)


def stops_of(start: np.ndarray, end: np.ndarray, tstops: Sequence[float]) -> Stops:
    """Each sample's end, and before it the ``tstops`` inside its span."""
    if not tstops:
        return Stops(end[:, None], np.ones(len(end), dtype=np.int64))
    inner = np.broadcast_to(np.array(tstops), (len(start), len(tstops)))
    low, high = np.minimum(start, end)[:, None], np.maximum(start, end)[:, None]
    inside = np.where((low < inner) & (inner < high), inner, np.nan)
    times, counts, _ = in_order(np.concatenate([inside, end[:, None]], axis=1), end >= start)
    return Stops(times, counts)


def in_order(times: np.ndarray, forwards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's distinct times in order (B, K), their counts (B,), and the place of each.

    NaN stands for no time; rows are filled up by their last time. The place of a NaN is -1.
    """
    sign = np.where(forwards, 1.0, -1.0)[:, None]
    order = np.argsort(times * sign, axis=1, kind="stable")  # NaN comes last
    ordered = np.take_along_axis(times, order, axis=1)
    known = ~np.isnan(ordered)
    fresh = np.concatenate([known[:, :1], (ordered[:, 1:] != ordered[:, :-1]) & known[:, 1:]], 1)
    rank = np.cumsum(fresh, axis=1) - 1
    counts = fresh.sum(axis=1)
    filled = np.full((len(times), max(int(counts.max()), 1)), np.nan)
    rows = np.broadcast_to(np.arange(len(times))[:, None], times.shape)
    filled[rows[known], rank[known]] = ordered[known]
    last = np.take_along_axis(filled, np.maximum(counts - 1, 0)[:, None], axis=1)
    filled = np.where(np.isnan(filled), last, filled)
    places = np.full(times.shape, -1)
    np.put_along_axis(places, order, np.where(known, rank, -1), axis=1)
    return filled, counts, places
