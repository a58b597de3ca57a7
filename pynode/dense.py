"""Dense output as users see it."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.engines.torch.trajectory import Trajectory
from pynode.errors import GradientError, InputError
from pynode.precision import without_autocast
from pynode.state import State, StateLayout


class DenseOutput:
    """The state at any time inside a solved interval.

    Args:
        no_gradient: why values carry no gradient, for solves whose values should; empty where
            they do, or where there is none to carry.
    """

    def __init__(self, trajectory: Trajectory, layout: StateLayout, no_gradient: str) -> None:
        self._trajectory = trajectory
        self._layout = layout
        self._no_gradient = no_gradient

    @property
    def steps(self) -> list[float]:
        """The ends of the steps, the start and the end of the solve among them."""
        return list(self._trajectory.log.times)

    def __call__(self, s: float | Tensor) -> State:
        if self._no_gradient and torch.is_grad_enabled():
            raise GradientError(
                f"{self._no_gradient}: ask for these times in t, use sensitivity='discrete', or "
                "call it under torch.no_grad()"
            )
        s = torch.as_tensor(s, dtype=torch.float64)
        if s.requires_grad and torch.is_grad_enabled():
            raise GradientError(
                "sol(s) is not differentiable in s: ask for these times in t, whose gradient is "
                "f(t, z), or detach s"
            )
        lo, hi = sorted((self._trajectory.t0, self._trajectory.t1))
        times = s.reshape(-1).tolist()
        outside = [t for t in times if not lo <= t <= hi]
        if outside:
            raise InputError(f"sol(s) at s={outside[0]:g}: outside the solved [{lo:g}, {hi:g}]")
        if not times:
            raise InputError("sol(s) was asked for no time at all")
        grad = torch.is_grad_enabled() and not self._no_gradient
        with torch.set_grad_enabled(grad), without_autocast(self._layout.device):
            flat = torch.stack([self._trajectory.at(t) for t in times])
        return self._layout.restore(flat.reshape(*s.shape, -1))
