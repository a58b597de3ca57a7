"""``pynode.fit``: from a table to a fitted model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pynode.data.frames import SeriesTable, read_series
from pynode.data.tables import Columns, Text
from pynode.errors import InputError
from pynode.experiments.pool import one_thread
from pynode.fitting.calibration import calibrate
from pynode.fitting.forecaster import Forecaster, Reader, Table
from pynode.fitting.networks import FORECASTERS, RULES, WindowModel
from pynode.fitting.predictor import residuals, together
from pynode.fitting.scaling import Shape, learn_scaling
from pynode.fitting.scores import Scores, score
from pynode.fitting.settings import Plan, Settings, make_plan, train_config
from pynode.fitting.windows import Window, pack
from pynode.train import fit as train

VALID_WINDOWS, TEST_WINDOWS = 100, 200
Say = Callable[[str], None]


def fit(
    frame: Table,
    *,
    time: str = "",
    values: Sequence[str] | str = (),
    id: str | None = None,
    static: Sequence[str] | str = (),
    label: str | None = None,
    variable: str | None = None,
    only: Sequence[str] | None = None,
    text: Text | None = None,
    time_format: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    verbose: bool = True,
    **settings: Any,
) -> Any:
    """Fit a model to the irregular series of a table.

    Args:
        frame: a DataFrame, a CSV or Parquet file, or a
            :class:`pynode.data.frames.SeriesTable`, which says itself what its columns are.
        time, values, id, static, label, variable, only: see :class:`pynode.data.tables.Columns`.
            With ``label`` a classifier of series is fitted.
        text: how a CSV file is written.
        time_format: of timestamps as text; default: ISO 8601.
        out: folder for the checkpoint of training.
        resume: go on from it.
        progress: show a bar; None shows one where stderr is a terminal.
        verbose: print to stderr what was found in the table and decided.
        settings: see :class:`pynode.fitting.settings.Settings`: model, horizon, epochs, …

    Returns:
        A :class:`pynode.fitting.Forecaster`, or with ``label`` a
        :class:`pynode.fitting.Classifier`.

    Raises:
        InputError: the table or an option cannot be used.
    """
    columns = Columns(
        time=time,
        values=_names(values),
        id=id,
        static=_names(static),
        label=label,
        variable=variable,
        only=None if only is None else tuple(only),
    )
    say = _to_stderr if verbose else _quiet
    if isinstance(frame, SeriesTable):
        table = frame
    else:
        table = read_series(frame, columns, text=text, time_format=time_format)
    options = make_settings(settings)
    folder = None if out is None else Path(out)
    if label is not None or table.labels:
        from pynode.fitting.classifier import fit_classifier

        return fit_classifier(table, options, text or Text(), folder, resume, progress, say)
    return fit_table(table, options, text or Text(), folder, resume, progress, say)


def make_settings(options: dict[str, Any]) -> Settings:
    """Settings from keywords; InputError names what is unknown."""
    known = Settings.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}")
    return Settings(**options)


def fit_table(
    table: SeriesTable,
    settings: Settings,
    text: Text,
    out: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    say: Say = lambda _: None,
    plan: Plan | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Forecaster:
    """Fit one model to a table that has been read; see :func:`fit`."""
    if settings.model not in FORECASTERS:
        raise InputError(f"{settings.model} tells classes: it needs a label")
    with one_thread():
        plan = make_plan(table, settings, plan)
        for line in (*table.notes, *plan.reasons):
            say(line)
        model, hyper = _build(table, plan, settings)
        history: list[dict[str, Any]] = []
        valid = plan.split.valid.windows(
            plan.scaling, plan.frame, VALID_WINDOWS, settings.seed + 2, settings.hide
        )
        if not valid:
            raise InputError(
                "no window fits into the part held out for validation: choose a larger valid, or a "
                "horizon that is longer than the gaps and shorter than that part"
            )
        if model.trainable:
            windows = _training_windows(plan, settings)
            config = train_config(settings, len(windows))
            say(
                f"{model.name}: {model.n_parameters} parameters, {len(windows)} windows, "
                f"{config.epochs} epochs, at most {settings.minutes:g} minutes"
            )
            packed, packed_valid = pack(windows), pack(valid)
            history = train(
                model, packed, packed_valid, config, out, resume, progress, on_epoch
            ).rows
            if len(history) < config.epochs and config.patience is None:
                say(f"stopped after {len(history)} epochs: the time was up")
        return _finished(table, settings, text, plan, model, hyper, history, valid)


def _finished(
    table: SeriesTable,
    settings: Settings,
    text: Text,
    plan: Plan,
    model: WindowModel,
    hyper: dict[str, Any],
    history: list[dict[str, Any]],
    valid: Sequence[Window],
) -> Forecaster:
    gap = float(np.median(table.gaps)) if len(table.gaps) else plan.frame.horizon
    found = residuals(model, valid, gap / plan.frame.unit, settings.seed)
    calibration = calibrate(together(found), plan.frame.horizon / plan.frame.unit)
    fitted = Forecaster(
        model=model.eval(),
        reader=Reader(table.source, table.clock, table.statics, text, gap),
        frame=plan.frame,
        scaling=plan.scaling,
        calibration=calibration,
        seed=settings.seed,
        scores=None,
        history=history,
        reasons=plan.reasons,
        hyper=hyper,
    )
    fitted.scores = held_out_scores(fitted, plan, settings)
    return fitted


def held_out_scores(model: Forecaster, plan: Plan, settings: Settings) -> Scores | None:
    """Scores on windows in the part that nothing was learned from; None without one."""
    test = plan.split.test
    if test is None:
        return None
    windows = test.windows(
        model.scaling, model.frame, TEST_WINDOWS, settings.seed + 4, settings.hide
    )
    if not windows:
        return None
    found = residuals(model.model, windows, model.reader.gap / model.frame.unit, settings.seed)
    deviation = learn_scaling(plan.split.train.table, Shape(), False).scale
    return score(
        model.names, windows, found, model.calibration, model.scaling.scale, deviation, model.frame
    )


def _build(
    table: SeriesTable, plan: Plan, settings: Settings
) -> tuple[WindowModel, dict[str, Any]]:
    hyper = dict(settings.hyper)
    n_values, n_static = len(table.names), table.static.shape[1]
    if settings.model == "latent_ode":
        latent = int(np.clip(2 * n_values + 2, 4, 20))
        hyper = {"latent": latent, "hidden": 40, "field_hidden": 50, **hyper}
    if settings.model in RULES and hyper:
        raise InputError(f"{settings.model} has no options")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 7919 * settings.repeat)
        model = WindowModel(settings.model, n_values, n_static, **hyper)
    return model, hyper


def _training_windows(plan: Plan, settings: Settings) -> list[Window]:
    part = plan.split.train
    count = settings.windows
    if count is None:
        rows = sum(len(t) for t in part.table.times)
        count = int(np.clip(max(len(part.table), rows // 3), 64, 640))
    windows = part.windows(plan.scaling, plan.frame, count, settings.seed + 6, settings.hide)
    if not windows:
        raise InputError(
            "no window fits into the series: they are too short for the horizon "
            f"({part.table.clock.say(plan.frame.horizon)}); choose a shorter one"
        )
    return windows


def with_model(settings: Settings, model: str) -> Settings:
    """The same settings for another model, without the first one's own options."""
    has_engine = model in ("latent_ode", "ode_rnn")
    engine = {k: v for k, v in settings.hyper.items() if k == "engine" and has_engine}
    return replace(
        settings, model=model, hyper=settings.hyper if model == settings.model else engine
    )


def _names(names: Sequence[str] | str) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _quiet(_: str) -> None:
    return None
