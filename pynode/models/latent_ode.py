"""Latent ODE: a series as what one latent state becomes under an ODE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models.base import (
    GaussianLikelihood,
    LossTerms,
    Prediction,
    SeriesModel,
    query_times,
    require_positive,
)
from pynode.models.fields import MLPField, mlp
from pynode.models.noise import standard_normal
from pynode.models.recognition import ODERNNEncoder, RNNEncoder
from pynode.neural_ode import NeuralODE

ENCODERS = ("rnn", "ode_rnn")


class LatentODE(SeriesModel):
    """Variational autoencoder whose decoder is an ODE.

    A recognition network reads the series backwards in time and gives q(z0), a Gaussian; z0 at
    time ``t0`` flows under dz/dt = f(z); each observation is decoded from the state at its time,
    with Gaussian noise. The prior of z0 is standard normal. All series of a batch, each with its
    own times, are one joint solve.

    Chen, Rubanova, Bettencourt, Duvenaud 2018, Neural Ordinary Differential Equations, section 5;
    ``encoder="ode_rnn"``: Rubanova, Chen, Duvenaud 2019.

    Args:
        coordinates: C.
        latent: D, of the latent state.
        hidden: units of the recognition network.
        field_hidden, field_layers, field_activation: of the field f.
        decoder_hidden, decoder_activation: of the decoder's one hidden layer.
        encoder: recognition by a GRU that reads the gaps, ``"rnn"``, or by one whose state flows
            over them, ``"ode_rnn"`` (with ``hidden`` units in its field).
        t0: the time at which z0 holds, in the units of the series' times: the start of what is
            observed. No observation or query may be earlier.
        time_scale: one unit of the ODE's time, in the units of the series' times.
        sigma: initial standard deviation of the likelihood, which is learned.
        sigma_min: it never falls below this, see :class:`pynode.models.base.GaussianLikelihood`.
        solver, rtol, atol, engine, options: of :class:`pynode.NeuralODE`; sensitivity is
            ``"discrete"`` by default, whose cost does not grow with the number of distinct times.
    """

    def __init__(
        self,
        coordinates: int,
        *,
        latent: int = 4,
        hidden: int = 25,
        field_hidden: int = 20,
        field_layers: int = 1,
        field_activation: str = "elu",
        decoder_hidden: int = 20,
        decoder_activation: str = "relu",
        encoder: str = "rnn",
        t0: float = 0.0,
        time_scale: float = 1.0,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
        solver: str = "tsit5",
        rtol: float = 1e-3,
        atol: float = 1e-4,
        engine: str = "torch",
        **options: Any,
    ) -> None:
        super().__init__(coordinates)
        require_positive(latent=latent, hidden=hidden, time_scale=time_scale)
        if encoder not in ENCODERS:
            raise InputError(f"encoder={encoder!r} is not one of {', '.join(ENCODERS)}")
        if not math.isfinite(t0):
            raise InputError(f"t0={t0}: a finite time is needed")
        self.t0, self.time_scale = t0, time_scale
        options = {"sensitivity": "discrete", **options}
        options |= {"rtol": rtol, "atol": atol, "engine": engine}
        self.encoder: RNNEncoder | ODERNNEncoder
        if encoder == "rnn":
            self.encoder = RNNEncoder(coordinates, hidden, latent, time_scale)
        else:
            self.encoder = ODERNNEncoder(
                coordinates, hidden, latent, time_scale, hidden, **{"solver": "bs3"} | options
            )
        field = MLPField(latent, field_hidden, layers=field_layers, activation=field_activation)
        self.node = NeuralODE(field, solver=solver, **options)
        self.decoder = mlp(latent, decoder_hidden, coordinates, activation=decoder_activation)
        self.likelihood = GaussianLikelihood(coordinates, sigma, sigma_min)

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
        return self.likelihood.prediction(self._decode(z0, times), times.isnan())

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
        nll = self.likelihood.nll(self._decode(z0, observed.times), observed)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        kl = kl.sum() / observed.mask.sum()
        return LossTerms(nll + kl_weight * kl, {"nll": nll.item(), "kl": kl.item()})

    def _recognise(self, observed: IrregularSeries) -> tuple[Tensor, Tensor]:
        self._check_start(observed.times, "an observation")
        mean, log_std = self.encoder(observed, self.t0, self._solves)
        # Under autocast networks answer in lower precision; the ODE's state is not to.
        return mean.to(observed.values.dtype), log_std.to(observed.values.dtype)

    def _decode(self, z0: Tensor, times: Tensor) -> Tensor:
        """Means (B, T, C) at each sample's own times (B, T); those at padding mean nothing."""
        self._check_start(times, "a time that was asked for")
        padded = times.isnan()
        since = (times - self.t0) / self.time_scale
        if bool((since.nan_to_num() == 0).all()):  # nowhere to go
            zs = z0.unsqueeze(1).expand(-1, times.shape[1], -1)
        else:
            zs = self._path(z0, since).masked_fill(padded.unsqueeze(-1), 0.0)
        return self.decoder(zs)

    def _path(self, z0: Tensor, since: Tensor) -> Tensor:
        """States (B, T, D), NaN at padding. Series without any time keep out of the solve."""
        full = ~since.isnan().all(dim=1)
        zs = self.node(z0[full], since[full], t0=0.0).transpose(0, 1)
        self._solves.append(self.node.stats)
        if bool(full.all()):
            return zs
        return zs.new_zeros(*since.shape, zs.shape[-1]).index_put((full,), zs)

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
