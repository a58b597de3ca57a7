"""Exact gradients of the computed solution in constant memory: steps undone one by one.

McCallum & Foster 2024 (arXiv:2410.11648), algorithm 1. Each half of a step is evaluated once,
with autograd: the same evaluation gives the state before the step and the derivatives there.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pynode.engines.torch.adjoints.sweep import AdjointProblem
from pynode.engines.torch.reversible import reversible_stepper
from pynode.engines.torch.tableau import Tableau
from pynode.errors import GradientError

LARGEST_MISS = 1e-2
"""How far from z0, relative to its largest entry, the undone steps may end."""


def reversible(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    vjp, trajectory, outputs, coupling = (
        problem.vjp,
        problem.trajectory,
        problem.outputs,
        problem.options.coupling,
    )
    assert trajectory is not None and coupling is not None
    assert isinstance(trajectory.method, Tableau)
    y1, z1, z0 = problem.final.unbind()
    stepper = reversible_stepper(
        trajectory.method, trajectory.rhs, z0, True, trajectory.tstops, coupling
    )
    a_y, a_z = (problem.zs.new_zeros(problem.size) for _ in range(2))
    gradient = problem.zs.new_zeros(vjp.size)

    def pull(results: list[Tensor], states: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """Cotangents of ``states``; those of the parameters are added up."""
        inputs = [*states, *vjp.tensors]
        grads = torch.autograd.grad(
            results, inputs, cotangents, retain_graph=True, allow_unused=True
        )
        if vjp.size:
            gradient.add_(vjp.flatten(grads[len(states) :]))
        return [
            torch.zeros_like(x) if g is None else g for x, g in zip(states, grads, strict=False)
        ]

    before = problem.stats.nfe_backward
    for t1, t in itertools.pairwise(reversed(trajectory.log.times)):
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            moved = stepper.back(t1, t, y1)
        (of_y1,) = pull([moved], [y1], [-a_z])
        a_y = a_y + a_z + of_y1
        with torch.enable_grad():
            z = (z1 - y1.detach() + moved.detach()).requires_grad_()
            stepper.forget()
            base = stepper.forth(t, t1, z)
            y = stepper.uncouple(base, y1).detach().requires_grad_()
            piece = stepper.couple(base, y)
            results, cotangents = [piece.z1], [a_y]
            lo, hi = outputs.until(t), outputs.until(t1)
            if hi > lo:
                results.append(outputs.values(piece, lo, hi, trajectory.rhs))
                cotangents.append(outputs.cotangent(problem.grad, lo, hi))
        a_y, of_z = pull(results, [y, z], cotangents)
        a_z = a_z + of_z
        y1, z1 = y.detach(), z.detach()
    problem.stats.vjp += problem.stats.nfe_backward - before
    _check_return(y1, z1, z0)
    a = a_y + a_z
    outputs.jump(a, problem.grad, 0, outputs.until(problem.t0))
    return a, gradient


def _check_return(y: Tensor, z: Tensor, z0: Tensor) -> None:
    """Undoing the steps has to lead back to z0; rounding may have grown on the way."""
    miss = float(torch.maximum((y - z0).abs(), (z - z0).abs()).max())
    size = float(z0.abs().max())
    if not miss <= LARGEST_MISS * max(size, 1e-30):
        raise GradientError(
            f"sensitivity='reversible': undoing the steps led {miss:.1e} away from z0 (largest "
            f"entry {size:.1e}), since rounding grows where the solution contracts, and by "
            "1/coupling a step. Use float64, a coupling nearer to 1, or sensitivity='discrete' "
            "with checkpoints=..."
        )
