"""The adjoint with the state read from the forward pass's dense output, never re-integrated."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.engines.torch.adjoints.sweep import AdjointProblem, largest_rms, sweep


def interpolating(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
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
