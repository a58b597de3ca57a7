"""Recorded steps, in blocks of memory that compiled code fills and reads."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pynode.engines.torch.compiled.call import MOST_BLOCKS, PADDING, Call
from pynode.engines.torch.runge_kutta import Piece, coefficients
from pynode.engines.torch.tableau import Tableau
from pynode.engines.torch.trajectory import StepLog

FIRST_BYTES = 1 << 18
"""Of the first block; each further one is twice as large as the one before."""

EXTENDED = 1


class CompiledLog:
    """The accepted steps of a forward pass.

    Attributes:
        steps: how many there are.
        final: the state (N,) after the last one.
    """

    def __init__(self, method: Tableau, like: Tensor) -> None:
        self._method, self._like = method, like
        self._size = len(like)
        self._rows = 1 + method.stages + len(method.extra_c)
        step = self._rows * self._size * like.element_size()
        self.first = min(max(FIRST_BYTES // step, 4), 512)
        self._times: list[Tensor] = []
        self._data: list[Tensor] = []
        self._time_pointers = (ctypes.c_void_p * MOST_BLOCKS)()
        self._data_pointers = (ctypes.c_void_p * MOST_BLOCKS)()
        self.steps = 0
        self.final = like

    def __len__(self) -> int:
        return self.steps

    def attach(self, call: Call) -> None:
        call.first_block = self.first
        call.step_times = ctypes.addressof(self._time_pointers)
        call.step_data = ctypes.addressof(self._data_pointers)

    def grow(self) -> None:
        """One more block."""
        block = len(self._times)
        capacity = self.first << block
        size = capacity * self._rows * self._size
        self._times.append(torch.empty(capacity, 4, dtype=torch.float64))
        self._data.append(torch.empty(size + PADDING, dtype=self._like.dtype))
        self._time_pointers[block] = self._times[-1].data_ptr()
        self._data_pointers[block] = self._data[-1].data_ptr()

    def step_log(self) -> StepLog:
        """The steps as the engine's own code reads them."""
        log = StepLog(None)
        c = coefficients(self._method, self._like.dtype, self._like.device)
        rows: list[tuple[list[float], Tensor]] = []
        for times, data in zip(self._times, self._data, strict=True):
            cube = data[:-PADDING].view(len(times), self._rows, self._size)
            rows += zip(times.tolist(), cube.unbind(), strict=True)
        rows = rows[: self.steps]
        after = [*(row[0] for _, row in rows[1:]), self.final]
        log.times = [*(numbers[0] for numbers, _ in rows), rows[-1][0][1]]
        for (numbers, row), z1 in zip(rows, after, strict=True):
            t, t1, last, flags = numbers
            extended = bool(int(flags) & EXTENDED) or not c.extra_a
            stages = row[1:] if extended else row[1 : 1 + self._method.stages]
            piece = Piece(c, t, t1, row[0], z1, stages, last)
            piece._extended = extended
            log.pieces.append(piece)
        return log
