"""Error norms, step-size control, and the first step size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.engines.torch.host import to_host
from pynode.engines.torch.runge_kutta import Piece, RightHandSide, StepCoefficients
from pynode.options import CONTROLLERS, SolveOptions

Reduce = Callable[[Tensor], Tensor]
"""From a vector of scaled errors (N,) to a 0-d tensor."""


def rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / math.sqrt(x.numel())


def maximum(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, ord=math.inf)


STRETCH = 1.1
"""A step that would end this close to a stop ends on it: no sliver is left over, which would cost a
whole step. With a safety of 0.9 the error to be expected stays below the tolerance, 0.99^k. (In 500
solves of DETEST's problems to random ends 2 steps more are rejected than without.)"""


def stretch(options: SolveOptions) -> float:
    """How much longer than proposed a step may be to end on a stop.

    The size that follows a rejection must not be stretched to that of the step that was rejected.
    """
    return max(1.0, min(STRETCH, 0.99 / max(options.safety, options.shrink)))


NORMS: dict[str, Reduce] = {"rms": rms, "max": maximum}


class ErrorNorm:
    """Norm of a step's error estimate, in units of the tolerance: accepted up to 1.

    Args:
        rtol, atol: numbers, or flat tensors (N,).
        reduce: the norm.
        transformed: the solve runs under a torch.func transform.

    Attributes:
        kappa: the part of the tolerance that the error of Newton's iterations may be.
    """

    kappa = 0.01

    def __init__(
        self, rtol: float | Tensor, atol: float | Tensor, reduce: Reduce, transformed: bool
    ) -> None:
        self.rtol, self.atol = rtol, atol
        self._may_vanish = not (atol.min() > 0 if isinstance(atol, Tensor) else atol > 0)
        self.reduce = reduce
        self.transformed = transformed
        self._size: tuple[Tensor | None, Tensor] = (None, torch.empty(0))
        self._offset: Tensor | None = None

    def of_step(self, piece: Piece, c: StepCoefficients) -> float:
        if not torch.is_grad_enabled():  # no_grad costs as much as two operations
            return to_host(self.measure(piece, c), self.transformed)
        with torch.no_grad():
            return to_host(self.measure(piece, c), self.transformed)

    def measure(self, piece: Piece, c: StepCoefficients) -> Tensor:
        """The norm as a 0-d tensor."""
        scale = self.scale(piece.z, piece.z1)
        stages = piece.stages.t()
        high = self._norm(piece, stages, c.error, scale)
        if c.error_low is None:
            return high
        # DOP853's combination (Hairer, Norsett, Wanner, Solving ODEs I, eq. II.10.17).
        low = self._norm(piece, stages, c.error_low, scale)
        root = torch.sqrt(high * high + 0.01 * low * low)
        return high * high / root.clamp_min(torch.finfo(root.dtype).tiny)

    def _norm(self, piece: Piece, stages: Tensor, row: Tensor | None, scale: Tensor) -> Tensor:
        # An infinite state has an infinite scale, and so an error of 0: a share of the state that
        # no other would feel makes it NaN.
        share = torch.finfo(scale.dtype).tiny
        if piece.error is not None:
            return self.reduce(torch.add(piece.error, piece.z1, alpha=share) / scale)
        assert row is not None
        size = abs(piece.dt)
        if self.reduce is rms:  # its 1/√N for nothing
            size /= math.sqrt(scale.numel())
            error = torch.addmv(piece.z1, stages, row, beta=share, alpha=size)
            return torch.linalg.vector_norm(error / scale)
        return self.reduce(torch.addmv(piece.z1, stages, row, beta=share, alpha=size) / scale)

    def scale(self, z: Tensor, z1: Tensor) -> Tensor:
        known, size = self._size  # a step begins where the last one ended
        if known is not z:
            size = z.abs()
        self._size = z1, (size if z1 is z else z1.abs())
        largest = torch.maximum(size, self._size[1])
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            scale = largest * self.rtol + self.atol
        else:
            if self._offset is None:
                self._offset = torch.full((), self.atol, dtype=z.dtype, device=z.device)
            scale = torch.add(self._offset, largest, alpha=self.rtol)
        # Without atol an entry that is 0 has the scale 0, and 0/0 is no error.
        return scale.clamp_min(torch.finfo(scale.dtype).tiny) if self._may_vanish else scale

    def of_vector(self, x: Tensor, scale: Tensor) -> float:
        return to_host(self.reduce(x / scale), self.transformed)


class StepSize:
    r"""Step-size controller (Soderlind 2003, Digital filters in adaptive time-stepping).

    .. math:: h_{n+1} = h_n\,\gamma\, e_n^{-\beta_1/k} e_{n-1}^{-\beta_2/k} e_{n-2}^{-\beta_3/k}

    with errors e in units of the tolerance, k the order of the estimate plus one, the factor
    kept within [shrink, grow]; after a rejection the elementary controller, without growth.
    """

    restarts = False

    def __init__(self, options: SolveOptions, error_order: int) -> None:
        self._exponents = [beta / (error_order + 1) for beta in CONTROLLERS[options.controller]]
        self._safety, self._shrink, self._grow = options.safety, options.shrink, options.grow
        self._elementary = 1.0 / (error_order + 1)
        self._past = [1.0, 1.0]
        self._rejected = False
        self.error_order = error_order
        self.dt_min, self.dt_max = options.dt_min, options.dt_max
        self.stretch = stretch(options)

    def within(self, dt: float) -> float:
        """The step size within its limits."""
        return min(max(dt, self.dt_min), self.dt_max)

    @torch.no_grad()
    def first(
        self, rhs: RightHandSide, t0: float, t1: float, z0: Tensor, f0: Tensor, norm: ErrorNorm
    ) -> float:
        """The first step size: one evaluation more."""
        return self.within(propose_first(rhs, t0, t1, z0, f0, self.error_order, norm))

    def accepted(self, dt: float, error: float, cut: bool = False) -> float:
        """The next step size after a step of size ``dt`` was accepted.

        Args:
            cut: the step was shorter than proposed; its error is not remembered.
        """
        error = max(error, 1e-10)
        factor = self._safety
        for beta, e in zip(self._exponents, (error, *self._past), strict=True):
            factor *= e**-beta
        grow = 1.0 if self._rejected else self._grow
        if not cut:
            self._past = [error, self._past[0]]
        self._rejected = False
        return self.within(dt * min(max(factor, self._shrink), grow))

    def rejected(self, dt: float, error: float) -> float:
        """The next step size after a step of size ``dt`` was rejected."""
        self._rejected = True
        if not error < math.inf:  # NaN too; comparisons, for numbers that are tensors
            return self.within(dt * (0.25 if error == math.inf else 0.1))
        return self.within(dt * max(self._shrink, self._safety * error**-self._elementary))


def propose_first(
    rhs: RightHandSide,
    t0: float,
    t1: float,
    z0: Tensor,
    f0: Tensor,
    order: int,
    norm: ErrorNorm,
) -> float:
    """Hairer, Norsett, Wanner, Solving ODEs I, section II.4.

    Numbers may be 0-d tensors, as the norm returns them.
    """
    span = abs(t1 - t0)
    direction = math.copysign(1.0, t1 - t0)
    scale = norm.scale(z0, z0)
    d0, d1 = norm.of_vector(z0, scale), norm.of_vector(f0, scale)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    if not 0.0 < h0 < math.inf:  # a norm overflowed
        h0 = 1e-6
    h0 = min(h0, span)
    # Not t0 + span, which rounding may put behind t1.
    step = direction * h0
    z1 = z0 + step * f0 if isinstance(step, Tensor) else torch.add(z0, f0, alpha=step)
    f1 = rhs(t1 if h0 == span else t0 + step, z1)
    d2 = norm.of_vector(f1 - f0, scale) / h0
    if not d1 + d2 < math.inf:
        return h0
    largest = max(d1, d2)
    h1 = max(1e-6, h0 * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1.0 / (order + 1))
    return min(100.0 * h0, h1, span)
