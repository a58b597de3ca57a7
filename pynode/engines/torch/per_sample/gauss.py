"""The adjoint of every sample by steps of its own, the parameters' gradient by quadrature.

As in ``adjoints/gauss.py``: each sample's adjoint is solved backwards along that sample's own
dense output, and the integral of a·∂f/∂θ is taken at Gauss-Legendre points of the pieces into
which the steps of both solves cut its span. Points of all samples are gathered, each cotangent
scaled by its weight, so that one vector-Jacobian product serves many of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode import catalogue
from pynode.engines.torch.adjoints.vjp import VJP
from pynode.engines.torch.failures import explain
from pynode.engines.torch.per_sample.build import build_row_integrator
from pynode.engines.torch.per_sample.field import At, RowField, distinct
from pynode.engines.torch.per_sample.integrate import OnAccept, Stops, in_order
from pynode.engines.torch.per_sample.rosenbrock import RowStiffAdjoint, RowStiffField
from pynode.engines.torch.per_sample.step import RowStep
from pynode.engines.torch.per_sample.trajectory import RowTrajectory
from pynode.errors import SolveError
from pynode.options import SolveOptions
from pynode.state import StateLayout
from pynode.times import OwnTimes

ROWS_AT_ONCE = 4096
"""Quadrature points in one vector-Jacobian product, about."""


@dataclass
class RowAdjointProblem:
    """What the adjoint needs of the forward pass.

    Attributes:
        vjp: products of the field, which is a :class:`RowField`.
        trajectory: the samples' own dense output.
        times: their evaluation times; ``reached`` (B,), how many of them each reached.
        grad: dL/dzs (T, B, D).
        options: of the backward solve.
    """

    vjp: VJP
    trajectory: RowTrajectory
    times: OwnTimes
    reached: np.ndarray
    grad: Tensor
    options: SolveOptions
    layout: StateLayout


def gauss(problem: RowAdjointProblem) -> tuple[Tensor, Tensor]:
    """dL/dz0 (B·D,) and dL/dθ (P,)."""
    vjp, options = problem.vjp, problem.options
    moments = _Moments(problem)
    integral = _Integral(problem)
    start = moments.first()
    if moments.times.shape[1] == 1:  # nothing was integrated
        return start.reshape(-1), integral.value
    system = _adjoint_system(problem)
    tolerances = (options.rtol, options.atol)
    integrator = build_row_integrator(system, start, options, tolerances)
    outcome = integrator.run(
        moments.times[:, 0],
        start,
        Stops(moments.times[:, 1:], moments.counts - 1),
        moments.times[:, 1],
        integral.reader(system) if vjp.size else None,
        moments.jump,
    )
    stats = vjp.field.stats
    stats.accepted_backward += int(outcome.accepted.sum())
    stats.rejected_backward += int(outcome.rejected.sum())
    for row, end in sorted(outcome.ends.items()):
        of = f"the adjoint solve (backward pass) of sample {row}"
        _, message = explain(end, options, problem.layout.of_rows(1), of=of)
        raise SolveError(message, str(end.retcode), end.t, row)
    integral.flush()
    return outcome.z.reshape(-1), integral.value


class _Moments:
    """The times at which each sample's adjoint jumps, from its last one back to its t0."""

    def __init__(self, problem: RowAdjointProblem) -> None:
        times, grad = problem.times, problem.grad
        slots = times.values.shape[1]
        known = np.arange(slots) < problem.reached[:, None]
        values = np.where(known, times.values, np.nan)
        sign = np.where(times.direction < 0, -1.0, 1.0)
        last = np.nanmax(np.c_[values * sign[:, None], times.start * sign], axis=1) * sign
        stops = np.broadcast_to(
            np.array(problem.options.tstops), (len(values), len(problem.options.tstops))
        )
        low = np.minimum(times.start, last)[:, None]
        high = np.maximum(times.start, last)[:, None]
        stops = np.where((low < stops) & (stops < high), stops, np.nan)
        every = np.c_[values, times.start, stops]
        self.times, self.counts, places = in_order(every, times.direction < 0)
        width = self.times.shape[1]
        sample, slot = np.nonzero(places[:, :slots] >= 0)
        target = torch.from_numpy(sample * width + places[sample, slot]).to(grad.device)
        found = grad[tuple(torch.from_numpy(i).to(grad.device) for i in (slot, sample))]
        jumps = grad.new_zeros((len(values) * width, grad.shape[2]))
        self._jumps = jumps.index_add_(0, target, found).view(len(values), width, -1)

    def first(self) -> Tensor:
        """The adjoints (B, D) at the samples' last moments."""
        return self._jumps[:, 0].clone()

    def jump(self, a: Tensor, position: np.ndarray, rows: np.ndarray, stop: np.ndarray) -> Tensor:
        index = [torch.from_numpy(i).to(a.device) for i in (position, rows, stop + 1)]
        return a.index_add(0, index[0], self._jumps[index[1], index[2]])


