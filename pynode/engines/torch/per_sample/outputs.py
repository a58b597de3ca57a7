"""Each sample's evaluation times, read off its own steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.per_sample.step import RowRightHandSide, RowStep
from pynode.times import OwnTimes

_SMALL = 1 << 16
"""Steps whose stages have together up to so many numbers are copied and read together; larger
ones are read one by one, since memory that is new costs more than what is saved."""


class _Keys:
    """Times of all samples, each row rising, infinite where it is padded.

    Args:
        keys: (B, T), NaN where they are padded.
    """

    def __init__(self, keys: np.ndarray) -> None:
        rows, self._width = keys.shape
        self._padded = np.c_[np.where(np.isnan(keys), np.inf, keys), np.full(rows, np.inf)]
        self._shared = bool((self._padded == self._padded[0]).all())
        if self._shared:
            self._flat = self._padded[0, :-1].copy()
        else:
            self._flat = pairs(
                np.repeat(np.arange(rows), self._width), self._padded[:, :-1].reshape(-1)
            )

    def number(self, rows: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Key number ``i`` (m,) of samples ``rows`` (m,); infinite behind the last."""
        return self._padded[rows, i]

    def until(self, rows: np.ndarray, end: np.ndarray) -> np.ndarray:
        """How many keys of samples ``rows`` (m,) are at or before ``end`` (m,)."""
        if self._shared:
            return np.searchsorted(self._flat, end, side="right")
        return np.searchsorted(self._flat, pairs(rows, end), side="right") - rows * self._width


@dataclass
class _Due:
    """Entries lo to hi (m,) of the samples at ``position`` (m,) in a step."""

    step: RowStep
    position: np.ndarray
    lo: np.ndarray
    hi: np.ndarray


def _joined(pending: list[_Due]) -> tuple[RowStep, np.ndarray]:
    """The steps as one, and the positions in it."""
    if len(pending) == 1:
        return pending[0].step, pending[0].position
    steps = [d.step for d in pending]
    before = np.cumsum([0, *(len(step.rows) for step in steps[:-1])])
    position = np.concatenate([d.position + n for d, n in zip(pending, before, strict=True)])
    rows, t, t1, last = (
        np.concatenate([getattr(step, name) for step in steps])
        for name in ("rows", "t", "t1", "last")
    )
    z, z1 = (torch.cat([getattr(step, name) for step in steps]) for name in ("z", "z1"))
    stages = torch.cat([step.stages for step in steps], dim=1)
    one = RowStep(steps[0].coefficients, rows, t, t1, z, z1, stages, last)
    one.extended = steps[0].extended
    return one, position


def inside(step: RowStep, position: np.ndarray, times: np.ndarray) -> Tensor:
    """The states (m, D) at ``position`` (m,) at times (m,); those at an end are the step's."""
    at_end = times == step.t1[position]
    if not np.count_nonzero(at_end):
        return step.at(position, times)
    ends = step.z1[torch.from_numpy(position).to(step.z.device)]
    if at_end.all():
        return ends
    mask = torch.from_numpy(at_end).to(ends.device).unsqueeze(1)
    return torch.where(mask, ends, step.at(position, times))


class RowOutputs:
    """Collects the states at the evaluation times as steps pass them.

    Args:
        times: the samples' evaluation times.
        z0: (B, D), the states at t0.
        rhs: for stages that only dense output needs.
    """

    def __init__(self, times: OwnTimes, z0: Tensor, rhs: RowRightHandSide) -> None:
        self._times, self._rhs = times.values, rhs
        # A sample that is never integrated has all its times at t0.
        self._sign = np.where(times.direction < 0, -1.0, 1.0)
        self._keys = _Keys(times.values * self._sign[:, None])
        everyone = np.arange(times.samples)
        self._done = self._keys.until(everyone, self._sign * times.start)
        self._of: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._pending: list[_Due] = []
        rows, slots = entries(np.zeros_like(self._done), self._done)
        self._rows, self._slots = [rows], [slots]
        self._values = [z0[torch.from_numpy(rows).to(z0.device)]]

    def read(
        self, step: RowStep, accepted: np.ndarray | None, until: np.ndarray | None = None
    ) -> None:
        """Note the entries inside a step of those samples that were accepted.

        Args:
            until: (n,), up to when the step counts, where not to its end.
        """
        rows = step.rows
        if self._of is None or self._of[0] is not rows:
            self._of = rows, self._sign[rows], self._keys.number(rows, self._done[rows])
        _, sign, upcoming = self._of
        ends = sign * (step.t1 if until is None else until)
        due = upcoming <= ends
        if not np.count_nonzero(due):
            return
        position = np.flatnonzero(due) if accepted is None else accepted[due[accepted]]
        if not len(position):
            return
        own = rows[position]
        upto = self._keys.until(own, ends[position])
        self._note(step, position, self._done[own], upto)
        self._done[own] = upto
        upcoming[position] = self._keys.number(own, upto)

    def _note(self, step: RowStep, position: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> None:
        """Values are read at once where that is costly to put off, else of many steps together."""
        size = step.stages.numel()
        if step.extended and 2 * size <= _SMALL:
            self._pending.append(_Due(step.take(None), position, lo, hi))
            if (len(self._pending) + 1) * size > _SMALL:
                self._flush()
            return
        self._flush()
        if not step.extended:
            step = step.take(position)
            position = np.arange(len(position))
            which, slots = entries(lo, hi)
            if (self._times[step.rows[which], slots] != step.t1[which]).any():
                step.extend(self._rhs)
        self._pending.append(_Due(step, position, lo, hi))
        self._flush()

    def _flush(self) -> None:
        """Read off the entries of the steps noted."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        step, position = _joined(pending)
        lo, hi = (np.concatenate(x) for x in zip(*((d.lo, d.hi) for d in pending), strict=True))
        which, slots = entries(lo, hi)
        place = position[which]
        rows = step.rows[place]
        self._rows.append(rows)
        self._slots.append(slots)
        self._values.append(inside(step, place, self._times[rows, slots]))

    def reached(self) -> np.ndarray:
        """(B,), how many of its times each sample reached."""
        return self._done.copy()

    def assemble(self) -> Tensor:
        """All values as (T, B·D); entries that were not reached are NaN."""
        self._flush()
        found = torch.cat(self._values)
        samples, slots = self._times.shape
        zs = found.new_full((slots, samples, found.shape[1]), float("nan"))
        where = tuple(
            torch.from_numpy(np.concatenate(part)).to(found.device)
            for part in (self._slots, self._rows)
        )
        return zs.index_put(where, found).reshape(slots, -1)


def entries(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with lo[i] <= j < hi[i]."""
    counts = hi - lo
    which = np.repeat(np.arange(len(lo)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - before[which] + lo[which]


def pairs(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(row, key) as complex numbers, which numpy orders by the first, then by the second."""
    both = np.empty(len(rows), dtype=np.complex128)
    both.real, both.imag = rows, keys
    return both


def as_index(like: Tensor, *indices: np.ndarray) -> tuple[Tensor, ...]:
    """Arrays as an index into tensors like ``like``; their memory is shared."""
    return tuple(torch.from_numpy(i).to(like.device) for i in indices)
