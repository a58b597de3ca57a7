"""Vector-Jacobian products of the field, and the flat vector of parameter gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.field import FlatField


class VJP:
    """Products a·∂f/∂z and a·∂f/∂θ at one (t, z).

    Args:
        field: counts its evaluations as backward ones.
        tensors: what θ stands for: parameters, closed-over tensors, tensors of ``args``.
        like: a state, whose dtype and device the flat gradient takes.
    """

    def __init__(self, field: FlatField, tensors: Sequence[Tensor], like: Tensor) -> None:
        self.field = field
        self.tensors = list(tensors)
        self._empty = like.new_empty(0)
        self._zeros = [
            torch.zeros(_width(x), dtype=like.dtype, device=like.device) for x in self.tensors
        ]
        self.size = sum(len(zero) for zero in self._zeros)

    def __call__(self, t: float, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f (N,), a·∂f/∂z (N,) and a·∂f/∂θ (P,)."""
        f, grads = self._products(t, z, a, of_state=True, of_parameters=True)
        return f, _or_zeros(grads[0], z), self.flatten(grads[1:])

    def state(self, t: float, z: Tensor, a: Tensor) -> Tensor:
        """a·∂f/∂z (N,) alone."""
        _, grads = self._products(t, z, a, of_state=True, of_parameters=False)
        return _or_zeros(grads[0], z)

    def parameters(self, t: float, z: Tensor, a: Tensor) -> Tensor:
        """a·∂f/∂θ (P,) alone."""
        _, grads = self._products(t, z, a, of_state=False, of_parameters=True)
        return self.flatten(grads)

    def _products(
        self, t: float, z: Tensor, a: Tensor, of_state: bool, of_parameters: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        self.field.stats.vjp += 1
        with torch.enable_grad():
            z = z.detach().requires_grad_(of_state)
            f = self.field(t, z)
        inputs = [*([z] if of_state else []), *(self.tensors if of_parameters else [])]
        if not f.requires_grad or not inputs:
            return f, (None,) * len(inputs)
        # What a closed-over tensor was computed from is shared by all calls: keep its graph.
        grads = torch.autograd.grad(f, inputs, a, retain_graph=True, allow_unused=True)
        return f.detach(), grads

    def flatten(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Gradients of ``tensors`` as one real vector (P,), zeros where there are none."""
        if not grads:
            return self._empty
        return torch.cat(
            [
                zero if grad is None else _real(grad).reshape(-1).to(zero)
                for grad, zero in zip(grads, self._zeros, strict=True)
            ]
        )

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """A vector (P,) as gradients in the shapes and dtypes of ``tensors``."""
        pieces = flat.split([len(zero) for zero in self._zeros])
        return [_shaped(piece, x) for piece, x in zip(pieces, self.tensors, strict=True)]


def _width(x: Tensor) -> int:
    return x.numel() * (2 if x.is_complex() else 1)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        pairs = flat.reshape(*like.shape, 2)
        return torch.complex(pairs[..., 0], pairs[..., 1]).to(like)
    return flat.reshape(like.shape).to(like)


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
