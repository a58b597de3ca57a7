"""Figures of fitted models, in the colours of the package: green data, blue fit, red forecast."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pynode.data.frames import SeriesTable
from pynode.fitting.predictor import answers
from pynode.fitting.scores import COVERAGES, Scores
from pynode.fitting.windows import Window
from pynode.plots import BLUE, GREEN, GREY, RED, _new_figure, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pynode.fitting.forecaster import Forecaster

BAND = (0.1, 0.9)
_POINTS = 400  # of a drawn line
_MOST_PANELS = 6


def plain(text: Any, length: int = 40) -> str:
    """A name from the data as text that matplotlib does not read as mathematics."""
    short = " ".join(textwrap.shorten(str(text), length, placeholder="…").split())
    return short.replace("\\", "/").replace("$", r"\$")


def series_figure(model: Forecaster, table: SeriesTable, row: int, horizon: Any = None) -> Figure:
    """A series with the model's fit and forecast, each with its 80 % interval; a panel a value."""
    clock = table.clock
    length = model.frame.horizon if horizon is None else clock.duration(horizon, "horizon")
    times, values = table.times[row], table.values[row]
    known = np.isfinite(values).any(axis=1)
    first, last = float(times[known][0]), float(times[known][-1])
    begin = max(first, last - max(model.frame.context, 3 * length))
    inside = np.linspace(begin, last, _POINTS)
    # After the last row, as close as the table's own rows: so were the intervals calibrated.
    step = max(model.reader.gap, length / _POINTS)
    ahead = last + np.linspace(0, length, max(2, int(length / step) + 1))[1:]
    fit, fit_band = model._series(table, row, inside, BAND)
    forecast, band = model._series(table, row, ahead, BAND)
    ahead = np.r_[last, ahead]  # drawn from where the fit ends
    forecast = np.concatenate([fit[-1:], forecast])
    band = [np.concatenate([f[-1:], b]) for f, b in zip(fit_band, band, strict=True)]
    names = model.names[:_MOST_PANELS]
    shown = times >= begin
    figure = _new_figure((8.6, 2.3 * len(names) + 0.9))
    with _style():
        panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
        for c, (axes, name) in enumerate(zip(panels, names, strict=True)):
            x = clock.restore(inside)
            axes.fill_between(x, fit_band[0][:, c], fit_band[1][:, c], color=BLUE, alpha=0.15, lw=0)
            axes.plot(x, fit[:, c], color=BLUE, lw=1.3, label="fit")
            x = clock.restore(ahead)
            axes.fill_between(x, band[0][:, c], band[1][:, c], color=RED, alpha=0.18, lw=0,
                              label="80 % interval")  # fmt: skip
            axes.plot(x, forecast[:, c], color=RED, lw=1.5, label="forecast")
            axes.plot(clock.restore(times[shown]), values[shown, c], "o", color=GREEN, ms=2.6,
                      mew=0, label="observed", zorder=1)  # fmt: skip
            axes.set_ylabel(plain(name))
            axes.margins(x=0.01)
        panels[-1].set_xlabel(plain(table.columns.time))
        who = "" if table.ids[row] is None else f", series {plain(table.ids[row])}"
        panels[0].set_title(f"{model.model.name}{who}", loc="left", fontweight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def windows_figure(model: Forecaster, windows: Sequence[Window], titles: Sequence[str]) -> Figure:
    """Held-out windows: what was known, what came after, and what the model said."""
    scale, unit = model.scaling.scale, model.frame.unit
    gap = model.reader.gap / unit
    names = model.names[:3]
    ends = [float(w.asked_times.max(initial=0.1)) for w in windows]
    starts = [float(min(w.known_times[0], w.asked_times.min(initial=0.0))) for w in windows]
    lines = [np.linspace(s, e, 200) for s, e in zip(starts, ends, strict=True)]
    found = answers(model.model, windows, lines, gap, model.seed)
    figure = _new_figure((3.1 * len(windows) + 0.5, 2.2 * len(names) + 0.8))
    with _style():
        grid = figure.subplots(len(names), len(windows), squeeze=False)
        for j, (w, line, answer) in enumerate(zip(windows, lines, found, strict=True)):
            std = model.calibration.std(answer.ahead, answer.std)
            half = model.calibration.half_width(0.8) * std

            def units(
                t: np.ndarray, x: np.ndarray, place: Any = w.place, level: Any = w.level
            ) -> np.ndarray:
                return model.scaling.restored(t * unit + place.origin, x + level)

            mean = units(line, answer.mean)
            for c, name in enumerate(names):
                axes = grid[c, j]
                width = half[:, c] * scale[c]
                for part, colour in ((line <= 0, BLUE), (line >= 0, RED)):
                    x = line[part] * unit
                    axes.plot(x, mean[part, c], color=colour, lw=1.4)
                    axes.fill_between(x, (mean[:, c] - width)[part], (mean[:, c] + width)[part],
                                      color=colour, alpha=0.16, lw=0)  # fmt: skip
                axes.plot(w.known_times * unit, units(w.known_times, w.known)[:, c], "o",
                          color=GREEN, ms=2.8, mew=0)  # fmt: skip
                axes.plot(w.asked_times * unit, units(w.asked_times, w.asked)[:, c], "o",
                          color=GREEN, ms=3.2, mfc="none", mew=0.8)  # fmt: skip
                if j == 0:
                    axes.set_ylabel(plain(name))
            grid[0, j].set_title(titles[j], loc="left")
        figure.supxlabel(
            "time from the origin of the forecast; full dots were known, hollow ones were not",
            fontsize=9,
        )
    return figure


def calibration_figure(scores: Mapping[str, Scores]) -> Figure:
    """Share of held-out values inside intervals against the share that was promised."""
    figure = _new_figure((3.9, 3.7))
    with _style():
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls="--")
        colours = (RED, BLUE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a", "#8c564b")
        several = sum(len(s.by_value) for s in scores.values()) > 1
        lines = [(m, n, v) for m, s in scores.items() for n, v in s.by_value.items()]
        for (_, name, value), colour in zip(lines, colours, strict=False):
            held = [value[f"coverage_{100 * p:.0f}"] for p in COVERAGES]
            known = [h for h in held if h is not None]
            if len(known) < len(held):
                continue
            axes.plot(COVERAGES, known, "o-", color=colour, ms=3.5, lw=1.2, label=plain(name))
        axes.set_xlabel("promised")
        axes.set_ylabel("held")
        axes.set_title("coverage of intervals, held-out values", loc="left")
        axes.set_aspect("equal")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        if several:
            axes.legend(frameon=False, loc="upper left")
    return figure


def comparison_figure(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """Models by relative RMSE, best first, with the standard deviation over seeds.

    Args:
        rows: name, error, standard deviation.
    """
    figure = _new_figure((6.2, 0.32 * len(rows) + 1.1))
    with _style():
        axes = figure.subplots()
        best = min(error for _, error, _ in rows)
        for i, (_, error, spread) in enumerate(rows):
            colour = RED if error == best else BLUE
            axes.plot(error, i, "o", color=colour, ms=5)
            _bar(axes, i, error, spread, colour)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.invert_yaxis()
        errors = [error for _, error, _ in rows]
        if max(errors) > 8 * max(min(errors), 1e-12):
            axes.set_xscale("log")
        axes.set_xlabel("held-out RMSE of forecasts, in standard deviations of the data")
    return figure


def _bar(axes: Axes, row: int, error: float, spread: float, colour: str) -> None:
    if spread > 0:
        axes.plot([error - spread, error + spread], [row, row], color=colour, lw=1.6)
