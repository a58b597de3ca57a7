"""Diagonally implicit Runge-Kutta methods with an explicit first stage, as data and one stepper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.newton import Newton, Scale, Verdict
from pynode.engines.torch.rosenbrock import StiffSystem
from pynode.engines.torch.runge_kutta import Jumps, Piece, stage_store
from pynode.engines.torch.tableau import Row

ITERATIONS = 7
"""Most Newton iterations for a stage, as in RADAU5."""


@dataclass(frozen=True)
class EsdirkTableau:
    r"""Butcher tableau of a stiffly accurate ESDIRK method: explicit first stage, one γ after it.

    .. math::
        z_i = z_0 + h \sum_{j \le i} a_{ij} k_j, \qquad k_i = f(t_0 + c_i h, z_i), \qquad
        z_1 = z_s, \qquad e = h \sum_i \hat b_i k_i,

    with :math:`a_{11} = 0` and :math:`a_{ii} = \gamma` for all others. The last stage is the
    solution, so its slope is the first stage of the next step.

    Attributes:
        name, order, error, error_order, interpolant, interpolant_order, reference: as in
            :class:`pynode.engines.torch.tableau.Tableau`.
        a: lower triangular with its diagonal: row ``i`` has ``i + 1`` entries.
        filtered: the estimate is multiplied by :math:`(I - h\gamma J)^{-1}`, which keeps it
            bounded for infinitely stiff components where the embedded method does not (Hosea &
            Shampine 1996, section 4; Hairer & Wanner, Solving ODEs II, eq. IV.8.19).
    """

    name: str
    order: int
    a: tuple[Row, ...]
    interpolant: tuple[Row, ...]
    interpolant_order: int
    reference: str
    error: Row | None = None
    error_order: int = 0
    filtered: bool = False

    error_low: ClassVar[None] = None
    extra_a: ClassVar[tuple[Row, ...]] = ()
    extra_c: ClassVar[Row] = ()
    fsal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shaped = all(len(row) == i + 1 for i, row in enumerate(self.a))
        if not shaped or self.a[0] != (0.0,) or {row[-1] for row in self.a[1:]} != {self.gamma}:
            raise ValueError(f"tableau {self.name}: not an ESDIRK method")
        if len(self.interpolant) != len(self.a) or len(self.error or self.a) != len(self.a):
            raise ValueError(f"tableau {self.name}: a, error and interpolant do not fit")

    @property
    def gamma(self) -> float:
        return self.a[-1][-1]

    @property
    def b(self) -> Row:
        return self.a[-1]

    @cached_property
    def c(self) -> Row:
        # The rows of stiffly accurate stages sum to one but for rounding.
        sums = [math.fsum(row) for row in self.a]
        return tuple(1.0 if abs(x - 1.0) < 1e-13 else x for x in sums)

    @property
    def stages(self) -> int:
        return len(self.a)

    @property
    def adaptive(self) -> bool:
        return self.error is not None


def lower(*rows: Row, gamma: float) -> tuple[Row, ...]:
    """The rows of A from its strictly lower part."""
    return ((0.0,), *((*row, gamma) for row in rows))


def hermite(b: Row) -> tuple[Row, ...]:
    """Cubic Hermite interpolation between the ends of a step, whose slopes are the first and the
    last stage: of order 3, or of the method's where that is less.
    """
    rows = [[0.0, 3.0 * x, -2.0 * x] for x in b]
    rows[0] = [1.0, rows[0][1] - 2.0, rows[0][2] + 1.0]
    rows[-1] = [0.0, rows[-1][1] - 1.0, rows[-1][2] + 1.0]
    return tuple(map(tuple, rows))


def quartic(a: tuple[Row, ...]) -> tuple[Row, ...]:
    """A quartic interpolant of order 4 with both end slopes, of a method with stage order 2.

    With stage order 2 the conditions up to order 4 on the weights b_i(θ) are five (Hairer,
    Norsett, Wanner, Solving ODEs I, section II.6), and linear in the coefficients. Those that are
    left free make the residuals of the conditions of order 5 least, in the mean square over θ.
    """
    s, degree = len(a), 4
    full = np.array([row + (0.0,) * (s - len(row)) for row in a])
    c = full.sum(axis=1)
    c2 = full @ c**2
    powers = np.eye(degree)

    def each(weights: np.ndarray, of_power: np.ndarray) -> np.ndarray:
        return np.kron(of_power, weights)

    rows, right = [], []
    for order, density, phi in [(1, 1, c**0), (2, 2, c), (3, 3, c**2), (4, 4, c**3), (4, 12, c2)]:
        for j in range(degree):
            rows.append(each(phi, powers[j]))
            right.append((j + 1 == order) / density)
    for i, stage in enumerate(np.eye(s)):
        for of_power, value in (
            (powers[0], i == 0),  # slope at 0
            (np.ones(degree), full[-1, i]),  # value at 1
            (np.arange(1, degree + 1), i == s - 1),  # slope at 1
        ):
            rows.append(each(stage, of_power))
            right.append(float(value))
    conditions, wanted = np.array(rows), np.array(right)
    found = np.linalg.lstsq(conditions, wanted, rcond=1e-10)[0]
    _, singular, basis = np.linalg.svd(conditions)
    free = basis[int((singular > 1e-10).sum()) :].T
    points, _ = np.polynomial.legendre.leggauss(6)
    above, target = [], []
    for density, phi in [(5, c**4), (15, c * c2), (20, full @ c**3), (60, full @ c2)]:
        for theta in 0.5 * (1 + points):
            above.append(each(phi, theta ** np.arange(1, degree + 1)))
            target.append(theta**5 / density)
    rest = np.array(target) - np.array(above) @ found
    found = found + free @ np.linalg.lstsq(np.array(above) @ free, rest, rcond=1e-10)[0]
    coefficients = found.reshape(degree, s).T
    coefficients[:, 0] = np.eye(s)[0]
    return tuple(map(tuple, coefficients.tolist()))


class EsdirkCoefficients:
    """A tableau as tensors of one dtype on one device.

    Attributes:
        guess: weights of the stages before each one that foretell it: the polynomial of degree
            two, or what there is, through the three nearest of their nodes.
    """

    def __init__(self, tableau: EsdirkTableau, dtype: torch.dtype, device: torch.device) -> None:
        def tensor(row: Row) -> Tensor:
            return torch.tensor(row, dtype=dtype, device=device)

        self.tableau = tableau
        self.a = [tensor(row[:-1]) for row in tableau.a]
        self.guess = [tensor(_nearest(tableau.c, i)) for i in range(tableau.stages)]
        self.error = None if tableau.error is None else tensor(tableau.error)
        self.error_low: Tensor | None = None
        self.extra_a: list[Tensor] = []
        self.extra_c: Row = ()
        self.interpolant_rows = [list(row) for row in tableau.interpolant]
        self.interpolant = torch.tensor(tableau.interpolant, dtype=torch.float64)
        self.degree = len(tableau.interpolant[0])


def _nearest(c: Row, i: int) -> Row:
    """Lagrange's weights at node i of the three nodes nearest to it among those before it."""
    chosen: list[int] = []
    for j in sorted(range(i), key=lambda j: (abs(c[j] - c[i]), -j)):
        if len(chosen) < 3 and all(abs(c[j] - c[k]) > 1e-9 for k in chosen):
            chosen.append(j)
    weights = [0.0] * i
    for j in chosen:
        weights[j] = math.prod((c[i] - c[k]) / (c[j] - c[k]) for k in chosen if k != j)
    return tuple(weights)


