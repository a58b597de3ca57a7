"""What happened in each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pynode.train.config import TrainConfig


@dataclass
class History:
    """One row for each epoch.

    Attributes:
        rows: dicts with ``epoch`` (from 1), ``train_loss`` and ``train_<part>`` (means over the
            observed values of the epoch, at the KL weight of that epoch), ``valid_loss`` and
            ``valid_<part>`` (at KL weight 1, so that epochs compare), ``lr``, ``kl_weight``,
            ``grad_norm`` (mean over batches, before clipping), ``nfe_forward`` and
            ``nfe_backward`` (mean over batches) and ``seconds``.
        stopped: why training ended: ``epochs``, ``patience`` or ``max_seconds``; empty while it
            has not.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""

    @property
    def epochs(self) -> int:
        """Whole epochs so far."""
        return len(self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return math.fsum(row["seconds"] for row in self.rows)

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the lowest validation loss; 0 before the first one."""
        if not self.rows:
            return 0
        return min(self.rows, key=lambda row: row["valid_loss"])["epoch"]

    def mean(self, column: str) -> float:
        """Mean of a column over the epochs."""
        return math.fsum(row[column] for row in self.rows) / len(self.rows)

    def stop_reason(self, config: TrainConfig) -> str:
        """Why training must end now, or an empty string: a function of the rows only, so that a
        resumed run decides as an uninterrupted one does."""
        if self.epochs >= config.epochs:
            return "epochs"
        if config.patience is not None and self.epochs - self.best_epoch >= config.patience:
            return "patience"
        if config.max_seconds is not None and self.seconds >= config.max_seconds:
            return "max_seconds"
        return ""
