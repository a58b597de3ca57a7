"""Rosenbrock-Wanner methods: linearly implicit, for stiff problems, as data and one stepper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.linear import lu_solve
from pynode.engines.torch.runge_kutta import Jumps, Piece
from pynode.engines.torch.tableau import Row
from pynode.solution import Statistics


class StiffSystem(Protocol):
    """A right-hand side with the derivatives that an implicit method needs.

    Attributes:
        rows: number of samples B.
        stats: where Jacobians, factorisations and failures of Newton's iteration are counted.
    """

    rows: int
    stats: Statistics

    def __call__(self, t: float, z: Tensor) -> Tensor:
        """f (N,)."""

    def jacobian(self, t: float, z: Tensor) -> Tensor:
        """∂f/∂z as blocks (B, D, D) with B·D = N: one for each sample."""

    def time_derivative(self, t: float, z: Tensor) -> Tensor | None:
        """∂f/∂t (N,), or None where f does not depend on t."""


@dataclass(frozen=True)
class RosenbrockTableau:
    r"""Coefficients of a Rosenbrock method in the form that needs no product with the Jacobian.

    One step from :math:`z_0` at :math:`t_0`, with J and :math:`f_t` taken there:

    .. math::
        \left(\tfrac{1}{\gamma} I - hJ\right) v_i
          = f\Big(t_0 + c_i h,\; z_0 + h\sum_{j<i} a_{ij} v_j\Big)
          + \sum_{j<i} C_{ij} v_j + h\, d_i f_t, \qquad
        z_1 = z_0 + h\sum_i b_i v_i,

    with error :math:`h\sum_i e_i v_i` and, inside the step,
    :math:`z_0 + h\sum_i v_i \sum_j p_{ij}\theta^j`.
    (Hairer, Wanner, Solving ODEs II, section IV.7, eq. 7.25.)

    Attributes:
        name, order, interpolant, interpolant_order, error, error_order, reference: as in
            :class:`pynode.engines.torch.tableau.Tableau`.
        coupling: the rows of C; ``time``: the d_i.
    """

    name: str
    order: int
    gamma: float
    a: tuple[Row, ...]
    coupling: tuple[Row, ...]
    c: Row
    time: Row
    b: Row
    error: Row
    error_order: int
    interpolant: tuple[Row, ...]
    interpolant_order: int
    reference: str

    error_low: ClassVar[None] = None
    extra_a: ClassVar[tuple[Row, ...]] = ()
    extra_c: ClassVar[Row] = ()
    adaptive: ClassVar[bool] = True

    @property
    def stages(self) -> int:
        return len(self.b)

    @cached_property
    def fsal(self) -> bool:
        """The last stage evaluates f at the end of the step, where the next one begins."""
        return self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b


def from_classical(
    alpha: np.ndarray, gamma: np.ndarray, *weights: np.ndarray
) -> tuple[tuple[Row, ...], tuple[Row, ...], list[np.ndarray]]:
    """a, C, and weights of the stages v, from the classical coefficients of Rosenbrock methods.

    Args:
        alpha, gamma: (s, s) matrices α and Γ, the latter with its diagonal.
        weights: (..., s), weights of the classical stages k = Γ⁻¹v.
    """
    inverse = np.linalg.inv(gamma)
    a = alpha @ inverse
    coupling = np.diag(1.0 / np.diag(gamma)) - inverse
    return lower_rows(a), lower_rows(coupling), [w @ inverse for w in weights]


def lower_rows(matrix: np.ndarray) -> tuple[Row, ...]:
    return tuple(tuple(float(x) for x in row[:i]) for i, row in enumerate(matrix))


def rodas_interpolant(b: Row, h: tuple[Row, ...]) -> tuple[Row, ...]:
    """p_ij from the rows h of Hairer's dense output.

    u(θ) = (1−θ) z0 + θ (z1 + (1−θ)(h1 + θ h2 + θ² h3 …)), each h a sum over the stages.
    """
    rows = []
    for i, weight in enumerate(b):
        coefficients = [weight, *(0.0 for _ in h)]
        for power, row in enumerate(h):
            coefficients[power] += row[i]
            coefficients[power + 1] -= row[i]
        rows.append(tuple(coefficients))
    return tuple(rows)


class RosenbrockCoefficients:
    """A tableau as tensors of one dtype on one device."""

    def __init__(
        self, tableau: RosenbrockTableau, dtype: torch.dtype, device: torch.device
    ) -> None:
        def tensor(row: Row) -> Tensor:
            return torch.tensor(row, dtype=dtype, device=device)

        self.tableau = tableau
        self.a = [tensor(row) for row in tableau.a]
        self.coupling = [tensor(row) for row in tableau.coupling]
        self.b = tensor(tableau.b)
        self.error: Tensor | None = tensor(tableau.error)
        self.error_low: Tensor | None = None
        self.extra_a: list[Tensor] = []
        self.extra_c: Row = ()
        self.interpolant_rows = [list(row) for row in tableau.interpolant]
        self.interpolant = torch.tensor(tableau.interpolant, dtype=torch.float64)
        self.degree = len(tableau.interpolant[0])


@lru_cache(maxsize=64)
def rosenbrock_coefficients(
    tableau: RosenbrockTableau, dtype: torch.dtype, device: torch.device
) -> RosenbrockCoefficients:
    return RosenbrockCoefficients(tableau, dtype, device)


class RosenbrockStepper:
    """Attempts steps of a Rosenbrock method: one Jacobian a step, one LU an attempt.

    Matrices are (B, D, D), one for each sample, never (B·D)². Every operation is visible to
    autograd, so that ``discrete`` gradients go through the linear solves.

    Args:
        tableau: the method.
        system: f and its derivatives.
        like: a state (N,), for its dtype and device.
    """

    def __init__(
        self, tableau: RosenbrockTableau, system: StiffSystem, like: Tensor, jumps: Jumps
    ) -> None:
        self.tableau = tableau
        self.coefficients = rosenbrock_coefficients(tableau, like.dtype, like.device)
        self.rhs = system
        self._jumps = jumps
        self._first: Tensor | None = None
        self._jacobian: Tensor | None = None
        self._slope: Tensor | None = None
        self._last: Tensor | None = None

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z); returns f(t, z), which may be given."""
        self._first = self.rhs(self._jumps.ends(t, towards)[0], z) if first is None else first
        self._jacobian = None
        return self._first

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1."""
        c, dt = self.coefficients, t1 - t
        start, last = self._jumps.ends(t, t1)
        if self._first is None:
            self._first = self.rhs(start, z)
        if self._jacobian is None:
            self._jacobian = self.rhs.jacobian(start, z)
            self._slope = self.rhs.time_derivative(start, z)
        blocks, width = self._jacobian.shape[0], self._jacobian.shape[-1]
        eye = torch.eye(width, dtype=z.dtype, device=z.device)
        self.rhs.stats.factorisations += 1
        # A singular matrix gives NaN, which rejects the step; it must not raise.
        lu, pivots, _ = torch.linalg.lu_factor_ex(eye / self.tableau.gamma - dt * self._jacobian)
        f = self._first
        stages: list[Tensor] = []
        for i, (row, coupling) in enumerate(zip(c.a, c.coupling, strict=True)):
            if i:
                v = torch.stack(stages)
                node = self.tableau.c[i]
                time = last if node == 1.0 else t + node * dt
                f = self.rhs(time, torch.addmv(z, v.t(), row, alpha=dt))
                right = torch.addmv(f, v.t(), coupling)
            else:
                right = f
            if self._slope is not None and self.tableau.time[i]:
                right = right + (dt * self.tableau.time[i]) * self._slope
            solved = lu_solve(lu, pivots, right.reshape(blocks, width, 1))
            stages.append(solved.reshape(-1))
        self._last = f if self.tableau.fsal and t1 not in self._jumps else None
        v = torch.stack(stages)
        z1 = torch.addmv(z, v.t(), c.b, alpha=dt)
        return Piece(c, t, t1, z, z1, v)

    def jacobian_size(self) -> Tensor:
        """The largest of the row sums of the last attempt's Jacobian, 0-d."""
        assert self._jacobian is not None
        return self._jacobian.detach().abs().sum(dim=-1).amax()

    def advance(self) -> None:
        """The last attempt was accepted."""
        self._first = self._last
        self._jacobian = None
