r"""Steps that can be undone exactly, around any explicit Runge-Kutta method.

McCallum & Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs
(arXiv:2410.11648), section 3: with :math:`\Psi_h(t, x)` the base method's increment,

.. math::
    y_{n+1} = \lambda y_n + (1-\lambda) z_n + \Psi_h(t_n, z_n), \qquad
    z_{n+1} = z_n - \Psi_{-h}(t_{n+1}, y_{n+1}), \qquad y_0 = z_0,

and, solved for the state before the step,

.. math::
    z_n = z_{n+1} + \Psi_{-h}(t_{n+1}, y_{n+1}), \qquad
    y_n = \bigl(y_{n+1} - (1-\lambda) z_n - \Psi_h(t_n, z_n)\bigr) / \lambda .

The solution is y. It is of the base method's order, but not the base method's solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from pynode.engines.torch.runge_kutta import (
    ExplicitStepper,
    Jumps,
    Piece,
    RightHandSide,
    coefficients,
)
from pynode.engines.torch.tableau import Tableau

GAP = 1e-3
"""Share of z - y in the error estimate.

Where the coupling is unstable z and y drift apart, and y's error is then a tenth to a whole of
their distance, which the base method's estimate does not see. So a distance of 1000 tolerances
rejects steps of every size, and the solve ends with an error; in a stable one it is below 10.
"""


@lru_cache(maxsize=64)
def coupled(tableau: Tableau, coupling: float) -> Tableau:
    """The method's dense output and error, started from y although the stages are those of z.

    One stage more, (z - y)/h: it is what the stages that only the interpolant needs start from,
    and with the weight (1 - λ)θ it leads from y at the step's start to y at its end.
    """
    s = tableau.stages
    return replace(
        tableau,
        a=(*tableau.a, (0.0,) * s),
        b=(*tableau.b, 1.0 - coupling),
        c=(*tableau.c, 0.0),
        error=None if tableau.error is None else (*tableau.error, GAP),
        error_low=None if tableau.error_low is None else (*tableau.error_low, 0.0),
        interpolant=(*tableau.interpolant[:s], (1.0 - coupling,), *tableau.interpolant[s:]),
        extra_a=tuple((*row[:s], 1.0, *row[s:]) for row in tableau.extra_a),
    )


@lru_cache(maxsize=64)
def increment_only(tableau: Tableau) -> Tableau:
    """The method without its error estimate, and without the last stage where only that uses it."""
    s = tableau.stages - tableau.fsal
    return replace(
        tableau,
        a=tableau.a[:s],
        b=tableau.b[:s],
        c=tableau.c[:s],
        error=None,
        error_low=None,
        interpolant=tuple((weight,) for weight in tableau.b[:s]),
        extra_a=(),
        extra_c=(),
    )


class ReversibleStepper:
    """Attempts reversible steps; the loop sees y, the stepper keeps z.

    Args:
        tableau: the base method.
        rhs, like, taped, jumps: see :class:`ExplicitStepper`.
        coupling: λ, above 0 and at most 1.
    """

    def __init__(
        self,
        tableau: Tableau,
        rhs: RightHandSide,
        like: Tensor,
        taped: bool,
        jumps: Jumps,
        coupling: float,
    ) -> None:
        self.tableau = tableau
        self.coefficients = coefficients(coupled(tableau, coupling), like.dtype, like.device)
        self.rhs = rhs
        self.coupling = coupling
        self._forth = ExplicitStepper(tableau, rhs, like, taped, jumps)
        self._back = ExplicitStepper(increment_only(tableau), rhs, like, taped, jumps)
        self._start = self._partner = like
        self._piece: Piece | None = None

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z); returns the first stage f(t, z), which may be given."""
        self._start = self._partner = z
        return self._forth.begin(t, towards, z, first)

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1, z being y here."""
        self._piece = self.couple(self.forth(t, t1, self._partner), z)
        return self._piece

    def advance(self) -> None:
        """The last attempt was accepted: z follows."""
        piece = self._piece
        assert piece is not None
        self._partner = self._partner + piece.z1 - self.back(piece.t1, piece.t, piece.z1)
        self.forget()

    def ending(self) -> Tensor:
        """What the steps are undone from, (3, N): y and z where the solve ended, and z0."""
        y = self._start if self._piece is None else self._piece.z1
        return torch.stack([y, self._partner, self._start])

    def forget(self) -> None:
        """The next step starts from another z."""
        self._forth.restart()

    def forth(self, t: float, t1: float, z: Tensor) -> Piece:
        """The base method's step from (t, z): z1 is z + Ψ."""
        return self._forth.attempt(t, t1, z)

    def back(self, t1: float, t: float, y1: Tensor) -> Tensor:
        """y1 + Ψ of the base method's step from (t1, y1) back to t."""
        self._back.restart()
        return self._back.attempt(t1, t, y1).z1

    def couple(self, base: Piece, y: Tensor) -> Piece:
        """The step of y that belongs to a step ``base`` of z."""
        apart = base.z - y
        stages = torch.cat([base.stages, (apart / base.dt).unsqueeze(0)])
        y1 = torch.sub(base.z1, apart, alpha=self.coupling)
        return Piece(self.coefficients, base.t, base.t1, y, y1, stages, base.last)

    def uncouple(self, base: Piece, y1: Tensor) -> Tensor:
        """The y before the step, from the step of z and the y after it."""
        return base.z + (y1 - base.z1) / self.coupling


def reversible_stepper(
    tableau: Tableau,
    rhs: RightHandSide,
    like: Tensor,
    taped: bool,
    tstops: Sequence[float],
    coupling: float,
) -> ReversibleStepper:
    return ReversibleStepper(tableau, rhs, like, taped, Jumps(tstops, like.dtype), coupling)
