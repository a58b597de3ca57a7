"""Checkpoints: everything that a run needs to go on bit for bit, in one file.

A checkpoint holds the state at the end of a whole epoch. It is a dict of tensors and plain
values, so ``torch.load(path, weights_only=True)`` reads it, and no code runs from it.
"""

from __future__ import annotations

import hashlib
import re
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pynode.errors import InputError
from pynode.train.config import FREE_ON_RESUME, TrainConfig
from pynode.train.files import write_atomically

if TYPE_CHECKING:
    from pynode.data.series import IrregularSeries

FILE = "checkpoint.pt"
FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: there is none, or the file is damaged or not a checkpoint of this format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}); "
            "remove it to train from the beginning"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of pynode.train")
    return state


def load_best(path: Path, model: nn.Module) -> int:
    """Load the best weights of the checkpoint ``path`` (a file, or its folder) into ``model``.

    Returns:
        The epoch they are from (counted from 1).

    Raises:
        CheckpointError: it cannot be read, holds no whole epoch, or is of another model.
    """
    file = path / FILE if path.is_dir() else path
    state = load(file)
    check_model(file, state, model)
    if not state["best"]:
        raise CheckpointError(f"{file} was written before the first epoch ended: no best weights")
    model.load_state_dict(state["best"])
    return int(state["best_epoch"])


def fingerprint(*series: IrregularSeries) -> str:
    """A digest of the data, to tell a run's own checkpoint from that of other data."""
    digest = hashlib.sha256()
    for part in series:
        for tensor in (part.times, part.values, part.mask):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_belongs(
    path: Path, state: dict[str, Any], model: nn.Module, config: TrainConfig, data: str
) -> None:
    """Raise CheckpointError, saying what differs, unless ``state`` is of this very run."""
    check_model(path, state, model)
    # Options that are younger than the checkpoint had the effect of their defaults.
    saved, now = TrainConfig().as_dict() | state["config"], config.as_dict()
    differing = [
        f"{name} was {saved.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name not in FREE_ON_RESUME and saved.get(name) != value
    ]
    if differing:
        raise CheckpointError(
            f"{path} belongs to a run with other options: {'; '.join(differing)}. "
            "Use the same options to resume, or another folder"
        )
    if state["data"] != data:
        raise CheckpointError(
            f"{path} belongs to a run on other data. Use the same series to resume, or another "
            "folder"
        )
    if state["epoch"] > config.epochs:
        raise CheckpointError(
            f"{path} is already at epoch {state['epoch']}, beyond epochs={config.epochs}"
        )


def check_model(path: Path, state: dict[str, Any], model: nn.Module) -> None:
    """Raise CheckpointError, saying what differs, unless the weights in ``state`` fit ``model``."""
    name = type(model).__name__
    if state["model_class"] != name:
        raise CheckpointError(
            f"{path} belongs to a {state['model_class']}, not to a {name}: use another folder"
        )
    saved = {key: tuple(value.shape) for key, value in state["model"].items()}
    now = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in [*now, *(set(saved) - set(now))]:
        if saved.get(key) != now.get(key):
            raise CheckpointError(
                f"{path} belongs to a {name} of other sizes: {key} is "
                f"{saved.get(key, 'missing')} there and {now.get(key, 'missing')} here"
            )
    here = architecture(model)
    for there, line in zip_longest(state["architecture"].split("\n"), here.split("\n")):
        if there != line:
            raise CheckpointError(
                f"{path} belongs to a {name} that is built in another way: {_stripped(there)} "
                f"there, {_stripped(line)} here"
            )


def architecture(model: nn.Module) -> str:
    """The model in torch's own words, without addresses: weights of the same shapes mean
    something else under another activation or solver."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))


def _stripped(line: str | None) -> str:
    return "nothing" if line is None else line.strip()
