"""Problems whose gradients are known, and what one way to compute them costs.

A problem's loss is the mean square of the last state, so that nothing between the ends puts a
backward pass back on its way. Everything is in float64: errors are those of the methods.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode import NeuralODE
from pynode.errors import PynodeError
from pynode.experiments.live_bytes import LiveBytes

DTYPE = torch.float64


class SpunNetwork(nn.Module):
    """A network, with turning and a little friction beside it so that the state stays bounded."""

    turn: Tensor

    def __init__(self, pairs: int = 2, hidden: int = 64, friction: float = 0.2) -> None:
        super().__init__()
        width = 2 * pairs
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width)
        ).to(DTYPE)  # fmt: skip
        turn = -friction * torch.eye(width, dtype=DTYPE)
        for i in range(pairs):
            turn[2 * i, 2 * i + 1], turn[2 * i + 1, 2 * i] = 1 + 0.7 * i, -1 - 0.7 * i
        self.register_buffer("turn", turn)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.turn.T + self.net(z)


class Relaxation(nn.Module):
    """y1' = −λ(y1 − cos θ1 t), y2' = θ2 tanh y1: forwards y1 forgets, backwards it explodes."""

    def __init__(self, decay: float, theta: Tensor) -> None:
        super().__init__()
        self.decay = decay
        self.theta = nn.Parameter(theta)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        fast = -self.decay * (y[..., 0] - torch.cos(self.theta[0] * t))
        return torch.stack([fast, self.theta[1] * torch.tanh(y[..., 0])], -1)


class VanDerPol(nn.Module):
    """x'' = μ(1 − x²)x' − x with μ a parameter."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=DTYPE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, v = z[..., 0], z[..., 1]
        return torch.stack([v, self.mu * (1 - x * x) * v - x], -1)


@dataclass(frozen=True)
class Gradient:
    """dL/dz0 and dL/dθ, flat, and the last state (B, D)."""

    z0: Tensor
    parameters: Tensor
    state: Tensor

    @property
    def all(self) -> Tensor:
        return torch.cat([self.z0, self.parameters])


@dataclass(frozen=True)
class GradientProblem:
    """A field, the states (B, D) that it starts from, and the time until which it is followed.

    Attributes:
        reference: solver and tolerances with which the true gradient is found.
    """

    field: nn.Module
    z0: Tensor
    end: float
    reference: dict[str, Any]

    def gradient(self, **options: Any) -> tuple[Gradient, NeuralODE]:
        """The gradient and the module that holds the counts."""
        z0 = self.z0.clone().requires_grad_()
        node = NeuralODE(self.field, **options)
        last = node(z0, [0.0, self.end])[-1]
        loss = last.square().mean()
        of_z0, *of_parameters = torch.autograd.grad(loss, [z0, *self.field.parameters()])
        flat = torch.cat([g.flatten() for g in of_parameters])
        return Gradient(of_z0.flatten(), flat, last.detach()), node

    def truth(self) -> Gradient:
        """By automatic differentiation through far finer steps than any that are judged."""
        return self.gradient(sensitivity="discrete", **self.reference)[0]


EXPLICIT_REFERENCE = {"solver": "dop853", "rtol": 1e-12, "atol": 1e-13, "max_steps": 100_000}
STIFF_REFERENCE = {"solver": "rodas5p", "rtol": 1e-10, "atol": 1e-12, "max_steps": 100_000}


