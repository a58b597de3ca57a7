"""Jacobians of the field, one block a sample, for implicit methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.field import FlatField

UserJacobian = Callable[..., Tensor]


class StiffField:
    """The field with its derivatives.

    Samples are taken to be independent of each other: one product with a vector for each of the D
    entries of a sample gives the Jacobian blocks of the whole batch. A state without a batch
    dimension is one sample.

    Args:
        field: the field on flat states.
        jac: the user's ∂f/∂z(t, z) or (t, z, args), of shape (D, D) or (B, D, D), if given.
    """

    def __init__(self, field: FlatField, jac: UserJacobian | None = None) -> None:
        self.field = field
        self.stats = field.stats
        layout = field.layout
        self.rows = layout.rows or 1
        self.width = layout.size // self.rows
        self._jac = jac

    def __call__(self, t: float, z: Tensor) -> Tensor:
        return self.field(t, z)

    def jacobian(self, t: float, z: Tensor) -> Tensor:
        """(B, D, D): ∂f_i/∂z_j of each sample at [i, j]."""
        self.stats.jacobians += 1
        if self._jac is not None:
            return self._given(t, z)
        _, pull, *_ = torch.func.vjp(lambda x: self.field(t, x), z)
        picks = torch.eye(self.width, dtype=z.dtype, device=z.device)
        picks = picks.unsqueeze(1).expand(-1, self.rows, -1).reshape(self.width, -1)
        blocks = torch.func.vmap(lambda v: pull(v)[0])(picks)
        return blocks.reshape(self.width, self.rows, self.width).transpose(0, 1)

    def _given(self, t: float, z: Tensor) -> Tensor:
        assert self._jac is not None
        field = self.field
        time = torch.full((), t, dtype=z.dtype, device=z.device)
        args = () if field.args is None else (field.args,)
        blocks = self._jac(time, field.layout.restore(z), *args)
        if blocks.shape[-2:] != (self.width, self.width) or blocks.numel() not in (
            self.width**2,
            self.rows * self.width**2,
        ):
            raise InputError(
                f"jac returned shape {tuple(blocks.shape)}: ({self.width}, {self.width}) or "
                f"({self.rows}, {self.width}, {self.width}) is needed"
            )
        return blocks.expand(self.rows, -1, -1).to(z)

    def time_derivative(self, t: float, z: Tensor) -> Tensor | None:
        """∂f/∂t (N,), or None for a field f(z)."""
        if self.field.form == "z":
            return None
        time = torch.full((), t, dtype=z.dtype, device=z.device)
        return torch.func.jvp(lambda s: self.field(s, z), (time,), (torch.ones_like(time),))[1]


class StiffAdjoint:
    """a' = −a·∂f/∂z with its derivatives, along a given path z(t).

    Its Jacobian is minus the transpose of the field's; its time derivative, in which the path
    moves too, is a difference quotient.

    Args:
        product: a·∂f/∂z at (t, a).
        system: the field and its Jacobian.
        path: z(t).
    """

    def __init__(
        self,
        product: Callable[[float, Tensor], Tensor],
        system: StiffField,
        path: Callable[[float], Tensor],
        span: tuple[float, float],
    ) -> None:
        self._product, self._system, self._path = product, system, path
        self.stats, self.rows = system.stats, system.rows
        self._low, self._high = min(span), max(span)

    def __call__(self, t: float, a: Tensor) -> Tensor:
        return self._product(t, a).neg()

    def jacobian(self, t: float, a: Tensor) -> Tensor:
        return self._system.jacobian(t, self._path(t)).transpose(1, 2).neg()

    def time_derivative(self, t: float, a: Tensor) -> Tensor:
        step = (self._high - self._low) * torch.finfo(a.dtype).eps ** 0.5
        other = t - step if t - step >= self._low else t + step
        return (self(other, a) - self(t, a)) / (other - t)
