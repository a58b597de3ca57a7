"""The adjoint with the state read from the forward pass's dense output, never re-integrated.

The parameters' gradient is integrated along with the adjoint and takes part in its error control.
Where the adjoint is solved by an implicit method that integral is not made part of the system,
whose matrices would then be of the size of all parameters: its right-hand side does not depend on
it, so that it is a quadrature over each step, by the dense output of both solves, with the
distance of two rules for its error.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pynode import catalogue
from pynode.engines.torch.adjoints.quadrature import RULE
from pynode.engines.torch.adjoints.sweep import AdjointProblem, largest_rms, sweep
from pynode.engines.torch.controller import rms
from pynode.engines.torch.runge_kutta import Piece, RightHandSide


def interpolating(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    if catalogue.solver(problem.options.solver).stiff:
        return _implicit(problem)
    n, vjp = problem.size, problem.vjp
    trajectory = problem.trajectory
    assert trajectory is not None

    def rhs(t: float, y: Tensor) -> Tensor:
        _, of_state, of_parameters = vjp(t, trajectory.at(t), y[:n])
        return torch.cat([of_state, of_parameters]).neg_()

    def at_moment(y: Tensor, lo: int, hi: int) -> None:
        problem.outputs.jump(y[:n], problem.grad, lo, hi)

    sizes = [n] if problem.options.adjoint_seminorm else [n, vjp.size]
    y = sweep(problem, rhs, problem.zs.new_zeros(n + vjp.size), at_moment, largest_rms(sizes))
    return y[:n], y[n:]


def _implicit(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    rhs = problem.adjoint_system()
    integral = _Integral(problem, rhs)

    def at_moment(a: Tensor, lo: int, hi: int) -> None:
        problem.outputs.jump(a, problem.grad, lo, hi)

    some = problem.vjp.size > 0
    controlled = some and not problem.options.adjoint_seminorm
    a = sweep(
        problem,
        rhs,
        problem.zs.new_zeros(problem.size),
        at_moment,
        rms,
        integral.add if some else None,
        beside=integral.error if controlled else None,
    )
    return a, integral.value


class _Integral:
    """∫ a·∂f/∂θ dt, step by step, by Kronrod's rule; its error by Gauss's of the same points.

    Args:
        rhs: the adjoint system, for stages that only dense output needs.
    """

    def __init__(self, problem: AdjointProblem, rhs: RightHandSide) -> None:
        assert problem.trajectory is not None
        self._vjp, self._trajectory, self._rhs = problem.vjp, problem.trajectory, rhs
        self._options = problem.options
        self.value = problem.zs.new_zeros(self._vjp.size)
        self._kronrod = self.value.new_tensor([kronrod for _, kronrod, _ in RULE])
        self._gauss = self.value.new_tensor([gauss for _, _, gauss in RULE])
        self._last: tuple[Piece, Tensor] | None = None

    def error(self, piece: Piece) -> float:
        """The error of a step's part, in units of the tolerance."""
        part, error = self._over(piece)
        self._last = piece, part
        largest = torch.maximum(self.value.abs(), (self.value + part).abs())
        rtol, atol = float(self._options.rtol), float(self._options.atol)
        tiny = torch.finfo(largest.dtype).tiny
        return float(rms(error / (largest * rtol + atol).clamp_min(tiny)))

    def add(self, piece: Piece) -> None:
        """A step was accepted."""
        known = self._last is not None and self._last[0] is piece
        part = self._last[1] if known and self._last else self._over(piece)[0]
        self.value.add_(part)
        self._last = None

    def _over(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """A step's part of the integral, over the pieces into which the forward pass's steps cut
        it, and its error.
        """
        trajectory = self._trajectory
        part, error = torch.zeros_like(self.value), torch.zeros_like(self.value)
        for lo, hi in itertools.pairwise(trajectory.breaks(piece.t, piece.t1)):
            centre, half = 0.5 * (lo + hi), 0.5 * (hi - lo)
            values = torch.stack(
                [
                    self._vjp.parameters(t, trajectory.at(t), piece.at(t, self._rhs))
                    for t in (centre + half * x for x, _, _ in RULE)
                ]
            )
            by_kronrod = self._kronrod @ values
            part.sub_(by_kronrod, alpha=half)  # the sweep runs backwards
            error.add_(by_kronrod - self._gauss @ values, alpha=half)
        return part, error
