"""What a solve returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._pytree import keystr, tree_flatten_with_path

from pynode.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pynode.events import EventRecord
    from pynode.state import State


class Retcode(StrEnum):
    """How a solve ended."""

    SUCCESS = "success"
    MAX_STEPS = "max_steps"
    DT_UNDERFLOW = "dt_underflow"
    NON_FINITE = "non_finite"
    TERMINATED = "terminated"
    MAX_EVENTS = "max_events"
    NOT_CONVERGED = "not_converged"


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
        conditions: evaluations of events' conditions.
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
    conditions: int = 0
    factorisations: int = 0
    newton_failures: int = 0
    switches: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def add(self, other: Statistics) -> None:
        """Count what another one counted, too."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def __str__(self) -> str:
        parts = [f"nfe {self.nfe}", f"{self.accepted} steps accepted, {self.rejected} rejected"]
        if self.jacobians:
            parts.append(f"{self.jacobians} Jacobians")
        if self.nfe_backward or self.vjp:
            backward = f"backward: nfe {self.nfe_backward}, vjp {self.vjp}"
            if self.accepted_backward or self.rejected_backward:
                backward += (
                    f", {self.accepted_backward} steps accepted, {self.rejected_backward} rejected"
                )
            parts.append(backward)
        return "; ".join(parts)


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
            that a solve did not reach, since it failed or an event ended it, hold NaN.
        stats: counts of evaluations and steps.
        retcode: how the solve ended; with steps per sample, how the worst sample did, and
            ``terminated`` only if events ended all.
        samples: how each sample ended, with ``step_control="per_sample"``; else None.
        message: for a solve that failed, where, why, and what to try; else empty.
        events: one record for each event, in the order in which they were given.
    """

    ts: Tensor
    zs: State
    stats: Statistics
    retcode: Retcode
    message: str = ""
    dense: Callable[[Any], State] | None = field(default=None)
    samples: SampleOutcomes | None = None
    events: tuple[EventRecord, ...] = ()
    end: tuple[Tensor, State] | None = field(default=None)

    @property
    def success(self) -> bool:
        """Whether it got to the last time, or an event ended it."""
        return self.retcode in (Retcode.SUCCESS, Retcode.TERMINATED)

    @property
    def t_final(self) -> Tensor:
        """The time at which the solve ended, differentiable: a terminal event's or the last.

        0-d; with events and steps per sample (B,), each sample's own.

        Raises:
            InputError: each sample ended at a time of its own.
        """
        return self._end()[0]

    @property
    def z_final(self) -> State:
        """The state at ``t_final``, in the shape of z0; after the jump of an event then."""
        return self._end()[1]

    def _end(self) -> tuple[Tensor, State]:
        if self.end is not None:
            return self.end
        if self.ts.ndim == 2:
            raise InputError("each sample has times, and so a last state, of its own: see zs")
        return self.ts[-1], pytree.tree_map(lambda leaf: leaf[-1], self.zs)

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

    def plot(self, entries: int = 6) -> Figure:
        """A figure of the state's first entries against time; needs matplotlib.

        Dots are the evaluation times; lines are the dense output where it was kept (else they
        join the dots), and ticks at the bottom the ends of the steps.

        Args:
            entries: how many entries of each tensor of the state to draw.

        Returns:
            The figure: ``sol.plot().savefig("solution.png")``; notebooks show it by themselves.

        Raises:
            InputError: ``entries`` is less than one.
        """
        from pynode.plots import solution_figure

        return solution_figure(self, entries)

    def __repr__(self) -> str:
        named = named_leaves(self.zs)
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named)
        fired = f"; events {[len(e) for e in self.events]}" if self.events else ""
        return f"Solution({self.retcode}, {shapes}{fired}; {self.stats})"


def named_leaves(zs: State) -> list[tuple[str, Tensor]]:
    """The tensors of outputs, and what to call them: zs, zs[0], zs['q'], ..."""
    return [(f"zs{keystr(path)}", x) for path, x in tree_flatten_with_path(zs)[0]]