@lru_cache(maxsize=64)
def esdirk_coefficients(
    tableau: EsdirkTableau, dtype: torch.dtype, device: torch.device
) -> EsdirkCoefficients:
    return EsdirkCoefficients(tableau, dtype, device)


class EsdirkStepper:
    """Attempts steps of an ESDIRK method; stages by simplified Newton iterations.

    Args:
        tableau: the method.
        system: f and its Jacobian.
        like: a state (N,), for its dtype and device.
        taped: every step is a differentiable function of what it began with.
        jumps: times at which the field may jump.
        norm: the tolerance of a step; None for fixed steps.
        transformed: a torch.func transform is active.
    """

    def __init__(
        self,
        tableau: EsdirkTableau,
        system: StiffSystem,
        like: Tensor,
        taped: bool,
        jumps: Jumps,
        norm: Scale | None,
        transformed: bool,
    ) -> None:
        self.tableau = tableau
        self.coefficients = esdirk_coefficients(tableau, like.dtype, like.device)
        self.rhs = system
        self.newton = Newton(system, norm, ITERATIONS, transformed)
        self._taped = taped
        self._store = stage_store(tableau.stages, like, taped)
        self._jumps = jumps
        self._fresh = False
        self._keeps_last = False

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z); returns f(t, z), which may be given."""
        k = self.rhs(self._jumps.ends(t, towards)[0], z) if first is None else first
        self._store.put(0, k)
        self._fresh = True
        self.newton.forget()
        return k

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1; its stages are valid until the next attempt."""
        c, store = self.coefficients, self._store
        dt = t1 - t
        start, last = self._jumps.ends(t, t1)
        if not self._fresh:
            store.put(0, self.rhs(start, z))
            self._fresh = True
        self._keeps_last = t1 not in self._jumps
        self.newton.prepare(start, z, store.head(1)[:, 0], dt)
        diagonal = self.tableau.gamma * dt
        for i in range(1, self.tableau.stages):
            node = self.tableau.c[i]
            # Not t + dt, which rounding may put behind t1.
            time = last if node == 1.0 else t + node * dt
            stages = store.head(i)
            base = torch.addmv(z, stages, c.a[i], alpha=dt)
            guess = torch.mv(stages, c.guess[i]) * diagonal
            w, verdict = self.newton.solve(time, base, diagonal, guess)
            if verdict is not Verdict.CONVERGED:
                failure = math.nan if verdict is Verdict.NOT_FINITE else math.inf
                return Piece(c, t, t1, z, base + w, stages.t(), last, failure=failure)
            if self._taped:
                w = self.newton.on_tape(time, base, diagonal, w)
            # Not f at the stage: that would multiply the iteration's error by the stiffness.
            store.put(i, w / diagonal)
        return Piece(c, t, t1, z, base + w, store.stages, last, error=self._error(dt))

    @torch.no_grad()
    def _error(self, dt: float) -> Tensor | None:
        row = self.coefficients.error
        if row is None or not self.tableau.filtered:
            return None
        return self.newton.filtered(torch.mv(self._store.stages.detach().t(), row * abs(dt)))

    def advance(self) -> None:
        """The last attempt was accepted."""
        if self._keeps_last:
            self._store.first_from_last()
        else:
            self._fresh = False
            self.newton.forget()
