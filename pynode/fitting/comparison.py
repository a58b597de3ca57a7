"""Several models on the same windows of the same table: which one won, and is it chance?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pynode.data.frames import SeriesTable
from pynode.data.tables import Text
from pynode.errors import InputError, PynodeError
from pynode.experiments.pool import one_thread, run_all
from pynode.fitting.files import load, save
from pynode.fitting.fitting import Say, fit_table, make_settings, with_model
from pynode.fitting.forecaster import Forecaster
from pynode.fitting.networks import FORECASTERS, RULES
from pynode.fitting.scores import Difference, Scores, difference
from pynode.fitting.settings import Settings, make_plan


@dataclass(frozen=True)
class _Job:
    """One training, under a name, and where its model is put."""

    name: str
    table: SeriesTable
    settings: Settings
    text: Text
    path: Path


@dataclass(frozen=True, eq=False)
class Comparison:
    """Fitted models, best first.

    Attributes:
        models: for each name its trainings, which differ in nothing but chance.
        verdict: who won, by how much, and whether that is within chance, in words.
        failures: messages of trainings that failed, by name.
    """

    models: dict[str, list[Forecaster]]
    verdict: str
    failures: dict[str, str]

    @property
    def best(self) -> Forecaster:
        """The winner's training with the lowest error on the validation windows is not known to
        differ from the others; this is its first one."""
        return next(iter(self.models.values()))[0]

    def table(self) -> pd.DataFrame:
        """A row a model, best first: errors of forecasts on held-out windows.

        ``relative_rmse`` is in standard deviations of the training data, a mean over trainings
        with its standard deviation; then each value's RMSE and CRPS in its own units and the share
        of values inside intervals of 80 %.
        """
        rows = []
        for name, models in self.models.items():
            scores = [_scores(m) for m in models]
            row: dict[str, Any] = {"model": name, "relative_rmse": _mean(scores)}
            row["over_trainings"] = float(np.std([s.relative for s in scores]))
            for value in models[0].names:
                for what in ("rmse", "crps", "coverage_80"):
                    found = [s.by_value[value][what] for s in scores]
                    numbers = [f for f in found if f is not None]
                    row[f"{value}_{what}"] = float(np.mean(numbers)) if numbers else np.nan
            row["trainings"] = len(models)
            row["parameters"] = models[0].model.n_parameters
            row["seconds"] = float(np.mean([sum(r["seconds"] for r in m.history) for m in models]))
            rows.append(row)
        return pd.DataFrame(rows)


def compare(
    table: SeriesTable,
    settings: Settings,
    models: Sequence[str] = FORECASTERS,
    *,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    text: Text | None = None,
    trainings: int = 1,
    jobs: int = 1,
    say: Say = lambda _: None,
) -> Comparison:
    """Fit several models to one table and compare them on the same held-out windows.

    Args:
        table: from :func:`pynode.data.frames.read_series`.
        settings: for all of them; ``model`` is not used.
        models: names.
        variants: further entries by a name of your own, each with what differs from ``settings``:
            ``{"wide": {"hyper": {"hidden": 80}}, "slow": {"lr": 0.005}}``.
        text: how the table's CSV file is written, for the models to remember.
        trainings: of each model that is trained, from different initial weights.
        jobs: processes, one thread each; results do not depend on it.
        say: called with what is done.

    Raises:
        InputError: nothing is held out, or a name is unknown.
        PynodeError: every training failed.
    """
    unknown = [m for m in models if m not in FORECASTERS]
    if unknown:
        raise InputError(f"there is no model {unknown[0]!r}; there are {', '.join(FORECASTERS)}")
    if settings.test <= 0:
        raise InputError("test=0 holds nothing out: there is nothing to compare models on")
    if trainings < 1 or jobs < 1:
        raise InputError("trainings and jobs must be at least 1")
    with tempfile.TemporaryDirectory() as name, one_thread():
        plan = make_plan(table, replace(with_model(settings, "seasonal"), hyper={}))
        for line in (*table.notes, *plan.reasons):
            say(line)
        entries = {model: with_model(settings, model) for model in models}
        for variant, changes in (variants or {}).items():
            if variant in entries:
                raise InputError(f"there are two entries {variant!r} to compare")
            entries[variant] = make_settings(settings.__dict__ | dict(changes))
        pairs = [
            (entry, replace(some, repeat=settings.repeat + k))
            for entry, some in entries.items()
            for k in range(1 if some.model in RULES else trainings)
        ]
        wanted = [
            _Job(entry, table, some, text or Text(), Path(name) / f"{i}.pt")
            for i, (entry, some) in enumerate(pairs)
        ]
        say(f"{len(wanted)} fits in {min(jobs, len(wanted))} processes")
        done: dict[str, list[Forecaster]] = {}

        def finished(index: int, _: None) -> None:
            job = wanted[index]
            model: Forecaster = load(job.path)
            if model.scores is not None:
                done.setdefault(job.name, []).append(model)
                say(f"{job.name}: held-out relative RMSE {model.scores.relative:.4g}")

        failed = run_all(wanted, _work, jobs, lambda *_: None, finished)
    failures = {
        f"{wanted[i].name}, training {wanted[i].settings.repeat}": message
        for i, message in failed.items()
    }
    if not done:
        raise PynodeError(
            "no model could be scored: "
            + ("; ".join(failures.values()) or "no window fits into the part held out for testing")
        )
    ordered = dict(sorted(done.items(), key=lambda item: _mean([_scores(m) for m in item[1]])))
    return Comparison(ordered, _verdict(ordered), failures)


def _work(job: _Job, report: Callable[[Any], None]) -> None:
    save(fit_table(job.table, job.settings, job.text, progress=False), job.path)


def sweep(model: str, options: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Variants for :func:`compare`: every combination of a network's options.

    ``sweep("latent_ode", {"latent": [4, 8], "hidden": [20, 40]})`` are four.
    """
    grid = product(*options.values())
    found = {}
    for values in grid:
        hyper = dict(zip(options, values, strict=True))
        name = " ".join([model, *(f"{k}={v}" for k, v in hyper.items())])
        found[name] = {"model": model, "hyper": hyper}
    return found


