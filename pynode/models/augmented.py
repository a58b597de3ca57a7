"""ODEs as layers from a vector to a vector: plain, augmented, of second order.

Trajectories of an ODE never cross, so a plain one keeps the topology of its data: it cannot turn
x into −x on a line, nor set a ring apart from what it surrounds in the plane. In more dimensions
than the data have there is room to go around.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.models.fields import MLPField, mlp
from pynode.neural_ode import NeuralODE


class AugmentedODE(nn.Module):
    """Followed by an ODE for one unit of time, with zeros appended that it may use as it likes.

    Dupont, Doucet, Teh 2019, Augmented Neural ODEs. ``extra=0`` is the plain neural ODE.

    Args:
        width: D, of the data.
        extra: dimensions appended.
        hidden, layers, activation: of the field's network.
        options: of :class:`pynode.NeuralODE`.

    Raises:
        InputError: ``extra`` is negative, or an option has no meaning.
    """

    def __init__(
        self,
        width: int,
        extra: int = 0,
        *,
        hidden: int = 32,
        layers: int = 2,
        activation: str = "tanh",
        **options: Any,
    ) -> None:
        super().__init__()
        if extra < 0:
            raise InputError(f"extra={extra}: how many dimensions are appended, 0 or more")
        self.width, self.extra = width, extra
        field = MLPField(width + extra, hidden, layers=layers, activation=activation)
        self.node = NeuralODE(field, **options)

    def path(self, x: Tensor, ts: Tensor) -> Tensor:
        """The whole states (T, B, D + extra) at times in [0, 1] of data x (B, D)."""
        return self.node(torch.cat([x, x.new_zeros(len(x), self.extra)], dim=1), ts, t0=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Where the ODE takes x (B, D): (B, D + extra)."""
        return self.path(x, x.new_ones(1))[-1]


class _Accelerated(nn.Module):
    """dx/dt = v, dv/dt = net(x, v); the state holds x and v one after the other."""

    def __init__(self, width: int, hidden: int, layers: int, activation: str) -> None:
        super().__init__()
        self.width = width
        self.net = mlp(2 * width, hidden, width, layers=layers, activation=activation)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z[..., self.width :], self.net(z)], dim=-1)


class SecondOrderODE(nn.Module):
    """x'' = net(x, x') for one unit of time, its first velocity a learned function of x.

    Norcliffe, Bodnar, Day, Simidjievski, Lio 2020, On Second Order Behaviour in Augmented Neural
    ODEs: an augmented ODE with a structure, in which the data themselves can cross.

    Args:
        width: D, of the data.
        hidden, layers, activation: of the networks of acceleration and first velocity.
        options: of :class:`pynode.NeuralODE`.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 32,
        layers: int = 2,
        activation: str = "tanh",
        **options: Any,
    ) -> None:
        super().__init__()
        self.width = width
        self.first_velocity = mlp(width, hidden, width, activation=activation)
        self.node = NeuralODE(_Accelerated(width, hidden, layers, activation), **options)

    def path(self, x: Tensor, ts: Tensor) -> Tensor:
        """The states (T, B, 2D), positions and then velocities, at times in [0, 1]."""
        return self.node(torch.cat([x, self.first_velocity(x)], dim=1), ts, t0=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Position and velocity (B, 2D) that x (B, D) ends with."""
        return self.path(x, x.new_ones(1))[-1]
