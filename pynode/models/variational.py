"""What the variational autoencoders of time series have in common."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models.base import (
    GaussianLikelihood,
    LossTerms,
    Prediction,
    SeriesModel,
    query_times,
)
from pynode.models.noise import standard_normal


class VariationalModel(SeriesModel):
    """A latent state z0 at time t0, recognised from a series, from which all of it is decoded.

    Subclasses have an ``encoder``, called as those of :mod:`pynode.models.recognition` are, and
    decode, and a ``likelihood``. The prior of z0 is standard normal.

    Args:
        coordinates: C.
        t0: no observation or query may be earlier.
    """

    encoder: nn.Module
    likelihood: GaussianLikelihood

    def __init__(self, coordinates: int, t0: float) -> None:
        super().__init__(coordinates)
        if not math.isfinite(t0):
            raise InputError(f"t0={t0}: a finite time is needed")
        self.t0 = t0

    @abstractmethod
    def _decode(self, z0: Tensor, times: Tensor) -> Tensor:
        """Means (B, T, C) at each sample's own times (B, T); those at padding mean nothing."""

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Decode the path of the posterior mean of z0, or, with ``generator``, of a draw of z0.

        See :meth:`SeriesModel.predict`.

        Raises:
            InputError: also if a time is earlier than ``t0``.
        """
        self._begin(observed)
        times = query_times(at, observed)
        mean, log_std = self._recognise(observed)
        z0 = mean if generator is None else _draw(mean, log_std, generator)
        return self.likelihood.prediction(self._from(z0, times), times.isnan())

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
        read: IrregularSeries | None = None,
    ) -> LossTerms:
        """Negative evidence lower bound with one draw of z0, for each observed value.

        That is (-log p(observed | z0) + kl_weight · KL(q(z0) ‖ N(0, 1))) / number of values.
        See :meth:`SeriesModel.loss`.

        Args:
            read: what q(z0) is recognised from; default: ``observed``. Given less than that, the
                model learns to predict what it has not seen (Rubanova et al. 2019, section 4.2).
        """
        self._begin(observed)
        mean, log_std = self._recognise(observed if read is None else read)
        z0 = _draw(mean, log_std, generator)
        nll = self.likelihood.nll(self._from(z0, observed.times), observed)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        kl = kl.sum() / observed.mask.sum()
        return LossTerms(nll + kl_weight * kl, {"nll": nll.item(), "kl": kl.item()})

    def _recognise(self, observed: IrregularSeries) -> tuple[Tensor, Tensor]:
        self._check_start(observed.times, "an observation")
        mean, log_std = self.encoder(observed, self.t0, self._solves)
        # Under autocast networks answer in lower precision; the latent state is not to.
        return mean.to(observed.values.dtype), log_std.to(observed.values.dtype)

    def _from(self, z0: Tensor, times: Tensor) -> Tensor:
        self._check_start(times, "a time that was asked for")
        return self._decode(z0, times)

    def _check_start(self, times: Tensor, what: str) -> None:
        early = times < self.t0
        if bool(early.any()):
            b = int(early.any(dim=1).nonzero()[0])
            raise InputError(
                f"series {b}: {what}, {float(times[early].min()):g}, is earlier than t0="
                f"{self.t0:g}, where the latent state begins: build the model with an earlier "
                "t0, or count times from the start of the window"
            )


def _draw(mean: Tensor, log_std: Tensor, generator: torch.Generator | None) -> Tensor:
    return mean + log_std.exp() * standard_normal(mean, generator)
