"""The adjoint of Chen et al. 2018, algorithm 1: state, adjoint and gradient backwards together."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.engines.torch.adjoints.sweep import AdjointProblem, largest_rms, sweep


def backsolve(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    n, vjp = problem.size, problem.vjp

    def rhs(t: float, y: Tensor) -> Tensor:
        z, a = y[:n], y[n : 2 * n]
        f, of_state, of_parameters = vjp(t, z, a)
        return torch.cat([f, -of_state, -of_parameters])

    def at_moment(y: Tensor, lo: int, hi: int) -> None:
        if hi > lo:
            problem.outputs.reset(y[:n], problem.zs, lo, hi)
        problem.outputs.jump(y[n : 2 * n], problem.grad, lo, hi)

    y = problem.zs.new_zeros(2 * n + vjp.size)
    sizes = [n, n] if problem.options.adjoint_seminorm else [n, n, vjp.size]
    # With times of each sample's own, a sample whose series ends early joins on the way back:
    # until then its rows hold the state at the end of the forward pass.
    y[:n] = problem.final
    y = sweep(problem, rhs, y, at_moment, largest_rms(sizes))
    return y[n : 2 * n], y[2 * n :]
