"""Rosenbrock methods, each sample with a step size and a Jacobian of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.interpolation import as_column
from pynode.engines.torch.linear import lu_solve
from pynode.engines.torch.per_sample.field import At, RowField
from pynode.engines.torch.per_sample.step import (
    FirstStage,
    RowJumps,
    RowRightHandSide,
    RowStep,
)
from pynode.engines.torch.rosenbrock import RosenbrockTableau, rosenbrock_coefficients
from pynode.errors import InputError


class RowStiffSystem(Protocol):
    """A right-hand side with the derivatives that an implicit method needs."""

    def __call__(self, at: At, z: Tensor) -> Tensor:
        """f (n, D)."""

    def jacobian(self, at: At, z: Tensor) -> Tensor:
        """∂f/∂z of each sample (n, D, D)."""

    def time_derivative(self, at: At, z: Tensor) -> Tensor | None:
        """∂f/∂t (n, D), or None where f does not depend on t."""


class RowStiffField:
    """The field with its derivatives; see :class:`~..derivatives.StiffField`.

    Args:
        field: the field on some of the samples.
        jac: the user's ∂f/∂z(t, z) or (t, z, args), called as the field is, if given.
    """

    def __init__(self, field: RowField, jac: Callable[..., Tensor] | None = None) -> None:
        self.field = field
        self._jac = None if jac is None else _as_field(field, jac)

    def __call__(self, at: At, z: Tensor) -> Tensor:
        return self.field(at, z)

    def jacobian(self, at: At, z: Tensor) -> Tensor:
        self.field.stats.jacobians += 1
        n, width = z.shape
        if self._jac is not None:
            return self._jac(at, z)
        _, pull, *_ = torch.func.vjp(lambda x: self.field(at, x), z)
        picks = torch.eye(width, dtype=z.dtype, device=z.device)
        picks = picks.unsqueeze(1).expand(-1, n, -1)
        return torch.func.vmap(lambda v: pull(v)[0])(picks).transpose(0, 1)

    def time_derivative(self, at: At, z: Tensor) -> Tensor | None:
        if self.field.form == "z":
            return None
        t = at.time(z)
        return torch.func.jvp(lambda s: self.field(At(s, at.rows), z), (t,), (torch.ones_like(t),))[
            1
        ]


def _as_field(field: RowField, jac: Callable[..., Tensor]) -> Callable[[At, Tensor], Tensor]:
    """A user's Jacobian called for the same samples, and with the same form of t, as the field."""

    def call(t: Tensor, state: Any, args: Any) -> Tensor:
        return jac(t, state) if field.args is None else jac(t, state, args)

    def blocks(at: At, z: Tensor) -> Tensor:
        rows, t = at.rows, at.time(z)
        width, index = z.shape[1], None
        if not field.calling.compacts:
            t, z, index = field.embed(at, z, rows)
            rows = np.arange(len(z))
        state = field.layout.of_rows(len(z)).restore(z.reshape(-1))
        found = field.apply(call, t, state, rows)
        if field.calling.vmapped and found.numel() == len(z) * width**2:
            found = found.reshape(len(z), width, width)
        shapes = (width, width), (len(z), width, width)
        if tuple(found.shape) not in shapes:
            raise InputError(
                f"jac returned shape {tuple(found.shape)} for {len(z)} samples: {shapes[0]} or "
                f"{shapes[1]} is needed"
            )
        found = found.expand(len(z), -1, -1).to(z)
        return found if index is None else found[index]

    return blocks


