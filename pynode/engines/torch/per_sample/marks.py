"""Evaluation times and times of events of all samples, as one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.crossings import Crossing
from pynode.engines.torch.per_sample.integrate import in_order
from pynode.engines.torch.per_sample.outputs import as_index
from pynode.times import OwnTimes


class Merged:
    """The evaluation times that samples reached, with the times of their M crossings among them.

    Args:
        times: the evaluation times (B, T).
        reached: (B,), how many of them each sample reached.

    Attributes:
        times: all of them (B, T').
        counts: (B,), how many each sample has.
    """

    def __init__(self, times: OwnTimes, reached: np.ndarray, found: Sequence[Crossing]) -> None:
        samples, slots = times.values.shape
        known = np.arange(slots) < reached[:, None]
        rows = np.array([c.entry for c in found], dtype=np.int64)
        number = np.zeros(len(found), dtype=np.int64)
        seen = np.zeros(samples, dtype=np.int64)
        for i, row in enumerate(rows):
            number[i] = seen[row]
            seen[row] += 1
        marks = np.full((samples, int(seen.max(initial=0))), np.nan)
        marks[rows, number] = [c.t for c in found]
        every = np.c_[np.where(known, times.values, np.nan), marks]
        values, self.counts, places = in_order(every, times.direction >= 0)
        self.width = values.shape[1]
        values = np.where(np.arange(self.width) < self.counts[:, None], values, np.nan)
        self.times = copy.copy(times)
        self.times.values, self.times.t = values, torch.from_numpy(values)
        self._shape = samples, slots
        sample, slot = np.nonzero(known)
        self._outputs = slot, sample, places[sample, slot]
        self._marks = rows, places[rows, slots + number]

    def split(self, every: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (T, B·D), NaN where they were not reached, and marks (M, D)."""
        samples, slots = self._shape
        every = every.reshape(self.width, samples, -1)
        slot, sample, place = as_index(every, *self._outputs)
        rows, at = as_index(every, *self._marks)
        zs = every.new_full((slots, samples, every.shape[2]), float("nan"))
        zs = zs.index_put((slot, sample), every[place, sample])
        return zs.reshape(slots, -1), every[at, rows]

    def join(self, outputs: Tensor, marks: Tensor) -> Tensor:
        """Cotangents (T', B·D) from those of outputs (T, B·D) and marks (M, D)."""
        samples, slots = self._shape
        outputs = outputs.reshape(slots, samples, -1)
        slot, sample, place = as_index(outputs, *self._outputs)
        rows, at = as_index(outputs, *self._marks)
        every = outputs.new_zeros((self.width, samples, outputs.shape[2]))
        every.index_put_((place, sample), outputs[slot, sample], accumulate=True)
        every.index_put_((at, rows), marks.to(every), accumulate=True)
        return every.reshape(self.width, -1)
