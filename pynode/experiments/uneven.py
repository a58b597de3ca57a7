"""What should an RNN be told of uneven times? Time, gap, both, decay, or a learned embedding.

The question of the article that this package grew from: is feeding the absolute time t the same as
feeding Δt? Asked under growing unevenness, growing missing rate, and in two worlds: one in which
what comes next depends on the state and the gap, and one in which it depends on the date.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pynode.data.turning import TurningSeries, turning
from pynode.experiments import uneven_figure, uneven_table
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models import build
from pynode.models.base import SeriesModel
from pynode.train import TrainConfig, fit

RNNS = ("rnn", "rnn_t", "rnn_dt", "rnn_t_dt", "rnn_time2vec", "rnn_decay")
UNTRAINED = ("last_value", "line")
UNEVENNESS = (0.0, 1.0, 2.0)
MISSING = (0.5,)  # besides none, at unevenness 1
BURN_IN = 5  # observations of a series that are not scored
GAP_EDGES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, float("inf"))
_TEST = 200


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    series: int
    observations: int
    epochs: int
    batch_size: int
    lr: float
    hidden: int


SCALES = {
    "demo": Scale(
        seeds=3, series=300, observations=25, epochs=50, batch_size=75, lr=0.02, hidden=32
    ),
    "paper": Scale(
        seeds=10, series=1000, observations=40, epochs=200, batch_size=50, lr=0.01, hidden=32
    ),
}


@dataclass(frozen=True)
class UnevenRun:
    """One model in one setting.

    Attributes:
        model: of ``RNNS``, or ``last_value`` or ``line``, which need no training.
        world, unevenness, missing: of :func:`pynode.data.turning.turning`.
    """

    model: str
    world: str
    unevenness: float
    missing: float
    seed: int
    series: int
    observations: int
    epochs: int
    batch_size: int
    lr: float
    hidden: int

    @property
    def name(self) -> str:
        setting = f"{self.world}-cv{self.unevenness:g}-missing{self.missing:g}"
        return f"{self.model}-{setting}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment uneven``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale = scale_of(arguments, SCALES)
    config = {"scale": arguments.scale, **asdict(scale)}
    return Study(
        name="uneven",
        specs=specs(scale),
        work=work,
        config=config,
        table=lambda rows: uneven_table.render(rows, config),
        figure=uneven_figure.draw,
    ).run(arguments)


def settings() -> list[tuple[str, float, float]]:
    """(world, unevenness, missing) of all runs."""
    autonomous = [("autonomous", cv, 0.0) for cv in UNEVENNESS]
    incomplete = [("autonomous", 1.0, share) for share in MISSING]
    return [*autonomous, *incomplete, ("driven", 1.0, 0.0)]


def specs(scale: Scale) -> list[UnevenRun]:
    """All runs."""
    options = asdict(scale)
    seeds = range(options.pop("seeds"))
    return [
        UnevenRun(model, *setting, seed, **options)
        for setting in settings()
        for model in (*RNNS, *UNTRAINED)
        for seed in seeds
    ]


def data(spec: UnevenRun) -> tuple[TurningSeries, TurningSeries, TurningSeries]:
    """To train on, to choose the best epoch by, and to test on: the same for every model."""
    sizes = (spec.series, max(20, spec.series // 4), _TEST)
    return tuple(
        turning(
            size, spec.observations, spec.unevenness, spec.missing, seed=10 * spec.seed + part,
            world=spec.world,
        )
        for part, size in enumerate(sizes)
    )  # type: ignore[return-value]  # fmt: skip


def work(spec: UnevenRun, folder: Path) -> Row:
    """Train and test one model."""
    train, valid, test = data(spec)
    if spec.model in UNTRAINED:
        return {"parameters": 0, **errors(untrained(spec.model, test), test)}
    model = make(spec)
    history = fit(model, train.observed, valid.observed, training(spec), progress=False)
    return {
        "parameters": model.n_parameters,
        "train_seconds": round(history.seconds, 2),
        "best_epoch": history.best_epoch,
        **errors(one_step_ahead(model, test), test),
    }


def make(spec: UnevenRun) -> SeriesModel:
    """The model with the initial weights of its seed; σ may fall as far as the noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return build(spec.model, 2, hidden=spec.hidden, sigma_min=0.02)


def training(spec: UnevenRun) -> TrainConfig:
    """The same for every model."""
    return TrainConfig(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        optimizer="adam",
        lr=spec.lr,
        lr_decay=0.1 ** (1 / spec.epochs),
        seed=spec.seed,
    )


@torch.no_grad()
def one_step_ahead(model: SeriesModel, test: TurningSeries) -> Tensor:
    """(B, N, 2): each observation as predicted from those before it and from its time."""
    return model.predict(test.observed, test.observed.times).mean


def untrained(rule: str, test: TurningSeries) -> Tensor:
    """(B, N, 2) by a rule for each coordinate, from what was observed of it before.

    ``last_value`` holds it; ``line`` goes on along the last two, no further than they are apart,
    so that a short gap before a long one does not throw it far off.
    """
    times, values, mask = test.observed.times, test.observed.values, test.observed.mask
    count, length, coordinates = values.shape
    last = values.new_zeros(count, coordinates)
    slope, at = torch.zeros_like(last), torch.full_like(last, float("nan"))
    reach = torch.zeros_like(last)
    predictions = []
    for s in range(length):
        now = times[:, s, None].expand(-1, coordinates)
        ahead = torch.minimum((now - at).nan_to_num(), reach)
        predictions.append(last + (slope * ahead if rule == "line" else 0.0))
        seen, apart = mask[:, s], (now - at).nan_to_num()
        new = torch.where(apart > 0, (values[:, s] - last) / apart.clamp(min=1e-6), 0.0)
        slope, reach = torch.where(seen, new, slope), torch.where(seen, apart, reach)
        last, at = torch.where(seen, values[:, s], last), torch.where(seen, now, at)
    return torch.stack(predictions, dim=1)


def errors(predicted: Tensor, test: TurningSeries) -> Row:
    """RMSE against the truth after the burn-in: of all, and by the gap before the moment.

    Both coordinates count, whether they were then observed or not.
    """
    squares = (predicted - test.truth).square().mean(-1)[:, BURN_IN:]
    gaps = test.observed.times.diff(dim=1)[:, BURN_IN - 1 :]
    by_gap = []
    for low, high in itertools.pairwise(GAP_EDGES):
        inside = (gaps >= low) & (gaps < high)
        count = int(inside.sum())
        by_gap.append(squares[inside].mean().sqrt().item() if count >= 50 else None)
    return {"rmse": squares.mean().sqrt().item(), "rmse_by_gap": by_gap}
