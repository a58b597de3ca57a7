"""``pynode fit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from pynode.data.frames import SeriesTable, read_series
from pynode.data.tables import Columns, Text
from pynode.errors import InputError
from pynode.fitting import figures
from pynode.fitting.comparison import Comparison, compare, sweep
from pynode.fitting.fitting import fit_table, make_settings
from pynode.fitting.forecaster import Forecaster
from pynode.fitting.networks import FORECASTERS
from pynode.fitting.report import data_summary, picture, table_html, write_report
from pynode.fitting.settings import Settings, make_plan
from pynode.train.distributed import is_main
from pynode.train.files import write_atomically, write_json

MODEL = "model.pt"


def run(arguments: argparse.Namespace) -> int:
    """Fit, write all results to ``--out``, and say what they are. Returns the exit status."""
    out = arguments.out
    _check_out(arguments)
    text = Text(arguments.sep, arguments.decimal, arguments.encoding, tuple(arguments.missing))
    table = _read(arguments, text)
    if arguments.label is not None or table.labels:
        from pynode.fitting.class_command import run_classifier

        return run_classifier(arguments, table, text, _say)
    settings = settings_from(arguments)
    clock = table.clock
    for name in ("forecast", "every"):
        value = getattr(arguments, name)
        if value is not None:
            clock.duration(value, f"--{name}")
    for line in (f"{name}: {value}" for name, value in data_summary(table)):
        _say(line)
    if arguments.overwrite and is_main():  # only now, when nothing is left to be refused
        for name in ("checkpoint.pt", MODEL):
            (out / name).unlink(missing_ok=True)
    extra: list[str] = []
    if arguments.compare is not None:
        models = arguments.compare or FORECASTERS
        found = compare(
            table,
            settings,
            tuple(dict.fromkeys([*models, "last_value", "linear", "seasonal"])),
            variants=_variants(arguments, settings),
            text=text,
            trainings=arguments.trainings,
            jobs=arguments.jobs,
            say=_say,
        )
        model = found.best
        if is_main():
            out.mkdir(parents=True, exist_ok=True)
            extra = _write_comparison(out, found)
    else:
        model = fit_table(
            table,
            settings,
            text,
            out=out,
            resume=arguments.resume,
            say=_say,
            on_epoch=logger(arguments.tensorboard),
        )
    if is_main():
        _write(out, model, table, settings, arguments, extra)
    return 0


def _check_out(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; it must be a folder, or not be there")
    if (out / MODEL).exists() and not (arguments.overwrite or arguments.resume):
        raise InputError(f"--out {out} holds a fitted model: choose another folder, or --overwrite")


def _read(arguments: argparse.Namespace, text: Text) -> SeriesTable:
    if arguments.data.is_dir():
        from pynode.data.physionet import read_physionet2012

        return read_physionet2012(arguments.data, label=arguments.label is not None)
    columns = Columns(
        time=arguments.time,
        values=tuple(arguments.values),
        id=arguments.id,
        static=tuple(arguments.static),
        label=arguments.label,
        variable=arguments.variable,
        only=None if arguments.only is None else tuple(arguments.only),
    )
    return read_series(arguments.data, columns, text=text, time_format=arguments.time_format)


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings that were given."""
    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in Settings.__dataclass_fields__
        if getattr(arguments, name, None) is not None
    }
    given.setdefault("horizon", arguments.forecast)
    hyper = {name: values[0] for name, values in _options(arguments.hyper, "--hyper").items()}
    if arguments.engine != "torch":
        hyper["engine"] = arguments.engine
    given["hyper"] = hyper
    return make_settings(given)


def _variants(arguments: argparse.Namespace, settings: Settings) -> dict[str, dict[str, Any]]:
    options = _options(arguments.sweep, "--sweep")
    return sweep(settings.model, options) if options else {}


def _options(given: list[str], option: str) -> dict[str, list[Any]]:
    """``["a=1,2", "b=relu"]`` as lists of numbers and words."""
    found = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not (name.isidentifier() and equals and values):
            raise InputError(f"{option} {text}: must be as name=value")
        found[name] = [_value(v) for v in values.split(",")]
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _write(
    out: Path,
    model: Forecaster,
    table: SeriesTable,
    settings: Settings,
    arguments: argparse.Namespace,
    extra: list[str],
) -> None:
    forecast = model.forecast(table, arguments.forecast, arguments.every)
    filled = model.impute(table, arguments.every)
    plan = make_plan(table, settings)
    write_csv(out / "forecast.csv", forecast)
    write_csv(out / "filled.csv", filled)
    if model.scores is not None:
        write_json(out / "scores.json", model.scores.as_dict())
    model.save(out / MODEL)
    page = write_report(out, model, table, plan, settings, extra)
    if model.scores is not None:
        for name, value in model.scores.by_value.items():
            shown = {k: value[k] for k in ("rmse", "coverage_80", "rmse_inside")}
            rmse, held, inside = (("–" if v is None else f"{v:.4g}") for v in shown.values())
            _say(
                f"held-out {name}: forecast RMSE {rmse}, share inside 80 % intervals {held}, "
                f"filled-in RMSE {inside}"
            )
    print(f"forecast.csv, filled.csv, {MODEL} and {page.name} are in {out}")


def _write_comparison(out: Path, found: Comparison) -> list[str]:
    frame = found.table()
    write_csv(out / "comparison.csv", frame)
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(found.verdict)
    for name, message in found.failures.items():
        _say(f"{name} failed: {message}")
    rows = list(zip(frame["model"], frame["relative_rmse"], frame["over_trainings"], strict=True))
    return [
        "<h2>Comparison</h2>",
        f"<p>{found.verdict}</p>",
        table_html(frame),
        picture(out, "comparison.png", figures.comparison_figure(rows)),
    ]


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A table as CSV, atomically."""
    write_atomically(path, lambda file: file.write(frame.to_csv(index=False).encode()))


def logger(folder: Path | None) -> Any:
    """What logs each epoch for TensorBoard, or None."""
    from pynode.train.tensorboard import epoch_logger

    return None if folder is None or not is_main() else epoch_logger(folder)


def _say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)
