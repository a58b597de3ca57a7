"""Evaluation times as Julia sees them: distinct, in order, the same for all samples."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

from pynode.state import StateLayout
from pynode.times import Times


class Moments:
    """The distinct times of a solve, and where their states belong.

    Attributes:
        values: float64, from the initial time on, each once.
    """

    def __init__(self, times: Times, layout: StateLayout) -> None:
        rows = times.values if times.per_sample else [times.values]
        found = {times.start}.union(*rows)
        if times.per_sample:
            found = {t for t in found if not math.isnan(t)}
        if rows[0][0] == times.start and len(rows[0]) == len(found):
            ordered = rows[0]  # in order already, as Times has seen to
        else:
            ordered = sorted(found, reverse=times.direction < 0)
        self.values = array("d", ordered)
        self._layout = layout
        self._per_sample = times.per_sample
        self._index: Tensor | None = None
        if times.per_sample or ordered != times.values:
            place = {t: i for i, t in enumerate(ordered)}
            index = [[place.get(t, -1) for t in row] for row in rows]
            self._index = torch.tensor(index if times.per_sample else index[0])

    def read(self, found: Tensor) -> Tensor:
        """States (T, N) as they were asked for, from those (M, N) at all moments."""
        if self._index is None:
            return found
        if not self._per_sample:
            return found[self._index]
        rows = self._rows
        samples = torch.arange(rows)
        zs = found.reshape(len(found), rows, -1)[self._index.clamp_min(0).t(), samples]
        zs = zs.masked_fill((self._index < 0).t().unsqueeze(-1), math.nan)
        return zs.reshape(len(zs), -1)

    def scatter(self, grad: Tensor) -> Tensor:
        """Cotangents (M, N) of the states at all moments, from those (T, N) of the outputs."""
        if self._index is None:
            return grad.contiguous()
        total = grad.new_zeros(len(self.values), grad.shape[1])
        if not self._per_sample:
            return total.index_add_(0, self._index, grad)
        rows = self._rows
        cube = total.view(len(self.values), rows, -1)
        valid = self._index >= 0
        slot = self._index[valid]
        sample = torch.arange(rows).unsqueeze(1).expand_as(self._index)[valid]
        parts = grad.reshape(len(grad), rows, -1).transpose(0, 1)[valid]
        cube.index_put_((slot, sample), parts, accumulate=True)
        return total

    @property
    def _rows(self) -> int:
        assert self._layout.rows is not None
        return self._layout.rows
