"""Models of irregular time series, all with one interface, by name; and the flow, `CNF`."""

from __future__ import annotations

import inspect
from typing import Any

from pynode.errors import InputError
from pynode.models.base import LossTerms, Prediction, SeriesModel
from pynode.models.baselines import LastValue, Linear
from pynode.models.cnf import CNF
from pynode.models.latent_ode import LatentODE
from pynode.models.ode_rnn import ODERNN
from pynode.models.rnn import (
    GRUD,
    RNN,
    RNNDecay,
    RNNDelta,
    RNNImpute,
    RNNTime,
    RNNTimeDelta,
    RNNTimeEmbedding,
)
from pynode.models.rnn_vae import RNNVAE

__all__ = ["CNF", "MODELS", "LossTerms", "Prediction", "SeriesModel", "build"]

MODELS: dict[str, type[SeriesModel]] = {
    "rnn": RNN,
    "rnn_t": RNNTime,
    "rnn_dt": RNNDelta,
    "rnn_t_dt": RNNTimeDelta,
    "rnn_time2vec": RNNTimeEmbedding,
    "rnn_decay": RNNDecay,
    "rnn_impute": RNNImpute,
    "gru_d": GRUD,
    "ode_rnn": ODERNN,
    "rnn_vae": RNNVAE,
    "latent_ode": LatentODE,
    "last_value": LastValue,
    "linear": Linear,
}


def build(name: str, coordinates: int, engine: str = "torch", **hyper: Any) -> SeriesModel:
    """A model by its name in ``MODELS``.

    Args:
        name: which one.
        coordinates: C, of the series.
        engine: what solves the ODE of those that have one; nothing to the others.
        hyper: the model's own options, see its class.

    Raises:
        InputError: the name or an option is unknown, or an option has no meaning.
    """
    if name not in MODELS:
        raise InputError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    model = MODELS[name]
    parameters = inspect.signature(model).parameters
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [p for p in parameters if p not in ("coordinates", "options")]
    unknown = sorted(set(hyper) - set(known))
    if unknown and not takes_rest:
        raise InputError(
            f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    if "engine" in parameters:
        hyper["engine"] = engine
    return model(coordinates, **hyper)
