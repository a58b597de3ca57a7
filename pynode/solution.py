"""What a solve returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pynode.errors import InputError

if TYPE_CHECKING:
    from pynode.state import State


class Retcode(StrEnum):
    """How a solve ended."""

    SUCCESS = "success"
    MAX_STEPS = "max_steps"
    DT_UNDERFLOW = "dt_underflow"
    NON_FINITE = "non_finite"
    NOT_CONVERGED = "not_converged"


@dataclass
class Statistics:
    """Counts of one solve; those of the backward pass are filled in when it runs.

    Attributes:
        nfe: evaluations of the field in the forward pass.
        nfe_backward: evaluations of the field in the backward pass, those inside
            vector-Jacobian products included.
        vjp: vector-Jacobian products of the field in the backward pass.
        accepted, rejected: steps of the forward solve.
        accepted_backward, rejected_backward: steps of the adjoint solve.
        jacobians: Jacobians of the field that implicit methods evaluated, forward and backward;
            the evaluation of the field inside each counts as nfe too.
        factorisations: LU factorisations of a batch of matrices, forward and backward.
        newton_failures: Newton iterations that did not converge with a new Jacobian, forward and
            backward; each is a rejected step.
        switches: how often ``auto`` changed its method, forward and backward.
    """

    nfe: int = 0
    nfe_backward: int = 0
    vjp: int = 0
    accepted: int = 0
    rejected: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    jacobians: int = 0
    factorisations: int = 0
    newton_failures: int = 0
    switches: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(repr=False)
class Solution:
    """Solution of an initial value problem.

    Attributes:
        ts: the evaluation times as given, (T,) or (B, T).
        zs: the state at those times, (T, *z0.shape), in the structure of z0. With per-sample
            times, ``zs[i, b]`` is sample b at ``ts[b, i]``, NaN where ``ts`` is padded. Times
            that a failed solve did not reach hold NaN.
        stats: counts of evaluations and steps.
        retcode: how the solve ended.
        message: for a solve that failed, where, why, and what to try; else empty.
    """

    ts: Tensor
    zs: State
    stats: Statistics
    retcode: Retcode
    message: str = ""
    dense: Callable[[Any], State] | None = field(default=None)

    @property
    def success(self) -> bool:
        return self.retcode is Retcode.SUCCESS

    def __call__(self, s: float | Tensor) -> State:
        """Dense output: the state at any time inside the solved interval.

        Args:
            s: a number or a tensor of any shape.

        Returns:
            The state, with the shape of ``s`` before that of z0.

        Raises:
            InputError: ``s`` lies outside, or the solve kept no dense output.
            GradientError: gradients would be lost (see ``sensitivity="discrete"``).
        """
        if self.dense is None:
            raise InputError(
                "this solution kept no dense output: solve with dense=True, or ask for the "
                "times in t"
            )
        return self.dense(s)

    def __repr__(self) -> str:
        leaf = self.zs if isinstance(self.zs, Tensor) else None
        shape = f"zs {tuple(leaf.shape)}, " if leaf is not None else ""
        s = self.stats
        backward = (
            f", backward: nfe {s.nfe_backward}, vjp {s.vjp}" if s.nfe_backward or s.vjp else ""
        )
        return (
            f"Solution({self.retcode}, {shape}nfe {s.nfe}, steps {s.accepted} accepted "
            f"{s.rejected} rejected{backward})"
        )
