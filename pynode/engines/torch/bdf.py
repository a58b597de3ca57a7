"""Backward differentiation formulas of orders 1 to 5, order and step size chosen together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.newton import Newton, Scale, Verdict
from pynode.engines.torch.rosenbrock import StiffSystem
from pynode.engines.torch.runge_kutta import Jumps, Piece
from pynode.engines.torch.tableau import Row

MAX_ORDER = 5
ITERATIONS = 4
"""Most Newton iterations for a step, as in DASSL and scipy's BDF."""


@dataclass(frozen=True)
class BdfMethod:
    r"""BDF with fixed leading coefficient (Jackson & Sacks-Davis 1980).

    Let P be the polynomial of degree k through the last k + 1 values, at whatever times they are.
    A step of order k and size h to :math:`t_1` solves

    .. math::
        P'(t_1) + \frac{\gamma_k}{h}\,(z_1 - P(t_1)) = f(t_1, z_1), \qquad
        \gamma_k = \sum_{j=1}^k \frac1j,

    so that the matrix :math:`I - (h/\gamma_k) J` does not change with the steps before. Inside
    the step the solution is the polynomial of degree k through :math:`z_1` and the k values
    before it.

    Attributes:
        order: the highest order; a solve begins with order 1.
        error_order: that of the first step.
    """

    name: str = "fbdf"
    order: int = MAX_ORDER
    error_order: int = 1
    interpolant_order: int = MAX_ORDER
    reference: str = (
        "Jackson & Sacks-Davis 1980, ACM TOMS 6; error estimates after Brenan, Campbell & Petzold, "
        "Numerical Solution of IVPs in DAEs, section 5.2 (DASSL)"
    )

    adaptive: ClassVar[bool] = True
    stages: ClassVar[int] = 1
    fsal: ClassVar[bool] = False


class _Polynomial:
    """Coefficients of dense output, for stages (z_i − z)/dt of the other values of a step.

    Args:
        nodes: (t_i − t)/dt of those values; that of z itself is 0.
    """

    def __init__(self, nodes: list[float]) -> None:
        self.error: Tensor | None = None
        self.error_low: Tensor | None = None
        self.extra_a: list[Tensor] = []
        self.extra_c: Row = ()
        self._nodes = nodes
        self.degree = len(nodes)

    @cached_property
    def interpolant_rows(self) -> list[list[float]]:
        rows = []
        for i, node in enumerate(self._nodes):
            others = [x for j, x in enumerate(self._nodes) if j != i]
            ascending = np.atleast_1d(np.poly(others))[::-1]
            rows.append((ascending / (node * math.prod(node - x for x in others))).tolist())
        return rows

    @cached_property
    def interpolant(self) -> Tensor:
        return torch.tensor(self.interpolant_rows, dtype=torch.float64)


