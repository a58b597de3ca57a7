"""``pynode fit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from pynode.catalogue import ENGINES
from pynode.data.frames import SeriesTable, read_series
from pynode.data.tables import Columns, Text
from pynode.errors import InputError
from pynode.experiments.pool import available_cores
from pynode.fitting import figures
from pynode.fitting.comparison import Comparison, compare
from pynode.fitting.fitting import fit_table, make_settings
from pynode.fitting.forecaster import Forecaster
from pynode.fitting.networks import FORECASTERS
from pynode.fitting.report import data_summary, picture, table_html, write_report
from pynode.fitting.settings import Settings, make_plan
from pynode.train.distributed import is_main
from pynode.train.files import write_atomically, write_json

MODEL = "model.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode fit``."""
    add = parser.add_argument
    add("data", type=Path, help="CSV (also .gz) or Parquet file; a folder of PhysioNet 2012")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all results")
    table = parser.add_argument_group("the table")
    add = table.add_argument
    add("--time", default="", metavar="COLUMN", help="the time, numbers or timestamps")
    add("--values", nargs="+", default=[], metavar="COLUMN", help="default: all other numbers")
    add("--id", metavar="COLUMN", help="which series a row belongs to; default: all are one")
    add("--static", nargs="+", default=[], metavar="COLUMN", help="the same all through a series")
    add("--label", metavar="COLUMN", help="learn to tell the class of a series")
    add("--variable", metavar="COLUMN", help="long layout: which variable a row's value is of")
    add("--only", nargs="+", metavar="NAME", help="long layout: the variables to use")
    add("--time-format", metavar="FORMAT", help="of timestamps, as %%d/%%m/%%Y; default: ISO 8601")
    add("--sep", metavar="CHAR", help="between columns; default: found out")
    add("--decimal", default=".", metavar="CHAR", help="decimal mark (default: .)")
    add("--encoding", default="utf-8", help="of a CSV file (default: utf-8)")
    add("--missing", nargs="+", default=[], metavar="TEXT", help="what else means a missing value")
    task = parser.add_argument_group("the task")
    add = task.add_argument
    add("--forecast", metavar="TIME", help="how far to forecast; a number, or as 90d")
    add("--horizon", metavar="TIME", help="how far ahead to train and score; default: --forecast")
    add("--context", metavar="TIME", help="how far back the model reads")
    add("--every", metavar="TIME", help="grid of the forecast and the filled-in table")
    add("--trend", choices=("linear", "none"), help="taken out before training; default: by data")
    add("--season", nargs="*", metavar="TIME", help="periods taken out; default: by data")
    add("--level", choices=("window", "table"), help="what values are counted from")
    add("--split", choices=("time", "series"), help="what is held out: the end, or whole series")
    add("--valid", type=float, metavar="SHARE", help="held out for choosing (default: 0.15)")
    add("--test", type=float, metavar="SHARE", help="held out for scoring (default: 0.15)")
    how = parser.add_argument_group("training")
    add = how.add_argument
    add("--model", default=None, help=f"one of {', '.join(FORECASTERS)}; with --label: ode_rnn, "
        "latent_ode, neural_cde (default: latent_ode)")  # fmt: skip
    add("--compare", nargs="*", metavar="MODEL", help="fit these (default: all) and the trivial "
        "baselines, and say which one won")  # fmt: skip
    add("--trainings", type=int, default=1, metavar="N", help="of each model, in --compare")
    add("--jobs", type=int, default=min(2, available_cores()), metavar="N", help="processes")
    add("--epochs", type=int, metavar="N")
    add("--minutes", type=float, metavar="N", help="of training at most, a model (default: 3)")
    add("--windows", type=int, metavar="N", help="to train on")
    add("--batch-size", type=int, metavar="N")
    add("--accumulate", type=int, metavar="N", help="parts that a batch is computed in")
    add("--precision", choices=("float32", "bfloat16"))
    add("--lr", type=float)
    add("--seed", type=int)
    add("--engine", choices=ENGINES, default="torch", help="of models with an ODE")
    add("--tensorboard", type=Path, metavar="DIR", help="log the training there")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--overwrite", action="store_true", help="replace what --out holds")


def run(arguments: argparse.Namespace) -> int:
    """Fit, write all results to ``--out``, and say what they are. Returns the exit status."""
    out = arguments.out
    _check_out(arguments)
    text = Text(arguments.sep, arguments.decimal, arguments.encoding, tuple(arguments.missing))
    table = _read(arguments, text)
    if arguments.label is not None or table.labels:
        from pynode.fitting.class_command import run_classifier

        return run_classifier(arguments, table, text, _say)
    settings = _settings(arguments)
    clock = table.clock
    for name in ("forecast", "every"):
        value = getattr(arguments, name)
        if value is not None:
            clock.duration(value, f"--{name}")
    for line in (f"{name}: {value}" for name, value in data_summary(table)):
        _say(line)
    extra: list[str] = []
    if arguments.compare is not None:
        models = arguments.compare or FORECASTERS
        found = compare(
            table,
            settings,
            tuple(dict.fromkeys([*models, "last_value", "linear", "seasonal"])),
            text=text,
            trainings=arguments.trainings,
            jobs=arguments.jobs,
            say=_say,
        )
        model = found.best
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
            on_epoch=_logger(arguments.tensorboard),
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
    if arguments.overwrite and is_main():
        for name in ("checkpoint.pt", MODEL):
            (out / name).unlink(missing_ok=True)


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


def _settings(arguments: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in Settings.__dataclass_fields__
        if getattr(arguments, name, None) is not None
    }
    given.setdefault("horizon", arguments.forecast)
    if arguments.engine != "torch":
        given["hyper"] = {"engine": arguments.engine}
    return make_settings(given)


def _write(
    out: Path,
    model: Forecaster,
    table: SeriesTable,
    settings: Settings,
    arguments: argparse.Namespace,
    extra: list[str],
) -> None:
    source = arguments.data if arguments.data.is_file() else table
    forecast = model.forecast(source, arguments.forecast, arguments.every)
    filled = model.impute(source, arguments.every)
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
    rows = list(
        zip(frame["model"], frame["relative_rmse"], frame["over_trainings"], strict=True)
    )
    return [
        "<h2>Comparison</h2>",
        f"<p>{found.verdict}</p>",
        table_html(frame),
        picture(out, "comparison.png", figures.comparison_figure(rows)),
    ]


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A table as CSV, atomically."""
    write_atomically(path, lambda file: file.write(frame.to_csv(index=False).encode()))


def _logger(folder: Path | None) -> Any:
    from pynode.train.tensorboard import epoch_logger

    return None if folder is None or not is_main() else epoch_logger(folder)


def _say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)