def _scores(model: Forecaster) -> Scores:
    assert model.scores is not None
    return model.scores


def _mean(scores: Sequence[Scores]) -> float:
    return float(np.mean([s.relative for s in scores]))


def _pooled(models: Sequence[Forecaster]) -> Scores:
    """The scores of a model's trainings with the squares of each window averaged."""
    scores = [_scores(m) for m in models]
    squares = np.mean([s.squares for s in scores], axis=0)
    return replace(scores[0], squares=squares, relative=float(np.sqrt(squares.mean())))


def _verdict(models: dict[str, list[Forecaster]]) -> str:
    names = list(models)
    best = names[0]
    lines = [
        f"{best} has the lowest held-out error, {_mean([_scores(m) for m in models[best]]):.4g}"
    ]
    rivals = names[1:2]
    rules = [n for n in names[1:] if n in RULES]
    rivals += [n for n in rules[:1] if n not in rivals]
    for rival in rivals:
        found = difference(_pooled(models[best]), _pooled(models[rival]))
        lines.append(_sentence(best, rival, found, _pooled(models[rival]).relative))
    return ". ".join(lines) + "."


def _sentence(best: str, rival: str, found: Difference, error: float) -> str:
    kind = "the best rule without training" if rival in RULES else "the next one"
    share = f"{abs(found.value) / error:.1%}" if error > 0 else "0 %"
    text = f"It errs {share} less than {kind}, {rival}"
    if found.beyond_chance is None:
        return f"{text}; whether that is chance cannot be told from so few independent windows"
    interval = f"95 % interval of the difference {found.low:.3g} to {found.high:.3g}"
    if found.beyond_chance:
        return f"{text}, which is beyond chance ({interval}, {found.groups} independent groups)"
    return f"{text}, which is within chance ({interval}, {found.groups} independent groups)"
