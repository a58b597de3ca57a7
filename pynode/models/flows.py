"""Normalizing flows made of layers, to compare the continuous one with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.models.base import require_positive
from pynode.models.fields import mlp


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, 1) of z (..., D), summed over D."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


class Flow(nn.Module, ABC):
    """A density on R^D: points are carried to a standard normal, volumes are accounted for.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_positive(features=features)
        self.features = features

    @abstractmethod
    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, D) for points x (B, D), and log |det ∂z/∂x| (B,)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (...) for x (..., D).

        Raises:
            InputError: the last dimension of x is not D.
        """
        points = flat_points(x, self.features)
        z, log_det = self.to_base(points)
        return (standard_normal_log_prob(z) + log_det).reshape(x.shape[:-1])

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class PlanarFlow(Flow):
    """Layers z ← z + u tanh(wᵀz + b), from the data to the base.

    Rezende, Mohamed 2015, Variational Inference with Normalizing Flows, section 4.1 and appendix
    A.1 (u bent so that a layer stays invertible). The inverse has no closed form, so there is
    no sampling.

    Args:
        features: D.
        layers: their number; each has 2D + 1 parameters.
    """

    def __init__(self, features: int, layers: int) -> None:
        super().__init__(features)
        require_positive(layers=layers)
        self.u = nn.Parameter(torch.randn(layers, features) / layers)
        self.w = nn.Parameter(torch.randn(layers, features))
        self.b = nn.Parameter(torch.randn(layers))

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dot = (self.w * self.u).sum(1, keepdim=True)
        # wᵀu is bent so that it stays above -1, where a layer stops being invertible; 0 stays 0.
        excess = nn.functional.softplus(dot + math.log(math.e - 1)) - 1 - dot
        u = self.u + excess * self.w / self.w.square().sum(1, keepdim=True)
        slopes = []
        for w, shift, b in zip(self.w, u, self.b, strict=True):
            bend = torch.tanh(x @ w + b)
            slopes.append(1 - bend.square())
            x = x + torch.outer(bend, shift)
        inner = (self.w * u).sum(1)
        return x, torch.log(1 + torch.stack(slopes, dim=1) * inner + 1e-12).sum(1)


class CouplingFlow(Flow):
    """Layers that scale and shift half of the coordinates by functions of the other half.

    Dinh, Sohl-Dickstein, Bengio 2017, Density estimation using Real NVP: x₂ ← x₂ exp(s(x₁)) +
    m(x₁), the halves in turn; s is bounded by 2 tanh, so that a layer cannot run away.

    Args:
        features: D, at least 2.
        layers: their number.
        hidden: units of each layer's network, which has one hidden layer.
    """

    def __init__(self, features: int, layers: int, hidden: int) -> None:
        super().__init__(features)
        require_positive(layers=layers, hidden=hidden)
        if features < 2:
            raise InputError(f"features={features}: coupling needs at least 2 coordinates")
        self.split = features // 2
        sizes = [(self.split, features - self.split)[:: 1 if k % 2 == 0 else -1] for k in
                 range(layers)]  # fmt: skip
        self.nets = nn.ModuleList(mlp(a, hidden, 2 * b) for a, b in sizes)

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for k, net in enumerate(self.nets):
            still, moved = self._halves(x, k)
            scale, shift = self._scale_shift(net, still)
            x = self._joined(still, moved * scale.exp() + shift, k)
            log_det = log_det + scale.sum(1)
        return x, log_det

    def to_data(self, z: Tensor) -> Tensor:
        """The points (B, D) that :meth:`to_base` carries to z."""
        for k, net in reversed(list(enumerate(self.nets))):
            still, moved = self._halves(z, k)
            scale, shift = self._scale_shift(net, still)
            z = self._joined(still, (moved - shift) * (-scale).exp(), k)
        return z

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws (*sample_shape, D), without gradients."""
        with torch.no_grad():
            z = torch.randn(*sample_shape, self.features, device=self._device)
            return self.to_data(z.reshape(-1, self.features)).reshape(z.shape)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _halves(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.split], x[:, self.split :]
        return (a, b) if k % 2 == 0 else (b, a)

    @staticmethod
    def _joined(still: Tensor, moved: Tensor, k: int) -> Tensor:
        return torch.cat([still, moved] if k % 2 == 0 else [moved, still], dim=1)

    @staticmethod
    def _scale_shift(net: nn.Module, still: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = net(still).chunk(2, dim=1)
        return 2 * torch.tanh(scale), shift


def flat_points(x: Tensor, features: int) -> Tensor:
    """Points (..., D) as (B, D).

    Raises:
        InputError: the last dimension is not D, or there is no point.
    """
    if x.ndim == 0 or x.shape[-1] != features or x.numel() == 0:
        raise InputError(
            f"points of shape {tuple(x.shape)}: needed is (..., {features}), and at least one"
        )
    return x.reshape(-1, features)
