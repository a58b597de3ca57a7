"""Random compositions of operations: program against torch, value and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pynode.field import FlatField
from pynode.lowering import lower
from pynode.lowering.check import difference, reference
from pynode.solution import Statistics
from pynode.state import StateLayout

B, D = 3, 4

# On tensors of any shape of up to three dimensions; none leaves a smooth, bounded domain.
UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.tanh, torch.sin, torch.cos, torch.sigmoid, F.silu, F.gelu, F.softplus, F.elu, F.relu,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.leaky_relu(x, 0.2),
    lambda x: torch.exp(-x * x), lambda x: torch.log1p(x * x), lambda x: (x * x + 1).sqrt(),
    lambda x: (x * x + 1).rsqrt(), lambda x: x.clamp(-0.5, 0.7), lambda x: x.abs(),
    lambda x: torch.atan(x), lambda x: 1 / (1 + x * x), lambda x: x.neg() + 0.3,
    lambda x: torch.where(x > 0.1, x, 0.5 * x), lambda x: torch.tanh(x) ** 3,
    lambda x: torch.softmax(x, -1) if x.dim() else x,
    lambda x: F.layer_norm(x, x.shape[-1:]) if x.dim() and x.shape[-1] > 1 else x,
]  # fmt: skip

SHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.transpose(-2, -1) if x.dim() > 1 else x,
    lambda x: x.flip(0) if x.dim() else x,
    lambda x: x.roll(1, -1) if x.dim() else x,
    lambda x: x.unsqueeze(0) if x.dim() < 3 else x.squeeze(0),
    lambda x: x.reshape(-1),
    lambda x: x.reshape(x.shape[::-1]),
    lambda x: x[..., ::2] if x.dim() else x,
    lambda x: x[..., -1] if x.dim() else x,
    lambda x: x.narrow(0, 0, 1).expand_as(x) if x.dim() else x,
    lambda x: torch.cat([x, x.sin()], dim=0) if x.dim() else x,
    lambda x: torch.stack([x, x * 2], dim=-1) if x.dim() < 3 else x,
    lambda x: F.pad(x, (1, 0)) if x.dim() else x,
    lambda x: x.repeat(*[2] * x.dim()) if x.dim() and x.numel() < 40 else x,
    lambda x: x.cumsum(-1) / x.shape[-1] if x.dim() else x,
    lambda x: x.index_select(0, torch.tensor([0, 0])) if x.dim() else x,
    lambda x: x.diagonal(dim1=-2, dim2=-1) if x.dim() > 1 else x,
    lambda x: x.unfold(-1, 2, 1) if x.dim() in (1, 2) and x.shape[-1] > 1 else x,
    lambda x: _written(x),
]

REDUCE: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.mean(-1, keepdim=True) if x.dim() else x,
    lambda x: x.sum(0) / 3 if x.dim() else x,
    lambda x: x.amax(-1, keepdim=True) if x.dim() else x,
    lambda x: x.mean(),
    lambda x: x.mean((0, -1)) if x.dim() > 1 else x,
    lambda x: x.logsumexp(0) if x.dim() else x,
    lambda x: x.var(0, unbiased=False) if x.dim() else x,
]

BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / (1 + y * y),
    torch.maximum, torch.minimum, torch.atan2, lambda x, y: torch.where(x > y, x, y.sin()),
    lambda x, y: torch.addcmul(x, x, y, value=0.5),
]  # fmt: skip


def _written(x: Tensor) -> Tensor:
    out = x.clone()
    if x.dim():
        out[..., 0] = x[..., -1] * 2
        out[0].mul_(0.5)
    return out


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Some product of two tensors, through a square matrix of both."""
    a = x.reshape(-1)[: min(x.numel(), 6)].unsqueeze(1)
    b = y.reshape(-1)[: min(y.numel(), 6)].unsqueeze(0)
    return torch.tanh((a @ b) @ b.t() / 3)


def _fit(x: Tensor, like: Tensor) -> Tensor | None:
    """x, if it broadcasts against another."""
    try:
        torch.broadcast_shapes(x.shape, like.shape)
    except RuntimeError:
        return None
    return x


step = st.tuples(
    st.sampled_from(["unary", "shape", "reduce", "binary", "product"]),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
)


def _field(steps: list[tuple[str, int, int, int]]) -> Callable[[Tensor, Tensor], Tensor]:
    weight = torch.linspace(-1, 1, D * D, dtype=torch.float64).reshape(D, D).requires_grad_()
    bias = torch.linspace(0.1, 0.9, D, dtype=torch.float64).requires_grad_()

    def field(t: Tensor, z: Tensor) -> Tensor:
        pool = [z, torch.sin(t), weight, bias, z @ weight + bias]
        for kind, which, i, j in steps:
            x, y = pool[-1 - i % len(pool)], pool[-1 - j % len(pool)]
            if kind == "unary":
                made = UNARY[which % len(UNARY)](x)
            elif kind == "shape":
                made = SHAPES[which % len(SHAPES)](x)
            elif kind == "reduce":
                made = REDUCE[which % len(REDUCE)](x)
            elif kind == "product":
                made = _products(x, y)
            elif _fit(x, y) is None:
                continue
            else:
                made = BINARY[which % len(BINARY)](x, y)
            if 0 < made.numel() < 400 and made.dim() < 4:
                pool.append(made)
        out = z * 0.1
        for made in pool[4:]:
            part = made if _fit(made, z) is not None and made.dim() < 3 else made.mean()
            out = out + 0.3 * part if (out + part).shape == z.shape else out + part.mean()
        return out

    return field


def _compare(steps: list[tuple[str, int, int, int]], which: tuple[str, ...]) -> None:
    z = torch.linspace(-0.9, 1.1, B * D, dtype=torch.float64).sin().reshape(B, D)
    layout = StateLayout(z)
    field = FlatField(_field(steps), layout, None, Statistics())
    lowered = lower(field, z.reshape(-1), 0.2, which, check=False)
    point, lam = z.reshape(-1) * 1.07 + 0.013, torch.cos(torch.arange(B * D).double())
    for name in which:
        wanted = reference(name, field, lowered.tensors, point, 0.45, lam)
        got = lowered.run(name, point.numpy(), 0.45, lam=lam.numpy())
        for out, value in wanted.items():
            assert difference(got[out], value.numpy()) < 1e-9, (name, out)


@settings(max_examples=10)
@given(st.lists(step, min_size=3, max_size=10))
def test_random_graphs(steps: list[tuple[str, int, int, int]]) -> None:
    _compare(steps, ("f", "vjp"))


@pytest.mark.slow
@settings(max_examples=400)
@given(st.lists(step, min_size=3, max_size=24))
def test_many_random_graphs(steps: list[tuple[str, int, int, int]]) -> None:
    _compare(steps, ("f", "vjp", "tgrad"))
