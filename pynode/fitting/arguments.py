"""Fit a model to the irregular series of a table: fill in, forecast, classify, compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from pynode.catalogue import ENGINES
from pynode.experiments.pool import available_cores
from pynode.models import MODELS


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
    add("--model", help=f"one of {', '.join(MODELS)}, seasonal; with --label: ode_rnn, latent_ode, "
        "neural_cde (default: latent_ode)")  # fmt: skip
    add("--compare", nargs="*", metavar="MODEL", help="fit these (default: all) and the trivial "
        "baselines, and say which one won")  # fmt: skip
    add("--sweep", nargs="+", default=[], metavar="NAME=A,B", help="with --compare: also "
        "--model with every combination of these options, as latent=4,8 hidden=20,40")  # fmt: skip
    add("--trainings", type=int, default=1, metavar="N", help="of each model, in --compare")
    add("--jobs", type=int, default=min(2, available_cores()), metavar="N", help="processes")
    add("--hyper", nargs="+", default=[], metavar="NAME=VALUE", help="options of the network")
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
    """See :func:`pynode.fitting.command.run`; pandas is imported when it is needed."""
    from pynode.fitting import command

    return command.run(arguments)
