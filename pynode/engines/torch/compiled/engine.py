"""The torch engine with ``compile=True``: every solve, forward or backward, is one compiled call.

It takes the same steps as the engine's own code does, to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynode.engines.torch.compiled.call import Call, padded, run
from pynode.engines.torch.compiled.log import CompiledLog
from pynode.engines.torch.compiled.units import CompiledField, function_of, unit_of
from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.failures import explain
from pynode.engines.torch.integrate import End
from pynode.engines.torch.methods import TABLEAUS
from pynode.errors import InputError, SolveError
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics

STATUS = (Retcode.SUCCESS, Retcode.MAX_STEPS, Retcode.DT_UNDERFLOW, Retcode.NON_FINITE)


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
        return CompiledField(problem.field, problem.layout, args, stats, form=problem.form)

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
        rtol, atol = problem.tolerances(options)
        form = unit.form(options, rtol, atol, layout, times)
        call, entries = form.call(), form.entries
        parameters, end = unit.parameters(), padded(layout.size, z0)
        zs = z0.new_empty((entries.slots, layout.size))
        if entries.places is not None:
            zs.fill_(math.nan)
        call.z0, call.params = z0.data_ptr(), parameters.data_ptr()
        call.outputs, call.end = zs.data_ptr(), end.data_ptr()
        log: Any = CompiledLog(TABLEAUS[options.solver], z0) if record else None
        if log is not None:
            log.grow()
            log.attach(call)
            call.record = 1
        run(function, call, z0.dtype == torch.float32, log)
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
        z0 = zs[0].detach()  # a state at which new programs can be compared with torch
        unit, function = function_of(field, options.sensitivity, options, z0, times.start)
        if times.per_sample:
            grad = torch.nan_to_num(grad)
        grad, zs = grad.contiguous(), zs.contiguous()
        rtol, atol = float(back.rtol), float(back.atol)
        form = unit.form(back, rtol, atol, problem.layout, times, backwards=True)
        call, size = form.call(), problem.layout.size
        parameters, end = unit.parameters(), padded(3 * size + unit.lowered.size, z0)
        of_state, gradient = padded(size, z0), padded(unit.lowered.size, z0)
        call.params = parameters.data_ptr()
        call.outputs, call.end = zs.data_ptr(), end.data_ptr()
        log: Any = forward.log
        if isinstance(log, CompiledLog):
            log.attach(call)
            call.steps = log.steps
        call.final_state, call.cotangents = forward.final.data_ptr(), grad.data_ptr()
        call.state_gradient, call.gradient = of_state.data_ptr(), gradient.data_ptr()
        call.active = 0 if options.adjoint_seminorm else unit.active
        run(function, call, z0.dtype == torch.float32, None)
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
