"""What Julia is to read off a solve: parts of the state, in the order of their times."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

from pynode.state import StateLayout
from pynode.times import Times


class Reads:
    """The outputs of a solve one by one, in order of time; each its sample's part of the state.

    Times that all samples share are in order already, and each reads the whole state.

    Attributes:
        times: float64; may repeat.
        width: how many numbers each read gives.
        after: of times per sample, how many numbers of the state come before each read's.
    """

    def __init__(self, times: Times, layout: StateLayout) -> None:
        self._slots = 1
        self._place: Tensor | None = None
        self.width, self.after = layout.size, array("q")
        if not times.per_sample:
            self.times = array("d", times.values)
            return
        assert layout.rows is not None
        given = torch.tensor(times.values, dtype=torch.float64)
        sample, slot = (~given.isnan()).nonzero(as_tuple=True)
        order = (given[sample, slot] * times.direction).argsort(stable=True)
        sample, slot = sample[order], slot[order]
        self._slots, self.width = given.shape[1], self.width // layout.rows
        self._place = slot * layout.rows + sample
        self.times = array("d", given[sample, slot].numpy().tobytes())
        self.after = array("q", (sample * self.width).numpy().tobytes())

    @property
    def addresses(self) -> tuple[int, int]:
        """Of ``times`` and of ``after``: 0 where each reads the whole state."""
        whole = self._place is None
        return self.times.buffer_info()[0], 0 if whole else self.after.buffer_info()[0]

    def outputs(self, found: Tensor, size: int) -> Tensor:
        """States (T, N), N being ``size``, of what was read (K, width); NaN pads short series."""
        if self._place is None:
            return found
        zs = found.new_full((self._slots * size // self.width, self.width), math.nan)
        return zs.index_copy_(0, self._place.to(found.device), found).reshape(self._slots, size)

    def cotangents(self, grad: Tensor) -> Tensor:
        """Those (K, width) of what was read, from those (T, N) of the outputs."""
        if self._place is None:
            return grad.contiguous()
        return grad.reshape(-1, self.width)[self._place.to(grad.device)]
