"""Observations and queries of each series on one time line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.data.series import IrregularSeries


@dataclass(frozen=True)
class Timeline:
    """The distinct times of each series in order: S slots, padded at the end.

    Attributes:
        times: (B, S), NaN where padded.
        values: (B, S, C), 0 where not observed.
        mask: (B, S, C), True where a coordinate is observed.
        observed: (B, S), True at the times of observations.
        query_slots: (B, Q), the slot of each query; None if there are no queries.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    observed: Tensor
    query_slots: Tensor | None

    @property
    def started(self) -> Tensor:
        """(B, S), True from the first observation on."""
        return self.observed.cumsum(dim=1) > 0

    @property
    def first(self) -> Tensor:
        """(B, S), True where nothing was observed before: up to the first observation itself."""
        return self.observed.cumsum(dim=1) - self.observed.long() == 0

    @property
    def gaps(self) -> Tensor:
        """(B, S): the time from each slot to the next; 0 for the last one and in the padding."""
        gaps = torch.zeros_like(self.times)
        gaps[:, :-1] = (self.times[:, 1:] - self.times[:, :-1]).nan_to_num()
        return gaps

    def at_queries(self, values: Tensor) -> Tensor:
        """The entries (B, Q, C) of ``values`` (B, S, C) at the queries; anything where padded."""
        assert self.query_slots is not None
        slots = self.query_slots.clamp(max=values.shape[1] - 1)
        return values.gather(1, slots.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def of_observations(series: IrregularSeries) -> Timeline:
    """A slot for each observation."""
    return Timeline(series.times, series.values, series.mask, series.valid, None)


def merged(series: IrregularSeries, at: Tensor) -> Timeline:
    """A slot for each distinct time among the observations and the queries ``at`` (B, Q)."""
    times = torch.cat([series.times, at], dim=1).nan_to_num(nan=math.inf)
    ordered, order = times.sort(dim=1, stable=True)
    new = torch.ones_like(order)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    slots = torch.empty_like(order).scatter_(1, order, new.cumsum(dim=1) - 1)
    # The padding of a row shares one slot at its end, which stays empty.
    n_slots = int(torch.where(ordered.isinf(), 0, new).sum(dim=1).max())
    seen = series.times.shape[1]
    where = slots[:, :seen]

    def placed(x: Tensor, empty: float | bool) -> Tensor:
        shape = (len(x), n_slots + 1, *x.shape[2:])
        index = where.reshape(*where.shape, *[1] * (x.ndim - 2)).expand_as(x)
        return x.new_full(shape, empty).scatter_(1, index, x)[:, :n_slots]

    slot_times = times.new_full((len(times), n_slots + 1), math.inf).scatter_(1, slots, times)
    return Timeline(
        times=slot_times[:, :n_slots].masked_fill(slot_times[:, :n_slots].isinf(), math.nan),
        values=placed(series.values, 0.0),
        mask=placed(series.mask, False),
        observed=placed(series.valid, False),
        query_slots=slots[:, seen:],
    )
