"""The forward pass as the backward pass reads it: kept whole, or rebuilt from checkpoints."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pynode.engines.torch.controller import ErrorNorm
from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.engines.torch.steppers import Method, Stepper, make_stepper


@dataclass
class StepLog:
    """Records accepted steps as they are made.

    Attributes:
        keep: how many states to keep, thinned out as the solve goes on (every 2^j-th step is
            kept, with j such that at most ``keep`` remain); None to keep every step whole, 0 to
            keep the times alone.
        times: start times of all steps, and the end of the last one.
        pieces: the steps with their stages, where ``keep`` is None.
        states: the states at the start of every ``stride``-th step, else.
        norm: the tolerance of the steps, which Newton's iterations follow; None for fixed steps.
    """

    keep: int | None
    times: list[float] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    stride: int = 1
    norm: ErrorNorm | None = None

    def __call__(self, piece: Piece) -> None:
        n = len(self.times)
        if not n:
            self.times.append(piece.t)
            n = 1
        step = n - 1
        self.times.append(piece.t1)
        if self.keep is None:
            self.pieces.append(piece.frozen())
        elif self.keep and step % self.stride == 0:
            if len(self.states) == self.keep and self.keep > 1:
                del self.states[1::2]
                self.stride *= 2
            if self.keep == 1:
                self.states = self.states or [piece.z]
                self.stride = step + 2
            elif step % self.stride == 0:
                self.states.append(piece.z)

    def __len__(self) -> int:
        return max(len(self.times) - 1, 0)

    def step_log(self) -> StepLog:
        """Itself: logs of compiled solves make one of what they hold."""
        return self


class Trajectory:
    """Steps of a finished solve: their dense output, or their states in reverse order.

    Args:
        log: the record of the forward pass.
        method: what made the steps.
        rhs: f(t, z), for steps that are rebuilt and stages that only dense output needs.
        tstops: as in the forward pass.
    """

    def __init__(
        self, log: StepLog, method: Method, rhs: RightHandSide, tstops: Sequence[float] = ()
    ) -> None:
        self.log = log
        self.method = method
        self.rhs = rhs
        self.tstops = tstops
        self.direction = 1.0 if log.times[-1] > log.times[0] else -1.0
        self._starts = [self.direction * t for t in log.times[:-1]]
        self._here: Piece | None = None
        self._root = None if log.keep is None else _Span(self, 0, len(log), log.states, log.stride)
        self._leaves: list[tuple[int, list[Piece]]] = []

    @property
    def t0(self) -> float:
        return self.log.times[0]

    @property
    def t1(self) -> float:
        return self.log.times[-1]

    def stepper(self, z: Tensor, taped: bool) -> Stepper:
        """What makes these steps again."""
        return make_stepper(self.method, self.rhs, z, taped, self.tstops, self.log.norm)

    def at(self, t: float) -> Tensor:
        """Dense output: the state (N,) at any time inside."""
        return self.piece_at(t).at(t, self.rhs)

    def piece_at(self, t: float) -> Piece:
        here, d = self._here, self.direction
        if here is not None and d * here.t <= d * t <= d * here.t1:
            return here
        step = max(bisect_right(self._starts, d * t) - 1, 0)
        self._here = self._piece(step)
        return self._here

    def breaks(self, a: float, b: float) -> list[float]:
        """``a``, the step ends between, and ``b``, in this order.

        Ends that differ from a or b by rounding are left out: with fixed steps all are such.
        """
        low, high = sorted((self.direction * a, self.direction * b))
        apart = 1e-9 * (high - low) + 4 * math.ulp(max(abs(a), abs(b)))
        begin = bisect_right(self._starts, low + apart)
        inside = self._starts[begin : bisect_left(self._starts, high - apart)]
        times = [self.direction * t for t in inside]
        return [a, *(times if self.direction * a < self.direction * b else times[::-1]), b]

    def _piece(self, step: int) -> Piece:
        if self._root is None:
            return self.log.pieces[step]
        for first, pieces in self._leaves:
            if first <= step < first + len(pieces):
                return pieces[step - first]
        first, pieces = self._root.pieces_with(step)
        # A backward step may straddle two leaves: the last two are kept.
        self._leaves = [*self._leaves[-1:], (first, pieces)]
        return pieces[step - first]

    def steps_reversed(self) -> Iterator[tuple[int, float, float, Tensor]]:
        """All steps from the last to the first, as (number, t, t1, state at t)."""
        times = self.log.times
        for step in range(len(self.log) - 1, -1, -1):
            z = self.log.pieces[step].z if self._root is None else self._root.state(step)
            yield step, times[step], times[step + 1], z


class _Span:
    """Steps ``start`` to ``stop`` with the state at every ``stride``-th one.

    What lies between two states is rebuilt when asked for, again with at most ``keep`` states,
    and so on: memory is that of ``keep`` states a level, and there are log_keep(steps) levels.
    """

    def __init__(
        self, owner: Trajectory, start: int, stop: int, states: list[Tensor], stride: int
    ) -> None:
        self.owner = owner
        self.start, self.stop = start, stop
        self.states, self.stride = states, stride
        self._child: _Span | None = None

    def state(self, step: int) -> Tensor:
        """The state at the start of a step."""
        if (step - self.start) % self.stride == 0:
            return self.states[(step - self.start) // self.stride]
        return self._child_with(step).state(step)

    def pieces_with(self, step: int) -> tuple[int, list[Piece]]:
        """A run of at most ``keep`` steps that holds ``step``, with stages."""
        keep = self.owner.log.keep
        assert keep is not None
        if self.stride > keep:
            return self._child_with(step).pieces_with(step)
        per_leaf = max(keep // self.stride, 1) * self.stride
        first = self.start + (step - self.start) // per_leaf * per_leaf
        pieces = list(self._replay(first, min(first + per_leaf, self.stop)))
        return first, pieces

    def _child_with(self, step: int) -> _Span:
        child = self._child
        if child is None or not child.start <= step < child.stop:
            keep = self.owner.log.keep
            assert keep is not None
            first = self.start + (step - self.start) // self.stride * self.stride
            stop = min(first + self.stride, self.stop)
            stride = -(-(stop - first) // max(keep, 2))
            states = [
                piece.z
                for i, piece in enumerate(self._replay(first, stop, whole=False))
                if i % stride == 0
            ]
            child = self._child = _Span(self.owner, first, stop, states, stride)
        return child

    @torch.no_grad()
    def _replay(self, first: int, stop: int, whole: bool = True) -> Iterator[Piece]:
        """Make steps ``first`` to ``stop`` again, exactly as the forward pass did."""
        owner, times = self.owner, self.owner.log.times
        z = self.states[(first - self.start) // self.stride]
        stepper = owner.stepper(z, taped=False)
        for step in range(first, stop):
            piece = stepper.attempt(times[step], times[step + 1], z)
            yield piece.frozen() if whole else piece
            stepper.advance()
            z = piece.z1
