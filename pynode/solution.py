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


@dataclass
class Statistics:
    """Counts of one solve; those of the backward pass are filled in when it runs.

    Attributes:
        nfe: evaluations of the field in the forward pass.
        nfe_backward: evaluations of the field in the backward pass, those inside
            vector-Jacobian products included.
        vjp: vector-Jacobian products of the field in the backward pass.
        accepted, rejected: steps of the forward solve (with steps per sample, of all samples).
        accepted_backward, rejected_backward: steps of the adjoint solve.
        jacobians: Jacobians of the field that implicit methods evaluated, forward and backward;
            the evaluation of the field inside each counts as nfe too.
    """

    nfe: int = 0
    nfe_backward: int = 0
    vjp: int = 0
    accepted: int = 0
    rejected: int = 0
    accepted_backward: int = 0
    rejected_backward: int = 0
    jacobians: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class SampleOutcomes:
    """How each of B samples fared that stepped by itself; tensors are (B,), on the host.

    Attributes:
        retcodes: how it ended.
        t: the time that it reached.
        outputs: how many of its evaluation times it reached.
        nfe: evaluations of the field in which it took part.
        accepted, rejected: its steps.
        attempts: attempted steps of the batch, each of all samples still on their way.
        messages: for each sample that failed, where, why, and what to try.
    """

    retcodes: list[Retcode]
    t: Tensor
    outputs: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    attempts: int
    messages: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """The samples that did not reach their last time."""
        return sorted(self.messages)


@dataclass(repr=False)
class Solution:
    """Solution of an initial value problem.

    Attributes:
        ts: the evaluation times as given, (T,) or (B, T).
        zs: the state at those times, (T, *z0.shape), in the structure of z0. With per-sample
            times, ``zs[i, b]`` is sample b at ``ts[b, i]``, NaN where ``ts`` is padded. Times
            that a failed solve did not reach hold NaN.
        stats: counts of evaluations and steps.
        retcode: how the solve ended; with steps per sample, how the worst sample did.
        samples: how each sample ended, with ``step_control="per_sample"``; else None.
        message: for a solve that failed, where, why, and what to try; else empty.
    """

    ts: Tensor
    zs: State
    stats: Statistics
    retcode: Retcode
    message: str = ""
    dense: Callable[[Any], State] | None = field(default=None)
    samples: SampleOutcomes | None = None

    @property
    def success(self) -> bool:
        return self.retcode is Retcode.SUCCESS

    @property
    def retcodes(self) -> list[Retcode] | None:
        """How each sample ended, with ``step_control="per_sample"``; else None."""
        return None if self.samples is None else self.samples.retcodes

    def __call__(self, s: float | Tensor) -> State:
        """Dense output: the state at any time inside the solved interval.

        Args:
            s: a number or a tensor of any shape. With steps per sample a number, or (..., B) or
                (..., 1), the last dimension for the samples.

        Returns:
            The state, with the shape of ``s`` before that of z0; with steps per sample that of
            ``s`` without its last dimension. A sample that failed has NaN after its end.

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
