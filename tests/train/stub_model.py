"""A model that trains in milliseconds, and misbehaves on request."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.models.base import LossTerms, Prediction, SeriesModel


class StubModel(SeriesModel):
    """x(t) by a small network of t alone, with dropout (global noise) and jitter (own noise).

    ``fail_at`` is the number of the call of ``loss`` in which ``failure`` happens.
    """

    def __init__(self, width: int = 8, fail_at: int = 0, failure: object = None) -> None:
        super().__init__(coordinates=2)
        self.first = nn.Linear(1, width)
        self.second = nn.Linear(width, 2)
        self.dropout = nn.Dropout(0.1)
        self.fail_at, self.failure, self.calls = fail_at, failure, 0

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        at = at.expand(len(observed), -1) if at.ndim == 1 else at
        mean = self.second(self.dropout(torch.tanh(self.first(at.nan_to_num().unsqueeze(-1)))))
        return Prediction(mean=mean, std=None)

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        self.calls += 1
        jitter = torch.randn(len(observed), 1, generator=generator)
        mean = self.predict(observed, observed.times + 0.1 * jitter).mean
        nll = ((mean - observed.values)[observed.mask] ** 2).mean()
        kl = (self.first.weight**2).sum()
        if self.calls == self.fail_at:
            nll = self._fail(nll)
        total = nll + 1e-3 * kl_weight * kl
        return LossTerms(total=total, parts={"nll": nll.item(), "kl": kl.item()})

    def _fail(self, nll: Tensor) -> Tensor:
        if isinstance(self.failure, BaseException):
            raise self.failure
        if self.failure == "nan loss":
            return nll + torch.nan * self.second.bias.sum()
        if self.failure == "nan gradient":
            # sqrt has an infinite slope at 0, and 0 · inf is nan: the value stays finite
            return nll + (0 * self.second.bias.sum()).sqrt()
        raise AssertionError(self.failure)

    @property
    def nfe(self) -> tuple[int, int]:
        return (3, 4)
