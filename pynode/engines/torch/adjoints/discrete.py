"""Exact gradients of the computed solution in bounded memory: one step on the tape at a time.

Each step is made again from its state, with autograd, and left behind before the one before it;
states come from the trajectory, which keeps a bounded number and rebuilds the others
(checkpointing, Griewank & Walther 2000).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.engines.torch.adjoints.sweep import AdjointProblem


def discrete(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    vjp, trajectory, outputs = problem.vjp, problem.trajectory, problem.outputs
    assert trajectory is not None
    a = problem.zs.new_zeros(problem.size)
    gradient = problem.zs.new_zeros(vjp.size)
    for _, t, t1, z in trajectory.steps_reversed():
        lo, hi = outputs.until(t), outputs.until(t1)
        before = problem.stats.nfe_backward
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            stepper = trajectory.stepper(z, taped=True)
            piece = stepper.attempt(t, t1, z)
            results, cotangents = [piece.z1], [a]
            if hi > lo:
                results.append(outputs.values(piece, lo, hi, trajectory.rhs))
                cotangents.append(outputs.cotangent(problem.grad, lo, hi))
        inputs = [z, *vjp.tensors]
        grads = torch.autograd.grad(
            results, inputs, cotangents, retain_graph=True, allow_unused=True
        )
        problem.stats.vjp += problem.stats.nfe_backward - before
        assert grads[0] is not None
        a = grads[0]
        if vjp.size:
            gradient += vjp.flatten(grads[1:])
    a = a.clone()
    outputs.jump(a, problem.grad, 0, outputs.until(problem.t0))
    return a, gradient
