"""What a training run is told, and the schedules that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pynode.errors import InputError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamax": torch.optim.Adamax,
    "adam": torch.optim.Adam,
}

PRECISIONS = ("float32", "bfloat16")

# A checkpoint may be continued under other values of these: none of them changes what an epoch
# computes, only how many there are and how often they are written.
FREE_ON_RESUME = ("epochs", "max_seconds", "patience", "checkpoint_every")


@dataclass(frozen=True)
class TrainConfig:
    """Options of :func:`pynode.train.fit`. The defaults are Rubanova et al. 2019's, section 4.

    Attributes:
        epochs: passes over the training series, at most.
        batch_size: series in a minibatch; the last one of an epoch may be smaller.
        optimizer: ``adamax`` or ``adam``.
        lr: learning rate of the first epoch.
        lr_decay: factor on the learning rate from each epoch to the next.
        lr_min: the learning rate never falls below it.
        clip_norm: the gradient is scaled down to this Euclidean norm; None leaves it alone.
        kl_start: epochs with a KL weight of 0 at the beginning.
        kl_decay: the KL weight is 1 − kl_decay^(epoch − kl_start) after them; 0 gives the full
            weight in every epoch.
        patience: stop after so many epochs without a better validation loss; None never does.
        seed: of the minibatches and of the noise that the model's loss draws.
        max_seconds: stop after the first epoch that ends beyond so many seconds of training.
        checkpoint_every: epochs between two checkpoints. An interrupted or failed run writes one
            of its last whole epoch in any case.
        accumulate: parts that each process computes its share of a minibatch in, one after the
            other, to need less memory; the gradient is that of the whole.
        precision: ``float32``, or ``bfloat16`` for mixed precision (``torch.autocast``).

    Raises:
        InputError: a value has no meaning.
    """

    epochs: int = 100
    batch_size: int = 50
    optimizer: str = "adamax"
    lr: float = 0.01
    lr_decay: float = 0.999
    lr_min: float = 0.001
    clip_norm: float | None = 10.0
    kl_start: int = 10
    kl_decay: float = 0.99
    patience: int | None = None
    seed: int = 0
    max_seconds: float | None = None
    checkpoint_every: int = 5
    accumulate: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_every", "accumulate"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        _require(self, "precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        _require(self, "lr", self.lr > 0, "above 0")
        _require(self, "lr_decay", 0 < self.lr_decay <= 1, "in (0, 1]")
        _require(self, "lr_min", 0 <= self.lr_min <= self.lr, f"in [0, lr={self.lr}]")
        _require(self, "kl_start", self.kl_start >= 0, "at least 0")
        _require(self, "kl_decay", 0 <= self.kl_decay < 1, "in [0, 1)")
        _require(self, "seed", self.seed >= 0, "at least 0")
        for name in ("clip_norm", "patience", "max_seconds"):
            value = getattr(self, name)
            _require(self, name, value is None or value > 0, "above 0, or None")

    def lr_at(self, epoch: int) -> float:
        """Learning rate in ``epoch``, counted from 0."""
        return max(self.lr * self.lr_decay**epoch, self.lr_min)

    def kl_weight_at(self, epoch: int) -> float:
        """Weight of the KL divergence in ``epoch``, counted from 0."""
        if self.kl_decay == 0:
            return 1.0
        return 1.0 - self.kl_decay ** max(epoch - self.kl_start, 0)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        return OPTIMIZERS[self.optimizer](parameters, lr=self.lr)  # type: ignore[call-arg]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around a loss: lower precision where it was asked for."""
        mixed = self.precision == "bfloat16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a checkpoint."""
        return asdict(self)


def _require(config: TrainConfig, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"{name}={getattr(config, name)!r} must be {rule}")
