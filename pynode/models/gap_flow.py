"""A state that flows over a gap in time of each sample's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pynode.neural_ode import NeuralODE
from pynode.solution import Statistics


class _PerGap(nn.Module):
    """dh/ds = gap · f(h), so that s from 0 to 1 is the whole gap of every sample."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, s: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        return gap * self.field(s * gap, h)


class GapFlow(nn.Module):
    """h(t + gap) from h(t), for dh/dt = f(h) and a gap of each sample's own.

    All samples are solved together in s = (time into the gap) / gap, so each crosses exactly its
    own gap, whatever the others' are; a gap of 0 leaves the state as it is, a negative one goes
    back in time.

    Args:
        field: f(t, h), h of shape (B, H); t (B, 1) is the time into the gap.
        options: of :class:`pynode.NeuralODE`. ``dt`` is a share of the gap: for a solver with
            an error estimate of the first step (default 1, the whole gap at once, which is
            usually accepted), for fixed steps of each.
    """

    def __init__(self, field: nn.Module, **options: Any) -> None:
        super().__init__()
        self.node = NeuralODE(_PerGap(field), **{"dt": 1.0, **options})

    def forward(self, h: Tensor, gap: Tensor, counts: list[Statistics]) -> Tensor:
        """The states after the gaps.

        Args:
            h: (B, H).
            gap: (B,), in units of time.
            counts: the statistics of the solve are added to it.
        """
        if not bool(gap.any()):
            return h
        h = self.node(h, (0.0, 1.0), args=gap.unsqueeze(-1))[-1]
        counts.append(self.node.stats)
        return h
