"""Recurrent networks, and the ways in which they are told about uneven times."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pynode.data.series import IrregularSeries
from pynode.models.base import (
    LossTerms,
    OneStepLikelihood,
    Prediction,
    SeriesModel,
    query_times,
    require_positive,
)
from pynode.models.timeline import Timeline, merged, of_observations


class RNN(SeriesModel):
    """A GRU that reads a series in order and predicts each time the next value.

    It is told nothing of time: a step is a step. Its subclasses tell it in different ways.

    Reading a point gives the network the values and, for each coordinate, whether it was
    observed; a missing coordinate is filled with the network's own prediction for that moment.
    Training predicts every observation one step ahead, from those before it; the very first one
    is predicted by a learned constant. In :meth:`predict` the queries are points of the series
    too. At one where nothing was observed, the prediction is read in place of an observation, so
    that the network goes on by itself between observations and beyond them. It is read as if it
    were observed: in training on complete series the network never meets a point that is not.

    Args:
        coordinates: C.
        hidden: units of the GRU (Chen et al. 2018, section 5.1: 25).
        sigma: initial standard deviation of the likelihood, which is learned, see
            :class:`pynode.models.base.OneStepLikelihood`.
        sigma_min: it never falls below this, see :class:`pynode.models.base.GaussianLikelihood`.
    """

    reads: ClassVar[str] = ""  # what else it is told when it reads: "", "time" or "gap"
    decays: ClassVar[bool] = False
    time_scale: float = 1.0

    def __init__(
        self, coordinates: int, *, hidden: int = 25, sigma: float = 0.3, sigma_min: float = 0.1
    ) -> None:
        super().__init__(coordinates)
        require_positive(hidden=hidden)
        self.hidden = hidden
        self.cell = nn.GRUCell(2 * coordinates + (1 if self.reads else 0), hidden)
        self.readout = nn.Linear(hidden, coordinates)
        self.first = nn.Parameter(torch.zeros(coordinates))
        self.likelihood = OneStepLikelihood(coordinates, sigma, sigma_min)
        # softplus(-2) = 0.13: hardly any decay over a typical gap to begin with.
        self.rate = nn.Parameter(torch.full((hidden,), -2.0)) if self.decays else None

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Walk through observations and queries in the order of their times.

        The prediction at the time of an observation is the one made before reading it. Queries
        before the first observation get the learned constant, and are not read. Nothing is
        random. See :meth:`SeriesModel.predict`.
        """
        self._begin(observed)
        times = query_times(at, observed)
        line = merged(observed, times)
        sigma = line.at_queries(self.likelihood.sigma_at(line.first))
        return self.likelihood.prediction(line.at_queries(self._walk(line)), times.isnan(), sigma)

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Gaussian negative log-likelihood of every observed value, one step ahead.

        There is no KL divergence and no noise. See :meth:`SeriesModel.loss`.
        """
        self._begin(observed)
        line = of_observations(observed)
        sigma = self.likelihood.sigma_at(line.first)
        nll = self.likelihood.nll(self._walk(line), observed, sigma)
        return LossTerms(nll, {"nll": nll.item()})

    def _walk(self, line: Timeline) -> Tensor:
        """Predictions (B, S, C) for all slots, each from those before it."""
        told, gaps = self._told(line), line.gaps / self.time_scale
        generated = ~line.observed
        seen = (line.mask | generated.unsqueeze(-1)).to(line.values.dtype)
        started = line.started.unsqueeze(-1)
        h = line.values.new_zeros(len(line.values), self.hidden)
        mean = self.first.expand(len(h), -1)
        means = []
        for s in range(line.times.shape[1]):
            means.append(mean)
            x = torch.where(line.mask[:, s], line.values[:, s], mean)
            h_next = self.cell(torch.cat([x, seen[:, s], *(f[:, s] for f in told)], dim=1), h)
            if self.rate is not None:
                h_next = h_next * (-softplus(self.rate) * gaps[:, s, None]).exp()
            h = torch.where(started[:, s], h_next, h)
            mean = torch.where(started[:, s], self.readout(h), self.first)
        return torch.stack(means, dim=1)

    def _told(self, line: Timeline) -> list[Tensor]:
        """What else is read at each slot, as (B, S, 1): about the point to be predicted next."""
        if not self.reads:
            return []
        gaps = line.gaps
        if self.reads == "gap":
            return [(gaps / self.time_scale).unsqueeze(-1)]
        return [((line.times.nan_to_num() + gaps) / self.time_scale).unsqueeze(-1)]


class _TimedRNN(RNN):
    """Times and gaps are divided by ``time_scale`` before the network sees them."""

    def __init__(
        self,
        coordinates: int,
        *,
        hidden: int = 25,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__(coordinates, hidden=hidden, sigma=sigma, sigma_min=sigma_min)
        require_positive(time_scale=time_scale)
        self.time_scale = time_scale


class RNNTime(_TimedRNN):
    """An RNN that reads, with each value, the absolute time of the point to be predicted next.

    Times are counted from the origin of the series' times, which is up to the data.
    """

    reads: ClassVar[str] = "time"


class RNNDelta(_TimedRNN):
    """An RNN that reads, with each value, the gap Δt to the point to be predicted next.

    RNN-Δt of Rubanova et al. 2019, and the RNN baseline with time of Chen et al. 2018.
    """

    reads: ClassVar[str] = "gap"


class RNNDecay(_TimedRNN):
    """An RNN whose hidden state decays between points: h ← h·exp(-τΔt), τ ≥ 0 learned per unit.

    As in Rubanova et al. 2019 (after Che et al. 2018, GRU-D) it reads no Δt: the decay is all
    that it knows of time. A prediction is read out of the state as decayed until its moment.
    """

    decays: ClassVar[bool] = True
