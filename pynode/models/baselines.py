"""Predictions that need no training: what every model has to beat."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models.base import LossTerms, Prediction, SeriesModel, query_times


class _Untrained(SeriesModel):
    """A rule for one coordinate at a time, so that a missing one is simply not there.

    Before the first observation of a coordinate its first value is held. A coordinate that a
    series never shows is predicted as 0. An observation that is at the very time of a query is
    used for it (the trained models predict it without, as far as they read in order).
    """

    trainable: ClassVar[bool] = False

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """See :meth:`SeriesModel.predict`; nothing is random here."""
        self._begin(observed)
        times = query_times(at, observed)
        columns = [self._column(observed, c, times) for c in range(self.coordinates)]
        mean = torch.stack(columns, dim=-1)
        return Prediction(mean.masked_fill(times.isnan().unsqueeze(-1), math.nan), None)

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Raises InputError: there is nothing to train."""
        raise InputError(f"{type(self).__name__} has nothing to train; use its predict as it is")

    def _column(self, observed: IrregularSeries, c: int, at: Tensor) -> Tensor:
        """Coordinate c at the queries: packs its observations to the front, then predicts."""
        mask = observed.mask[:, :, c]
        order = (~mask).long().argsort(dim=1, stable=True)
        times = observed.times.masked_fill(~mask, math.inf).gather(1, order)
        values = observed.values[:, :, c].gather(1, order)
        # Index of the last observation at or before each query; -1 where there is none.
        last = torch.searchsorted(times, at.nan_to_num().contiguous(), right=True) - 1
        return self._rule(times, values, mask.sum(dim=1, keepdim=True), at.nan_to_num(), last)

    @abstractmethod
    def _rule(self, times: Tensor, values: Tensor, n: Tensor, at: Tensor, last: Tensor) -> Tensor:
        """Values (B, Q) from the first n (B, 1) of times and values (B, T), +inf and 0 after."""


class LastValue(_Untrained):
    """Each coordinate stays as it was seen last."""

    def _rule(self, times: Tensor, values: Tensor, n: Tensor, at: Tensor, last: Tensor) -> Tensor:
        return values.gather(1, last.clamp(min=0))


class Linear(_Untrained):
    """Linear interpolation; beyond the last observation the line through the last two goes on.

    A coordinate that was seen once is held.
    """

    def _rule(self, times: Tensor, values: Tensor, n: Tensor, at: Tensor, last: Tensor) -> Tensor:
        right = (last + 1).minimum(n - 1).clamp(min=0)
        left = (right - 1).clamp(min=0)
        t0, t1 = times.gather(1, left), times.gather(1, right)
        x0, x1 = values.gather(1, left), values.gather(1, right)
        share = (at - t0) / torch.where(left < right, t1 - t0, 1.0)
        held = (last < 0) | (left == right)
        return torch.where(held, x0, x0 + share.masked_fill(held, 0.0) * (x1 - x0))
