"""What all models of time series have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pynode import catalogue
from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.solution import Statistics


@dataclass(frozen=True)
class Prediction:
    """Values at times that were asked for.

    Attributes:
        mean: (B, Q, C), NaN where the times are padded.
        std: (B, Q, C), standard deviation of an observation about ``mean`` under the model's
            likelihood, without the uncertainty of the mean itself; None for models without a
            likelihood.
    """

    mean: Tensor
    std: Tensor | None


@dataclass(frozen=True)
class LossTerms:
    """A loss and what it is made of.

    Attributes:
        total: scalar, differentiable: what is minimised, in nats for each observed value.
        parts: its terms as numbers in the same unit, before weights.
    """

    total: Tensor
    parts: dict[str, float]


class SeriesModel(nn.Module, ABC):
    """Observed series in, values at any times out.

    Args:
        coordinates: C, of the series that it is used on.

    Attributes:
        trainable: whether there is a loss.
    """

    trainable: ClassVar[bool] = True

    def __init__(self, coordinates: int) -> None:
        super().__init__()
        if coordinates < 1:
            raise InputError(f"coordinates={coordinates}: at least 1 is needed")
        self.coordinates = coordinates
        self._solves: list[Statistics] = []

    @abstractmethod
    def predict(
        self, observed: IrregularSeries, at: Tensor, generator: torch.Generator | None = None
    ) -> Prediction:
        """Values at any times, inside what was observed or beyond.

        Args:
            observed: what is known of B series.
            at: (Q,) for all series or (B, Q), each row increasing; NaN may pad the end of a row.
            generator: where a model has a random latent state, it is drawn from this instead of
                being put at its mean. Other models predict the same with and without.

        Raises:
            InputError: the times or the number of coordinates do not fit.
        """

    @abstractmethod
    def loss(
        self,
        observed: IrregularSeries,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """What training minimises: a mean over all observed values of the batch.

        Args:
            observed: the series, all that is learned from.
            kl_weight: factor of the KL divergence, for models that have one.
            generator: of the noise that the loss draws, if any; default: torch's global one.

        Raises:
            InputError: the number of coordinates does not fit, or there is nothing to train.
        """

    def weight(self, observed: IrregularSeries) -> int:
        """How many terms ``loss`` is a mean over: losses of parts are averaged with these."""
        return observed.n_observed

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def nfe(self) -> tuple[int, int]:
        """Evaluations of ODE fields in the last ``loss`` or ``predict`` and in its backward pass.

        Where the backward pass evaluates no field (sensitivity ``discrete``), its vector-Jacobian
        products are counted. (0, 0) for models without an ODE.
        """
        forward = sum(s.nfe for s in self._solves)
        return forward, sum(max(s.nfe_backward, s.vjp) for s in self._solves)

    def _begin(self, observed: IrregularSeries) -> None:
        """Start a ``loss`` or ``predict``: check the series and count from 0."""
        if observed.coordinates != self.coordinates:
            raise InputError(
                f"the series have {observed.coordinates} coordinates, the model was built for "
                f"{self.coordinates}"
            )
        if len(observed) == 0:
            raise InputError("there is no series in the batch")
        self._solves = []

    def __getstate__(self) -> dict[str, object]:
        """Counts of the last call belong to it, not to copies of the model."""
        return {**super().__getstate__(), "_solves": []}


class GaussianLikelihood(nn.Module):
    """Observations are the mean plus Gaussian noise: the rule of every model with a likelihood.

    The standard deviation is one learned number for each coordinate, the same at all times,
    sigma_min + exp(ρ), so that no model is given the true noise and none can bring it to 0.

    The bound is a regulariser. A likelihood that is sharper than the model deserves lets a latent
    ODE pin its initial state to a point: the field is then learned on thin threads only, and what
    it does beyond the window is left to chance.

    Args:
        coordinates: C.
        sigma: standard deviation to start from, in the units of the values.
        sigma_min: it never falls below this.
    """

    def __init__(self, coordinates: int, sigma: float, sigma_min: float) -> None:
        super().__init__()
        require_positive(sigma=sigma, sigma_min=sigma_min)
        if sigma <= sigma_min:
            raise InputError(f"sigma={sigma} must be above sigma_min={sigma_min}")
        self.floor = sigma_min
        self.log_sigma = nn.Parameter(torch.full((coordinates,), math.log(sigma - sigma_min)))

    @property
    def sigma(self) -> Tensor:
        """(C,) standard deviations."""
        return self.floor + self.log_sigma.exp()

    def nll(self, mean: Tensor, observed: IrregularSeries, sigma: Tensor | None = None) -> Tensor:
        """-log p(observed values | mean (B, T, C)), a mean over all observed values.

        Args:
            sigma: (B, T, C) standard deviations; default: the learned ones.
        """
        sigma = self.sigma if sigma is None else sigma
        scaled = (observed.values - mean) / sigma
        nll = 0.5 * scaled.square() + sigma.log() + 0.5 * math.log(2 * math.pi)
        return nll.masked_fill(~observed.mask, 0.0).sum() / observed.mask.sum()

    def prediction(self, mean: Tensor, padded: Tensor, sigma: Tensor | None = None) -> Prediction:
        """Mean (B, Q, C) and standard deviation, NaN where ``padded`` (B, Q)."""
        hole = padded.unsqueeze(-1)
        std = self.sigma.expand_as(mean) if sigma is None else sigma
        return Prediction(mean.masked_fill(hole, math.nan), std.masked_fill(hole, math.nan))


class OneStepLikelihood(GaussianLikelihood):
    """The likelihood of models that predict each observation from those before it.

    What comes first in a series is predicted from nothing, and is missed by far more than all
    that follows. It has a standard deviation of its own, learned too: with one for all, these
    few errors would set it, and drown the others.
    """

    def __init__(self, coordinates: int, sigma: float, sigma_min: float) -> None:
        super().__init__(coordinates, sigma, sigma_min)
        self.log_sigma_first = nn.Parameter(torch.zeros(coordinates))

    def sigma_at(self, first: Tensor) -> Tensor:
        """(B, S, C) standard deviations, for slots that are ``first`` (B, S) or not."""
        of_first = self.floor + self.log_sigma_first.exp()
        return torch.where(first.unsqueeze(-1), of_first, self.sigma)


def query_times(at: Tensor, observed: IrregularSeries) -> Tensor:
    """Times that were asked for as (B, Q), checked, in the dtype of the series.

    Raises:
        InputError: they have the wrong shape, are infinite, or do not increase.
    """
    count = len(observed)
    if at.ndim not in (1, 2) or at.shape[-1] == 0 or (at.ndim == 2 and len(at) != count):
        raise InputError(
            f"at has shape {tuple(at.shape)}: give (Q,), or (B, Q) with B={count} and Q > 0"
        )
    times = at.to(observed.times).expand(count, -1)
    padded = times.isnan()
    if bool(times.isinf().any() or (padded[:, :-1] & ~padded[:, 1:]).any()):
        raise InputError("at holds infinity, or NaN before the end of a row: NaN only pads the end")
    if bool((times[:, 1:] < times[:, :-1]).any()):
        raise InputError("the times in at must increase: sort them")
    return times


def sensitivity_for(engine: str, solver: str) -> str:
    """``"discrete"``, whose cost does not grow with the number of distinct times, or, for stiff
    solvers of the julia engine, which does not have it for them, ``"gauss"``."""
    return "gauss" if engine == "julia" and catalogue.solver(solver).stiff else "discrete"


def require_positive(**numbers: float | Sequence[float]) -> None:
    """InputError for a hyper-parameter that is not positive and finite."""
    for name, value in numbers.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value!r}: a positive number is needed")
