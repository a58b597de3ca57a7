"""Linear systems with a matrix for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.transforms import transforms_active


def lu_solve(lu: Tensor, pivots: Tensor, right: Tensor) -> Tensor:
    """A⁻¹·right for matrices factored by ``torch.linalg.lu_factor_ex``.

    Under nested ``vmap`` (as in ``vmap(jacrev(f))``) torch.linalg.lu_solve of torch 2.13 returns
    wrong numbers where the inner one maps over ``right`` alone, so under transforms the two
    triangular systems are solved one by one.
    """
    if not transforms_active():
        return torch.linalg.lu_solve(lu, pivots, right)
    permutation, lower, upper = torch.lu_unpack(lu, pivots)
    y = torch.linalg.solve_triangular(
        lower, permutation.mT @ right, upper=False, unitriangular=True
    )
    return torch.linalg.solve_triangular(upper, y, upper=True)
