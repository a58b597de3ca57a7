"""Latent ODE: a series as what one latent state becomes under an ODE."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.errors import InputError
from pynode.models.base import GaussianLikelihood, require_positive, sensitivity_for
from pynode.models.fields import MLPField, mlp
from pynode.models.recognition import ODERNNEncoder, RNNEncoder
from pynode.models.variational import VariationalModel
from pynode.neural_ode import NeuralODE

ENCODERS = ("rnn", "ode_rnn")


class LatentODE(VariationalModel):
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
        encoder_options: of :class:`pynode.models.gap_flow.GapFlow`, for the ``"ode_rnn"`` encoder,
            where they are to differ from the decoder's; its solver is ``"bs3"`` by default.
        t0: the time at which z0 holds, in the units of the series' times: the start of what is
            observed. No observation or query may be earlier.
        time_scale: one unit of the ODE's time, in the units of the series' times.
        sigma: initial standard deviation of the likelihood, which is learned.
        sigma_min: it never falls below this, see :class:`pynode.models.base.GaussianLikelihood`.
        solver, rtol, atol, engine, options: of :class:`pynode.NeuralODE`; sensitivity is
            ``"discrete"`` by default, whose cost does not grow with the number of distinct times,
            ``"gauss"`` for stiff solvers by the julia engine.
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
        encoder_options: dict[str, Any] | None = None,
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
        super().__init__(coordinates, t0)
        require_positive(latent=latent, hidden=hidden, time_scale=time_scale)
        if encoder not in ENCODERS:
            raise InputError(f"encoder={encoder!r} is not one of {', '.join(ENCODERS)}")
        if encoder_options and encoder == "rnn":
            raise InputError("encoder_options are of the 'ode_rnn' encoder; 'rnn' has no ODE")
        self.time_scale = time_scale
        options = {"sensitivity": sensitivity_for(engine, solver), **options}
        options |= {"rtol": rtol, "atol": atol, "engine": engine}
        self.encoder: RNNEncoder | ODERNNEncoder
        if encoder == "rnn":
            self.encoder = RNNEncoder(coordinates, hidden, latent, time_scale)
        else:
            self.encoder = ODERNNEncoder(
                coordinates, hidden, latent, time_scale, hidden,
                **{"solver": "bs3"} | options | (encoder_options or {}),
            )  # fmt: skip
        field = MLPField(latent, field_hidden, layers=field_layers, activation=field_activation)
        self.node = NeuralODE(field, solver=solver, **options)
        self.decoder = mlp(latent, decoder_hidden, coordinates, activation=decoder_activation)
        self.likelihood = GaussianLikelihood(coordinates, sigma, sigma_min)

    def _decode(self, z0: Tensor, times: Tensor) -> Tensor:
        """Means (B, T, C) at each sample's own times (B, T); those at padding mean nothing."""
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
