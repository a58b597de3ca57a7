"""ODE-RNN: a recurrent network whose state flows between observations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.models.base import (
    LossTerms,
    OneStepLikelihood,
    Prediction,
    SeriesModel,
    query_times,
    require_positive,
    sensitivity_for,
)
from pynode.models.fields import MLPField
from pynode.models.gap_flow import GapFlow
from pynode.models.timeline import Timeline, merged, of_observations


class ODERNN(SeriesModel):
    """The hidden state follows an ODE between observations and a GRU at each of them.

    Rubanova, Chen, Duvenaud 2019, Latent ODEs for Irregularly-Sampled Time Series, algorithm 1.
    The ODE is solved over exactly the gap between two observations, each series its own (see
    :class:`pynode.models.gap_flow.GapFlow`); predictions are read out of the state as it is at
    their moment, so nothing is fed back between observations and beyond them. Reading, filling
    of missing coordinates and training are those of :class:`pynode.models.rnn.RNN`; before the
    first observation the state is a learned constant and does not flow.

    Args:
        coordinates: C.
        hidden: units of the GRU and width of the ODE's state.
        field_hidden, field_layers: of the ODE's field.
        time_scale: one unit of the ODE's time, in the units of the series' times.
        sigma: initial standard deviation of the likelihood, which is learned, see
            :class:`pynode.models.base.OneStepLikelihood`.
        sigma_min: it never falls below this, see :class:`pynode.models.base.GaussianLikelihood`.
        solver, rtol, atol, engine, options: of :class:`pynode.NeuralODE`; sensitivity is
            ``"discrete"`` by default, ``"gauss"`` for stiff solvers by the julia engine. ``dt`` is
            a share of a gap, see :class:`pynode.models.gap_flow.GapFlow`.
    """

    def __init__(
        self,
        coordinates: int,
        *,
        hidden: int = 25,
        field_hidden: int = 25,
        field_layers: int = 1,
        time_scale: float = 1.0,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
        solver: str = "bs3",
        rtol: float = 1e-3,
        atol: float = 1e-4,
        engine: str = "torch",
        **options: Any,
    ) -> None:
        super().__init__(coordinates)
        require_positive(hidden=hidden, time_scale=time_scale)
        self.time_scale = time_scale
        self.cell = nn.GRUCell(2 * coordinates, hidden)
        self.readout = nn.Linear(hidden, coordinates)
        self.first = nn.Parameter(torch.zeros(hidden))
        self.likelihood = OneStepLikelihood(coordinates, sigma, sigma_min)
        options = {"sensitivity": sensitivity_for(engine, solver), **options}
        options |= {"solver": solver, "rtol": rtol, "atol": atol, "engine": engine}
        self.flow = GapFlow(MLPField(hidden, field_hidden, layers=field_layers), **options)

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Follow the state through observations and queries in the order of their times.

        The prediction at the time of an observation is the one made before reading it. Nothing
        is random. See :meth:`SeriesModel.predict`.
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
        """Predictions (B, S, C) for all slots, each from the observations before it."""
        gaps = (line.gaps * line.started) / self.time_scale
        flags = line.mask.to(line.values.dtype)
        h = self.first.expand(len(line.values), -1)
        means = []
        slots = line.times.shape[1]
        for s in range(slots):
            mean = self.readout(h)
            means.append(mean)
            read = line.observed[:, s, None]
            if bool(read.any()):
                x = torch.where(line.mask[:, s], line.values[:, s], mean)
                h = torch.where(read, self.cell(torch.cat([x, flags[:, s]], dim=1), h), h)
            if s + 1 < slots:
                h = self.flow(h, gaps[:, s], self._solves)
        return torch.stack(means, dim=1)
