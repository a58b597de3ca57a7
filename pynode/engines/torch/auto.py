"""An explicit method that gives way to a Rosenbrock method while the problem is stiff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pynode.engines.torch.host import to_host
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.rosenbrock import (
    RosenbrockCoefficients,
    RosenbrockStepper,
    RosenbrockTableau,
    StiffSystem,
)
from pynode.engines.torch.rosenbrock_methods import ROSENBROCKS
from pynode.engines.torch.runge_kutta import Coefficients, ExplicitStepper, Jumps, Piece
from pynode.engines.torch.tableau import Tableau


@dataclass(frozen=True)
class AutoMethod:
    """Two methods, and when to change between them.

    In the explicit one, |λ| is estimated by ‖k_i − k_j‖ / ‖z_i − z_j‖ for two stages at the end of
    the step (Hairer & Wanner, Solving ODEs II, section IV.2), in the Rosenbrock method by the row
    sums of the Jacobian; the largest of a batch decides. A step is stiff where h·|λ| exceeds
    ``threshold · stability``.

    Attributes:
        name, order, reference: as in :class:`pynode.engines.torch.tableau.Tableau`.
        explicit, implicit: the methods, of one order, since they share a controller.
        pair: two stages of the explicit method with node 1.
        stability: how far its region of stability reaches along the negative real axis.
        threshold: part of it beyond which a step counts as stiff.
        to_implicit, to_explicit: so many accepted steps in a row must speak for the change.
    """

    name: str
    explicit: Tableau
    implicit: RosenbrockTableau
    pair: tuple[int, int]
    stability: float
    reference: str
    threshold: float = 0.75
    to_implicit: int = 10
    to_explicit: int = 3

    adaptive: ClassVar[bool] = True
    fsal: ClassVar[bool] = True

    @property
    def order(self) -> int:
        return min(self.explicit.order, self.implicit.order)

    @property
    def error_order(self) -> int:
        return self.explicit.error_order

    @property
    def interpolant_order(self) -> int:
        return min(self.explicit.interpolant_order, self.implicit.interpolant_order)

    @property
    def stages(self) -> int:
        return max(self.explicit.stages, self.implicit.stages)


class AutoStepper:
    """Attempts steps of the method whose turn it is.

    Args:
        method: the pair of methods.
        system: f and its derivatives.
        like: a state (N,), for its dtype and device.
        taped: keep every operation visible to autograd and torch.func.
        jumps: times at which the field may jump.
        transformed: a torch.func transform is active.
    """

    def __init__(
        self,
        method: AutoMethod,
        system: StiffSystem,
        like: Tensor,
        taped: bool,
        jumps: Jumps,
        transformed: bool,
    ) -> None:
        self.tableau = method
        self.rhs = system
        self._explicit = ExplicitStepper(method.explicit, system, like, taped, jumps)
        self._implicit = RosenbrockStepper(method.implicit, system, like, jumps)
        self._stepper: ExplicitStepper | RosenbrockStepper = self._explicit
        self._transformed = transformed
        i, j = method.pair
        a = self._explicit.coefficients.a
        self._apart = a[i] - torch.nn.functional.pad(a[j], (0, i - j))
        self._votes = 0
        self._piece: Piece | None = None

    @property
    def coefficients(self) -> Coefficients | RosenbrockCoefficients:
        return self._stepper.coefficients

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z) with the method of the last step; returns f(t, z), which may be given."""
        return self._stepper.begin(t, towards, z, first)

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1; its stages are valid until the next attempt."""
        self._piece = self._stepper.attempt(t, t1, z)
        return self._piece

    def advance(self) -> None:
        """The last attempt was accepted; the next may be the other method's."""
        assert self._piece is not None
        method, piece = self.tableau, self._piece
        explicit = self._stepper is self._explicit
        stiff = self._stiffness(piece) > method.threshold * method.stability
        self._votes = self._votes + 1 if stiff == explicit else 0
        self._stepper.advance()
        if self._votes >= (method.to_implicit if explicit else method.to_explicit):
            self._votes = 0
            self.rhs.stats.switches += 1
            self._stepper = self._implicit if explicit else self._explicit
            self._stepper.begin(piece.t1, piece.t1 + piece.dt, piece.z1)

    @torch.no_grad()
    def _stiffness(self, piece: Piece) -> float:
        """h·|λ| of the stiffest sample."""
        if self._stepper is self._implicit:
            return abs(piece.dt) * to_host(self._implicit.jacobian_size(), self._transformed)
        i, j = self.tableau.pair
        rows, z = self.rhs.rows, piece.z.detach().reshape(self.rhs.rows, -1)
        stages = piece.stages.detach().reshape(len(piece.stages), rows, -1)
        slopes = torch.linalg.vector_norm(stages[i] - stages[j], dim=1)
        apart = torch.einsum("s,sbd->bd", self._apart, stages[:i])
        # Where two states differ by no more than rounding they tell nothing.
        rounding = 100 * torch.finfo(z.dtype).eps / abs(piece.dt)
        states = torch.linalg.vector_norm(apart, dim=1)
        states = states + rounding * torch.linalg.vector_norm(z, dim=1)
        ratio = slopes / states.clamp_min(torch.finfo(z.dtype).tiny)
        return to_host(ratio.amax(), self._transformed)


AUTO = AutoMethod(
    name="auto",
    explicit=TABLEAUS["tsit5"],
    implicit=ROSENBROCKS["rodas5p"],
    pair=(6, 5),
    stability=3.5068,
    reference="tsit5 and rodas5p, changed as OrdinaryDiffEq.jl's AutoTsit5; Hairer & Wanner, "
    "Solving ODEs II, section IV.2",
)
