"""RNN-VAE: a variational autoencoder whose decoder is a recurrent network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.models.base import GaussianLikelihood, require_positive
from pynode.models.fields import mlp
from pynode.models.recognition import RNNEncoder
from pynode.models.variational import VariationalModel


class RNNVAE(VariationalModel):
    """As :class:`pynode.models.LatentODE`, with a GRU in place of the ODE.

    A recognition network reads the series backwards in time and gives q(z0); the decoder's state
    begins as a function of z0 and takes a step for each time, told the gap to it, from which the
    values are read out. RNN-VAE of Rubanova et al. 2019, section 4, without the mistake of its
    published code, which reads batches backwards in place of times.

    Args:
        coordinates: C.
        latent: D, of z0.
        hidden: units of the recognition network and of the decoder.
        decoder_hidden, decoder_activation: of the readout's one hidden layer.
        t0: the time at which z0 holds; no observation or query may be earlier.
        time_scale: gaps are divided by it.
        sigma, sigma_min: see :class:`pynode.models.base.GaussianLikelihood`.
    """

    def __init__(
        self,
        coordinates: int,
        *,
        latent: int = 4,
        hidden: int = 25,
        decoder_hidden: int = 20,
        decoder_activation: str = "relu",
        t0: float = 0.0,
        time_scale: float = 1.0,
        sigma: float = 0.3,
        sigma_min: float = 0.1,
    ) -> None:
        super().__init__(coordinates, t0)
        require_positive(latent=latent, hidden=hidden, time_scale=time_scale)
        self.time_scale = time_scale
        self.encoder = RNNEncoder(coordinates, hidden, latent, time_scale)
        self.begin = nn.Linear(latent, hidden)
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.readout = mlp(hidden, decoder_hidden, coordinates, activation=decoder_activation)
        self.likelihood = GaussianLikelihood(coordinates, sigma, sigma_min)

    def _decode(self, z0: Tensor, times: Tensor) -> Tensor:
        start = times.new_full((len(times), 1), self.t0)
        gaps = torch.cat([start, times], dim=1).diff(dim=1).nan_to_num() / self.time_scale
        h0 = torch.tanh(self.begin(z0)).unsqueeze(0)
        states, _ = self.gru(gaps.unsqueeze(-1), h0)
        return self.readout(states)
