"""Problems with known solutions, for all tests of torchdiffeq's interface."""

import math

import torch
from torch import Tensor, nn


class Growth(nn.Module):
    """y' = θ y: y = y0 exp(θ (t - t0))."""

    def __init__(self, theta: float = -0.7) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.times: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t))
        return self.theta.to(y.dtype) * y


def forced(t: Tensor, y: Tensor) -> Tensor:
    """y' = -2 t y², y = 1 / (1 + t²) from y(0) = 1: nonlinear, and it depends on time."""
    return -2 * t * y * y


def forced_solution(t: Tensor) -> Tensor:
    return 1 / (1 + t * t)


def ball(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Height and speed under gravity 9.8."""
    height, speed = state
    return speed, torch.full_like(speed, -9.8) + 0 * height


def drop_time(height: float) -> float:
    return math.sqrt(2 * height / 9.8)


def float64(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)
