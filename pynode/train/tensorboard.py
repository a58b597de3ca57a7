"""Training curves for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pynode.errors import InputError


def epoch_logger(folder: Path) -> Callable[[dict[str, Any]], None]:
    """What writes a row of the history, for ``on_epoch`` of :func:`pynode.train.fit`.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "logging for TensorBoard needs it: pip install 'pynode-ode[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder))

    def log(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return log
