"""Dense output as users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.trajectory import Trajectory
from pynode.errors import GradientError, InputError
from pynode.precision import without_autocast
from pynode.state import State, StateLayout
from pynode.times import OwnTimes

if TYPE_CHECKING:
    from pynode.engines.torch.per_sample.trajectory import JoinedRows, RowTrajectory


class DenseOutput:
    """The state at any time inside a solved interval.

    Attributes:
        trajectory: what it reads from.
        no_gradient: why values carry no gradient, for solves whose values should; empty where
            they do, or where there is none to carry.
    """

    def __init__(self, trajectory: Trajectory, layout: StateLayout, no_gradient: str) -> None:
        self.trajectory = trajectory
        self._layout = layout
        self.no_gradient = no_gradient

    @property
    def steps(self) -> list[float]:
        """The ends of the steps, the start and the end of the solve among them."""
        return list(self.trajectory.log.times)

    def __call__(self, s: float | Tensor) -> State:
        s = _checked(s, self.no_gradient)
        lo, hi = sorted((self.trajectory.t0, self.trajectory.t1))
        times = s.reshape(-1).tolist()
        outside = [t for t in times if not lo <= t <= hi]
        if outside:
            raise InputError(f"sol(s) at s={outside[0]:g}: outside the solved [{lo:g}, {hi:g}]")
        if not times:
            raise InputError("sol(s) was asked for no time at all")
        grad = torch.is_grad_enabled() and not self.no_gradient
        with torch.set_grad_enabled(grad), without_autocast(self._layout.device):
            flat = torch.stack([self.trajectory.at(t) for t in times])
        return self._layout.restore(flat.reshape(*s.shape, -1))


class OwnDenseOutput:
    """The same where each sample has steps, and a span, of its own.

    Attributes:
        trajectory, no_gradient: as of :class:`DenseOutput`.
    """

    def __init__(
        self,
        trajectory: RowTrajectory | JoinedRows,
        layout: StateLayout,
        times: OwnTimes,
        z0: State,
        no_gradient: str,
    ) -> None:
        self.trajectory = trajectory
        self._layout, self._times, self._z0 = layout, times, z0
        self.no_gradient = no_gradient

    def __call__(self, s: float | Tensor) -> State:
        s = _checked(s, self.no_gradient)
        samples = self._times.samples
        if s.ndim and s.shape[-1] not in (1, samples):
            raise InputError(
                f"sol(s) of {samples} samples with spans of their own was asked at s of shape "
                f"{tuple(s.shape)}: its last dimension is for the samples, {samples} or 1. For "
                "times that all share give s[:, None]."
            )
        lead = s.shape[:-1]
        t = s.detach().cpu().expand(*lead, samples).reshape(-1, samples).numpy()
        if not t.size:
            raise InputError("sol(s) was asked for no time at all")
        self._check_inside(t)
        values = self._at(t)
        return self._layout.restore(values.reshape(*lead, -1))

    def _check_inside(self, t: np.ndarray) -> None:
        low = np.minimum(self._times.start, self._times.end)
        high = np.maximum(self._times.start, self._times.end)
        for i, b in np.argwhere(~((low <= t) & (t <= high)))[:1]:
            raise InputError(
                f"sol(s) at s={t[i, b]:g}: outside the span [{low[b]:g}, {high[b]:g}] of sample {b}"
            )

    def _at(self, t: np.ndarray) -> Tensor:
        log, direction = self.trajectory.log, self._times.direction
        rows = np.broadcast_to(np.arange(t.shape[1]), t.shape)
        reached = t * direction <= log.t * direction
        still = (t == log.start) & reached
        moving = reached & ~still
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.no_gradient):
            inside = self.trajectory.at(t[moving], rows[moving])
            values = inside.new_full((*t.shape, inside.shape[1]), float("nan"))
            where = [torch.from_numpy(i).to(inside.device) for i in np.nonzero(moving)]
            values = values.index_put(tuple(where), inside)
            if still.any():
                z0 = self._layout.flatten(self._z0).reshape(t.shape[1], -1)
                where = [torch.from_numpy(i).to(inside.device) for i in np.nonzero(still)]
                values = values.index_put(tuple(where), z0[where[1]])
        return values


def _checked(s: float | Tensor, no_gradient: str) -> Tensor:
    """Times of dense output as float64, after the checks that gradients will not be lost."""
    if no_gradient and torch.is_grad_enabled():
        raise GradientError(
            f"{no_gradient}: ask for these times in t, use sensitivity='discrete' of "
            "engine='torch' without compile, or call it under torch.no_grad()"
        )
    s = torch.as_tensor(s, dtype=torch.float64)
    if s.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            "sol(s) is not differentiable in s: ask for these times in t, whose gradient is "
            "f(t, z), or detach s"
        )
    return s