def spun_network(seed: int, end: float, batch: int = 16, hidden: int = 64) -> GradientProblem:
    """A neural field of 4 dimensions with weights and states of that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field = SpunNetwork(hidden=hidden)
        z0 = torch.randn(batch, 4, dtype=DTYPE)
    return GradientProblem(field, z0, end, EXPLICIT_REFERENCE)


def relaxation(seed: int, decay: float) -> GradientProblem:
    """θ = (3, 1) and y0 = (2, 0) for seed 0, up to a tenth away from these for the others."""
    generator = torch.Generator().manual_seed(seed)
    off = 0.2 * torch.rand(2, 2, generator=generator, dtype=DTYPE) - 0.1
    off = torch.zeros_like(off) if seed == 0 else off
    theta = torch.tensor([3.0, 1.0], dtype=DTYPE) * (1 + off[0])
    z0 = torch.tensor([[2.0, 0.0]], dtype=DTYPE) + off[1]
    return GradientProblem(Relaxation(decay, theta), z0, 1.0, EXPLICIT_REFERENCE)


def van_der_pol(seed: int, mu: float, end: float, batch: int = 4) -> GradientProblem:
    """States around (2, 0), from which the slow creep begins."""
    generator = torch.Generator().manual_seed(seed)
    off = 0.2 * torch.rand(batch, 2, generator=generator, dtype=DTYPE) - 0.1
    z0 = torch.tensor([2.0, 0.0], dtype=DTYPE) + off
    return GradientProblem(VanDerPol(mu), z0, end, STIFF_REFERENCE)


def relative_error(found: Tensor, true: Tensor) -> float:
    """‖found − true‖ / ‖true‖."""
    return float((found - true).norm() / true.norm())


def cost(
    problem: GradientProblem,
    truth: Gradient,
    *,
    repeats: int = 1,
    memory: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Errors, counts, processor time and peak memory of one way to get the gradient.

    The time is the median of ``repeats`` runs after a first one, forward and backward, of this
    process alone however busy the machine is. Counting bytes is slow: without ``memory`` they are
    left out. Of a way that fails, ``failed`` says why, and the rest is missing.
    """
    row: dict[str, Any] = {}
    try:
        with LiveBytes() if memory else contextlib.nullcontext() as counted:
            found, node = problem.gradient(**options)
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            problem.gradient(**options)
            seconds.append(time.process_time() - began)
    except PynodeError as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    if counted is not None:
        row["peak_bytes"] = counted.peak
    return row | {
        "error_z0": relative_error(found.z0, truth.z0),
        "error_parameters": relative_error(found.parameters, truth.parameters),
        "error": relative_error(found.all, truth.all),
        "error_state": relative_error(found.state, truth.state),
        "seconds": sorted(seconds)[len(seconds) // 2],
        **node.stats.as_dict(),
    }


def forward_bytes(problem: GradientProblem, **options: Any) -> int:
    """Peak memory of the solve alone, with no gradient to come: the least that can be had."""
    with torch.no_grad(), LiveBytes() as memory:
        NeuralODE(problem.field, **options)(problem.z0, [0.0, problem.end])
    return memory.peak


def by_differences(
    problem: GradientProblem, truth: Gradient, probes: int = 10, step: float = 1e-4, **options: Any
) -> dict[str, Any]:
    """What needs no theory: central differences of the loss, one number at a time.

    The error is over ``probes`` of the numbers, evenly spread; time and evaluations are scaled up
    to all of them.
    """
    inputs = [problem.z0.clone(), *(p.detach() for p in problem.field.parameters())]
    places = [(x.view(-1), i) for x in inputs for i in range(x.numel())]
    stride = max(1, len(places) // probes)
    node = NeuralODE(problem.field, **options)

    def loss() -> Tensor:
        return node(inputs[0], [0.0, problem.end])[-1].square().mean()

    found, nfe = [], 0
    began = time.process_time()
    with torch.no_grad():
        for flat, i in places[::stride]:
            before = flat[i].item()
            sides = []
            for sign in (1.0, -1.0):
                flat[i] = before + sign * step
                sides.append(loss())
                nfe += node.stats.nfe
            flat[i] = before
            found.append((sides[0] - sides[1]) / (2 * step))
    seconds = time.process_time() - began
    scale = len(places) / len(found)
    error = relative_error(torch.stack(found), truth.all[::stride])
    return {"error": error, "seconds": scale * seconds, "nfe": round(scale * nfe)}
