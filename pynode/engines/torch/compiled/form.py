"""What compiled solves alike have in common, put together once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engines.alike import Alike
from pynode.engines.torch.compiled.call import Call
from pynode.engines.torch.controller import stretch
from pynode.engines.torch.integrate import stops_between
from pynode.engines.torch.runge_kutta import Jumps
from pynode.options import CONTROLLERS, SolveOptions
from pynode.state import StateLayout
from pynode.times import Times

Tolerance = float | Tensor


class Entries:
    """Evaluation times in the order in which a solve passes them, and where the states go.

    Attributes:
        at: their times.
        places: (entries, 3) of each the first place among the outputs, the first entry of the
            state that goes there, and how many; None where it is always the whole state.
        initial: how many lie at the start.
    """

    def __init__(self, times: Times, layout: StateLayout) -> None:
        self.places: np.ndarray | None = None
        self.slots = times.t.shape[-1]
        if not times.per_sample:
            self.at = np.array(times.values)
            self.initial = 0
            while self.initial < len(times.values) and times.values[self.initial] == times.start:
                self.initial += 1
            return
        assert layout.rows is not None
        values = times.t.detach().to(torch.float64).numpy()
        sample, slot = np.nonzero(~np.isnan(values))
        order = np.argsort(times.direction * values[sample, slot], kind="stable")
        sample, slot = sample[order], slot[order]
        width = layout.size // layout.rows
        self.at = values[sample, slot]
        columns = (slot * layout.size + sample * width, sample * width)
        self.places = np.stack([*columns, np.full_like(slot, width)], axis=1)
        self.initial = int((self.at == times.start).sum())


class SolveForm(Alike):
    """All of a call but the addresses of its tensors, for solves by the same options at the same
    times.

    Args:
        options: of the solve's steps.
        rtol, atol: numbers, or flat tensors.
        backwards: for the adjoint's solve, from the last time to the first.

    Attributes:
        entries: the evaluation times.
    """

    def __init__(
        self,
        options: SolveOptions,
        rtol: Tolerance,
        atol: Tolerance,
        layout: StateLayout,
        times: Times,
        dtype: torch.dtype,
        backwards: bool,
    ) -> None:
        super().__init__(options, layout, times, dtype)
        self._once = isinstance(rtol, Tensor) or isinstance(atol, Tensor)
        self.entries = Entries(times, layout)
        self._call, self._kept = _call(options, rtol, atol, layout.size, dtype)
        start, end = (times.end, times.start) if backwards else (times.start, times.end)
        stops = np.array(stops_between(start, end, options.stops))
        call, entries = self._call, self.entries
        call.t0, call.stops, call.stop_count = times.start, stops.ctypes.data, len(stops)
        call.times, call.time_count = entries.at.ctypes.data, len(entries.at)
        call.places = None if entries.places is None else entries.places.ctypes.data
        call.initial_count = entries.initial
        self._kept.append(stops)

    def fits(
        self, options: SolveOptions, layout: StateLayout, times: Times, dtype: torch.dtype
    ) -> bool:
        """As it says there, and the tolerances numbers: tensors may hold others by then."""
        return not self._once and super().fits(options, layout, times, dtype)

    def call(self) -> Call:
        """A call of one's own. It reads memory of this form's."""
        return Call.from_buffer_copy(self._call)


def _call(
    options: SolveOptions, rtol: Tolerance, atol: Tolerance, size: int, dtype: torch.dtype
) -> tuple[Call, list[Any]]:
    """The numbers that the options say, and what must live as long as they."""
    call = Call()
    kept: list[Any] = []
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        for name, value in (("rtols", rtol), ("atols", atol)):
            full = torch.as_tensor(value, dtype=dtype).expand(size).contiguous()
            kept.append(full)
            setattr(call, name, full.data_ptr())
    else:
        call.rtol, call.atol = rtol, atol
    call.largest = options.norm == "max"
    call.exponents[:] = CONTROLLERS[options.controller]
    call.safety, call.shrink, call.grow = options.safety, options.shrink, options.grow
    call.dt_min, call.dt_max, call.stretch = options.dt_min, options.dt_max, stretch(options)
    call.adaptive, call.max_steps = options.is_adaptive, options.max_steps
    if options.grid:
        call.has_dt, call.dt = 1, math.inf
    elif options.dt is not None:
        call.has_dt, call.dt = 1, min(options.dt, options.dt_max)
    if options.tstops:
        jumps = _jumps(options.tstops, dtype)
        kept.append(jumps)
        call.jumps, call.jump_count = jumps.ctypes.data, len(jumps)
    return call, kept


def _jumps(tstops: Sequence[float], dtype: torch.dtype) -> np.ndarray:
    """(t, the number before it, the number after it) of each."""
    sides = Jumps(tstops, dtype)._sides
    return np.array([[t, *both] for t, both in sides.items()])
