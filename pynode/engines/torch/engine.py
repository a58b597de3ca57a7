"""The embedded engine: solvers and adjoints on torch tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pynode import catalogue
from pynode.engines.torch.adjoints import ADJOINTS, VJP, AdjointProblem
from pynode.engines.torch.build import build_integrator, custom_norm
from pynode.engines.torch.failures import explain
from pynode.engines.torch.integrate import Integrator, stops_between
from pynode.engines.torch.outputs import Outputs, outputs
from pynode.engines.torch.runge_kutta import Piece
from pynode.engines.torch.steppers import METHODS, as_system
from pynode.engines.torch.trajectory import StepLog, Trajectory
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Retcode


@dataclass
class Forward:
    """A forward pass on flat states.

    Attributes:
        zs: (T, N), NaN where the solve did not get.
        final: the state (N,) that it ended with, at time ``t``.
        log: recorded steps, where recording was asked for.
        message, sample: for a failed solve, the message, and whom to blame.
    """

    zs: Tensor
    final: Tensor
    t: float
    retcode: Retcode
    log: StepLog | None
    message: str = ""
    sample: int | None = None


class TorchEngine:
    """Solves and differentiates on torch tensors, on any device."""

    name = "torch"

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
    ) -> Forward:
        """Solve for a flat state z0 (N,).

        Args:
            first: f(t0, z0), if it is known already.
            record: keep a log of the steps: whole, or ``keep`` states of them.
            taped: leave every operation to autograd.
            transformed: a torch.func transform is active.
        """
        times, layout = problem.times, problem.layout
        plan = outputs(times, layout)
        reduce = custom_norm(options.norm, layout.restore) if callable(options.norm) else None
        integrator = build_integrator(
            as_system(METHODS[options.solver], field, options.jac),
            z0,
            options,
            reduce=reduce,
            tolerances=problem.tolerances(options),
            taped=taped,
            transformed=transformed,
        )
        log = StepLog(keep, norm=integrator.norm) if record else None
        chunks = [plan.initial(z0)]
        on_step = _reader(plan, chunks, field, log)
        stops = stops_between(times.start, times.end, options.tstops)
        end = integrator.run(times.start, z0, stops, on_step, first)
        _count(integrator, field)
        sample, message = None, ""
        if end.retcode is not Retcode.SUCCESS:
            sample, message = explain(end, options, layout)
        zs = plan.assemble(chunks, z0)
        return Forward(zs, end.z, end.t, end.retcode, log, message, sample)

    def trajectory(self, log: StepLog, options: SolveOptions, field: FlatField) -> Trajectory:
        method = METHODS[options.solver]
        return Trajectory(log, method, as_system(method, field, options.jac), options.tstops)

    def keeps(self, options: SolveOptions) -> tuple[bool, int | None]:
        """What the sensitivity's backward pass needs of the forward one: (record, keep)."""
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
        if forward.log is not None:
            trajectory = self.trajectory(forward.log, options, field)
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


def _reader(plan: Outputs, chunks: list[Tensor], field: FlatField, log: StepLog | None):  # type: ignore[no-untyped-def]
    """What is done after each accepted step: outputs read off, the step recorded."""
    done = len(chunks[0])

    def on_step(piece: Piece) -> None:
        nonlocal done
        upto = plan.until(piece.t1)
        if upto > done:
            chunks.append(plan.values(piece, done, upto, field))
            done = upto
        if log is not None:
            log(piece)

    return on_step


def _count(integrator: Integrator, field: FlatField) -> None:
    field.stats.accepted += integrator.accepted
    field.stats.rejected += integrator.rejected
