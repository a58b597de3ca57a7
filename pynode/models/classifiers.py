"""From ResNet to ODE-Net: classifiers that differ in nothing but what is between stem and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.models.base import require_positive
from pynode.neural_ode import NeuralODE


class DenseBlock(nn.Module):
    """f(t, h) = W₂ tanh(W₁ (h, t)) for h (B, width); without t where it is not ``timed``.

    tanh, since a kink as ReLU's would cost an ODE solver its order.
    """

    def __init__(self, width: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        self.inner = nn.Linear(width + timed, width)
        self.outer = nn.Linear(width, width)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        if self.timed:
            h = torch.cat([h, t.to(h).expand(len(h), 1)], dim=1)
        return self.outer(torch.tanh(self.inner(h)))


class ConvBlock(nn.Module):
    """The same of two 3 × 3 convolutions after group norms, for h (B, channels, H, W)."""

    def __init__(self, channels: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        groups = min(32, channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + timed, channels, 3, padding=1) for _ in range(2)
        )

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = torch.relu(norm(h))
            if self.timed:
                h = torch.cat([h, t.to(h).expand_as(h[:, :1])], dim=1)
            h = conv(h)
        return h


@dataclass(frozen=True)
class Dense:
    """Rows of ``width`` numbers: no stem, dense blocks.

    Attributes:
        width: D, of the input and of the hidden state.
        classes: of the output.
    """

    width: int
    classes: int

    def stem(self) -> nn.Module:
        return nn.Identity()

    def block(self, timed: bool) -> nn.Module:
        return DenseBlock(self.width, timed)

    def head(self) -> nn.Module:
        return nn.Linear(self.width, self.classes)


@dataclass(frozen=True)
class Convolutional:
    """Images (B, 1, 28, 28), brought down to ``channels`` maps of 6 × 6 before the blocks, as in
    Chen et al. 2018, section 3.

    Attributes:
        channels: of the hidden state.
        classes: of the output.
    """

    channels: int
    classes: int

    def stem(self) -> nn.Module:
        c, groups = self.channels, min(32, self.channels)
        return nn.Sequential(
            nn.Conv2d(1, c, 3), nn.GroupNorm(groups, c), nn.ReLU(),
            nn.Conv2d(c, c, 4, stride=2, padding=1), nn.GroupNorm(groups, c), nn.ReLU(),
            nn.Conv2d(c, c, 4, stride=2, padding=1),
        )  # fmt: skip

    def block(self, timed: bool) -> nn.Module:
        return ConvBlock(self.channels, timed)

    def head(self) -> nn.Module:
        c = self.channels
        return nn.Sequential(
            nn.GroupNorm(min(32, c), c), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(c, self.classes),
        )  # fmt: skip


class ResNet(nn.Module):
    """h ← h + f_k(h) for k = 1, …, ``blocks``, each with weights of its own.

    He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition.

    Args:
        parts: stem, block and head.
        blocks: their number; none leaves stem and head.
    """

    def __init__(self, parts: Dense | Convolutional, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = parts.stem(), parts.head()
        self.blocks = nn.ModuleList(parts.block(timed=False) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        h, zero = self.stem(x), x.new_zeros(())
        for block in self.blocks:
            h = h + block(zero, h)
        return self.head(h)


class ODENet(nn.Module):
    """Between stem and head the state follows dh/dt = f(t, h) from t = 0 to 1.

    Chen et al. 2018, section 3. By ``solver="euler", dt=1 / L`` it is a ResNet of L blocks with
    tied weights and step 1/L; by fixed steps of rk4 it is their RK-Net.

    Args:
        parts: stem, block and head.
        options: of :class:`pynode.NeuralODE`.

    Attributes:
        node: the :class:`pynode.NeuralODE`; its ``stats`` count the last solve.
    """

    def __init__(self, parts: Dense | Convolutional, **options: Any) -> None:
        super().__init__()
        self.stem, self.head = parts.stem(), parts.head()
        self.node = NeuralODE(parts.block(timed=True), **options)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.node(self.stem(x), (0.0, 1.0))[-1])

    def solved_by(self, **options: Any) -> ODENet:
        """The same weights, shared, under another solver."""
        other = object.__new__(ODENet)
        nn.Module.__init__(other)
        other.stem, other.head = self.stem, self.head
        other.node = NeuralODE(self.node.field, **options)
        return other

    def path(self, x: Tensor, times: Tensor) -> Tensor:
        """(T, B, …): the hidden state at increasing times, the first of them 0."""
        return self.node(self.stem(x), times)


def perceptron(inputs: int, hidden: int, classes: int) -> nn.Module:
    """One hidden layer of ReLUs on the flattened input."""
    require_positive(inputs=inputs, hidden=hidden, classes=classes)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def linear(inputs: int, classes: int) -> nn.Module:
    """Logistic regression on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