class RowStiffAdjoint:
    """a' = -a·∂f/∂z with its derivatives, along given paths z(t).

    Its Jacobian is minus the transpose of the field's; its time derivative, in which the path
    moves too, is a difference quotient.

    Args:
        product: a·∂f/∂z.
        system: the field and its Jacobian.
        path: z at times (n,) of some samples.
        low, high: (B,), the spans of the samples' paths.
    """

    def __init__(
        self,
        product: RowRightHandSide,
        system: RowStiffField,
        path: Callable[[np.ndarray, np.ndarray], Tensor],
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        self._product, self._system, self._path = product, system, path
        self._low, self._high = low, high

    def __call__(self, at: At, a: Tensor) -> Tensor:
        return self._product(at, a)

    def jacobian(self, at: At, a: Tensor) -> Tensor:
        return self._system.jacobian(at, self._path(at.t, at.rows)).transpose(1, 2).neg()

    def time_derivative(self, at: At, a: Tensor) -> Tensor:
        low, high = self._low[at.rows], self._high[at.rows]
        step = (high - low) * torch.finfo(a.dtype).eps ** 0.5
        other = np.where(at.t - step >= low, at.t - step, at.t + step)
        change = self(At(other, at.rows), a) - self(at, a)
        return change / as_column(other - at.t, a)


class RosenbrockRowStepper:
    """Attempts steps of a Rosenbrock method: one Jacobian a step, one LU an attempt.

    Matrices are (n, D, D), one for each sample, its dt inside. Every operation is visible to
    autograd.
    """

    def __init__(
        self, tableau: RosenbrockTableau, system: RowStiffSystem, like: Tensor, jumps: RowJumps
    ) -> None:
        self.tableau = tableau
        self.coefficients = rosenbrock_coefficients(tableau, like.dtype, like.device)
        self.order_of_error = tableau.error_order
        self.rhs = system
        self._jumps = jumps
        self._first = FirstStage(system, jumps)
        self._jacobian: Tensor | None = None
        self._slope: Tensor | None = None
        self._last: Tensor | None = None
        self._t1 = np.empty(0)

    def begin(self, at: At, forwards: np.ndarray, z: Tensor, first: Tensor | None) -> Tensor:
        """Start at (t, z); returns f(t, z), which may be given."""
        self._first.value = first
        return self._first.at(at.rows, at.t, forwards, z)

    def attempt(self, rows: np.ndarray, t: np.ndarray, t1: np.ndarray, z: Tensor) -> RowStep:
        """Steps from (t, z) to t1."""
        c, dt = self.coefficients, t1 - t
        forwards = dt > 0
        f = self._first.at(rows, t, forwards, z)
        if self._jacobian is None:
            at = At(self._jumps.beside(t, forwards), rows)
            self._jacobian = self.rhs.jacobian(at, z)
            self._slope = self.rhs.time_derivative(at, z)
        h = as_column(dt, z)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) / self.tableau.gamma
        # A singular matrix gives NaN, which rejects the step; it must not raise.
        lu, pivots, _ = torch.linalg.lu_factor_ex(eye - h.unsqueeze(2) * self._jacobian)
        last = self._jumps.beside(t1, ~forwards)
        stages: list[Tensor] = []
        for i, (row, coupling) in enumerate(zip(c.a, c.coupling, strict=True)):
            right = f
            if i:
                v = torch.stack(stages).reshape(i, -1).t()
                node = self.tableau.c[i]
                time = last if node == 1.0 else t + node * dt
                f = self.rhs(At(time, rows), z + h * torch.mv(v, row).view_as(z))
                right = f + torch.mv(v, coupling).view_as(z)
            if self._slope is not None and self.tableau.time[i]:
                right = right + (h * self.tableau.time[i]) * self._slope
            stages.append(lu_solve(lu, pivots, right.unsqueeze(2)).squeeze(2))
        scaled = torch.stack(stages) * h
        z1 = torch.addmv(z.reshape(-1), scaled.reshape(len(stages), -1).t(), c.b).view_as(z)
        self._last, self._t1 = f, t1
        return RowStep(c, rows, t, t1, z, z1, scaled, last)

    def advance(self, accept: np.ndarray, mask: Tensor | None) -> None:
        """Which of the last attempts were accepted; ``mask`` (n, 1) is None where all were."""
        if accept.any():
            self._jacobian = None
        if not self.tableau.fsal:
            self._first.mark(accept)
            return
        known = self._first.value
        assert self._last is not None and known is not None
        self._first.value = self._last if mask is None else torch.where(mask, self._last, known)
        if self._jumps:
            self._first.mark(accept & self._jumps.at(self._t1))

    def refresh(self, stale: np.ndarray) -> None:
        """The states of some samples were changed from outside."""
        self._first.mark(stale)
        self._jacobian = None

    def keep(self, keep: np.ndarray, index: Tensor) -> None:
        """Go on with some of the samples."""
        self._first.keep(keep, index)
        if self._jacobian is not None:
            self._jacobian = self._jacobian[index]
            self._slope = None if self._slope is None else self._slope[index]
