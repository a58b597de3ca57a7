"""Implicit Runge-Kutta methods with fixed steps.

All stages are solved for together by Newton's method, with a Jacobian block for each sample where
samples do not depend on each other, and with the whole Jacobian where they do. Gradients follow
the implicit function theorem, not the iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.engines.torch.derivatives import StiffField
from pynode.engines.torch.linear import lu_solve
from pynode.errors import GradientError, InputError, SolveError
from pynode.field import FlatField
from pynode.state import StateLayout
from pynode.torchdiffeq.arguments import Call


@dataclass(frozen=True)
class ImplicitTableau:
    """Butcher's a, b, c with a full matrix a, the order, and where they come from."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    reference: str


_R3, _R6, _R15 = math.sqrt(3), math.sqrt(6), math.sqrt(15)
_G = 1 - math.sqrt(2) / 2
_W = math.sqrt(2) / 4
_BOOK = "Hairer, Wanner, Solving ODEs II, "

TABLEAUS = {
    "implicit_euler": ImplicitTableau(((1.0,),), (1.0,), (1.0,), 1, _BOOK + "table IV.5.5"),
    "implicit_midpoint": ImplicitTableau(((0.5,),), (1.0,), (0.5,), 2, _BOOK + "table IV.5.1"),
    "trapezoid": ImplicitTableau(
        ((0.0, 0.0), (0.5, 0.5)), (0.5, 0.5), (0.0, 1.0), 2, _BOOK + "table IV.5.7"
    ),
    "radauIIA3": ImplicitTableau(
        ((5 / 12, -1 / 12), (3 / 4, 1 / 4)),
        (3 / 4, 1 / 4),
        (1 / 3, 1.0),
        3,
        _BOOK + "table IV.5.5",
    ),
    "radauIIA5": ImplicitTableau(
        (
            ((88 - 7 * _R6) / 360, (296 - 169 * _R6) / 1800, (-2 + 3 * _R6) / 225),
            ((296 + 169 * _R6) / 1800, (88 + 7 * _R6) / 360, (-2 - 3 * _R6) / 225),
            ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
        ),
        ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
        ((4 - _R6) / 10, (4 + _R6) / 10, 1.0),
        5,
        _BOOK + "table IV.5.6",
    ),
    "gl4": ImplicitTableau(
        ((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
        (1 / 2, 1 / 2),
        (1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
        4,
        _BOOK + "table IV.5.1",
    ),
    "gl6": ImplicitTableau(
        (
            (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
            (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
            (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
        (1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10),
        6,
        _BOOK + "table IV.5.2",
    ),
    "sdirk2": ImplicitTableau(
        ((_G, 0.0), (1 - _G, _G)),
        (1 - _G, _G),
        (_G, 1.0),
        2,
        "Alexander, SIAM J. Numer. Anal. 14 (1977) 1006-1021",
    ),
    "trbdf2": ImplicitTableau(
        ((0.0, 0.0, 0.0), (_G, _G, 0.0), (_W, _W, _G)),
        (_W, _W, _G),
        (0.0, 2 * _G, 1.0),
        2,
        "Bank et al., IEEE Trans. Electron Devices 32 (1985) 1992-2007; Hosea, Shampine, Appl. "
        "Numer. Math. 20 (1996) 21-37",
    ),
}


class _Jacobian:
    """∂f/∂z as blocks (B, D, D): of samples, or one block once samples turn out to be coupled."""

    def __init__(self, field: FlatField, z: Tensor) -> None:
        self.field = field
        self._system = StiffField(field)
        self.rows = self._system.rows

    def at(self, t: float, z: Tensor) -> Tensor:
        blocks = self._system.jacobian(t, z)
        if self.rows > 1 and self._coupled(t, z, blocks):
            field, layout = self.field, self.field.layout
            whole = FlatField(
                lambda s, x: layout.flatten(field.fn(s, layout.restore(x))),
                StateLayout(z),
                None,
                field.stats,
            )
            self._system, self.rows = StiffField(whole), 1
            return self._system.jacobian(t, z)
        return blocks

    def _coupled(self, t: float, z: Tensor, blocks: Tensor) -> bool:
        """Whether v·J differs from v times the blocks, for a random v."""
        v = torch.rand(z.shape, dtype=z.dtype, device=z.device) + 0.5
        _, pull, *_ = torch.func.vjp(lambda x: self.field(t, x), z)
        whole = pull(v)[0]
        mine = torch.einsum("bi,bij->bj", v.reshape(self.rows, -1), blocks).reshape(-1)
        size = whole.abs().max() + mine.abs().max()
        return bool((whole - mine).abs().max() > 1e4 * torch.finfo(z.dtype).eps * size)


class ImplicitStepper:
    """Steps of an implicit Runge-Kutta method; ``max_iters`` bounds Newton's iterations."""

    def __init__(
        self, call: Call, field: FlatField, sides: Callable[[float, float], tuple[float, float]]
    ) -> None:
        self.name = call.method.name
        self.tableau = TABLEAUS[call.method.solver]
        self.field, self._sides = field, sides
        self.max_iters = int(call.number("max_iters", 100))
        if self.max_iters < 1:
            raise InputError(f"max_iters={self.max_iters}: 1 or more is needed")
        like = field.layout.flatten(call.y0)
        self._a = torch.tensor(self.tableau.a, dtype=like.dtype, device=like.device)
        self._b = torch.tensor(self.tableau.b, dtype=like.dtype, device=like.device)
        self._adjoint = call.adjoint_of is not None
        of = call.adjoint_of or field
        self._size = of.layout.size
        self._jacobian = _Jacobian(of, like[: self._size])
        eps = torch.finfo(like.dtype).eps
        self._tol = eps * (1000 if like.dtype == torch.float64 else 16)

    def step(self, t: float, t1: float, z: Tensor) -> Tensor:
        dt = t1 - t
        start, last = self._sides(t, t1)
        ends = {0.0: start, 1.0: last}
        times = [ends.get(c, t + c * dt) for c in self.tableau.c]
        with torch.no_grad():
            stages = self._solve(times, start, dt, z.detach())
        if torch.is_grad_enabled():
            stages = self._differentiable(stages, times, dt, z)
        return z + dt * (self._b @ stages)

    def _residual(self, stages: Tensor, times: list[float], dt: float, z: Tensor) -> Tensor:
        """k_i − f(t_i, z + h Σ a_ij k_j), (s, N)."""
        at = z + dt * (self._a @ stages)
        return stages - torch.stack([self.field(t, y) for t, y in zip(times, at, strict=True)])

    def _solve(self, times: list[float], start: float, dt: float, z: Tensor) -> Tensor:
        """The stages (s, N): with one Jacobian first, with one a stage where that is too slow."""
        first = self.field(start, z)
        stages = first.expand(len(times), -1).clone()
        jacobian = self._jacobian.at(start, z[: self._size])
        solver = self._factors([jacobian] * len(times), dt)
        scale, fresh, before = 1.0 + z.abs(), False, math.inf
        for i in range(self.max_iters):
            change = solver(self._residual(stages, times, dt, z))
            stages = stages - change
            size = float((change * dt / scale).abs().max())
            if size <= self._tol or (size > 0.5 * before and before <= 1e3 * self._tol):
                return stages
            if not math.isfinite(size):
                break
            if (fresh or i > 2) and (fresh or size > 0.2 * before):
                solver, fresh = self._factors(self._at_stages(stages, times, dt, z), dt), True
            before = size
        raise SolveError(
            f"{self.name}: Newton's method did not converge in max_iters={self.max_iters} at "
            f"t={start:.6g} with a step of size {abs(dt):.3g}: lessen step_size",
            "non_finite",
            start,
        )

    def _at_stages(self, stages: Tensor, times: list[float], dt: float, z: Tensor) -> list[Tensor]:
        at = z + dt * (self._a @ stages)
        rows = self._jacobian.rows
        at = at[:, : self._size]
        found = [self._jacobian.at(t, y) for t, y in zip(times, at, strict=True)]
        if self._jacobian.rows != rows:  # the samples turned out to be coupled on the way
            found = [self._jacobian.at(t, y) for t, y in zip(times, at, strict=True)]
        return found

    def _factors(self, jacobians: list[Tensor], dt: float) -> Callable[[Tensor], Tensor]:
        """x ↦ (I − h a⊗J)⁻¹ x on (s, N), by one LU decomposition a block.

        For an adjoint, (z, a, gradient)' = (f, −a·∂f/∂z, −a·∂f/∂θ), J is taken to be block
        diagonal: Newton's method still ends, since a does not act on z, nor the gradient on both.
        """
        blocks = torch.stack(jacobians)
        of_state = self._block_solver(blocks, dt)
        if not self._adjoint:
            return of_state
        of_adjoint = self._block_solver(-blocks.transpose(2, 3), dt)
        n = self._size
        return lambda x: torch.cat(
            [of_state(x[:, :n]), of_adjoint(x[:, n : 2 * n]), x[:, 2 * n :]], dim=1
        )

    def _block_solver(self, blocks: Tensor, dt: float) -> Callable[[Tensor], Tensor]:
        s, rows, width, _ = blocks.shape
        system = -dt * torch.einsum("ij,ibpq->bipjq", self._a, blocks)
        matrix = system.reshape(rows, s * width, s * width)
        matrix = matrix + torch.eye(s * width, dtype=matrix.dtype, device=matrix.device)
        # A singular matrix gives NaN or infinity, which the caller sees.
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)

        def solve(x: Tensor) -> Tensor:
            right = x.reshape(s, rows, width).transpose(0, 1).reshape(rows, s * width, 1)
            found = lu_solve(lu, pivots, right)
            return found.reshape(rows, s, width).transpose(0, 1).reshape(s, -1)

        return solve

    def _differentiable(self, stages: Tensor, times: list[float], dt: float, z: Tensor) -> Tensor:
        """The same stages as functions of z and what the field depends on.

        One more step of Newton's method from the solution, whose matrix is held fixed, has the
        derivatives that the implicit function theorem gives.
        """
        residual = self._residual(stages, times, dt, z)
        if not residual.requires_grad:
            return stages
        with torch.no_grad():
            solver = self._factors(self._at_stages(stages, times, dt, z), dt)
        found = stages - solver(residual)
        found.register_hook(self._first_only)
        return found

    def _first_only(self, grad: Tensor) -> None:
        if torch.is_grad_enabled():
            raise GradientError(
                f"{self.name} has first derivatives only: for create_graph=True use an explicit "
                "method"
            )