class BdfStepper:
    """Attempts steps of the order that :class:`BdfControl` sets, from the values before them.

    Args:
        method: says what is solved.
        system: f and its Jacobian.
        taped: every step is a differentiable function of the values before it.
        jumps: times at which the field may jump; a solve begins anew there.
        norm: the tolerance of a step.
        transformed: a torch.func transform is active.

    Attributes:
        order: of the next attempt.
        times, values: the last ones, latest first; the pending one is not among them.
        steady: accepted steps since order or step size changed.
    """

    coefficients = _Polynomial([1.0])

    def __init__(
        self,
        method: BdfMethod,
        system: StiffSystem,
        taped: bool,
        jumps: Jumps,
        norm: Scale,
        transformed: bool,
    ) -> None:
        self.tableau = method
        self.rhs = system
        self.newton = Newton(system, norm, ITERATIONS, transformed)
        self._taped = taped
        self._jumps = jumps
        self.times: list[float] = []
        self.values: list[Tensor] = []
        self.order = 1
        self.steady = 0
        self._slope: Tensor | None = None
        self._pending: tuple[float, Tensor] | None = None

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z) with order 1; returns f(t, z), which may be given."""
        f = self.rhs(self._jumps.ends(t, towards)[0], z) if first is None else first
        self.times, self.values = [t], [z]
        self.order, self.steady = 1, 0
        self._slope = f
        self.newton.forget()
        return f

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step of the present order from (t, z), the last value, to t1."""
        h = t1 - t
        last = self._jumps.ends(t, t1)[1]
        times, values = self.times, self.values
        if len(times) == 1:  # a value before the first, on the tangent
            assert self._slope is not None
            times, values = [t, t - h], [z, z - h * self._slope]
        k = self.order
        x = [(s - t1) / h for s in times[: k + 1]]
        at, slope = predict(x)
        past = torch.stack(values[: k + 1])
        weights = torch.tensor([at, slope], dtype=z.dtype, device=z.device)
        predicted, change = (weights @ past).unbind()  # P and h·P' at t1
        gamma = leading(k)
        base = predicted - change / gamma
        self.newton.prepare(last, z if not self._taped else z.detach(), change.detach() / h, h)
        w, verdict = self.newton.solve(last, base, h / gamma, change / gamma)
        if verdict is not Verdict.CONVERGED:
            failure = math.nan if verdict is Verdict.NOT_FINITE else math.inf
            return Piece(self.coefficients, t, t1, z, base + w, past, last, failure=failure)
        if self._taped:
            w = self.newton.on_tape(last, base, h / gamma, w)
        z1 = base + w
        self._pending = t1, z1
        alpha = 1.0 / -x[k]
        constant = max(alpha, abs(sum(1.0 / -s for s in x) - gamma))
        error = constant * (z1 - predicted).detach()
        dense = _Polynomial([1.0, *((s - t) / h for s in times[1:k])])
        stages = (torch.stack([z1, *values[1:k]]) - z) / h
        return Piece(dense, t, t1, z, z1, stages, last, error=error)

    def advance(self) -> None:
        """The last attempt was accepted."""
        assert self._pending is not None
        t1, z1 = self._pending
        if len(self.times) == 1:
            assert self._slope is not None
            h = t1 - self.times[0]
            self.times.append(self.times[0] - h)
            self.values.append(self.values[0] - h * self._slope)
            self._slope = None
        self.times = [t1, *self.times[: MAX_ORDER + 1]]
        self.values = [z1, *self.values[: MAX_ORDER + 1]]

    @torch.no_grad()
    def neighbours(self, orders: list[int]) -> list[Tensor]:
        """Error estimates of steps of these orders to the pending value, like the present one."""
        assert self._pending is not None
        t1, z1 = self._pending
        times = [t1, *self.times]
        h = t1 - times[1]
        values = torch.stack([z1.detach(), *(v.detach() for v in self.values)])
        found = []
        for q in orders:
            row = difference([(s - t1) / h for s in times[: q + 2]])
            weights = torch.tensor(row, dtype=z1.dtype, device=z1.device)
            # h^(q+1) z^(q+1) / (q+1), as of equal steps.
            found.append(math.factorial(q) * (weights @ values[: q + 2]))
        return found


def leading(k: int) -> float:
    """γ_k."""
    return sum(1.0 / j for j in range(1, k + 1))


def predict(x: list[float]) -> tuple[list[float], list[float]]:
    """Weights at nodes x of the value at 0, and of the derivative there, of their polynomial."""
    at, slope = [], []
    for i, here in enumerate(x):
        others = [s for j, s in enumerate(x) if j != i]
        weight = math.prod(-s / (here - s) for s in others)
        at.append(weight)
        slope.append(weight * sum(-1.0 / s for s in others))
    return at, slope


def difference(x: list[float]) -> list[float]:
    """Weights at nodes x of their divided difference."""
    others = [[s for j, s in enumerate(x) if j != i] for i in range(len(x))]
    return [1.0 / math.prod(x[i] - s for s in rest) for i, rest in enumerate(others)]
