"""Simplified Newton iteration for implicit stages, on one (D, D) matrix a sample."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from pynode.engines.torch.host import to_host
from pynode.engines.torch.rosenbrock import StiffSystem
from pynode.errors import GradientError

SLOW = 3
"""After so many iterations the next step begins with a new Jacobian."""

FIXED_ITERATIONS = 40
"""Most iterations where steps are fixed: they go on to rounding, and no smaller step can help."""

REUSE = 0.2
"""A factorisation serves step sizes that differ by no more than this part."""


class Scale(Protocol):
    """What Newton's iteration needs of the error norm.

    Attributes:
        kappa: the iteration's error may be this part of a step's tolerance.
    """

    kappa: float

    def scale(self, z: Tensor, z1: Tensor) -> Tensor:
        """The tolerance of each entry, (N,)."""


class Verdict(IntEnum):
    """How an iteration stands; of a batch, the worst of its samples."""

    CONVERGED = 0
    GOES_ON = 1
    DIVERGES = 2
    NOT_FINITE = 3


class Newton:
    r"""Solves :math:`w = c\,f(t, b + w)` for each sample, after Hairer & Wanner, Solving ODEs II,
    section IV.8.

    The matrices :math:`I - cJ` are (B, D, D). J is kept until convergence is slow or fails, the
    factorisation until c has changed too much; in between a correction is scaled by
    :math:`2/(1 + c/c_{LU})`. A sample that has converged is left alone while others go on. One
    host synchronisation an iteration.

    Args:
        system: f and its Jacobian.
        norm: the step's tolerance; None for fixed steps, which iterate to rounding.
        most: largest number of iterations where steps can be made smaller.
        transformed: a torch.func transform is active.

    Attributes:
        iterations: taken by the last solve.
    """

    def __init__(
        self, system: StiffSystem, norm: Scale | None, most: int, transformed: bool
    ) -> None:
        self.system = system
        self.norm = norm
        self.most = most if norm is not None else FIXED_ITERATIONS
        self.iterations = 0
        self._transformed = transformed
        self._where: tuple[float, Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Drop Jacobian and factorisation: the solution goes on somewhere else."""
        self._jacobian: Tensor | None = None
        self._of: tuple[float, Tensor] | None = None
        self._lu: tuple[Tensor, Tensor] | None = None
        self._c = 0.0
        self._eta: Tensor | None = None
        self.slow = False

    @torch.no_grad()
    def prepare(self, t: float, z: Tensor, f: Tensor, dt: float) -> None:
        """A step of size dt begins at (t, z), with slope f: renew what has grown too old.

        The Jacobian belongs to the beginning of a step, so an attempt that is repeated with
        another size finds it there.
        """
        self._where = t, z.detach()
        if self._jacobian is None or self.slow:
            self._renew_jacobian()
        assert self._jacobian is not None
        rows, width = self._jacobian.shape[:2]
        self._tolerance = self._tolerances(z.detach(), f.detach(), dt).reshape(rows, width)

    def _tolerances(self, z: Tensor, f: Tensor, dt: float) -> Tensor:
        """What an entry of w may be off by, (N,)."""
        assert self._jacobian is not None
        eps = torch.finfo(z.dtype).eps
        if self.norm is not None:
            return self.norm.kappa * self.norm.scale(z, z) + 10 * eps * z.abs()
        rows = self._jacobian.shape[0]
        size = torch.maximum(z.abs(), (dt * f).abs()).reshape(rows, -1).amax(dim=1, keepdim=True)
        least = torch.finfo(z.dtype).tiny
        return (100 * eps * size + least).expand(-1, z.numel() // rows).reshape(-1)

    @property
    def _fresh(self) -> bool:
        return self._of is not None and self._where is not None and self._of[1] is self._where[1]

    def _renew_jacobian(self) -> None:
        assert self._where is not None
        self._of = self._where
        self._jacobian = self.system.jacobian(*self._where).detach()
        self._lu = None
        self.slow = False

    def _factorise(self, c: float) -> tuple[Tensor, Tensor]:
        assert self._jacobian is not None
        self._c = c
        self._lu = self._factors(c, self._jacobian)
        self._eta = None
        return self._lu

    def _factors(self, c: float, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        self.system.stats.factorisations += 1
        eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        # A singular matrix gives NaN or infinity, which rejects the step; it must not raise.
        return torch.linalg.lu_factor_ex(eye - c * jacobian)[:2]

    def filtered(self, x: Tensor) -> Tensor:
        """(I − cJ)⁻¹ x with the last factorisation: damps what is stiff in an error estimate."""
        assert self._lu is not None
        return _solve(self._lu, x)

    @torch.no_grad()
    def solve(self, t: float, base: Tensor, c: float, guess: Tensor) -> tuple[Tensor, Verdict]:
        """w (N,), and how the iteration ended.

        Where it fails with an old Jacobian or factorisation it is tried again with new ones.
        """
        base, guess = base.detach(), guess.detach()
        while True:
            exact = self._lu is not None and abs(c - self._c) <= 1e-6 * abs(c)
            if self._lu is None or abs(c / self._c - 1.0) > REUSE:
                self._factorise(c)
                exact = True
            w, verdict = self._iterate(t, base, c, guess)
            self.slow |= self.iterations >= SLOW
            if verdict is Verdict.CONVERGED or (exact and self._fresh):
                self.system.stats.newton_failures += verdict is not Verdict.CONVERGED
                return w, verdict
            if not self._fresh:
                self._renew_jacobian()
            self._lu = None

    def _iterate(self, t: float, base: Tensor, c: float, w: Tensor) -> tuple[Tensor, Verdict]:
        assert self._lu is not None and self._jacobian is not None
        rows, width = self._jacobian.shape[:2]
        scale = 2.0 / (1.0 + c / self._c)
        tolerance = self._tolerance
        eta = self._eta
        w = w.reshape(rows, width)
        size: Tensor | None = None
        active: Tensor | None = None
        rate: Tensor | None = None
        verdict = Verdict.GOES_ON
        for m in range(1, self.most + 1):
            f = self.system(t, base + w.reshape(-1)).detach().reshape(rows, width)
            delta = _solve(self._lu, torch.sub(c * f, w))
            if scale != 1.0:
                delta = delta * scale
            before, size = size, torch.linalg.vector_norm(delta / tolerance, dim=1) / width**0.5
            if before is not None:
                rate = size / before.clamp_min(torch.finfo(size.dtype).tiny)
                eta = rate / (1.0 - rate).clamp_min(1e-8)
            last = m == self.most
            state = _judge(size, rate, eta, self.most - m)
            if active is not None:
                state = torch.where(active, state, 0)
                delta = torch.where(active.unsqueeze(1), delta, 0.0)
            w = w + delta
            active = state > 0
            verdict = Verdict(int(to_host(state.amax(), self._transformed)))
            if verdict is not Verdict.GOES_ON or last:
                break
        self.iterations = m
        if verdict is Verdict.CONVERGED and eta is not None:
            self._eta = eta.clamp(1e-10, 1.0).pow(0.8)
        if verdict is Verdict.GOES_ON:
            verdict = Verdict.DIVERGES
        return w.reshape(-1), verdict

    def on_tape(self, t: float, base: Tensor, c: float, w: Tensor) -> Tensor:
        """The converged w as a differentiable function of all that w = c·f(t, base + w) holds.

        One Newton correction from the solution with the exact matrix there: by the implicit
        function theorem its first derivatives are exact, whatever the iterations did.
        """
        assert self._jacobian is not None
        rows, width = self._jacobian.shape[:2]
        w = w.detach()
        z = base + w
        residual = (w - c * self.system(t, z)).reshape(rows, width)
        with torch.no_grad():
            lu, pivots = self._factors(c, self.system.jacobian(t, z.detach()).detach())
        return _Implicit.apply(w.reshape(rows, width), residual, lu, pivots).reshape(-1)


def _judge(size: Tensor, rate: Tensor | None, eta: Tensor | None, left: int) -> Tensor:
    """The verdict on each sample, (B,), from the size of its last correction."""
    state = torch.ones_like(size)
    if rate is not None:
        # At this rate the tolerance is out of reach.
        hopeless = (rate >= 0.99) | (size * rate**left > (1.0 - rate).clamp_min(1e-8))
        state = torch.where(hopeless, 2.0, state)
    if eta is not None:
        state = torch.where(eta * size <= 1.0, 0.0, state)
    state = torch.where(size == 0.0, 0.0, state)
    return torch.where(size.isfinite(), state, 3.0)


def _solve(lu: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """A⁻¹x for x of shape (B, D) or (B·D,)."""
    rows, width = lu[0].shape[:2]
    return torch.linalg.lu_solve(*lu, x.reshape(rows, width, 1)).reshape(x.shape)


class _Implicit(torch.autograd.Function):
    """w − A⁻¹r, differentiable in r with A fixed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, residual: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
        return w - _solve((lu, pivots), residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, residual, lu, pivots = inputs
        ctx.save_for_backward(residual, lu, pivots)
        ctx.save_for_forward(residual, lu, pivots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        residual, lu, pivots = ctx.saved_tensors
        of_residual = torch.linalg.lu_solve(lu, pivots, grad.unsqueeze(-1), adjoint=True)
        return None, _FirstOnly.apply(-of_residual.squeeze(-1), residual), None, None

    @staticmethod
    def jvp(ctx: Any, _w: Any, tangent: Tensor | None, _lu: Any, _pivots: Any) -> Tensor | None:
        residual, lu, pivots = ctx.saved_tensors
        if tangent is None:
            return torch.zeros_like(residual)
        return _FirstOnly.apply(-_solve((lu, pivots), tangent), residual)


class _FirstOnly(torch.autograd.Function):
    """The first argument as it is; refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, _depends_on: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise GradientError(_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise GradientError(_SECOND)


_SECOND = (
    "second derivatives through Newton's iteration are not there: for double backward use a "
    "Rosenbrock solver (rosenbrock23, rodas4, rodas5p) with sensitivity='discrete'"
)
