"""The series experiment's figure: one series as several models see it, and all errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode import plots
from pynode.experiments.series_table import (
    LABELS,
    LATENT,
    PARTS,
    READS_IN_ORDER,
    TRIVIAL,
    by,
    by_count,
    counts,
    summary,
)
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pynode.data.spirals import ForecastTask

_OWN_COLOUR = ("rnn_dt", "gru_d", "ode_rnn", "rnn_vae", "latent_ode", "latent_ode_ode")


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """At the left forecasts of one series; at the right error against observed points."""
    rows = by_count(rows)
    with plots.canvas(13.0, 8.2) as figure:
        parts: Any = figure.subfigures(1, 2, width_ratios=[1.35, 1.0])
        _forecasts(parts[0], rows, out)
        panels = parts[1].subplots(2, 1, sharex=True)
        for axes, part in zip(panels, PARTS, strict=True):
            _errors(axes, rows, part)
        panels[1].set_xlabel("observed points of the 100 in the window")
        handles, labels = panels[0].get_legend_handles_labels()
        parts[1].legend(handles, labels, loc="outside lower center", ncols=3, frameon=False,
                        fontsize=7.5)  # fmt: skip
    return figure


def shown_models(rows: Sequence[Row], observed: int) -> list[str]:
    """The best RNN in extrapolation, and the models with an ODE or a latent state."""
    group = by(rows, observed=observed)
    rnns = [m for m in READS_IN_ORDER if m != "ode_rnn" and by(group, model=m)]
    best = sorted(rnns, key=lambda m: summary(by(group, model=m), "extrapolation").mean)[:1]
    rest = [m for m in ("ode_rnn", "rnn_vae", *LATENT) if by(group, model=m)]
    return best + rest


def _forecasts(figure: Any, rows: Sequence[Row], out: Path) -> None:
    from pynode.experiments import series  # which imports this module

    ns = counts(rows)
    observed = 30 if 30 in ns else ns[0]
    models = shown_models(rows, observed)
    first = [by(rows, model=m, observed=observed, seed=0) for m in models]
    specs = [series.SeriesRun(**{k: found[0][k] for k in series.SeriesRun.__dataclass_fields__})
             for found in first if found]  # fmt: skip
    if not specs:
        return
    task = series.data_of(specs[0]).tests[observed]
    seen = {}
    for spec in specs:
        file = out / "runs" / spec.name / series.FORECASTS
        seen[spec.model] = torch.load(file, weights_only=True)[observed]
    index = _middle(task, seen[specs[-1].model])
    coordinate = 0 if task.clean.coordinates == 1 else 2
    panels = figure.subplots(len(specs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (model, values) in zip(panels, seen.items(), strict=True):
        _forecast(axes, task[index], values[index, :, coordinate], coordinate)
        axes.set_title(LABELS[model], loc="left", fontweight="bold")
    true = task.clean.values[index, :, coordinate]
    size = float(true.max() - true.min())
    panels[0].set_ylim(float(true.min()) - 0.6 * size, float(true.max()) + 0.6 * size)
    panels[-1].set_xlabel(
        f"t   (n = {observed}, seed 0, test series {index}: the median one of 20 in extrapolation "
        f"by the last model)"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)


def _middle(task: ForecastTask, values: Tensor) -> int:
    """Of the series with forecasts the one in the middle, by its error beyond the window."""
    true = task.clean.values[: len(values)]
    beyond = task.clean.times[0] > task.window
    errors = (values - true)[:, beyond].square().mean((1, 2))
    return int(errors.argsort()[(len(errors) - 1) // 2])


def _forecast(axes: Axes, task: ForecastTask, values: Tensor, coordinate: int) -> None:
    t, true = task.clean.times[0], task.clean.values[0, :, coordinate]
    inside, begun = t <= task.window, t >= task.observed.times[0, 0]
    axes.axvspan(task.window, float(t[-1]), color="#f6f1ee", zorder=0, lw=0)
    axes.plot(t, true, color=plots.GREEN, lw=1.2, label="true series")
    axes.plot(t[inside & begun], values[inside & begun], color=plots.BLUE, lw=1.6, label="fit")
    axes.plot(t[~inside], values[~inside], color=plots.RED, lw=1.6, label="prediction")
    axes.plot(task.observed.times[0], task.observed.values[0, :, coordinate], "o",
              color=plots.GREEN, ms=3.6, mew=0, label="observed")  # fmt: skip
    axes.margins(x=0.01)


def _errors(axes: Axes, rows: Sequence[Row], part: str) -> None:
    ns = counts(rows)
    colours = plots.colours(_OWN_COLOUR)
    markers = {"rnn": "x", "rnn_t": "+", "rnn_decay": "1", "rnn_impute": "2"}
    for model, label in LABELS.items():
        found = [by(rows, model=model, observed=n) for n in ns]
        if not all(found):
            continue
        means = [summary(mine, part).mean for mine in found]
        style: dict[str, Any] = {"color": colours.get(model, "#9a9a9a"), "lw": 1.7, "marker": "o"}
        if model in TRIVIAL:
            style |= {"ls": {"last_value": "--", "linear": ":", "mean": "-."}[model],
                      "color": "black", "lw": 1.1, "marker": ""}  # fmt: skip
        elif model not in colours:
            style |= {"lw": 1.0, "marker": markers[model]}
        axes.plot(ns, means, ms=4.5, label=label, **style)
        if model in colours:
            low = [min(100 * row[part] for row in mine) for mine in found]
            high = [max(100 * row[part] for row in mine) for mine in found]
            axes.fill_between(ns, low, high, color=colours[model], alpha=0.12, lw=0)
    axes.set_yscale("log")
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set_ylabel("MSE × 10⁻²")
    axes.set_title(part.capitalize(), loc="left", fontweight="bold")
