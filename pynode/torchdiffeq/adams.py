"""Adams-Bashforth and Adams-Bashforth-Moulton methods of variable order.

The weights are integrals of the polynomial through the last slopes, for whatever distances lie
between them: on an even grid they are the classical ones, on an uneven grid the order is kept.
(Hairer, Norsett, Wanner, Solving ODEs I, sections III.1 and III.5.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.methods.rk4_38 import TABLEAU as START
from pynode.errors import InputError
from pynode.field import FlatField
from pynode.torchdiffeq.arguments import Call

MAX_ORDER, EXPLICIT_ORDER = 12, 6
"""Largest ``max_order``, which is also the default with a corrector, and the default without one:
torchdiffeq's, 12, loses all digits to instability at step sizes where 6 loses none."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(MAX_ORDER // 2 + 1)


def adams_weights(nodes: Sequence[float]) -> list[float]:
    """∫₀¹ of the Lagrange polynomials on ``nodes``, by a quadrature that is exact for them."""
    x = np.asarray(nodes, dtype=np.float64)
    points = 0.5 * (1 + _POINTS)
    weights = []
    for i, node in enumerate(x):
        others = np.delete(x, i)
        values = np.prod((points[:, None] - others) / (node - others), axis=1)
        weights.append(float(0.5 * _WEIGHTS @ values))
    return weights


class AdamsStepper:
    """Predictor with k past slopes (order k); for ``implicit_adams`` a corrector of order k + 1.

    The corrector is iterated to ``rtol`` and ``atol``, at most ``max_iters`` times. The first
    three steps are made by Kutta's 3/8 rule.
    """

    def __init__(
        self, call: Call, field: FlatField, sides: Callable[[float, float], tuple[float, float]]
    ) -> None:
        self.field, self._sides = field, sides
        self.implicit = call.method.solver == "moulton"
        most = call.number("max_order", MAX_ORDER if self.implicit else EXPLICIT_ORDER)
        if most != int(most) or not 1 <= most <= MAX_ORDER:
            raise InputError(f"max_order={most:g}: a whole number from 1 to {MAX_ORDER} is needed")
        if most < 4:
            warnings.warn("max_order is below 4, so the solver reduces to `rk4`.", stacklevel=2)
        self.keep = int(most) - 1
        self.max_iters = int(call.number("max_iters", 4))
        self.rtol, self.atol = call.rtol, call.atol
        self._times: list[float] = []
        self._slopes: list[Tensor] = []

    def step(self, t: float, t1: float, z: Tensor) -> Tensor:
        start, last = self._sides(t, t1)
        f = self.field(start, z)
        self._times = [t, *self._times][: max(self.keep, 1)]
        self._slopes = [f, *self._slopes][: max(self.keep, 1)]
        if len(self._slopes) < 3 or self.keep < 3:
            return self._start(t, t1, last, z, f)
        dt = t1 - t
        nodes = [(s - t) / dt for s in self._times]
        dz = self._sum(adams_weights(nodes), self._slopes) * dt
        if not self.implicit:
            return z + dz
        first, *others = adams_weights([1.0, *nodes])
        return z + self._correct(last, dt, z, dz, first, self._sum(others, self._slopes) * dt)

    def _correct(
        self, last: float, dt: float, z: Tensor, dz: Tensor, first: float, known: Tensor
    ) -> Tensor:
        for _ in range(self.max_iters):
            before = dz
            dz = known + self.field(last, z + dz) * (first * dt)
            with torch.no_grad():
                scale = torch.maximum(before.abs(), dz.abs()) * self.rtol + self.atol
                if bool(((dz - before).abs() < scale).all()):
                    return dz
        warnings.warn(
            f"implicit_adams: the corrector did not converge at t={last:.6g} in max_iters="
            f"{self.max_iters}: the steps are too large for the problem",
            stacklevel=2,
        )
        del self._times[-1], self._slopes[-1]  # go on with a lower order, as torchdiffeq does
        return dz

    def _start(self, t: float, t1: float, last: float, z: Tensor, f: Tensor) -> Tensor:
        dt, slopes = t1 - t, [f]
        for row, node in zip(START.a[1:], START.c[1:], strict=True):
            time = last if node == 1.0 else t + node * dt
            slopes.append(self.field(time, z + dt * self._sum(row, slopes)))
        return z + dt * self._sum(START.b, slopes)

    @staticmethod
    def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
        """In float64: the weights of high orders are large and of both signs."""
        stacked = torch.stack(list(slopes))
        wide = torch.tensor(weights, dtype=torch.float64, device=stacked.device)
        return (wide @ stacked.double()).to(stacked)
