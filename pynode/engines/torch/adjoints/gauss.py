"""Interpolating adjoint with the parameters' gradient by quadrature in every backward step.

Only the adjoint, of the state's size, is integrated as an ODE. The integrand a·∂f/∂θ is
evaluated at Gauss-Legendre points, by the dense output of both solves, in as many points as
make the rule at least as accurate as the step. The rule is applied to the pieces into which the
steps of both solves cut the interval: where only the state moves fast, the adjoint's steps alone
would miss it.

Norcliffe & Deisenroth 2023, Faster Training of Neural ODEs Using Gauss-Legendre Quadrature.
"""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor

from pynode import catalogue
from pynode.engines.torch.adjoints.sweep import AdjointProblem, sweep
from pynode.engines.torch.controller import rms
from pynode.engines.torch.runge_kutta import Piece


def gauss(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    vjp, trajectory = problem.vjp, problem.trajectory
    assert trajectory is not None
    order = catalogue.solver(problem.options.solver).order
    points, weights = np.polynomial.legendre.leggauss(order // 2 + 1)
    rule = [
        (0.5 * (1 + x), 0.5 * w) for x, w in zip(points.tolist(), weights.tolist(), strict=True)
    ]
    gradient = problem.zs.new_zeros(vjp.size)

    rhs = problem.adjoint_system()

    def on_step(piece: Piece) -> None:
        edges = trajectory.breaks(piece.t, piece.t1)
        for lo, hi in itertools.pairwise(edges):
            for point, weight in rule:
                t = lo + point * (hi - lo)
                product = vjp.parameters(t, trajectory.at(t), piece.at(t, rhs))
                gradient.sub_(product, alpha=weight * (hi - lo))  # the sweep runs backwards

    def at_moment(a: Tensor, lo: int, hi: int) -> None:
        problem.outputs.jump(a, problem.grad, lo, hi)

    start = problem.zs.new_zeros(problem.size)
    a = sweep(problem, rhs, start, at_moment, rms, on_step if vjp.size else None)
    return a, gradient
