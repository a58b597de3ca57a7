"""The forward pass as backward pass and dense output read it: every sample's own steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.interpolation import combine, interpolation_weights
from pynode.engines.torch.per_sample.outputs import entries, pairs
from pynode.engines.torch.per_sample.step import RowRightHandSide, RowStep


@dataclass
class RowLog:
    """Records accepted steps as they are made.

    Attributes:
        whole: keep states and stages; else only the times.
        start, t, direction: (B,), where each sample began, how far it came, and which way.
        steps: the steps, where they are kept whole.
        rows, starts, ends: which samples made each step, and from when to when.
    """

    whole: bool
    start: np.ndarray
    t: np.ndarray
    direction: np.ndarray
    steps: list[RowStep] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    starts: list[np.ndarray] = field(default_factory=list)
    ends: list[np.ndarray] = field(default_factory=list)

    def __call__(self, step: RowStep, accepted: np.ndarray | None) -> None:
        some = slice(None) if accepted is None else accepted
        self.rows.append(step.rows[some])
        self.starts.append(step.t[some])
        self.ends.append(step.t1[some])
        self.t[self.rows[-1]] = self.ends[-1]
        if self.whole:
            self.steps.append(step.take(accepted))

    def __len__(self) -> int:
        return len(self.rows)


class RowSteps:
    """All steps, those of a sample next to each other in the order in which they were made.

    Attributes:
        order: (M,), from these places to those in which they were logged.
        first, counts: (B,), place of each sample's first step, and how many it made.
        starts, ends: (M,), times.
    """

    def __init__(self, log: RowLog) -> None:
        samples = len(log.start)
        rows = np.concatenate([np.empty(0, dtype=np.int64), *log.rows])
        self.order = np.argsort(rows, kind="stable")
        self.rows = rows[self.order]
        self.counts = np.bincount(rows, minlength=samples)
        self.first = np.cumsum(self.counts) - self.counts
        self.starts = np.concatenate([np.empty(0), *log.starts])[self.order]
        self.ends = np.concatenate([np.empty(0), *log.ends])[self.order]


class RowTrajectory:
    """Dense output of a finished solve.

    Args:
        log: the record of the forward pass, whole.
        rhs: for stages that only dense output needs.
    """

    def __init__(self, log: RowLog, rhs: RowRightHandSide) -> None:
        self.log, self._rhs = log, rhs
        self.steps = RowSteps(log)
        steps = self.steps
        self._keys = pairs(steps.rows, steps.starts * log.direction[steps.rows])
        self._z: Tensor | None = None
        self._stages: Tensor | None = None

    def _load(self) -> tuple[Tensor, Tensor]:
        """States (M, D) and stages (M, s, D) of all steps."""
        if self._z is None or self._stages is None:
            logged = self.log.steps
            for step in logged:
                step.extend(self._rhs)
            order = torch.from_numpy(self.steps.order).to(logged[0].z.device)
            self._z = torch.cat([step.z for step in logged])[order]
            self._stages = torch.cat([step.stages.transpose(0, 1) for step in logged])[order]
            self._coefficients = logged[0].coefficients
        return self._z, self._stages

    def locate(self, t: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The step of sample ``rows`` (m,) that holds time ``t`` (m,), which it reached."""
        steps, log = self.steps, self.log
        low = steps.first[rows]
        high = low + steps.counts[rows] - 1
        key = pairs(rows, t * log.direction[rows])
        return np.clip(np.searchsorted(self._keys, key, side="right") - 1, low, high)

    def at(self, t: np.ndarray, rows: np.ndarray) -> Tensor:
        """The states (m, D) of samples ``rows`` (m,) at times ``t`` (m,)."""
        return self.inside(self.locate(t, rows), t)

    def inside(self, place: np.ndarray, t: np.ndarray) -> Tensor:
        """The states (m, D) inside the steps ``place`` (m,)."""
        z, stages = self._load()
        start = self.steps.starts[place]
        theta = (t - start) / (self.steps.ends[place] - start)
        index = torch.from_numpy(place).to(z.device)
        weights = interpolation_weights(self._coefficients, theta, z)
        return combine(z.index_select(0, index), weights, stages.index_select(0, index))

    def cuts(
        self, rows: np.ndarray, a: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pieces into which the steps cut each interval from a (n,) back to b (n,).

        Returns:
            For each piece: which interval, which step, from when, to when.
        """
        sign = self.log.direction[rows]
        late, early = self.locate(a, rows), self.locate(b, rows)
        which, place = entries(early, late + 1)
        s = sign[which]
        upper = np.minimum(a[which] * s, self.steps.ends[place] * s) * s
        lower = np.maximum(b[which] * s, self.steps.starts[place] * s) * s
        some = upper != lower
        return which[some], place[some], upper[some], lower[some]


class _Log:
    """What dense output asks a trajectory's log for: where each sample began and ended."""

    def __init__(self, start: np.ndarray, t: np.ndarray) -> None:
        self.start, self.t = start, t


class JoinedRows:
    """Dense output of several rounds; at an event it is that before it.

    Args:
        start: (B,), initial times.
        ends: (rounds, B), where each sample was at the end of each.
        direction: (B,).
    """

    def __init__(
        self,
        stretches: list[RowTrajectory],
        start: np.ndarray,
        ends: np.ndarray,
        direction: np.ndarray,
    ) -> None:
        self._stretches = stretches
        self.log = _Log(start, ends[-1])
        self._keys, self._direction = ends * direction, direction

    def at(self, t: np.ndarray, rows: np.ndarray) -> Tensor:
        """The states (m, D) of samples ``rows`` (m,) at times ``t`` (m,)."""
        late = self._keys[:, rows] < t * self._direction[rows]
        stretch = np.minimum(late.sum(axis=0), len(self._keys) - 1)
        order = np.argsort(stretch, kind="stable")
        parts = []
        for i, trajectory in enumerate(self._stretches):
            some = order[stretch[order] == i]
            parts.append(trajectory.at(t[some], rows[some]))
        found = torch.cat(parts)
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(found.device)
        return found[back]
