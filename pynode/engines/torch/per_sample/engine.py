"""Solves and gradients with steps of each sample's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.dense import OwnDenseOutput
from pynode.engines.torch.adjoints import VJP
from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.failures import explain_samples
from pynode.engines.torch.per_sample.build import as_row_system, build_row_integrator, row_norm
from pynode.engines.torch.per_sample.crossings import RowWatch
from pynode.engines.torch.per_sample.discrete import replay
from pynode.engines.torch.per_sample.field import Calling, RowField
from pynode.engines.torch.per_sample.gauss import RowAdjointProblem, gauss
from pynode.engines.torch.per_sample.integrate import Outcome, stops_of
from pynode.engines.torch.per_sample.marks import Merged
from pynode.engines.torch.per_sample.outputs import RowOutputs
from pynode.engines.torch.per_sample.probe import row_field
from pynode.engines.torch.per_sample.step import RowStep
from pynode.engines.torch.per_sample.trajectory import RowLog, RowTrajectory
from pynode.errors import InputError
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, SampleOutcomes, Statistics


class PerSampleEngine(TorchEngine):
    """The torch engine where ``step_control="per_sample"``.

    The problem is one of :meth:`ODEProblem.per_sample`. How its field may be called is found out
    once for each engine.
    """

    def __init__(self) -> None:
        self._calling: Calling | None = None

    def field(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        args: Any,
        stats: Statistics,
        autocast: Autocast | None,
    ) -> FlatField:
        if autocast is not None:
            raise InputError(
                "step_control='per_sample' does not work under torch.autocast: use "
                "step_control='joint', or call the field's own modules under autocast"
            )
        layout, z0 = problem.layout, problem.layout.flatten(problem.z0)
        times = problem.times
        if self._calling is None:
            field = row_field(problem.field, layout, args, stats, z0, times, options)
            self._calling = field.calling
            return field
        park = z0.detach().reshape(times.samples, -1)
        return RowField(problem.field, layout, args, stats, self._calling, park, times.start)

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
        """As :meth:`TorchEngine.solve`."""
        assert isinstance(field, RowField)
        times, layout = problem.times, problem.layout
        states = z0.reshape(field.rows, -1)
        log = RowLog(record and not taped, times.start, times.start.copy(), times.direction)
        with torch.no_grad():
            if first is not None:
                # At a jump the first stage belongs to one side, which ``first`` does not.
                first = None if options.tstops else first.reshape(states.shape)
            kept = log if record or taped else None
            outcome, outputs = self._integrate(
                problem, options, field, states.detach(), first, kept, watch
            )
        evaluations, marks = None, None if watch is None else watch.marks
        if taped:
            before = field.stats.nfe
            if watch is None:
                zs, log = replay(log, options, field, states, times)
            else:
                merged = Merged(times, outputs.reached(), watch.found)
                every, log = replay(log, options, field, states, merged.times)
                zs, marks = merged.split(every)
            evaluations = field.stats.nfe - before
        else:
            zs = outputs.assemble()
        field.stats.accepted += int(outcome.accepted.sum())
        field.stats.rejected += int(outcome.rejected.sum())
        samples = _outcomes(outcome, field, outputs)
        if watch is not None:
            for row in np.flatnonzero(~np.isnan(watch.stop)).tolist():
                samples.retcodes[row] = Retcode.TERMINATED
        retcode, sample, message = Retcode.SUCCESS, None, ""
        t = float(outcome.t[0])
        if outcome.ends:
            sample, message, samples.messages = explain_samples(outcome.ends, options, layout)
            retcode, t = outcome.ends[sample].retcode, outcome.ends[sample].t
        final = outcome.z.reshape(-1)
        found = Forward(zs, final, t, retcode, log, message, sample, samples, evaluations)
        found.marks, found.reached = marks, len(zs)
        return found

    def _integrate(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: RowField,
        z0: Tensor,
        first: Tensor | None,
        log: RowLog | None,
        watch: RowWatch | None,
    ) -> tuple[Outcome, RowOutputs]:
        times = problem.times
        system = as_row_system(options, field)
        rtol, atol = (
            x.reshape(z0.shape) if isinstance(x, Tensor) else x for x in problem.tolerances(options)
        )
        reduce = row_norm(options, problem.layout)
        integrator = build_row_integrator(system, z0, options, (rtol, atol), reduce)
        outputs = RowOutputs(times, z0, system)

        def on_accept(step: RowStep, accepted: np.ndarray | None) -> np.ndarray | None:
            if watch is None:
                outputs.read(step, accepted)
                if log is not None:
                    log(step, accepted)
                return None
            part = step.take(accepted)
            part.extend(system)
            ended, until = watch(part)
            outputs.read(part, None, until)
            if log is not None:
                log(part, None)
            if accepted is None:
                return ended
            gone = np.zeros(len(step.rows), dtype=bool)
            gone[accepted] = ended
            return gone

        spent = None
        if watch is not None:
            watch.begin(times.start, z0, times.direction != 0)
            integrator.dt = integrator.dt if watch.dt is None else watch.dt
            spent = watch.attempts
        stops = stops_of(times.start, times.end, options.tstops)
        outcome = integrator.run(
            times.start, z0, stops, times.end, on_accept, first=first, spent=spent
        )
        if watch is not None:
            watch.attempts = watch.attempts + outcome.accepted + outcome.rejected
            watch.dt = outcome.h
        return outcome, outputs

    def dense_output(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        forward: Forward,
        no_gradient: str,
    ) -> OwnDenseOutput:
        assert isinstance(field, RowField) and isinstance(forward.log, RowLog)
        trajectory = RowTrajectory(forward.log, as_row_system(options, field))
        return OwnDenseOutput(trajectory, problem.layout, problem.times, problem.z0, no_gradient)

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
        """As :meth:`TorchEngine.adjoint`, by ``gauss``."""
        assert isinstance(field, RowField) and isinstance(forward.log, RowLog)
        assert forward.samples is not None
        vjp = VJP(field, tensors, zs)
        adjoint = RowAdjointProblem(
            vjp=vjp,
            trajectory=RowTrajectory(forward.log, as_row_system(options, field)),
            times=problem.times,
            reached=forward.samples.outputs.numpy(),
            grad=torch.nan_to_num(grad).reshape(len(grad), field.rows, -1),
            options=options.backward(),
            layout=problem.layout,
        )
        of_state, of_parameters = gauss(adjoint)
        return of_state, vjp.unflatten(of_parameters)


def _outcomes(outcome: Outcome, field: RowField, outputs: RowOutputs) -> SampleOutcomes:
    retcodes = [Retcode.SUCCESS] * field.rows
    for row, end in outcome.ends.items():
        retcodes[row] = end.retcode
    return SampleOutcomes(
        retcodes=retcodes,
        t=torch.from_numpy(outcome.t),
        outputs=torch.from_numpy(outputs.reached()),
        nfe=torch.from_numpy(field.counts),
        accepted=torch.from_numpy(outcome.accepted),
        rejected=torch.from_numpy(outcome.rejected),
        attempts=outcome.attempts,
    )
