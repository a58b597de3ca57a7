"""Eight two-dimensional densities to learn, and, where it is known, the truth about them.

Those of Grathwohl et al. 2019, FFJORD, section 4.1, written for torch, so
that a seed gives the same points everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.errors import InputError

Sampler = Callable[[int, torch.Generator], Tensor]

_GAUSSIANS, _SPREAD = 8, 0.5 / 1.414
_RADIUS = 4.0 / 1.414


def density(name: str, count: int, seed: int = 0) -> Tensor:
    """``count`` points (count, 2) of a density, float32, about within [-4, 4]².

    Args:
        name: a key of ``DENSITIES``.
        count: how many points.
        seed: the same seed gives the same points; torch's global generator is not touched.

    Raises:
        InputError: there is no such density, or ``count`` is below 1.
    """
    if name not in DENSITIES:
        raise InputError(f"there is no density {name!r}; there are {', '.join(DENSITIES)}")
    if count < 1:
        raise InputError(f"count={count}: at least 1 point is needed")
    return DENSITIES[name](count, torch.Generator().manual_seed(seed))


def entropy(name: str) -> float | None:
    """Entropy of a density in nats, the least mean of -log p; None where it is not known here.

    Raises:
        InputError: there is no such density.
    """
    if name == "checkerboard":
        return math.log(32.0)  # eight squares of 2 by 2, all alike
    if name == "8gaussians":
        points = density(name, 200_000, seed=1)
        return -_log_gaussians(points).mean().item()
    if name not in DENSITIES:
        raise InputError(f"there is no density {name!r}; there are {', '.join(DENSITIES)}")
    return None


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 2, generator=generator)


def _whole(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (count,), generator=generator)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _swissroll(count: int, generator: torch.Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * _uniform(count, generator))
    return (_polar(angle, angle) + _normal(count, generator)) / 5


def _circles(count: int, generator: torch.Generator) -> Tensor:
    radius = torch.where(_whole(2, count, generator) == 0, 3.0, 1.5)
    angle = 2 * math.pi * _uniform(count, generator)
    return _polar(radius, angle) + 0.24 * _normal(count, generator)


def _rings(count: int, generator: torch.Generator) -> Tensor:
    radius = 0.75 * (1 + _whole(4, count, generator))
    angle = 2 * math.pi * _uniform(count, generator)
    return _polar(radius, angle) + 0.08 * _normal(count, generator)


def _moons(count: int, generator: torch.Generator) -> Tensor:
    angle = math.pi * _uniform(count, generator)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    first = (_whole(2, count, generator) == 0).unsqueeze(1)
    points = torch.where(first, upper, lower) + 0.1 * _normal(count, generator)
    return 2 * points - torch.tensor([1.0, 0.2])


def _centres() -> Tensor:
    angle = torch.arange(_GAUSSIANS) * (2 * math.pi / _GAUSSIANS)
    return _RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def _eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    centres = _centres()[_whole(_GAUSSIANS, count, generator)]
    return centres + _SPREAD * _normal(count, generator)


def _log_gaussians(points: Tensor) -> Tensor:
    squares = (points.unsqueeze(1) - _centres()).square().sum(-1) / (2 * _SPREAD**2)
    scale = math.log(2 * math.pi * _SPREAD**2) + math.log(_GAUSSIANS)
    return torch.logsumexp(-squares, dim=1) - scale


def _pinwheel(count: int, generator: torch.Generator) -> Tensor:
    arm = _whole(5, count, generator)
    points = _normal(count, generator) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])
    angle = arm * (2 * math.pi / 5) + 0.25 * points[:, 0].exp()
    x, y = points.unbind(1)
    turned = [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()]
    return 2 * torch.stack(turned, dim=1)


def _two_spirals(count: int, generator: torch.Generator) -> Tensor:
    angle = _uniform(count, generator).sqrt() * 3 * math.pi
    sign = 1.0 - 2.0 * _whole(2, count, generator)
    jitter = 0.5 * torch.rand(count, 2, generator=generator)
    x = torch.stack([-angle.cos() * angle, angle.sin() * angle], dim=1) + jitter
    return sign.unsqueeze(1) * x / 3 + 0.1 * _normal(count, generator)


def _checkerboard(count: int, generator: torch.Generator) -> Tensor:
    x = 4 * _uniform(count, generator) - 2
    y = _uniform(count, generator) - 2.0 * _whole(2, count, generator) + x.floor() % 2
    return 2 * torch.stack([x, y], dim=1)


DENSITIES: dict[str, Sampler] = {
    "swissroll": _swissroll,
    "circles": _circles,
    "rings": _rings,
    "moons": _moons,
    "8gaussians": _eight_gaussians,
    "pinwheel": _pinwheel,
    "2spirals": _two_spirals,
    "checkerboard": _checkerboard,
}
