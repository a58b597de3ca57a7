"""Steps read off the device, in blocks: dense output from them, and cotangents put back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.engines.torch.outputs import Outputs, SampleOutputs
from pynode.engines.torch.runge_kutta import Piece, coefficients
from pynode.engines.torch.tableau import Tableau
from pynode.engines.torch.trajectory import StepLog

if TYPE_CHECKING:
    from pynode.engines.torch.graphed.attempt import Attempt
    from pynode.engines.torch.graphed.units import Unit

MOST_ENTRIES = 1 << 26
"""Numbers gathered at once to interpolate from."""


@dataclass
class Block:
    """Consecutive accepted steps of one stretch.

    Attributes:
        times: (t, t1, time of evaluation at t1) of each.
        rows: (steps, 1 + stages, N): the state at the start, and the stages.
        begins: the field was evaluated anew at the start, at the time ``first``.
    """

    times: list[list[float]]
    rows: Tensor
    begins: bool
    first: float

    def __len__(self) -> int:
        return len(self.times)


class Interpolant:
    """Weights of a step's state and stages at evaluation times inside steps."""

    def __init__(self, method: Tableau, extended: bool, plan: Outputs, like: Tensor) -> None:
        self.plan = plan
        self._c = coefficients(method, like.dtype, like.device)
        # Without the extra stages there are only entries at the ends of steps.
        self._ends = torch.tensor(method.b, dtype=torch.float64)
        self._inside = extended or not method.extra_a
        self._like = like
        layout = plan.layout
        self.samples = (layout.rows or 1) if isinstance(plan, SampleOutputs) else 1
        self.width = layout.size // self.samples

    def values(self, block: Block) -> Tensor:
        """Of the block's entries: (m, N), or (m, D) for entries of one sample each."""
        found = []
        rows = block.rows.view(len(block), -1, self.samples, self.width)
        most = max(MOST_ENTRIES // (rows.shape[1] * self.width), 1)
        for step, sample, weights in self._entries(block, most):
            found.append((rows[step, :, sample] * weights.unsqueeze(2)).sum(1))
        return torch.cat(found) if found else self._like.new_zeros((0, self.width))

    def at_end(self, z: Tensor) -> Tensor:
        """Of the entries after the start, where all lie at the end of the solve, from the state."""
        lo, hi = self.plan.until(self.plan.start), len(self.plan.at)
        if isinstance(self.plan, SampleOutputs):
            return z.view(self.samples, -1)[self.plan.samples(lo, hi)]
        return z.expand(hi - lo, -1)

    def cotangents(self, block: Block, grad: Tensor) -> Tensor:
        """dL of the block's states and stages (steps, 1 + stages, N) from dL/dzs."""
        lo, hi = self.range(block)
        of_entries = self.plan.cotangent(grad, lo, hi)
        count = block.rows.shape[1]
        total = self._like.new_zeros((len(block) * self.samples, count, self.width))
        most, done = max(MOST_ENTRIES // (count * self.width), 1), 0
        for step, sample, weights in self._entries(block, most):
            part = of_entries[done : done + len(step)]
            done += len(step)
            each = weights.unsqueeze(2) * part.unsqueeze(1)
            total.index_add_(0, step * self.samples + sample, each)
        cube = total.view(len(block), self.samples, count, self.width)
        return cube.transpose(1, 2).reshape(len(block), count, -1)

    def range(self, block: Block) -> tuple[int, int]:
        """The entries after the block's start, up to its end."""
        return self.plan.until(block.times[0][0]), self.plan.until(block.times[-1][1])

    def _entries(self, block: Block, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Step, sample and weights (m, 1 + stages) of entries, at most so many at a time."""
        lo, hi = self.range(block)
        d = self.plan.direction
        ends = [d * t1 for _, t1, _ in block.times]
        for first in range(lo, hi, most):
            at = self.plan.at[first : min(first + most, hi)]
            steps = [bisect_left(ends, d * t) for t in at]
            spans = torch.tensor([block.times[i][:2] for i in steps], dtype=torch.float64)
            theta = (torch.tensor(at, dtype=torch.float64) - spans[:, 0]) / spans.diff()[:, 0]
            weights = spans.diff() * self._of_stages(theta)
            weights = torch.cat([torch.ones_like(spans[:, :1]), weights], dim=1)
            device = self._like.device
            step = torch.tensor(steps, device=device)
            sample = torch.zeros_like(step)
            if isinstance(self.plan, SampleOutputs):
                sample = self.plan.samples(first, first + len(at))
            yield step, sample, weights.to(self._like)

    def _of_stages(self, theta: Tensor) -> Tensor:
        if not self._inside:
            return self._ends.expand(len(theta), -1)
        powers = torch.stack([theta**j for j in range(1, self._c.degree + 1)], dim=1)
        return powers @ self._c.interpolant.t()


@dataclass
class GraphedLog:
    """All accepted steps of a forward pass.

    Attributes:
        unit, attempt: what made them.
        final: the state (N,) after the last step.
    """

    unit: Unit
    attempt: Attempt
    blocks: list[Block]
    final: Tensor

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    def step_log(self) -> StepLog:
        """The steps as the engine's own code reads them."""
        log = StepLog(None)
        c = coefficients(self.attempt.method, self.final.dtype, self.final.device)
        rows = [row for block in self.blocks for row in block.rows.unbind()]
        times = [numbers for block in self.blocks for numbers in block.times]
        log.times = [*(t for t, _, _ in times), times[-1][1]]
        ends = [*(row[0] for row in rows[1:]), self.final]
        for (t, t1, last), row, z1 in zip(times, rows, ends, strict=True):
            piece = Piece(c, t, t1, row[0], z1, row[1:], last)
            piece._extended = self.attempt.extended or not c.extra_a
            log.pieces.append(piece)
        return log
