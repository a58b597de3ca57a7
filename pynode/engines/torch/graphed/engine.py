"""The torch engine with ``compile=True`` on CUDA.

Steps are those of ``compile=False``, to rounding. A solve waits for the device once for many
steps, to read off how far it has come.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.failures import explain
from pynode.engines.torch.graphed.backward import discrete
from pynode.engines.torch.graphed.log import GraphedLog, Interpolant
from pynode.engines.torch.graphed.run import Run
from pynode.engines.torch.graphed.units import unit_of
from pynode.engines.torch.outputs import outputs
from pynode.errors import InputError, LoweringError
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics


class GraphedEngine(TorchEngine):
    """Solves, and differentiates by ``discrete``, in CUDA graphs.

    The other sensitivities solve the adjoint as ``compile=False`` does, from recorded steps.
    """

    def field(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        args: Any,
        stats: Statistics,
        autocast: Autocast | None,
    ) -> FlatField:
        """The problem's field on flat states, with counts in ``stats``."""
        if any(dtype.is_complex for dtype in problem.layout.dtypes):
            raise LoweringError("compile=True: the state is complex: use compile=False")
        return super().field(problem, options, args, stats, autocast)

    def trainable(
        self, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
    ) -> tuple[list[Tensor], None]:
        """Tensors that require grad and that the field depends on beside its args."""
        return unit_of(field, z0, problem.times.start).found, None

    def keeps(self, options: SolveOptions) -> tuple[bool, int | None]:
        return options.sensitivity != "backsolve", None

    @torch.inference_mode(False)
    @torch.no_grad()
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
        if watch is not None:
            raise InputError("compile=True has no events: use compile=False")
        times, layout = problem.times, problem.layout
        tolerances = problem.tolerances(options)
        plan = outputs(times, layout)
        unit = unit_of(field, z0, times.start)
        chunks, blocks = [plan.initial(z0)], []
        with unit.lock:
            per_entry = any(isinstance(x, Tensor) for x in tolerances)
            inside = any(times.start != t != times.end for t in plan.at)
            dense = options.dense or (record and options.sensitivity != "discrete")
            attempt = unit.attempt(options, per_entry, inside or dense)
            unit.field.refresh(field)
            expected = unit.expected.setdefault(attempt, [])
            run = Run(attempt, expected, times, options, z0, tolerances)
            reader = Interpolant(attempt.method, attempt.extended, plan, z0)
            for block in run.blocks():
                if inside:
                    chunks.append(reader.values(block))
                if record:
                    blocks.append(block)
            end = run.end(field)
        if not inside and end.retcode is Retcode.SUCCESS:
            chunks.append(reader.at_end(end.z))
        field.stats.accepted += run.accepted
        field.stats.rejected += run.rejected
        field.stats.nfe += run.evaluations
        log: Any = GraphedLog(unit, attempt, blocks, end.z) if record else None
        reached = sum(len(chunk) for chunk in chunks)
        zs = plan.assemble(chunks, z0)
        forward = Forward(zs, end.z, end.t, end.retcode, log, reached=reached)
        if end.retcode is not Retcode.SUCCESS:
            forward.sample, forward.message = explain(end, options, layout)
        return forward

    @torch.inference_mode(False)
    @torch.no_grad()
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
        log: Any = forward.log
        if options.sensitivity != "discrete":
            return super().adjoint(problem, options, field, tensors, forward, zs, grad)
        assert isinstance(log, GraphedLog)
        unit, attempt = log.unit, log.attempt
        plan = outputs(problem.times, problem.layout)
        reader = Interpolant(attempt.method, attempt.extended, plan, zs)
        if problem.times.per_sample:
            grad = torch.nan_to_num(grad)
        with unit.lock:
            unit.field.refresh(field)
            step = unit.reverse(attempt, field)
            of_state, gradient, products = discrete(step, attempt.stages, log.blocks, reader, grad)
        field.stats.nfe_backward += products
        field.stats.vjp += products
        pieces = unit.field.split(gradient, unit.found, field.args)
        return of_state, [pieces.get(id(x), torch.zeros_like(x)) for x in tensors]
