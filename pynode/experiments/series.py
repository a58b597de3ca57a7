"""Rubanova et al. 2019's comparison of models of uneven time series.

Every recurrent and latent model on their periodic toy, filling in and forecasting from 10, 30 and
50 observed points; or, with ``--data hopper``, on MuJoCo's hopper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pynode.data.hopper import hopper
from pynode.data.periodic import periodic, seen_in_window
from pynode.data.series import IrregularSeries
from pynode.data.spirals import ForecastTask
from pynode.experiments import series_figure, series_table
from pynode.experiments.series_table import TRIVIAL
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models import build
from pynode.models.base import SeriesModel
from pynode.train import TrainConfig, fit

FORECASTS = "forecasts.pt"
_EULER: dict[str, Any] = {"solver": "euler", "dt": 1.0, "sensitivity": "discrete"}

HOPPER_DEMO = {"series": 1000, "epochs": 36}  # as many steps as the toy's


@dataclass(frozen=True)
class Kind:
    """A data set.

    Attributes:
        make: from (number of series, seed) to a task, of which the clean series are taken.
        coordinates: C.
        observed: numbers of observed points of the 100 in the window.
        noise: standard deviation of an observation.
        time_scale: one unit of the models' time: the window is 5 of them.
        sigma_min: the least standard deviation of the likelihoods.
        demo: what ``--scale demo`` has for it in place of the toy's numbers.
    """

    make: Callable[[int, int], ForecastTask]
    coordinates: int
    observed: tuple[int, ...]
    noise: float
    time_scale: float
    sigma_min: float
    demo: dict[str, int] = field(default_factory=dict)


KINDS = {
    "toy": Kind(lambda n, s: periodic(n, 1, seed=s), 1, (10, 30, 50), 0.01, 1.0, 0.03),
    "hopper": Kind(
        lambda n, s: hopper(n, 1, seed=s), 14, (10, 20, 30, 50), 0.0, 0.1, 0.01, HOPPER_DEMO
    ),
}


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``. Of ``series`` a tenth chooses the best epoch; as many as are
    trained on, up to 1000, are tested on besides."""

    seeds: int
    series: int
    epochs: int
    batch_size: int
    lr: float
    latent: int
    hidden: int
    field_hidden: int


