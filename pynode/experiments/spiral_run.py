"""One run of the spiral experiment: one model, one number of observations, one seed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pynode.data.spirals import ForecastTask, spirals
from pynode.errors import InputError
from pynode.models import build
from pynode.models.base import SeriesModel
from pynode.train import TrainConfig, checkpoint, fit, load_best
from pynode.train.checkpoint import FILE as CHECKPOINT
from pynode.train.files import write_json

SPLIT = (0.7, 0.1, 0.2)  # training, validation, held out
_CHUNK = 100  # series predicted at once


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's result.

    Attributes:
        model: a key of ``pynode.models.MODELS``.
        observed: observations in the window of 100 points.
        seed: of the data, the split, the initial weights, the minibatches and the noise.
        series: how many spirals, held-out ones included.
        noise: standard deviation of an observation.
        missing: probability that a coordinate of an observation is missing.
        engine: of the models with an ODE.
        epochs, batch_size: the budget, the same for every model.
    """

    model: str
    observed: int
    seed: int
    series: int
    noise: float
    missing: float
    engine: str
    epochs: int
    batch_size: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.model}-n{self.observed}-seed{self.seed}"

    def train_config(self) -> TrainConfig:
        """Rubanova et al. 2019's optimizer and schedules, for every model alike."""
        return TrainConfig(epochs=self.epochs, batch_size=self.batch_size, seed=self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the spec and the training options that follow from it."""
        training = self.train_config().as_dict()
        # Named above, or without influence on the result.
        for free in ("epochs", "batch_size", "seed", "checkpoint_every", "accumulate", "precision"):
            del training[free]
        return asdict(self) | {"training": training}


@dataclass(frozen=True)
class RunFolder:
    """Where a run is, and how far it is."""

    spec: RunSpec
    path: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    @property
    def unfinished(self) -> bool:
        """It was begun and has a checkpoint, but no result."""
        return (self.path / CHECKPOINT).exists() and not (self.path / "result.json").exists()

    @property
    def epochs_done(self) -> int:
        """Whole epochs in its checkpoint, 0 without one."""
        file = self.path / CHECKPOINT
        return int(checkpoint.load(file)["epoch"]) if file.exists() else 0

    def check(self) -> None:
        """Raise InputError if the folder holds a run with other options."""
        file = self.path / "config.json"
        if not file.exists():
            return
        saved, now = json.loads(file.read_text()), self.spec.as_dict()
        if saved != now:
            changes = [
                f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
                for key in [*now, *(set(saved) - set(now))]
                if saved.get(key) != now.get(key)
            ]
            raise InputError(
                f"{self.path} holds a run with other options ({'; '.join(changes)}): choose "
                "another --out, or remove that folder"
            )

    def model(self) -> SeriesModel:
        """The finished run's model, with its best weights."""
        model = build_model(self.spec)
        if model.trainable:
            load_best(self.path, model)
        return model.eval()

    def errors_by_series(self) -> dict[str, list[float]]:
        """RMSE of each held-out series in the finished run: ``fit`` and ``extrapolation``."""
        return json.loads((self.path / "result.json").read_text())["held_out_rmse_by_series"]

    def history(self) -> list[dict[str, Any]]:
        """The rows of the finished run's training; empty for a model without any."""
        return json.loads((self.path / "history.json").read_text())


@lru_cache(maxsize=2)
def _split_data(
    series: int, observed: int, noise: float, missing: float, seed: int
) -> tuple[ForecastTask, ForecastTask, ForecastTask]:
    task = spirals(n_series=series, observed=observed, noise=noise, missing=missing, seed=seed)
    train, valid, test = task.split(SPLIT, seed=seed)
    return train, valid, test


def split_data(spec: RunSpec) -> tuple[ForecastTask, ForecastTask, ForecastTask]:
    """Training, validation and held-out spirals: the same for every model."""
    return _split_data(spec.series, spec.observed, spec.noise, spec.missing, spec.seed)


def build_model(spec: RunSpec) -> SeriesModel:
    """The model with the initial weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return build(spec.model, 2, engine=spec.engine)


def run(folder: RunFolder, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train (or go on training) and evaluate; what is found is also in ``folder``.

    Args:
        folder: what to run, and where.
        report: called with the row of each epoch.

    Returns:
        The row of ``metrics.json``.
    """
    spec = folder.spec
    write_json(folder.path / "config.json", spec.as_dict())
    train, valid, test = split_data(spec)
    model = build_model(spec)
    row: dict[str, Any] = {
        "model": spec.model,
        "observed": spec.observed,
        "seed": spec.seed,
        "parameters": model.n_parameters,
        "train_seconds": 0.0,
        "epochs": 0,
        "best_epoch": 0,
        "nfe_forward": 0.0,
        "nfe_backward": 0.0,
    }
    rows: list[dict[str, Any]] = []
    if model.trainable:
        history = fit(
            model,
            train.observed,
            valid.observed,
            spec.train_config(),
            out=folder.path,
            resume=True,
            progress=False,
            on_epoch=report,
        )
        rows = history.rows
        row["train_seconds"] = round(history.seconds, 3)
        row["epochs"], row["best_epoch"] = history.epochs, history.best_epoch
        for name in ("nfe_forward", "nfe_backward"):
            row[name] = round(history.mean(name), 2)
    errors = evaluate(model, test)
    row["fit_rmse"] = _root_mean(errors["fit"])
    row["extrapolation_rmse"] = _root_mean(errors["extrapolation"])
    row["extrapolation_median"] = errors["extrapolation"].sqrt().quantile(0.5).item()
    write_json(folder.path / "history.json", rows)
    by_series = {name: squares.sqrt().tolist() for name, squares in errors.items()}
    write_json(
        folder.path / "result.json",
        {"row": row, "config": spec.as_dict(), "held_out_rmse_by_series": by_series},
    )
    return row


@torch.no_grad()
def evaluate(model: SeriesModel, task: ForecastTask) -> dict[str, Tensor]:
    """Mean squared errors against the clean series, for each series and part.

    Returns:
        ``fit`` (B,), over the points of the window, and ``extrapolation`` (B,), beyond it.
    """
    inside = task.clean.times <= task.window
    squares = (forecast(model, task) - task.clean.values).square()
    parts = {"fit": inside, "extrapolation": ~inside}
    means = {}
    for name, chosen in parts.items():
        known = task.clean.mask & chosen.unsqueeze(-1)
        means[name] = squares.where(known, 0.0).sum((1, 2)) / known.sum((1, 2))
    return means


@torch.no_grad()
def forecast(model: SeriesModel, task: ForecastTask) -> Tensor:
    """The model's values (B, Q, C) at all times of ``task.clean``."""
    model.eval()
    chunks = [task[first : first + _CHUNK] for first in range(0, len(task), _CHUNK)]
    return torch.cat([model.predict(c.observed, c.clean.times).mean for c in chunks])


def seconds_per_epoch(spec: RunSpec) -> float:
    """What an epoch takes now, from timing two training steps (0 for a model without any)."""
    model = build_model(spec)
    if not model.trainable:
        return 0.0
    config = spec.train_config()
    n_train = round(spec.series * SPLIT[0])
    size = min(spec.batch_size, n_train)
    batch = spirals(n_series=size, observed=spec.observed, missing=spec.missing, seed=0).observed
    optimizer = config.make_optimizer(model.parameters())
    noise = torch.Generator().manual_seed(0)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model.loss(batch, kl_weight=0.5, generator=noise).total.backward()
        optimizer.step()
        return time.perf_counter() - start

    with torch.random.fork_rng(devices=[]):
        step()
        seconds = min(step(), step())
    validation = SPLIT[1] / SPLIT[0] / 2  # forward passes only
    return seconds * math.ceil(n_train / size) * (1 + validation)


def _root_mean(squares: Tensor) -> float:
    return squares.mean().sqrt().item()
