"""Networks that tell the class of a series."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pynode.control import Control
from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models.base import LossTerms, Prediction, SeriesModel
from pynode.models.fields import MLPField, mlp
from pynode.models.gap_flow import GapFlow
from pynode.models.latent_ode import LatentODE
from pynode.models.noise import standard_normal
from pynode.neural_ode import NeuralODE

ELBO_WEIGHT = 0.1  # of the latent ODE's own loss, beside that of the classes


class _ODERNNReader(nn.Module):
    """The state of an ODE-RNN after the last observation (Rubanova et al. 2019, section 4.4)."""

    def __init__(self, coordinates: int, hidden: int, engine: str) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(2 * coordinates, hidden)
        self.flow = GapFlow(
            MLPField(hidden, hidden), solver="bs3", rtol=1e-3, atol=1e-4,
            sensitivity="discrete", engine=engine,
        )  # fmt: skip

    def forward(self, series: IrregularSeries, model: SeriesModel) -> Tensor:
        x = torch.cat([series.values, series.mask.to(series.values)], dim=-1)
        gaps = torch.zeros_like(series.times)
        gaps[:, 1:] = (series.times[:, 1:] - series.times[:, :-1]).nan_to_num()
        h = x.new_zeros(len(x), self.hidden)
        for s, valid in enumerate(series.valid.unbind(dim=1)):
            h = self.flow(h, gaps[:, s], model._solves)
            h = torch.where(valid.unsqueeze(-1), self.cell(x[:, s], h), h)
        return h


class _NeuralCDE(nn.Module):
    """The last state of dz/dt = F(z)·dx/dt, x being time, values and how often each was seen.

    Kidger, Morrill, Foster, Lyons 2020, Neural controlled differential equations for irregular
    time series; x is interpolated by Hermite cubics with backward differences.
    """

    def __init__(self, coordinates: int, hidden: int, engine: str) -> None:
        super().__init__()
        self.channels, self.hidden = 2 * coordinates + 1, hidden
        self.initial = mlp(self.channels, 2 * hidden, hidden, activation="softplus")
        self.field = mlp(hidden, 2 * hidden, hidden * self.channels, activation="softplus")
        self.node = NeuralODE(
            self._follow, rtol=1e-2, atol=1e-3, sensitivity="discrete", engine=engine
        )

    def _follow(self, t: Tensor, z: Tensor, x: Control) -> Tensor:
        matrix = torch.tanh(self.field(z)).reshape(-1, self.hidden, self.channels)
        return (matrix @ x.derivative(t).unsqueeze(-1)).squeeze(-1)

    def forward(self, series: IrregularSeries, model: SeriesModel) -> Tensor:
        values = series.values.masked_fill(~series.mask, math.nan)
        never = ~series.mask.any(dim=1, keepdim=True)
        values = values.masked_fill(never, 0.0)  # a channel that is never seen is at its mean
        seen = series.mask.to(values.dtype).cumsum(dim=1) / 10
        times = series.times.unsqueeze(-1)
        x = torch.cat([times.nan_to_num(), values, seen], dim=-1)
        # One moment before the first, so that a series of one row has a path too.
        early = x[:, :1].clone()
        early[..., 0] -= 0.01
        x = torch.cat([early, x], dim=1)
        ts = torch.cat([series.times[:, :1] - 0.01, series.times], dim=1)
        control = Control(ts, x, kind="hermite")
        known = series.times[series.valid]
        ends = torch.stack([known.min() - 0.01, known.max()])
        z0 = self.initial(control(ends[0]))
        z = self.node(z0, ends, control)[-1]
        model._solves.append(self.node.stats)
        return z


class SeriesClassifier(SeriesModel):
    """From a series to the logits of its class.

    The last coordinate of a series holds the number of its class, in every row.

    Args:
        network: ``ode_rnn``, ``latent_ode`` (the class is told from z0, beside the reconstruction)
            or ``neural_cde``.
        inputs: coordinates that are read.
        classes: how many there are.
        start: the earliest time of a series.
        hidden: units of the network.
        engine: that solves its ODE.
    """

    def __init__(
        self,
        network: str,
        inputs: int,
        classes: int,
        start: float,
        *,
        hidden: int = 25,
        engine: str = "torch",
        **hyper: Any,
    ) -> None:
        super().__init__(inputs + 1)
        if network not in CLASSIFIERS:
            raise InputError(f"model={network!r}: classes are told by {', '.join(CLASSIFIERS)}")
        if hyper and network != "latent_ode":
            raise InputError(f"{network} has no option {next(iter(hyper))!r}")
        self.name = network
        self.latent: LatentODE | None = None
        self.reader: nn.Module | None = None
        if network == "latent_ode":
            hyper = {"latent": 8, "t0": start, **hyper}
            self.latent = LatentODE(inputs, hidden=hidden, engine=engine, **hyper)
            width = int(hyper["latent"])
        else:
            reader = _ODERNNReader if network == "ode_rnn" else _NeuralCDE
            self.reader = reader(inputs, hidden, engine)
            width = hidden
        self.head = mlp(width, hidden, classes, activation="relu")

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Cross-entropy in nats a series, and a share of the latent ODE's own loss."""
        self._begin(observed)
        series, classes = _inputs(observed), observed.values[:, 0, -1].long()
        if self.latent is None:
            assert self.reader is not None
            entropy = cross_entropy(self.head(self.reader(series, self)).float(), classes)
            return LossTerms(entropy, {"cross_entropy": entropy.item()})
        terms = self.latent.loss(series, kl_weight=kl_weight, generator=generator)
        mean, log_std = self.latent._recognise(series)
        z0 = mean
        if self.training:
            z0 = mean + log_std.exp() * standard_normal(mean, generator)
        entropy = cross_entropy(self.head(z0).float(), classes)
        total = entropy + ELBO_WEIGHT * terms.total
        return LossTerms(total, {"cross_entropy": entropy.item(), **terms.parts})

    def weight(self, observed: IrregularSeries) -> int:
        """See :meth:`SeriesModel.weight`: the entropy is a mean over series."""
        return len(observed)

    def probabilities(self, observed: IrregularSeries) -> Tensor:
        """(B, classes)."""
        self._begin(observed)
        series = _inputs(observed)
        if self.latent is not None:
            logits = self.head(self.latent._recognise(series)[0])
        else:
            assert self.reader is not None
            logits = self.head(self.reader(series, self))
        return logits.softmax(dim=-1)

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Raises InputError: this model predicts classes."""
        raise InputError("a classifier predicts no values; use probabilities")

    @property
    def nfe(self) -> tuple[int, int]:
        """See :attr:`SeriesModel.nfe`."""
        return super().nfe if self.latent is None else self.latent.nfe


CLASSIFIERS = ("ode_rnn", "latent_ode", "neural_cde")


def _inputs(observed: IrregularSeries) -> IrregularSeries:
    return IrregularSeries(observed.times, observed.values[..., :-1], observed.mask[..., :-1])
