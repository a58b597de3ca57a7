"""A field and ways to solve it, for both kinds of compiled solves."""

import torch
from torch import Tensor, nn

TIMES = [0.0, 0.0, 0.3, 1.0, 1.7, 2.0]


class Swirl(nn.Module):
    """A field with time, a batch, and parameters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.inner = nn.Parameter(draw(8, 2))
        self.outer = nn.Parameter(0.3 * draw(2, 8))
        self.register_buffer("shift", draw(2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        hidden = torch.tanh(z @ self.inner.T + torch.sin(3 * t))
        return hidden @ self.outer.T + self.shift - 0.1 * z


def state(rows: int = 3, grad: bool = False) -> Tensor:
    z0 = torch.linspace(-1, 2, 2 * rows, dtype=torch.float64).reshape(rows, 2)
    return z0.requires_grad_(grad)


OPTIONS = {
    "plain": {},
    "tight": {"rtol": 1e-10, "atol": 1e-12},
    "backwards": {"t": TIMES[::-1]},
    "stops": {"tstops": [0.5, 1.0, 1.31]},
    "grid": {"grid": [0.1, 0.2, 0.9, 1.5]},
    "fixed": {"adaptive": False, "dt": 0.07},
    "first step": {"dt": 0.01, "dt_max": 0.2, "dt_min": 0.05},
    "integral": {"controller": "i", "safety": 0.8, "shrink": 0.5, "grow": 2.0},
    "pid": {"controller": "pid", "rtol": 1e-3},
    "largest": {"norm": "max"},
    "tensors": {"rtol": torch.tensor([1e-3, 1e-8]), "atol": torch.tensor([[1e-5], [0.0], [1e-3]])},
    "no atol": {"atol": 0.0},
    "rejections": {"rtol": 1e-9, "dt": 1.0},
    "own times": {"t": [torch.tensor(x) for x in ([0.0, 0.4, 2.0], [0.0, 2.0], [0.0])]},
    "start": {"t0": -0.5},
}  # fmt: skip
