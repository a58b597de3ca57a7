"""Training: one loop for every model, with checkpoints that continue bit for bit."""

from pynode.train.checkpoint import CheckpointError, load_best
from pynode.train.config import TrainConfig
from pynode.train.guard import TrainingError
from pynode.train.history import History
from pynode.train.loop import TrainingInterrupted, fit

__all__ = [
    "CheckpointError",
    "History",
    "TrainConfig",
    "TrainingError",
    "TrainingInterrupted",
    "fit",
    "load_best",
]
