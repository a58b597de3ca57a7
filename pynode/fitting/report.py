"""What a run found, as a page to look at: report.html with its pictures beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pynode import plots
from pynode.data.frames import SeriesTable
from pynode.fitting import figures
from pynode.fitting.forecaster import Forecaster
from pynode.fitting.predictor import residuals
from pynode.fitting.settings import Plan, Settings
from pynode.fitting.windows import Window
from pynode.train.files import write_text

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:58em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}
h1,h2{line-height:1.2}.note{color:#555}
"""


def data_summary(table: SeriesTable) -> list[tuple[str, str]]:
    """A table in a few lines: sizes, times, unevenness, what is missing."""
    clock, gaps = table.clock, table.gaps
    lengths = [len(t) for t in table.times]
    start = min(float(t[0]) for t in table.times)
    end = max(float(t[-1]) for t in table.times)
    ends = clock.restore(np.array([start, end]))
    lines = [
        ("series", str(len(table))),
        ("rows", f"{sum(lengths)}" + (f", {min(lengths)} to {max(lengths)} a series"
                                      if len(table) > 1 else "")),
        ("times", f"{ends[0]} to {ends[1]}" if clock.timestamps else f"{start:g} to {end:g}"),
    ]  # fmt: skip
    if len(gaps):
        median = float(np.median(gaps))
        spread = float(np.std(gaps) / np.mean(gaps)) if np.mean(gaps) > 0 else 0.0
        lines += [
            ("gap between rows", f"median {clock.say(median)}, from {clock.say(gaps.min())} to "
                                 f"{clock.say(gaps.max())}"),
            ("unevenness", f"{spread:.2f} (standard deviation of gaps over their mean; 0 is even, "
                           "1 is random)"),
        ]  # fmt: skip
    missing = ", ".join(f"{name} {rate:.1%}" for name, rate in table.missing_rates.items())
    lines.append(("missing", missing))
    if table.static.shape[1]:
        lines.append(("static covariates", ", ".join(s.name for s in table.statics)))
    return lines


def write_report(
    out: Path,
    model: Forecaster,
    table: SeriesTable,
    plan: Plan,
    settings: Settings,
    extra: Sequence[str] = (),
) -> Path:
    """Draw the pictures of a fitted model and write the page.

    Args:
        out: the folder.
        model: what was fitted.
        table: what it was fitted on.
        plan, settings: how.
        extra: further sections, HTML.
    """
    parts = [
        f"<h1>{_safe(model.model.name)} on {_safe(', '.join(model.names))}</h1>",
        "<h2>Forecast</h2>",
        _picture(out, "forecast.png", figures.series_figure(model, table, _typical(table))),
        "<p class=note>Green: observed. Blue: the model between observations. Red: its forecast. "
        "Bands hold 80 % of values on the validation windows.</p>",
        *extra,
        "<h2>Data</h2>",
        pairs_html(data_summary(table)),
        _list(table.notes),
        "<h2>What was decided</h2>",
        _list(model.reasons) or "<p>Everything was given.</p>",
    ]
    parts += _scores(out, model, plan, settings)
    if model.history:
        figure = plots.learning_curves({model.model.name: model.history})
        parts += ["<h2>Learning</h2>", _picture(out, "learning.png", figure)]
        best = min(model.history, key=lambda row: row["valid_loss"])
        seconds = sum(row["seconds"] for row in model.history)
        parts.append(
            f"<p>{len(model.history)} epochs in {seconds:.0f} s; the weights are those of epoch "
            f"{best['epoch']}, the best on the validation windows.</p>"
        )
    return write_page(out, model.model.name, parts)


def write_page(out: Path, title: str, parts: Sequence[str]) -> Path:
    """report.html in the folder ``out``."""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_safe(title)}</title>"
        f"<style>{_STYLE}</style><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    path = out / "report.html"
    write_text(path, page)
    return path


def _typical(table: SeriesTable) -> int:
    """The series of median length, so neither the easiest nor the hardest to see."""
    order = np.argsort([len(t) for t in table.times], kind="stable")
    return int(order[len(order) // 2])


def _scores(out: Path, model: Forecaster, plan: Plan, settings: Settings) -> list[str]:
    if model.scores is None or plan.split.test is None:
        return ["<h2>Scores</h2><p>Nothing was held out to score on.</p>"]
    scores = model.scores
    rows = []
    for name, value in scores.by_value.items():
        rows.append({"value": name, **{k: value[k] for k in _SHOWN}})
    frame = pd.DataFrame(rows).rename(columns=_SHOWN)
    held = "the last part of the times" if plan.split.kind == "time" else "whole series"
    parts = [
        "<h2>Held-out scores</h2>",
        f"<p>{scores.n_windows} windows, {scores.n_values} values after their origins, from "
        f"{held}; nothing was learned or chosen there.</p>",
        table_html(frame),
        _picture(out, "calibration.png", figures.calibration_figure({model.model.name: scores})),
    ]
    chosen, titles = _examples(model, plan, settings)
    if chosen:
        figure = figures.windows_figure(model, chosen, titles)
        parts += [
            "<h2>Held-out examples</h2>",
            "<p>The windows with the lowest, the median and the highest error but for a tenth at "
            "each end.</p>",
            _picture(out, "examples.png", figure),
        ]
    return parts


_SHOWN = {
    "rmse": "RMSE",
    "mae": "MAE",
    "crps": "CRPS",
    "coverage_50": "inside 50 % interval",
    "coverage_80": "inside 80 % interval",
    "coverage_95": "inside 95 % interval",
    "rmse_inside": "RMSE of filled-in rows",
}


def _examples(model: Forecaster, plan: Plan, settings: Settings) -> tuple[list[Window], list[str]]:
    assert plan.split.test is not None
    windows = plan.split.test.windows(
        model.scaling, model.frame, 40, settings.seed + 4, settings.hide
    )
    if not windows:
        return [], []
    parts = residuals(model.model, windows, model.reader.gap / model.frame.unit, model.seed)
    with np.errstate(invalid="ignore"):
        errors = [_rmse(p.error[p.ahead > 0]) for p in parts]
    known = [i for i in np.argsort(errors) if np.isfinite(errors[i])]
    if not known:
        return [], []
    picks = {"low": 0.1, "median": 0.5, "high": 0.9}
    chosen = {name: known[round(share * (len(known) - 1))] for name, share in picks.items()}
    return [windows[i] for i in chosen.values()], [f"{name} error" for name in chosen]


def _rmse(error: np.ndarray) -> float:
    known = error[np.isfinite(error)]
    return float(np.sqrt(np.square(known).mean())) if len(known) else float("nan")


def _picture(out: Path, name: str, figure: Any) -> str:
    plots.save(figure, out / name, dpi=130)
    return f'<p><img src="{name}" alt="{name}"></p>'


def picture(out: Path, name: str, figure: Any) -> str:
    """Draw a figure beside the page; returns what shows it. ``name`` is never from the data."""
    return _picture(out, name, figure)


def table_html(frame: pd.DataFrame) -> str:
    """A table of numbers and names."""
    head = "".join(f"<th>{_safe(c)}</th>" for c in frame.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row) + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else _safe(value)


def pairs_html(lines: Sequence[tuple[str, str]]) -> str:
    """Names and values, without a header."""
    return table_html(pd.DataFrame(lines, columns=["", " "])).replace(
        "<tr><th></th><th> </th></tr>", ""
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_safe(x)}</li>" for x in lines) + "</ul>" if lines else ""


def _safe(text: Any) -> str:
    """Names from the data are text, never markup."""
    return html.escape(str(text))
