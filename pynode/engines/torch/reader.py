"""What is read off the steps of a solve: its outputs, those of small steps many steps at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.interpolation import as_column, combine, interpolation_weights
from pynode.engines.torch.outputs import Outputs
from pynode.engines.torch.runge_kutta import FEW, Piece, RightHandSide, StepCoefficients

SMALL = 1 << 9
"""Numbers in the stages of one step up to which copying them costs less than reading off them."""
AT_ONCE = 1 << 14
"""Numbers in the stages that wait."""


class Reader:
    """Reads outputs as a solve goes.

    To read a step at once takes some operations and a table made in Python. Where its stages are
    few numbers they are copied instead, which is one operation, and wait for those of other steps.

    Args:
        plan: the outputs.
        z0: the state (N,) at the start.
        rhs: f(t, z), for interpolants with stages of their own.
        waits: small steps may wait; not where autograd or torch.func follows them.

    Attributes:
        done: entries that were read, or wait.
    """

    def __init__(self, plan: Outputs, z0: Tensor, rhs: RightHandSide, waits: bool) -> None:
        self._plan, self._rhs = plan, rhs
        self._waits = waits and type(plan) is Outputs
        self._chunks = [plan.initial(z0)]
        self._waiting: list[tuple[Piece, Tensor, int]] = []
        self._coefficients: StepCoefficients | None = None
        self._first = self.done = len(self._chunks[0])

    def read(self, piece: Piece, t: float) -> None:
        """The outputs inside a step, up to the time ``t``."""
        upto = self._plan.until(t)
        if upto == self.done:
            return
        can_wait, self._coefficients = self._can_wait(piece, upto), piece.coefficients
        if can_wait:
            piece.extend(self._rhs)
            self._waiting.append((piece, piece.stages.clone(), upto - self.done))
            self.done = upto
            if len(self._waiting) * piece.stages.numel() >= AT_ONCE:
                self._read_waiting()
            return
        self._read_waiting()
        self._chunks.append(self._plan.values(piece, self.done, upto, self._rhs))
        self._first = self.done = upto

    def chunks(self) -> list[Tensor]:
        """The values of all entries that were passed, (n, N) each."""
        self._read_waiting()
        return self._chunks

    def _can_wait(self, piece: Piece, upto: int) -> bool:
        times, done = self._plan.at, self.done
        return (
            self._waits
            and type(piece) is Piece
            and upto - done <= FEW
            and piece.stages.numel() <= SMALL
            and times[done] != piece.t  # at its ends a step is its states, unrounded
            and times[upto - 1] != piece.t1
            and self._coefficients is piece.coefficients  # bdf makes new ones for each step
        )

    def _read_waiting(self) -> None:
        if not self._waiting:
            return
        pieces, stages, counts = zip(*self._waiting, strict=True)
        which = np.repeat(np.arange(len(pieces)), counts)
        starts = np.array([piece.t for piece in pieces])[which]
        steps = np.array([piece.dt for piece in pieces])[which]
        theta = (np.array(self._plan.at[self._first : self.done]) - starts) / steps
        z = torch.stack([piece.z for piece in pieces])
        weights = interpolation_weights(pieces[0].coefficients, theta, z) * as_column(steps, z)
        index = torch.from_numpy(which).to(z.device)
        self._chunks.append(combine(z[index], weights, torch.stack(stages)[index]))
        self._waiting, self._first = [], self.done
