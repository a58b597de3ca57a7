"""``pynode fit --label``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pandas as pd

from pynode import plots
from pynode.data.frames import SeriesTable
from pynode.data.tables import Text
from pynode.errors import InputError
from pynode.fitting.class_networks import CLASSIFIERS
from pynode.fitting.classifier import Classifier, fit_classifier
from pynode.fitting.fitting import make_settings
from pynode.fitting.report import data_summary, pairs_html, picture, table_html, write_page
from pynode.fitting.settings import Settings
from pynode.train.distributed import is_main
from pynode.train.files import write_json


def run_classifier(
    arguments: argparse.Namespace, table: SeriesTable, text: Text, say: Callable[[str], None]
) -> int:
    """Fit one classifier, or with ``--compare`` all of them, and write what came out."""
    from pynode.fitting.command import MODEL, logger, settings_from, write_csv

    for name in ("forecast", "every"):
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name} makes no sense with --label: classes are not forecast")
    settings = settings_from(arguments)
    for name, value in data_summary(table):
        say(f"{name}: {value}")
    out = arguments.out
    if arguments.compare is not None:
        fitted = _compared(arguments, table, settings, text, say)
    else:
        log = logger(arguments.tensorboard)
        fitted = [
            fit_classifier(table, settings, text, out, arguments.resume, say=say, on_epoch=log)
        ]
    if not is_main():
        return 0
    best = min(fitted, key=lambda m: m.scores.get("log_loss", 0.0))
    out.mkdir(parents=True, exist_ok=True)
    scores = pd.DataFrame([{"model": m.model.name, **m.scores} for m in fitted])
    print(scores.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    write_csv(out / "classes.csv", best.predict(table))
    write_json(out / "scores.json", {m.model.name: m.scores for m in fitted})
    best.save(out / MODEL)
    _page(arguments, table, fitted, best, scores)
    print(f"{MODEL}, scores.json and report.html are in {out}")
    return 0


def _compared(
    arguments: argparse.Namespace,
    table: SeriesTable,
    settings: Settings,
    text: Text,
    say: Callable[[str], None],
) -> list[Classifier]:
    names = arguments.compare or CLASSIFIERS
    given: dict[str, Any] = settings.__dict__
    return [
        fit_classifier(table, make_settings(given | {"model": name}), text, say=say)
        for name in dict.fromkeys(names)
    ]


def _page(
    arguments: argparse.Namespace,
    table: SeriesTable,
    fitted: list[Classifier],
    best: Classifier,
    scores: pd.DataFrame,
) -> None:
    curves = {m.model.name: m.history for m in fitted}
    write_page(
        arguments.out,
        best.model.name,
        [
            f"<h1>Classes of series by {best.model.name}</h1>",
            "<h2>Held-out scores</h2>",
            table_html(scores),
            "<p class=note>accuracy with its 95 % interval; majority is the accuracy of always "
            "saying the commonest class; a difference between models inside these intervals may "
            "be chance.</p>",
            "<h2>Data</h2>",
            pairs_html(data_summary(table)),
            "<h2>Learning</h2>",
            picture(arguments.out, "learning.png", plots.learning_curves(curves)),
        ],
    )
