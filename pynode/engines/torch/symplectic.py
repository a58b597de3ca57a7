"""Symplectic methods for separable systems, q' = v(p, t) and p' = g(q, t): data and one stepper."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines.torch.runge_kutta import Jumps, Piece, RightHandSide, coefficients
from pynode.engines.torch.tableau import Tableau
from pynode.errors import FieldError, InputError
from pynode.field import FlatField
from pynode.state import StateLayout
from pynode.transforms import transforms_active


@dataclass(frozen=True)
class Composition:
    r"""A composition of Störmer-Verlet steps of sizes :math:`\gamma_1 h, \dots, \gamma_m h`.

    Each is kick, drift, kick, with the time of the drift in its middle:

    .. math::
        p \leftarrow p + \tfrac{\gamma_i h}{2}\, g(q, t), \qquad
        q \leftarrow q + \gamma_i h\, v(p, t + \tfrac{\gamma_i h}{2}), \qquad
        p \leftarrow p + \tfrac{\gamma_i h}{2}\, g(q, t + \gamma_i h),

    two kicks that follow each other being one. Symmetric, since the :math:`\gamma_i` are, and
    symplectic where the system is Hamiltonian (Hairer, Lubich, Wanner, Geometric Numerical
    Integration, sections II.4 and V.3). Where some :math:`\gamma_i` are negative, the field is
    evaluated outside of the step too.

    Attributes:
        name, order, reference: as in :class:`pynode.engines.torch.tableau.Tableau`.
        weights: the :math:`\gamma_i`.
        refinements: see :func:`hermite`.
    """

    name: str
    order: int
    weights: tuple[float, ...]
    reference: str
    refinements: tuple[tuple[float, ...], ...] = ()

    adaptive: ClassVar[bool] = False
    error_order: ClassVar[int] = 0
    fsal: ClassVar[bool] = True

    @property
    def stages(self) -> int:
        return 2 * len(self.weights) + 1

    @property
    def interpolant_order(self) -> int:
        return 3 + len(self.refinements)

    @cached_property
    def kicks(self) -> tuple[float, ...]:
        w = (0.0, *self.weights, 0.0)
        return tuple((left + right) / 2 for left, right in itertools.pairwise(w))

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """Where each of the steps starts, and the end of the last one."""
        return (0.0, *np.cumsum(self.weights).tolist())

    @cached_property
    def dense(self) -> Tableau:
        """The dense output, as that of a method whose only stage is (z1 - z)/h."""
        interpolant, rows, nodes = hermite(self.refinements)
        return Tableau(
            name=self.name,
            order=self.order,
            a=((),),
            b=(1.0,),
            c=(0.0,),
            interpolant=interpolant,
            interpolant_order=self.interpolant_order,
            reference=self.reference,
            extra_a=rows,
            extra_c=nodes,
        )


Rows = tuple[tuple[float, ...], ...]


def hermite(refinements: Rows) -> tuple[Rows, Rows, tuple[float, ...]]:
    """Hermite's cubic on both ends of a step, made better by evaluations inside of it.

    The field at two points of an interpolant of order r gives one of order r + 1 (Shampine 1985,
    Interpolation for Runge-Kutta methods): a polynomial with the values and slopes of the ends
    and the slopes at these points.

    Args:
        refinements: the points inside (0, 1) of each improvement.

    Returns:
        The interpolant over the stages (z1 - z)/h, f(z), f(z1), and those inside; the rows that
        say where the stages after the first are evaluated; and when.
    """
    rows: list[tuple[float, ...]] = [(0.0,), (1.0, 0.0)]
    nodes = [0.0, 1.0]
    points, used = [0.0, 1.0], [0, 1, 2]
    for inner in refinements:
        values = _polynomials(points, used, 1 + len(rows))
        first = 1 + len(rows)
        for x in inner:
            weights = [float(np.polyval([*row[::-1], 0.0], x)) for row in values]
            rows.append((*weights, *(0.0 for _ in range(1 + len(rows) - len(weights)))))
            nodes.append(x)
        points, used = [0.0, 1.0, *inner], [0, 1, 2, *range(first, first + len(inner))]
    return _polynomials(points, used, 1 + len(rows)), tuple(rows), tuple(nodes)


def _polynomials(points: list[float], used: list[int], stages: int) -> Rows:
    """Coefficients of θ, θ², ... of every stage, for the slopes of ``used[1:]`` at ``points``."""
    degree = len(points) + 1
    slopes = [[j * x ** (j - 1) for j in range(1, degree + 1)] for x in points]
    conditions = np.array([[1.0] * degree, *slopes])
    solved = np.linalg.inv(conditions)
    rows = np.zeros((stages, degree))
    rows[used] = solved.T
    return tuple(tuple(row.tolist()) for row in rows)


class SeparableField:
    """A field on states (q, p), with what tells q and p apart in the flat state.

    Attributes:
        q, p: (N,), one at the entries of q and of p, else zero.
    """

    def __init__(self, field: FlatField, solver: str) -> None:
        self.field = field
        self.stats = field.stats
        self.solver = solver
        self.p = _marks(field.layout, solver)
        self.q = 1.0 - self.p

    def __call__(self, t: float, z: Tensor) -> Tensor:
        return self.field(t, z)

    @torch.no_grad()
    def check(self, t: float, z: Tensor, f: Tensor) -> None:
        """Two evaluations beside z: does dq feel q, or dp feel p?

        Raises:
            FieldError: it does.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        shake = 0.1 * noise * (z.abs() + z.abs().mean())
        for name, moved, other in (("q", self.q, "p"), ("p", self.p, "q")):
            change = moved * (self.field(t, z + moved * shake) - f)
            size = (moved * f).abs().max()
            if bool(change.abs().max() > 1e-3 * size):
                raise FieldError(
                    f"{self.solver} needs a separable field, d{name} a function of {other} (and t) "
                    f"alone, but d{name} changes with {name}: use another solver (tsit5, rk4, ...)"
                )


