"""Order and step size of BDF methods."""

from __future__ import annotations

import math

from pynode.engines.torch.bdf import MAX_ORDER, BdfStepper
from pynode.engines.torch.controller import ErrorNorm, StepSize
from pynode.options import SolveOptions

SAFETY = 0.8
"""Lower than that of one-step methods: a rejected step costs the order's steps of one size."""

STEADY = 1.2
"""A step size that could grow by less than this stays, and with it the factorisation."""


class BdfControl(StepSize):
    """Chooses the order and the size of the next step.

    After k + 1 steps of one size and order k, the order among k − 1, k, k + 1 that allows the
    largest step is taken (Shampine & Reichelt 1997, section 2.3). In between the size stays but
    where the error asks for less. A rejected step is tried again with less; from the second
    rejection on with a lower order too.
    """

    restarts = True

    def __init__(self, options: SolveOptions, stepper: BdfStepper, norm: ErrorNorm) -> None:
        super().__init__(options, stepper.tableau.error_order)
        self._stepper = stepper
        self._norm = norm
        self._rejections = 0

    def accepted(self, dt: float, error: float, cut: bool = False) -> float:
        """The next step size after a step of size ``dt``.

        Args:
            cut: the step was shorter than proposed.
        """
        stepper = self._stepper
        self._rejections = 0
        if cut:
            stepper.steady = 0
            return dt
        stepper.steady += 1
        k = stepper.order
        factors = {k: _factor(error, k)}
        if stepper.steady > k:
            others = [q for q in (k - 1, k + 1) if 1 <= q <= MAX_ORDER and q < len(stepper.times)]
            for q, estimate in zip(others, self._sizes(others), strict=True):
                factors[q] = _factor(estimate, q)
            best = max(factors, key=lambda q: factors[q])
            factor = min(factors[best], self._grow)
            if factor < STEADY and factors[k] > 0.9:
                return dt
        else:
            best, factor = k, factors[k]
            if factor > 0.9:
                return dt
        stepper.order, stepper.steady = best, 0
        return self.within(dt * factor)

    def _sizes(self, orders: list[int]) -> list[float]:
        assert self._stepper._pending is not None
        z1 = self._stepper._pending[1].detach()
        scale = self._norm.scale(z1, z1)
        return [
            self._norm.of_vector(estimate, scale) for estimate in self._stepper.neighbours(orders)
        ]

    def rejected(self, dt: float, error: float) -> float:
        """The next step size after a step of size ``dt`` was rejected."""
        stepper = self._stepper
        stepper.steady = 0
        self._rejections += 1
        if not math.isfinite(error):
            return self.within(dt * (0.1 if math.isnan(error) else 0.25))
        factor = max(self._shrink, _factor(error, stepper.order))
        if self._rejections > 1:
            stepper.order = max(1, stepper.order - 1)
        return self.within(dt * min(factor, 0.9))


def _factor(error: float, order: int) -> float:
    return SAFETY * max(error, 1e-10) ** (-1.0 / (order + 1))
