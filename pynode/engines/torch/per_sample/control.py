"""Error norm, step sizes and first step size, for every sample its own.

The same rules as in ``controller.py``, with arrays for numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.controller import stretch
from pynode.engines.torch.per_sample.field import At
from pynode.engines.torch.per_sample.step import RowStep
from pynode.engines.torch.runge_kutta import StepCoefficients
from pynode.options import CONTROLLERS, SolveOptions

RowReduce = Callable[[Tensor], Tensor]
"""From scaled errors (n, D) to one number for each sample (n,)."""


def row_rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1) / math.sqrt(x.shape[1])


def row_maximum(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, ord=math.inf, dim=1)


ROW_NORMS: dict[str, RowReduce] = {"rms": row_rms, "max": row_maximum}


def to_host(x: Tensor) -> np.ndarray:
    """(n,) as float64: the one synchronisation of a step."""
    return x.to("cpu", torch.float64).numpy()


class RowErrorNorm:
    """Norm of each sample's error estimate, in units of the tolerance: accepted up to 1.

    Args:
        rtol, atol: numbers, or tensors (B, D).
        reduce: the norm.
    """

    def __init__(self, rtol: float | Tensor, atol: float | Tensor, reduce: RowReduce) -> None:
        self.rtol, self.atol = rtol, atol
        self._may_vanish = not (atol.min() > 0 if isinstance(atol, Tensor) else atol > 0)
        self.reduce = reduce
        self._atol: Tensor | None = None

    def keep(self, index: Tensor) -> None:
        """Go on with some of the samples."""
        if isinstance(self.rtol, Tensor):
            self.rtol = self.rtol[index]
        if isinstance(self.atol, Tensor):
            self.atol = self.atol[index]

    @torch.no_grad()
    def of_step(self, step: RowStep, c: StepCoefficients) -> np.ndarray:
        z, z1 = step.z, step.z1
        scale = self.scale(z, z1)
        stages = step.stages.view(len(step.stages), -1).t()
        assert c.error is not None
        error = torch.mv(stages, c.error).view_as(z)
        # An infinite state has an infinite scale, so an error of 0: times 0 it is NaN instead.
        high = self.reduce(torch.add(error / scale, z1, alpha=0.0))
        if c.error_low is None:
            return to_host(high)
        # DOP853's combination (Hairer, Norsett, Wanner, Solving ODEs I, eq. II.10.17).
        low = self.reduce(torch.mv(stages, c.error_low).view_as(z) / scale)
        root = torch.sqrt(high * high + 0.01 * low * low)
        return to_host(high * high / root.clamp_min(torch.finfo(root.dtype).tiny))

    def scale(self, z: Tensor, z1: Tensor) -> Tensor:
        size = torch.maximum(z.abs(), z1.abs())
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            scale = size.mul_(self.rtol).add_(self.atol)
        else:
            scale = torch.add(self._floor(size), size, alpha=self.rtol)
        # Without atol an entry that is 0 has the scale 0, and 0/0 is no error.
        return scale.clamp_min_(torch.finfo(scale.dtype).tiny) if self._may_vanish else scale

    def _floor(self, like: Tensor) -> Tensor:
        """atol as a 0-d tensor."""
        if self._atol is None:
            self._atol = like.new_tensor(self.atol)
        return self._atol

    def of_vectors(self, x: Tensor, scale: Tensor) -> np.ndarray:
        return to_host(self.reduce(x / scale))


class RowStepSize:
    """The controller of :class:`~pynode.engines.torch.controller.StepSize` for n samples.

    It remembers the logarithms of past errors, so that a power is a sum.
    """

    def __init__(self, options: SolveOptions, error_order: int, count: int) -> None:
        self._exponents = [-beta / (error_order + 1) for beta in CONTROLLERS[options.controller]]
        self._elementary = -1.0 / (error_order + 1)
        self._past = [np.zeros(count), np.zeros(count)]
        self._safety, self._shrink, self._most = options.safety, options.shrink, options.grow
        self._grow = np.full(count, self._most)
        self.dt_max = options.dt_max
        self.stretch = stretch(options)

    def keep(self, keep: np.ndarray) -> None:
        self._past = [past[keep] for past in self._past]
        self._grow = self._grow[keep]

    def next(
        self,
        h: np.ndarray,
        size: np.ndarray,
        error: np.ndarray,
        accept: np.ndarray,
        lands: np.ndarray,
    ) -> np.ndarray:
        """Sizes for the next attempts.

        Args:
            h, size: the proposed sizes and those of the steps made.
            accept: which were accepted.
            lands: which ended on a stop.
        """
        every = np.count_nonzero(accept) == len(accept)
        e = np.log(np.maximum(error, 1e-10))
        power = e * self._exponents[0]
        for beta, past in zip(self._exponents[1:], self._past, strict=True):
            if beta:
                power += past * beta
        factor = np.exp(power) * self._safety
        new = size * np.minimum(np.maximum(factor, self._shrink), self._grow)
        if self.dt_max < math.inf:
            new = np.minimum(new, self.dt_max)
        # A step cut short by a stop says little about the size that the next may have.
        cut = lands & (size < h)
        remember = accept
        if np.count_nonzero(cut):
            new = np.where(cut, np.maximum(new, h), new)
            remember = accept & ~cut
        if np.count_nonzero(remember) == len(remember):
            self._past = [e, self._past[0]]
        else:
            last, before = self._past
            self._past = [np.where(remember, e, last), np.where(remember, last, before)]
        self._grow = np.where(accept, self._most, 1.0)
        if every:
            return new
        less = size * np.maximum(self._shrink, self._safety * error**self._elementary)
        less = np.where(np.isfinite(error), less, size * 0.1)
        return np.where(accept, new, less)


@torch.no_grad()
def first_step_sizes(
    rhs: Callable[[At, Tensor], Tensor],
    start: At,
    t1: np.ndarray,
    z0: Tensor,
    f0: Tensor,
    order: int,
    norm: RowErrorNorm,
) -> np.ndarray:
    """Hairer, Norsett, Wanner, Solving ODEs I, section II.4: one evaluation more."""
    t0 = start.t
    span, direction = np.abs(t1 - t0), np.sign(t1 - t0)
    scale = norm.scale(z0, z0)
    d0, d1 = norm.of_vectors(z0, scale), norm.of_vectors(f0, scale)
    h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = np.where((h0 > 0.0) & (h0 < np.inf), h0, 1e-6)  # a norm may overflow
    h0 = np.minimum(h0, span)
    shift = torch.from_numpy(direction * h0).to(z0).unsqueeze(1)
    # Not t0 + span, which rounding may put behind t1.
    near = At(np.where(h0 == span, t1, t0 + direction * h0), start.rows)
    d2 = norm.of_vectors(rhs(near, z0 + shift * f0) - f0, scale) / h0
    largest = np.maximum(d1, d2)
    h1 = np.where(
        largest <= 1e-15, np.maximum(1e-6, h0 * 1e-3), (0.01 / largest) ** (1.0 / (order + 1))
    )
    h = np.minimum(np.minimum(100.0 * h0, h1), span)
    return np.where(np.isfinite(d1 + d2), h, h0)