SCALES = {
    "demo": Scale(
        seeds=3, series=300, epochs=120, batch_size=90, lr=0.02, latent=6, hidden=24,
        field_hidden=48,
    ),
    "paper": Scale(
        seeds=3, series=10_000, epochs=300, batch_size=50, lr=0.01, latent=10, hidden=100,
        field_hidden=100,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SeriesRun:
    """One model, trained on series of which some have few, others more observed points.

    Attributes:
        data: a key of ``KINDS``.
        model: a key of ``pynode.models.MODELS``, ``latent_ode_ode`` for the latent ODE with the
            ODE-RNN as its encoder, or ``mean``.
    """

    data: str
    model: str
    seed: int
    series: int
    epochs: int
    batch_size: int
    lr: float
    latent: int
    hidden: int
    field_hidden: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.model}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment series``."""
    parser.add_argument(
        "--data",
        choices=KINDS,
        default="toy",
        help="the periodic toy; or hopper, which needs dm_control, at demo scale with 1000 series "
        "and 36 epochs (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=series_table.LABELS,
        default=list(series_table.LABELS),
        metavar="MODEL",
        help=f"of {', '.join(series_table.LABELS)} (default: all)",
    )
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale = scale_of(arguments, scales(arguments.data))
    runs = specs(scale, arguments.data, list(dict.fromkeys(arguments.models)))
    KINDS[arguments.data].make(2, 0)  # what is missing is said before anything runs
    config = {"scale": arguments.scale, "data": arguments.data, **asdict(scale)}
    return Study(
        name="series",
        specs=runs,
        work=work,
        config=config,
        table=lambda rows: series_table.render(rows, config),
        figure=series_figure.draw,
    ).run(arguments)


def scales(data: str) -> dict[str, Scale]:
    """``SCALES`` with what a data set has of its own."""
    return {**SCALES, "demo": replace(SCALES["demo"], **KINDS[data].demo)}


def specs(scale: Scale, data: str, models: list[str]) -> list[SeriesRun]:
    """All runs, the long ones first."""
    options = asdict(scale)
    seeds = range(options.pop("seeds"))
    return [
        SeriesRun(data, model, seed, **options)
        for model in (*[m for m in models if m not in TRIVIAL][::-1], *TRIVIAL)
        if model in models
        for seed in seeds
    ]


@dataclass(frozen=True, eq=False)
class Data:
    """What a seed's models learn from, choose their best epoch by, and are tested on.

    Attributes:
        train, valid: series with each number of observed points by turns.
        tests: by number of observed points, of the same series.
    """

    train: IrregularSeries
    valid: IrregularSeries
    tests: dict[int, ForecastTask]


@lru_cache(maxsize=1)
def _data(name: str, series: int, seed: int) -> Data:
    kind = KINDS[name]
    n_train = round(0.9 * series)
    task = kind.make(series + min(n_train, 1000), seed)
    generator = torch.Generator().manual_seed(seed)

    def seen(rows: slice, observed: int) -> ForecastTask:
        return seen_in_window(task.clean[rows], 100, observed, task.window, kind.noise, generator)

    def mixed(first: int, last: int) -> IrregularSeries:
        step = len(kind.observed)
        parts = [
            seen(slice(first + i, last, step), observed).observed
            for i, observed in enumerate(kind.observed)
            if first + i < last
        ]
        return IrregularSeries.concatenate(parts)

    tests = {observed: seen(slice(series, None), observed) for observed in kind.observed}
    return Data(mixed(0, n_train), mixed(n_train, series), tests)


def data_of(spec: SeriesRun) -> Data:
    """The same for every model."""
    return _data(spec.data, spec.series, spec.seed)


def make(spec: SeriesRun) -> SeriesModel:
    """The model with the initial weights of the run's seed.

    As in the paper, ODEs between observations are solved by Euler's method, one step a gap, and
    those of the latent ODE adaptively, though at tolerances ten times coarser.
    """
    kind = KINDS[spec.data]
    hyper: dict[str, Any] = {"hidden": spec.hidden, "sigma_min": kind.sigma_min}
    if spec.model != "rnn":
        hyper["time_scale"] = kind.time_scale
    name, field = spec.model, {"field_hidden": spec.field_hidden}
    if name == "ode_rnn":
        hyper |= field | _EULER
    elif name in ("latent_ode", "latent_ode_ode"):
        hyper |= field | {"latent": spec.latent, "rtol": 1e-2, "atol": 1e-3}
        if name == "latent_ode_ode":
            hyper |= {"encoder": "ode_rnn", "encoder_options": _EULER}
    elif name == "rnn_vae":
        hyper |= {"latent": spec.latent}
    name = "latent_ode" if name == "latent_ode_ode" else name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return build(name, kind.coordinates, **hyper)


def training(spec: SeriesRun) -> TrainConfig:
    """The same for every model; the KL divergence comes in as fast, in steps, as in the paper,
    whose epochs had 20 of them."""
    batches = -(-round(0.9 * spec.series) // spec.batch_size)
    return TrainConfig(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        optimizer="adam",
        lr=spec.lr,
        lr_decay=0.2 ** (1 / spec.epochs),
        kl_decay=0.99 ** (batches / 20),
        seed=spec.seed,
    )


def work(spec: SeriesRun, folder: Path) -> Row:
    """Train one model and test it at each number of observed points; forecasts of the first test
    series are left in ``folder``."""
    data = data_of(spec)
    if spec.model in TRIVIAL:
        found = {n: trivial(spec, data.train, test) for n, test in data.tests.items()}
        return {"parameters": 0, "errors": _errors(found, data.tests)}
    model = make(spec)
    history = fit(model, data.train, data.valid, training(spec), progress=False)
    found = {n: forecast(model, test) for n, test in data.tests.items()}
    if spec.seed == 0:
        torch.save({n: values[:20].clone() for n, values in found.items()}, folder / FORECASTS)
    return {
        "parameters": model.n_parameters,
        "train_seconds": round(history.seconds, 2),
        "best_epoch": history.best_epoch,
        "nfe": history.mean("nfe_forward"),
        "errors": _errors(found, data.tests),
    }


def _errors(predicted: dict[int, Tensor], tests: dict[int, ForecastTask]) -> list[Row]:
    return [{"observed": n, **errors(values, tests[n])} for n, values in predicted.items()]


@torch.no_grad()
def forecast(model: SeriesModel, task: ForecastTask) -> Tensor:
    """The model's values (B, Q, C) at all clean times."""
    model.eval()
    parts = [task[first : first + 100] for first in range(0, len(task), 100)]
    return torch.cat([model.predict(p.observed, p.clean.times).mean for p in parts])


def trivial(spec: SeriesRun, train: IrregularSeries, test: ForecastTask) -> Tensor:
    """(B, Q, C) by a rule: the last value, linear interpolation, or the training series' mean."""
    if spec.model != "mean":
        return forecast(build(spec.model, KINDS[spec.data].coordinates), test)
    mean = train.values.sum((0, 1)) / train.mask.sum((0, 1))
    return mean.expand_as(test.clean.values)


def errors(predicted: Tensor, test: ForecastTask) -> Row:
    """Mean squared errors over the window and beyond it."""
    inside = (test.clean.times[0] <= test.window).nonzero()[:, 0]
    squares = (predicted - test.clean.values).square().mean((0, 2))
    count = len(inside)
    return {
        "interpolation": squares[:count].mean().item(),
        "extrapolation": squares[count:].mean().item(),
    }