def _marks(layout: StateLayout, solver: str) -> Tensor:
    n = len(layout.shapes)
    tree = pytree.tree_unflatten(list(range(n)), layout.spec)
    if isinstance(tree, dict) and set(tree) == {"q", "p"}:
        momenta = pytree.tree_leaves(tree["p"])
    elif isinstance(tree, tuple | list) and len(tree) == 2:
        momenta = pytree.tree_leaves(tree[1])
    else:
        raise InputError(
            f"{solver} needs positions and momenta apart: give the state as a tuple (q, p) or a "
            f"dict with the keys q and p. It is a {layout.describe()}"
        )
    ones = [
        torch.full(shape, (1 + 1j if dtype.is_complex else 1) * (i in momenta), dtype=dtype)
        for i, (shape, dtype) in enumerate(zip(layout.shapes, layout.dtypes, strict=True))
    ]
    return layout.flatten(pytree.tree_unflatten(ones, layout.spec)).to(layout.device)


class HermitePiece(Piece):
    """A step whose interpolant evaluates the field at both its ends."""

    __slots__ = ("_first",)

    def __init__(self, *parts, first: float) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*parts)
        self._first = first

    def frozen(self) -> HermitePiece:
        return self  # its stages are its own

    def extend(self, rhs: RightHandSide) -> None:
        super().extend(lambda t, z: rhs(self._first if t == self.t else t, z))


class SymplecticStepper:
    """Attempts steps of a composition method; every operation is visible to autograd.

    Args:
        method: the method.
        system: the field.
        like: a state (N,), for its dtype and device.
        jumps: times at which the field may jump.
    """

    def __init__(
        self, method: Composition, system: SeparableField, like: Tensor, jumps: Jumps
    ) -> None:
        self.tableau = method
        self.coefficients = coefficients(method.dense, like.dtype, like.device)
        self.rhs = system
        self._jumps = jumps
        self._force: Tensor | None = None
        self._last: Tensor | None = None

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z); returns f(t, z), which may be given."""
        start = self._jumps.ends(t, towards)[0]
        self._force = self.rhs(start, z) if first is None else first
        if not transforms_active():  # else no value can be looked at
            self.rhs.check(start, z, self._force)
        return self._force

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1."""
        method, rhs, dt = self.tableau, self.rhs, t1 - t
        start, last = self._jumps.ends(t, t1)
        if self._force is None:
            self._force = rhs(start, z)
        f, z1 = self._force, z
        ends = [*(t + node * dt for node in method.nodes[1:-1]), last]
        for i, (begin, end) in enumerate(itertools.pairwise([t, *ends])):
            z1 = torch.addcmul(z1, rhs.p, f, value=method.kicks[i] * dt)
            velocity = rhs(0.5 * (begin + end), z1)
            z1 = torch.addcmul(z1, rhs.q, velocity, value=method.weights[i] * dt)
            f = rhs(end, z1)
        z1 = torch.addcmul(z1, rhs.p, f, value=method.kicks[-1] * dt)
        self._last = None if t1 in self._jumps else f
        slope = ((z1 - z) / dt).unsqueeze(0)
        return HermitePiece(self.coefficients, t, t1, z, z1, slope, last, first=start)

    def advance(self) -> None:
        """The last attempt was accepted."""
        self._force = self._last
