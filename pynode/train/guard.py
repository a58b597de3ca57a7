"""Stopping, with the cause, when a loss or a gradient is no longer a finite number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pynode.errors import PynodeError
from pynode.train.config import TrainConfig

if TYPE_CHECKING:
    from pynode.models.base import LossTerms


class TrainingError(PynodeError, RuntimeError):
    """Training cannot go on.

    Attributes:
        epoch: the epoch (from 1) in which it stopped.
        batch: the minibatch of that epoch (from 1); 0 for the validation after it.
    """

    def __init__(self, message: str, epoch: int, batch: int) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch = batch


def place(epoch: int, batch: int) -> str:
    """Where in training, in words."""
    return f"epoch {epoch}, batch {batch}" if batch else f"validation after epoch {epoch}"


def check_loss(
    terms: LossTerms, model: nn.Module, config: TrainConfig, epoch: int, batch: int
) -> None:
    """Raise TrainingError unless the loss is finite."""
    loss = terms.total.detach().item()
    if math.isfinite(loss):
        return
    causes = [f"the loss is {loss} ({_parts(terms)})", _values(model)]
    if terms.total.requires_grad:
        causes.append(_gradients_of(terms.total, model))
    raise _error(causes, config, epoch, batch)


def check_gradients(
    norm: Tensor, terms: LossTerms, model: nn.Module, config: TrainConfig, epoch: int, batch: int
) -> None:
    """Raise TrainingError unless the norm of all gradients is finite."""
    if math.isfinite(norm.item()):
        return
    causes = [f"the gradient is not finite, the loss is ({_parts(terms)})", _gradients(model)]
    raise _error(causes, config, epoch, batch)


def _error(causes: list[str], config: TrainConfig, epoch: int, batch: int) -> TrainingError:
    remedy = (
        f"Try a smaller lr (now {config.lr_at(epoch - 1):g}) or clip_norm (now "
        f"{config.clip_norm}), tighter solver tolerances, and look for extreme values in the data"
    )
    return TrainingError(f"{place(epoch, batch)}: {'; '.join(causes)}. {remedy}", epoch, batch)


def _parts(terms: LossTerms) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in terms.parts.items())


def _values(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name} already holds non-finite values"
    return "all parameters are finite"


def _gradients_of(total: Tensor, model: nn.Module) -> str:
    try:
        total.backward()
    except PynodeError as error:
        return f"its backward pass fails too: {error}"
    return _gradients(model)


def _gradients(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"first parameter with a non-finite gradient: {name}"
    return "each gradient by itself is finite (their norm overflows)"
