"""What the adjoints share: backwards from the last evaluation time to the first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode import catalogue
from pynode.engines.torch.adjoints.vjp import VJP
from pynode.engines.torch.build import build_integrator
from pynode.engines.torch.controller import Reduce, rms
from pynode.engines.torch.derivatives import StiffAdjoint, StiffField
from pynode.engines.torch.failures import explain
from pynode.engines.torch.integrate import OnStep, stops_between
from pynode.engines.torch.outputs import Outputs
from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.engines.torch.trajectory import Trajectory
from pynode.errors import SolveError
from pynode.options import SolveOptions
from pynode.solution import Retcode, Statistics
from pynode.state import StateLayout


@dataclass
class AdjointProblem:
    r"""What an adjoint needs of the forward pass.

    With :math:`a(t) = \partial L_{>t} / \partial z(t)`, the sensitivity of the loss incurred
    after t, every method computes

    .. math::
        \dot a = -a\,\frac{\partial f}{\partial z}, \qquad a(t_N^+) = 0, \qquad
        a(t_i^-) = a(t_i^+) + \frac{\partial \ell_i}{\partial z(t_i)}, \qquad
        \frac{dL}{dz_0} = a(t_0^-), \quad
        \frac{dL}{d\theta} = \int_{t_0}^{t_N} a\,\frac{\partial f}{\partial\theta}\,dt .

    Attributes:
        zs, grad: the outputs (T, N) and dL/dzs (T, N).
        final: the state (N,) at the last time; for reversible steps (3, N), see ``Forward``.
        trajectory: the forward pass; None for backsolve.
        t0: the initial time.
        options: of the backward solve.
    """

    vjp: VJP
    outputs: Outputs
    zs: Tensor
    grad: Tensor
    final: Tensor
    trajectory: Trajectory | None
    t0: float
    options: SolveOptions
    stats: Statistics
    layout: StateLayout

    @property
    def size(self) -> int:
        return self.layout.size

    def adjoint_system(self) -> RightHandSide:
        """a' = -a·∂f/∂z along the trajectory, with derivatives where the solver is implicit."""
        trajectory, vjp = self.trajectory, self.vjp
        assert trajectory is not None

        def product(t: float, a: Tensor) -> Tensor:
            return vjp.state(t, trajectory.at(t), a)

        if catalogue.solver(self.options.solver).stiff:
            system = StiffField(vjp.field, self.options.jac)
            return StiffAdjoint(product, system, trajectory.at, (trajectory.t0, trajectory.t1))
        return lambda t, a: product(t, a).neg_()


Adjoint = Callable[[AdjointProblem], tuple[Tensor, Tensor]]
"""From a problem to dL/dz0 (N,) and dL/dθ (P,)."""


def sweep(
    problem: AdjointProblem,
    rhs: RightHandSide,
    y: Tensor,
    at_moment: Callable[[Tensor, int, int], None],
    reduce: Reduce,
    on_step: OnStep | None = None,
    on_stretch: Callable[[], None] | None = None,
    beside: Callable[[Piece], float] | None = None,
) -> Tensor:
    """Solve a system backwards through all evaluation times.

    Args:
        rhs, y: the system and its state at the last evaluation time.
        at_moment: changes the state, in place, for the entries lo to hi of one time.
        on_stretch: called after each stretch between two evaluation times.
        beside: see :class:`~..integrate.Integrator`.

    Returns:
        The state at the initial time.

    Raises:
        SolveError: the adjoint solve failed.
    """
    integrator = build_integrator(rhs, y, problem.options, reduce=reduce)
    integrator.beside = beside
    t = None
    for moment, lo, hi in [*problem.outputs.moments_reversed(), (problem.t0, 0, 0)]:
        if t is not None and moment != t:
            stops = stops_between(t, moment, problem.options.stops)
            end = integrator.run(t, y, stops, on_step)
            if end.retcode is not Retcode.SUCCESS:
                _fail(problem, end)
            y = end.z.clone()
            if on_stretch is not None:
                on_stretch()
        at_moment(y, lo, hi)
        t = moment
    problem.stats.accepted_backward += integrator.accepted
    problem.stats.rejected_backward += integrator.rejected
    return y


def largest_rms(sizes: list[int]) -> Reduce:
    """The largest RMS norm of the leading parts of a vector; what follows them is left out."""
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    spans = [slice(lo, hi) for lo, hi in itertools.pairwise(edges) if hi > lo]

    def reduce(x: Tensor) -> Tensor:
        return torch.stack([rms(x[span]) for span in spans]).amax()

    return reduce


def _fail(problem: AdjointProblem, end) -> None:  # type: ignore[no-untyped-def]
    options = problem.options
    _, message = explain(end, options, problem.layout, of="the adjoint solve (backward pass)")
    raise SolveError(message, str(end.retcode), end.t)
