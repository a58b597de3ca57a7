"""The torch engine with ``compile=True``: every solve, forward or backward, is one compiled call.

It takes the same steps as the engine's own code does, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.compiled.call import Call, padded, run
from pynode.engines.torch.compiled.log import CompiledLog
from pynode.engines.torch.compiled.units import CompiledField, function_of, unit_of
from pynode.engines.torch.controller import STRETCH
from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.failures import explain
from pynode.engines.torch.integrate import End, stops_between
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.runge_kutta import Jumps
from pynode.errors import InputError, SolveError
from pynode.field import FlatField
from pynode.options import CONTROLLERS, SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics
from pynode.state import StateLayout
from pynode.times import Times

STATUS = (Retcode.SUCCESS, Retcode.MAX_STEPS, Retcode.DT_UNDERFLOW, Retcode.NON_FINITE)


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

    def fill(self, call: Call) -> None:
        call.times, call.time_count = self.at.ctypes.data, len(self.at)
        call.places = None if self.places is None else self.places.ctypes.data


class CompiledEngine(TorchEngine):
    """Solves and differentiates by compiled code, on the CPU."""

    def field(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        args: Any,
        stats: Statistics,
        autocast: Autocast | None,
    ) -> FlatField:
        """The problem's field on flat states, with counts in ``stats``."""
        device = problem.layout.device
        if device.type != "cpu":
            raise InputError(
                f"compile=True is for the CPU and CUDA, but the state lies on {device}: use "
                "compile=False"
            )
        if autocast is not None:
            raise InputError("compile=True does not work under torch.autocast: leave it")
        return CompiledField(problem.field, problem.layout, args, stats)

    def trainable(
        self, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
    ) -> tuple[list[Tensor], None]:
        """Tensors that require grad and that the field depends on beside its args."""
        assert isinstance(field, CompiledField)
        return unit_of(field, z0.detach(), problem.times.start).found, None

    def keeps(self, options: SolveOptions) -> tuple[bool, int | None]:
        return options.sensitivity != "backsolve", None

    def solve(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        z0: Tensor,
        *,
        first: Tensor | None = None,
        record: bool = False,
        keep: int | None = None,
        taped: bool = False,
        transformed: bool = False,
        watch: Any = None,
    ) -> Forward:
        """Solve for a flat state z0 (N,)."""
        assert isinstance(field, CompiledField)
        if watch is not None:
            raise InputError("compile=True has no events: use compile=False")
        times, layout = problem.times, problem.layout
        z0 = z0.contiguous()
        unit, function = function_of(field, "forward", options, z0, times.start)
        entries = Entries(times, layout)
        rtol, atol = problem.tolerances(options)
        call, kept = _call(options, z0, rtol, atol)
        parameters, end = unit.parameters(z0), padded(len(z0), z0)
        zs = z0.new_empty((entries.slots, len(z0)))
        if entries.places is not None:
            zs.fill_(math.nan)
        stops = np.array(stops_between(times.start, times.end, options.stops))
        call.z0, call.params, call.t0 = z0.data_ptr(), parameters.data_ptr(), times.start
        call.stops, call.stop_count = stops.ctypes.data, len(stops)
        call.outputs, call.end = zs.data_ptr(), end.data_ptr()
        call.initial_count = entries.initial
        entries.fill(call)
        log: Any = CompiledLog(TABLEAUS[options.solver], z0) if record else None
        if log is not None:
            log.grow()
            log.attach(call)
            call.record = 1
        run(function, call, z0.dtype == torch.float32, log)
        del kept
        field.stats.nfe += call.nfe
        field.stats.accepted += call.accepted
        field.stats.rejected += call.rejected
        if log is not None:
            log.steps, log.final = call.steps, end
        forward = Forward(
            zs,
            end,
            call.t,
            STATUS[call.status],
            log,
            reached=call.reached,
        )
        if forward.retcode is not Retcode.SUCCESS:
            if entries.places is None:
                zs[call.reached :] = math.nan
            forward.sample, forward.message = explain(_end(call, end), options, layout)
        return forward

    def adjoint(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        tensors: list[Tensor],
        forward: Forward,
        zs: Tensor,
        grad: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """dL/dz0 (N,) and the gradients of ``tensors`` from dL/dzs (T, N)."""
        assert isinstance(field, CompiledField)
        times, back = problem.times, options.backward()
        z0 = zs.new_empty(problem.layout.size)  # for its size and dtype
        unit, function = function_of(field, options.sensitivity, options, z0, times.start)
        entries = Entries(times, problem.layout)
        if times.per_sample:
            grad = torch.nan_to_num(grad)
        grad, zs = grad.contiguous(), zs.contiguous()
        call, kept = _call(back, z0, float(back.rtol), float(back.atol))
        parameters, end = unit.parameters(z0), padded(3 * len(z0) + unit.lowered.size, z0)
        of_state, gradient = padded(len(z0), z0), padded(unit.lowered.size, z0)
        call.params, call.t0 = parameters.data_ptr(), times.start
        stops = np.array(stops_between(times.end, times.start, back.stops))
        call.stops, call.stop_count = stops.ctypes.data, len(stops)
        call.outputs, call.end = zs.data_ptr(), end.data_ptr()
        call.initial_count = entries.initial
        entries.fill(call)
        log: Any = forward.log
        if isinstance(log, CompiledLog):
            log.attach(call)
            call.steps = log.steps
        call.final_state, call.cotangents = forward.final.data_ptr(), grad.data_ptr()
        call.state_gradient, call.gradient = of_state.data_ptr(), gradient.data_ptr()
        call.active = 0 if options.adjoint_seminorm else unit.active
        run(function, call, z0.dtype == torch.float32, None)
        del kept
        field.stats.nfe_backward += call.nfe
        field.stats.vjp += call.vjp
        if options.sensitivity != "discrete":
            field.stats.accepted_backward += call.accepted
            field.stats.rejected_backward += call.rejected
        retcode = STATUS[call.status]
        if retcode is not Retcode.SUCCESS:
            what = "the adjoint solve (backward pass)"
            message = explain(_end(call, end), back, problem.layout, of=what)[1]
            raise SolveError(message, str(retcode), call.t)
        pieces = unit.split(gradient)
        return of_state, [pieces.get(id(x), torch.zeros_like(x)) for x in tensors]


def _end(call: Call, z: Tensor) -> End:
    entry = None if call.entry < 0 else call.entry
    return End(STATUS[call.status], call.t, z, call.next_dt, entry)


def _call(
    options: SolveOptions, like: Tensor, rtol: float | Tensor, atol: float | Tensor
) -> tuple[Call, list[Any]]:
    """The numbers that forward and backward solves share, and what must live as long as they."""
    call = Call()
    kept: list[Any] = []
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        for name, value in (("rtols", rtol), ("atols", atol)):
            full = torch.as_tensor(value, dtype=like.dtype).expand(len(like)).contiguous()
            kept.append(full)
            setattr(call, name, full.data_ptr())
    else:
        call.rtol, call.atol = rtol, atol
    call.largest = options.norm == "max"
    call.exponents[:] = CONTROLLERS[options.controller]
    call.safety, call.shrink, call.grow = options.safety, options.shrink, options.grow
    call.dt_min, call.dt_max, call.stretch = options.dt_min, options.dt_max, STRETCH
    call.adaptive, call.max_steps = options.is_adaptive, options.max_steps
    if options.grid:
        call.has_dt, call.dt = 1, math.inf
    elif options.dt is not None:
        call.has_dt, call.dt = 1, min(options.dt, options.dt_max)
    if options.tstops:
        jumps = _jumps(options.tstops, like.dtype)
        kept.append(jumps)
        call.jumps, call.jump_count = jumps.ctypes.data, len(jumps)
    return call, kept


def _jumps(tstops: Sequence[float], dtype: torch.dtype) -> np.ndarray:
    """(t, the number before it, the number after it) of each."""
    sides = Jumps(tstops, dtype)._sides
    return np.array([[t, *both] for t, both in sides.items()])
