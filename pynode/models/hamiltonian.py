"""Fields that are given by an energy, which their flow then keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pynode.models.fields import mlp


class HamiltonianField(nn.Module):
    """dq/dt = ∂H/∂p, dp/dt = −∂H/∂q with H a network; the state (..., 2D) is q and then p.

    Greydanus, Dzamba, Yosinski 2019, Hamiltonian Neural Networks. H itself cannot be observed and
    is found up to a constant.

    Args:
        width: D, of q and of p.
        hidden, layers: of the network; its activation is tanh, which is smooth.
    """

    def __init__(self, width: int, hidden: int, *, layers: int = 2) -> None:
        super().__init__()
        self.width = width
        self.net = mlp(2 * width, hidden, 1, layers=layers)

    def energy(self, z: Tensor) -> Tensor:
        """H(q, p), of shape (...)."""
        return self.net(z).squeeze(-1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        slope = gradient(self.energy, z)
        return torch.cat([slope[..., self.width :], -slope[..., : self.width]], dim=-1)


class SeparableHamiltonianField(nn.Module):
    """The same with H = T(p) + V(q), for a state (q, p) of two tensors (..., D).

    Symplectic solvers (``leapfrog``, ``yoshida4``, ...) need this form: dq/dt is a function of p
    alone, and dp/dt of q alone.

    Args:
        width, hidden, layers: as for :class:`HamiltonianField`, of each of T and V.
    """

    def __init__(self, width: int, hidden: int, *, layers: int = 2) -> None:
        super().__init__()
        self.kinetic = mlp(width, hidden, 1, layers=layers)
        self.potential = mlp(width, hidden, 1, layers=layers)

    def energy(self, z: tuple[Tensor, Tensor]) -> Tensor:
        """H(q, p), of shape (...)."""
        q, p = z
        return (self.kinetic(p) + self.potential(q)).squeeze(-1)

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = z
        return gradient(self.kinetic, p), -gradient(self.potential, q)


def gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇energy at each x (..., D), differentiable itself where gradients are on."""
    return torch.func.grad(lambda y: energy(y).sum())(x)
