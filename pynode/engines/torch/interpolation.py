"""Dense output at times in many steps at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pynode.engines.torch.runge_kutta import StepCoefficients


def interpolation_weights(c: StepCoefficients, theta: np.ndarray, like: Tensor) -> Tensor:
    """Weights (m, s) of the stages at fractions theta (m,) of steps."""
    powers = np.empty((c.degree, len(theta)))
    powers[0] = theta
    for j in range(1, c.degree):
        np.multiply(powers[j - 1], theta, out=powers[j])
    weights = (c.interpolant.numpy() @ powers).T
    return torch.from_numpy(weights).to(device=like.device, dtype=like.dtype)


def combine(z: Tensor, weights: Tensor, stages: Tensor) -> Tensor:
    """z (m, D) and a weighted sum of stages (m, s, D)."""
    return torch.baddbmm(z.unsqueeze(1), weights.unsqueeze(1), stages).squeeze(1)


def as_column(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(x).to(device=like.device, dtype=like.dtype).unsqueeze(1)
