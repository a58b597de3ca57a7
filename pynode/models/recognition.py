"""Recognition networks: from a series to the distribution of its latent initial state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.models.fields import MLPField
from pynode.models.gap_flow import GapFlow
from pynode.solution import Statistics


class RNNEncoder(nn.Module):
    """A GRU that reads a series from its last observation back to its first.

    With each observation it reads which coordinates were observed, their values (0 for those
    that were not), and the gap to the observation before it; for the first one, the gap to t0.

    Chen et al. 2018, Neural Ordinary Differential Equations, section 5.

    Args:
        coordinates: C.
        hidden: units of the GRU.
        latent: D, of the latent state.
        time_scale: gaps are divided by it.
    """

    def __init__(self, coordinates: int, hidden: int, latent: int, time_scale: float) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.gru = nn.GRU(2 * coordinates + 1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2 * latent)

    def forward(
        self, observed: IrregularSeries, t0: float, counts: list[Statistics]
    ) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of z(t0), each (B, D)."""
        x, gaps = _backwards(observed, t0)
        states, _ = self.gru(torch.cat([x, gaps.unsqueeze(-1) / self.time_scale], dim=-1))
        last = (observed.lengths - 1).reshape(-1, 1, 1).expand(-1, 1, states.shape[-1])
        mean, log_std = self.out(states.gather(1, last).squeeze(1)).chunk(2, dim=-1)
        return mean, log_std


class ODERNNEncoder(nn.Module):
    """An ODE-RNN that reads a series from its last observation back to its first.

    Rubanova et al. 2019, section 3: its state flows back in time over the gaps between the
    observations, and at last from the first one to t0.

    Args:
        coordinates, hidden, latent, time_scale: as for :class:`RNNEncoder`.
        field_hidden: units of the field's hidden layer.
        options: of :class:`pynode.models.gap_flow.GapFlow`.
    """

    def __init__(
        self,
        coordinates: int,
        hidden: int,
        latent: int,
        time_scale: float,
        field_hidden: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.time_scale, self.hidden = time_scale, hidden
        self.cell = nn.GRUCell(2 * coordinates, hidden)
        self.flow = GapFlow(MLPField(hidden, field_hidden), **options)
        self.out = nn.Linear(hidden, 2 * latent)

    def forward(
        self, observed: IrregularSeries, t0: float, counts: list[Statistics]
    ) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of z(t0), each (B, D)."""
        x, gaps = _backwards(observed, t0)
        h = x.new_zeros(len(x), self.hidden)
        for s, valid in enumerate(observed.valid.unbind(dim=1)):
            h = torch.where(valid.unsqueeze(-1), self.cell(x[:, s], h), h)
            h = self.flow(h, -gaps[:, s] / self.time_scale, counts)
        mean, log_std = self.out(h).chunk(2, dim=-1)
        return mean, log_std


def _backwards(observed: IrregularSeries, t0: float) -> tuple[Tensor, Tensor]:
    """Values and flags (B, T, 2C) from last to first, and gaps (B, T) to what is read next.

    The last gap of a series is that from its first observation to t0; padding, still at the end,
    has gap 0.
    """
    length = observed.lengths.unsqueeze(1)
    position = torch.arange(observed.times.shape[1], device=observed.times.device)
    order = (length - 1 - position).clamp(min=0)
    times = observed.times.gather(1, order)
    earlier = observed.times.gather(1, (order - 1).clamp(min=0))
    earlier = torch.where(order == 0, t0, earlier)
    gaps = (times - earlier).masked_fill(position >= length, 0.0)
    x = torch.cat([observed.values, observed.mask.to(observed.values.dtype)], dim=-1)
    return x.gather(1, order.unsqueeze(-1).expand_as(x)), gaps
