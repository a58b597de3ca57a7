"""Recurrent networks, and the ways in which they are told about uneven times."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
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

    reads: ClassVar[tuple[str, ...]] = ()  # what else it is told when it reads: "time", "gap"
    decays: ClassVar[bool] = False
    imputes: ClassVar[bool] = False
    time_scale: float = 1.0

    def __init__(
        self, coordinates: int, *, hidden: int = 25, sigma: float = 0.3, sigma_min: float = 0.1
    ) -> None:
        super().__init__(coordinates)
        require_positive(hidden=hidden)
        self.hidden = hidden
        self.impute = ImputationDecay(coordinates) if self.imputes else None
        self.cell = nn.GRUCell(2 * coordinates + self._told_size(), hidden)
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
        generated = ~line.observed.unsqueeze(-1)
        read = line.mask | generated
        started = line.started.unsqueeze(-1)
        h = line.values.new_zeros(len(line.values), self.hidden)
        mean = self.first.expand(len(h), -1)
        since = torch.zeros_like(mean)  # time since a coordinate was read
        held = mean if self.impute is None else self.impute.centre.expand_as(mean)
        means = []
        for s in range(line.times.shape[1]):
            means.append(mean)
            guess = mean if self.impute is None else self.impute(held, since)
            guess = torch.where(generated[:, s], mean, guess)
            x = torch.where(line.mask[:, s], line.values[:, s], guess)
            seen = read[:, s].to(x.dtype)
            h_next = self.cell(torch.cat([x, seen, *(f[:, s] for f in told)], dim=1), h)
            gap = gaps[:, s, None]
            now = read[:, s] & started[:, s]
            held = torch.where(now, x, held)
            since = torch.where(now, 0.0, since) + gap
            h_next = self._decayed(h_next, gap, since)
            h = torch.where(started[:, s], h_next, h)
            mean = torch.where(started[:, s], self.readout(h), self.first)
        return torch.stack(means, dim=1)

    def _decayed(self, h: Tensor, gap: Tensor, since: Tensor) -> Tensor:
        """The state h (B, H) after a gap (B, 1); ``since`` (B, C) is up to its end."""
        return h if self.rate is None else h * (-softplus(self.rate) * gap).exp()

    def _told_size(self) -> int:
        return len(self.reads)

    def _told(self, line: Timeline) -> list[Tensor]:
        """What else is read at each slot, (B, S, ·) each: about the point to be predicted next."""
        gaps = line.gaps
        about = {"gap": gaps, "time": line.times.nan_to_num() + gaps}
        return [(about[kind] / self.time_scale).unsqueeze(-1) for kind in self.reads]


class ImputationDecay(nn.Module):
    """What a missing coordinate is taken for: its last value, going over to a mean with time.

    x̂ = γ x_last + (1 − γ) x̄, γ = exp(−max(0, w δ + b)), with δ the time since it was observed:
    Che et al. 2018, Recurrent Neural Networks for Multivariate Time Series with Missing Values,
    equations 10 and 11. x̄ is learned here.

    Args:
        coordinates: C; each has its own w, b and x̄.
    """

    def __init__(self, coordinates: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(coordinates))
        self.slope = nn.Parameter(torch.full((coordinates,), 0.1))
        self.offset = nn.Parameter(torch.zeros(coordinates))

    def forward(self, held: Tensor, since: Tensor) -> Tensor:
        """x̂ (B, C) from the last values and the times since."""
        share = (-torch.relu(self.slope * since + self.offset)).exp()
        return share * held + (1 - share) * self.centre


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

    reads: ClassVar[tuple[str, ...]] = ("time",)


class RNNDelta(_TimedRNN):
    """An RNN that reads, with each value, the gap Δt to the point to be predicted next.

    RNN-Δt of Rubanova et al. 2019, and the RNN baseline with time of Chen et al. 2018.
    """

    reads: ClassVar[tuple[str, ...]] = ("gap",)


class RNNDecay(_TimedRNN):
    """An RNN whose hidden state decays between points: h ← h·exp(-τΔt), τ ≥ 0 learned per unit.

    As in Rubanova et al. 2019 (after Che et al. 2018, GRU-D) it reads no Δt: the decay is all
    that it knows of time. A prediction is read out of the state as decayed until its moment.
    """

    decays: ClassVar[bool] = True


class RNNTimeDelta(_TimedRNN):
    """An RNN that reads both the absolute time of the next point and the gap Δt to it."""

    reads: ClassVar[tuple[str, ...]] = ("time", "gap")


class RNNTimeEmbedding(_TimedRNN):
    """An RNN that reads the absolute time of the next point in a learned embedding.

    Time2Vec, Kazemi et al. 2019: one entry ω₀t + φ₀, the others sin(ωt + φ), all ω and φ learned.

    Args:
        embedding: size of the embedding, at least 2.
        coordinates, hidden, sigma, sigma_min, time_scale: as for :class:`RNN`; one unit of the
            embedding's time is ``time_scale``.
    """

    embedding: int

    def __init__(
        self,
        coordinates: int,
        *,
        embedding: int = 8,
        hidden: int = 25,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
        time_scale: float = 1.0,
    ) -> None:
        if embedding < 2:
            raise InputError(f"embedding={embedding}: a linear and a periodic entry need 2")
        object.__setattr__(self, "embedding", embedding)  # the cell's size depends on it
        super().__init__(
            coordinates, hidden=hidden, sigma=sigma, sigma_min=sigma_min, time_scale=time_scale
        )
        self.frequency = nn.Parameter(torch.randn(embedding))
        self.phase = nn.Parameter(torch.randn(embedding))

    def _told_size(self) -> int:
        return self.embedding

    def _told(self, line: Timeline) -> list[Tensor]:
        t = (line.times.nan_to_num() + line.gaps) / self.time_scale
        angle = t.unsqueeze(-1) * self.frequency + self.phase
        return [angle[..., :1], angle[..., 1:].sin()]


class RNNImpute(_TimedRNN):
    """An RNN that reads Δt, and fills missing coordinates by :class:`ImputationDecay`.

    RNN-Impute of Rubanova et al. 2019: the half of GRU-D that is about the input.
    """

    reads: ClassVar[tuple[str, ...]] = ("gap",)
    imputes: ClassVar[bool] = True


class GRUD(RNNImpute):
    """GRU-D: missing coordinates are filled, and the state decays, by the times since observations.

    h ← h exp(−max(0, W δ + b)), with δ (C,) the time since each coordinate was read: Che et al.
    2018, section 2.3, equations 9 to 14. As in :class:`RNNDecay` a prediction is read out of the
    state as decayed until its moment; Δt itself is not read.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        coordinates: int,
        *,
        hidden: int = 25,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__(
            coordinates, hidden=hidden, sigma=sigma, sigma_min=sigma_min, time_scale=time_scale
        )
        self.decay = nn.Linear(coordinates, hidden)

    def _decayed(self, h: Tensor, gap: Tensor, since: Tensor) -> Tensor:
        return h * (-torch.relu(self.decay(since))).exp()