def _adjoint_system(problem: RowAdjointProblem) -> Any:
    """a' = -a·∂f/∂z along the samples' paths, with derivatives where the solver is implicit."""
    vjp, trajectory = problem.vjp, problem.trajectory

    def product(at: At, a: Tensor) -> Tensor:
        z = trajectory.at(at.t, at.rows).view_as(a)
        return vjp.state(at, z, a).neg()  # type: ignore[arg-type]

    if not catalogue.solver(problem.options.solver).stiff:
        return product
    assert isinstance(vjp.field, RowField)
    system = RowStiffField(vjp.field, problem.options.jac)
    ends = trajectory.log.start, trajectory.log.t
    return RowStiffAdjoint(product, system, trajectory.at, np.minimum(*ends), np.maximum(*ends))


class _Integral:
    """∫ a·∂f/∂θ dt over all samples, by Gauss-Legendre points gathered as the adjoint goes."""

    def __init__(self, problem: RowAdjointProblem) -> None:
        self._vjp, self._trajectory = problem.vjp, problem.trajectory
        order = catalogue.solver(problem.options.solver).order
        points, weights = np.polynomial.legendre.leggauss(order // 2 + 1)
        self._points, self._weights = 0.5 * (1 + points), 0.5 * weights
        self.value = problem.grad.new_zeros(self._vjp.size)
        self._rows: list[np.ndarray] = []
        self._t: list[np.ndarray] = []
        self._place: list[np.ndarray] = []
        self._a: list[Tensor] = []
        self._count = 0

    def reader(self, rhs: Any) -> OnAccept:
        def on_accept(step: RowStep, accepted: np.ndarray | None) -> np.ndarray | None:
            if accepted is not None or not step.extended:
                step = step.take(accepted)
                step.extend(rhs)
            self._gather(step)
            return None

        return on_accept

    def _gather(self, step: RowStep) -> None:
        which, place, a, b = self._trajectory.cuts(step.rows, step.t, step.t1)
        width = b - a  # against the integral, as the solve goes
        t = (a + self._points[:, None] * width).reshape(-1)
        weights = (self._weights[:, None] * width).reshape(-1)
        which = np.tile(which, len(self._points))
        adjoint = step.at(which, t)
        adjoint.mul_(torch.from_numpy(weights).to(adjoint).unsqueeze(1))
        self._rows.append(step.rows[which])
        self._t.append(t)
        self._place.append(np.tile(place, len(self._points)))
        self._a.append(adjoint)
        self._count += len(t)
        if self._count >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Add what was gathered to the integral."""
        if not self._count:
            return
        rows, t, place = (np.concatenate(x) for x in (self._rows, self._t, self._place))
        a = torch.cat(self._a)
        self._rows, self._t, self._place, self._a, self._count = [], [], [], [], 0
        assert isinstance(self._vjp.field, RowField)
        groups = [None] if self._vjp.field.calling.compacts else [*distinct(rows)]
        for some in groups:
            part = slice(None) if some is None else some
            z = self._trajectory.inside(place[part], t[part])
            cotangent = a if some is None else a[torch.from_numpy(some).to(a.device)]
            at = At(t[part], rows[part])
            self.value.sub_(self._vjp.parameters(at, z, cotangent))  # type: ignore[arg-type]
