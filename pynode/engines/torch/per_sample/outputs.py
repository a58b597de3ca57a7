"""Each sample's evaluation times, read off its own steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.per_sample.step import RowRightHandSide, RowStep
from pynode.times import OwnTimes


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
        keys = times.values * self._sign[:, None]
        self._keys = np.where(np.isnan(keys), np.inf, keys)
        self._done = (self._keys <= (self._sign * times.start)[:, None]).sum(axis=1)
        self._flat = pairs(np.repeat(np.arange(len(keys)), keys.shape[1]), self._keys.reshape(-1))
        self._of: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        rows, slots = entries(np.zeros_like(self._done), self._done)
        self._rows, self._slots = [rows], [slots]
        self._values = [z0[torch.from_numpy(rows).to(z0.device)]]

    def _upcoming(self, rows: np.ndarray) -> np.ndarray:
        """The key of each sample's next entry; infinite where there is none."""
        width = self._keys.shape[1]
        done = self._done[rows]
        key = self._keys[rows, np.minimum(done, width - 1)]
        return np.where(done < width, key, np.inf)

    def read(self, step: RowStep, accepted: np.ndarray | None) -> None:
        """Values of the entries inside a step of those samples that were accepted."""
        rows = step.rows
        if self._of is None or self._of[0] is not rows:
            self._of = rows, self._sign[rows], self._upcoming(rows)
        _, sign, upcoming = self._of
        ends = sign * step.t1
        due = upcoming <= ends
        position = np.flatnonzero(due) if accepted is None else accepted[due[accepted]]
        if not len(position):
            return
        own = rows[position]
        width = self._keys.shape[1]
        found = np.searchsorted(self._flat, pairs(own, ends[position]), side="right")
        upto = found - own * width
        which, slots = entries(self._done[own], upto)
        self._done[own] = upto
        upcoming[position] = self._upcoming(own)
        self._rows.append(own[which])
        self._slots.append(slots)
        self._values.append(self._inside(step, position, which, self._times[own[which], slots]))

    def _inside(
        self, step: RowStep, position: np.ndarray, which: np.ndarray, times: np.ndarray
    ) -> Tensor:
        at_end = times == step.t1[position[which]]
        ends = None
        if np.count_nonzero(at_end):
            ends = step.z1[torch.from_numpy(position[which]).to(step.z.device)]
            if at_end.all():
                return ends
        if step.extended:
            inside = step.at(position[which], times)
        else:
            part = step.take(position)
            part.extend(self._rhs)
            inside = part.at(which, times)
        if ends is None:
            return inside
        return torch.where(torch.from_numpy(at_end).to(ends.device).unsqueeze(1), ends, inside)

    def reached(self) -> np.ndarray:
        """(B,), how many of its times each sample reached."""
        return self._done.copy()

    def assemble(self) -> Tensor:
        """All values as (T, B·D); entries that were not reached are NaN."""
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
