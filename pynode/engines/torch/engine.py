"""The embedded engine: solvers and adjoints on torch tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode import catalogue
from pynode.dense import DenseOutput, OwnDenseOutput
from pynode.engines.torch.adjoints import ADJOINTS, VJP, AdjointProblem
from pynode.engines.torch.build import build_integrator, custom_norm, flat_callbacks
from pynode.engines.torch.crossings import Watch
from pynode.engines.torch.failures import explain
from pynode.engines.torch.integrate import Integrator, OnStep, stops_between
from pynode.engines.torch.outputs import Outputs, outputs
from pynode.engines.torch.reader import Reader
from pynode.engines.torch.reversible import ReversibleStepper
from pynode.engines.torch.runge_kutta import Piece
from pynode.engines.torch.steppers import METHODS, as_system
from pynode.engines.torch.trajectory import StepLog, Trajectory
from pynode.field import FlatField, trainable_tensors
from pynode.options import SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, SampleOutcomes, Statistics

if TYPE_CHECKING:
    from pynode.engines.torch.per_sample.trajectory import RowLog


@dataclass
class Forward:
    """A forward pass on flat states.

    Attributes:
        zs: (T, N), NaN where the solve did not get.
        final: the state (N,) that it ended with, at time ``t``; of reversible steps what they
            are undone from (3, N).
        log: recorded steps, where recording was asked for.
        message, sample: for a failed solve, the message, and whom to blame.
        reached: number of entries of ``zs`` that were reached.
        marks: (M, N), the states at the events that were found, where some were looked for.
        samples: how each sample ended, where it stepped by itself.
        taped: evaluations on autograd's tape, where these are not all.
    """

    zs: Tensor
    final: Tensor
    t: float
    retcode: Retcode
    log: StepLog | RowLog | None
    message: str = ""
    sample: int | None = None
    samples: SampleOutcomes | None = None
    taped: int | None = None
    reached: int = 0
    marks: Tensor | None = None

    @property
    def differentiable(self) -> bool:
        """It succeeded, or has what it reached of each sample."""
        ended = self.retcode in (Retcode.SUCCESS, Retcode.TERMINATED)
        return ended or self.samples is not None


class TorchEngine:
    """Solves and differentiates on torch tensors, on any device."""

    name = "torch"

    def field(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        args: Any,
        stats: Statistics,
        autocast: Autocast | None,
    ) -> FlatField:
        """The problem's field on flat states, with counts in ``stats``."""
        return FlatField(
            problem.field, problem.layout, args, stats, autocast=autocast, form=problem.form
        )

    def evaluates_again(self, options: SolveOptions) -> bool:
        """Whether the backward pass evaluates the field as it is then, not as it was."""
        return True

    def trainable(
        self, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
    ) -> tuple[list[Tensor], Tensor | None]:
        """Tensors that require grad and that the field depends on, and f(t0, z0)."""
        return trainable_tensors(field, problem.times.start, z0)

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
        """Solve for a flat state z0 (N,).

        Args:
            first: f(t0, z0), if it is known already.
            record: keep a log of the steps: whole, or ``keep`` states of them.
            taped: leave every operation to autograd.
            transformed: a torch.func transform is active.
            watch: looks for events, and ends the solve at one that is to end it.
        """
        times, layout = problem.times, problem.layout
        plan = outputs(times, layout)
        reduce = custom_norm(options.norm, layout.restore) if callable(options.norm) else None
        stops = stops_between(times.start, times.end, options.stops)
        integrator = build_integrator(
            as_system(METHODS[options.solver], field, options.jac),
            z0,
            options,
            reduce=reduce,
            tolerances=problem.tolerances(options),
            taped=taped,
            transformed=transformed,
            stops=stops,
            callbacks=flat_callbacks(options.callbacks, layout.restore),
        )
        if times.start in options.tstops:
            first = None  # of a jump it shows one side only, and maybe not that of the solve
        log = StepLog(keep, norm=integrator.norm) if record else None
        reader = Reader(plan, z0, field, waits=watch is None and not (taped or transformed))
        if watch is not None:
            watch.begin(times.start, z0)
            integrator.max_steps -= watch.attempts
            integrator.dt = integrator.dt if watch.dt is None else watch.dt
        on_step = _on_step(plan, reader, field, log, watch)
        end = integrator.run(times.start, z0, stops, on_step, first)
        _count(integrator, field)
        sample, message = None, ""
        if end.retcode not in (Retcode.SUCCESS, Retcode.TERMINATED):
            sample, message = explain(end, options, layout)
        zs, reached = plan.assemble(reader.chunks(), z0), reader.done
        stepper = integrator.stepper
        final = stepper.ending() if isinstance(stepper, ReversibleStepper) else end.z
        found = Forward(zs, final, end.t, end.retcode, log, message, sample, reached=reached)
        if watch is not None:
            watch.dt = end.dt
            watch.attempts += integrator.accepted + integrator.rejected
            found.marks = torch.stack(watch.marks) if watch.marks else z0.new_empty((0, len(z0)))
        return found

    def repeated(self, problem: ODEProblem, options: SolveOptions) -> None:
        """A way of its own, beside :meth:`solve`, to make a solve again from another state."""
        return None

    def dense_output(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        forward: Forward,
        no_gradient: str,
    ) -> DenseOutput | OwnDenseOutput:
        """What ``sol(s)`` reads from; for ``no_gradient`` see :class:`DenseOutput`."""
        log: Any = forward.log
        trajectory = self.trajectory(log.step_log(), options, field)
        return DenseOutput(trajectory, problem.layout, no_gradient)

    def trajectory(self, log: StepLog, options: SolveOptions, field: FlatField) -> Trajectory:
        method = METHODS[options.solver]
        return Trajectory(log, method, as_system(method, field, options.jac), options.tstops)

    def keeps(self, options: SolveOptions) -> tuple[bool, int | None]:
        """What the sensitivity's backward pass needs of the forward one: (record, keep)."""
        if options.sensitivity == "reversible":  # the times of the steps, no states
            return True, None if options.dense else 0
        return options.sensitivity != "backsolve", options.checkpoints

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
        """dL/dz0 (N,) and the gradients of ``tensors`` from dL/dzs (T, N).

        Args:
            field: counts backward evaluations.
            tensors: leaves that the field depends on.
            zs: the outputs of ``forward``.
        """
        vjp = VJP(field, tensors, zs)
        trajectory = None
        log: Any = forward.log
        if log is not None:
            trajectory = self.trajectory(log.step_log(), options, field)
        adjoint = AdjointProblem(
            vjp=vjp,
            outputs=outputs(problem.times, problem.layout),
            zs=zs,
            grad=torch.nan_to_num(grad) if problem.times.per_sample else grad,
            final=forward.final,
            trajectory=trajectory,
            t0=problem.times.start,
            options=options.backward(),
            stats=field.stats,
            layout=problem.layout,
        )
        of_state, of_parameters = ADJOINTS[catalogue.sensitivity(options.sensitivity).name](adjoint)
        return of_state, vjp.unflatten(of_parameters)


def _on_step(
    plan: Outputs, reader: Reader, field: FlatField, log: StepLog | None, watch: Watch | None
) -> OnStep:
    """What is done after each accepted step: events, outputs read off, the step recorded."""

    def on_step(piece: Piece) -> bool:
        ended = watch is not None and watch(piece, field)
        t1 = piece.t1
        if ended:
            assert watch is not None and watch.stop is not None
            t1 = watch.stop + plan.direction * watch.slack
        reader.read(piece, t1)
        if log is not None:
            log(piece)
        return ended

    return on_step


def _count(integrator: Integrator, field: FlatField) -> None:
    field.stats.accepted += integrator.accepted
    field.stats.rejected += integrator.rejected
