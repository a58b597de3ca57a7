"""Networks as the fitting of windows uses them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynode.data.series import IrregularSeries
from pynode.models import MODELS, build
from pynode.models.base import LossTerms, Prediction, SeriesModel
from pynode.models.rnn import RNN
from pynode.models.rnn_vae import RNNVAE
from pynode.models.variational import VariationalModel

# What can be fitted: all series models, and one more rule that needs no training, which holds the
# last value of what trend and season leave.
SEASONAL = "seasonal"
FORECASTERS = (*MODELS, SEASONAL)
# These see the values as they are, so that they are what their names say.
PLAIN_RULES = ("last_value", "linear")
RULES = (*PLAIN_RULES, SEASONAL)


class WindowModel(SeriesModel):
    """Any series model, on packed windows: see :func:`pynode.fitting.windows.pack`.

    Static covariates are coordinates that never change, seen at every observation. Variational
    models read only the rows that are marked as known, and are trained on all others too, those in
    the future included (Rubanova et al. 2019, section 4.2: encode what is known, decode the rest).
    Their latent state begins with the first row of a window, wherever that is. Recurrent models
    predict every row from those before it.

    Args:
        network: its name in ``MODELS``.
        values: C, the coordinates that are predicted.
        static: S, the covariates.
        hyper: of the network.
    """

    def __init__(self, network: str, values: int, static: int, **hyper: Any) -> None:
        super().__init__(values + static + 1)
        self.values = values
        self.name = network
        network = "last_value" if network == SEASONAL else network
        self.network = build(network, values + static, **hyper)

    @property
    def trainable(self) -> bool:  # type: ignore[override]
        """Whether the network has a loss."""
        return self.network.trainable

    @property
    def random(self) -> bool:
        """Whether predictions of the network can be drawn."""
        return isinstance(self.network, VariationalModel)

    @property
    def steps(self) -> bool:
        """Whether the network goes on from point to point, reading what it has predicted."""
        return isinstance(self.network, RNN | RNNVAE)

    @property
    def nfe(self) -> tuple[int, int]:
        """See :attr:`SeriesModel.nfe`."""
        return self.network.nfe

    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Values (B, Q, C) at the times ``at``, from the rows of the windows that are read."""
        read = self._read(observed)
        if self.random:
            start = torch.fmin(read.times[:, :1], at.expand(len(read), -1)[:, :1])
            read, at = _from(read, start), at - start
        found = self.network.predict(read, at, generator)
        std = None if found.std is None else found.std[..., : self.values]
        return Prediction(found.mean[..., : self.values], std)

    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """See :meth:`SeriesModel.loss`."""
        self._begin(observed)
        everything = _coordinates(observed, slice(0, -1))
        if isinstance(self.network, VariationalModel):
            scored = everything.mask.clone()
            scored[..., self.values :] = False
            start = everything.times[:, :1]
            return self.network.loss(
                _from(IrregularSeries(everything.times, everything.values, scored), start),
                kl_weight=kl_weight,
                generator=generator,
                read=_from(self._read(observed), start),
            )
        return self.network.loss(everything, kl_weight=kl_weight, generator=generator)

    def weight(self, observed: IrregularSeries) -> int:
        """See :meth:`SeriesModel.weight`: the values that the network's loss is a mean over."""
        last = self.values if self.random else -1
        return int(observed.mask[..., :last].sum())

    def _read(self, windows: IrregularSeries) -> IrregularSeries:
        flag = windows.values[..., -1:] > 0.5
        inner = _coordinates(windows, slice(0, -1))
        mask = inner.mask & flag
        # Rows that are not read go to the end as padding.
        order = (~flag.squeeze(-1)).long().argsort(dim=1, stable=True)
        times = inner.times.masked_fill(~flag.squeeze(-1), math.nan).gather(1, order)
        wide = order.unsqueeze(-1).expand_as(inner.values)
        longest = int(flag.sum(dim=1).max())
        return IrregularSeries(
            times[:, :longest],
            inner.values.gather(1, wide)[:, :longest],
            mask.gather(1, wide)[:, :longest],
        )


def _from(series: IrregularSeries, start: Tensor) -> IrregularSeries:
    """With times counted from ``start`` (B, 1), each series' own."""
    return IrregularSeries(series.times - start, series.values, series.mask)


def _coordinates(series: IrregularSeries, chosen: slice) -> IrregularSeries:
    return IrregularSeries(series.times, series.values[..., chosen], series.mask[..., chosen])
