"""The uneven experiment's figure: error against unevenness, missing rate, gap, and world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode import plots
from pynode.data.turning import turning
from pynode.experiments.study import Row, Summary
from pynode.experiments.uneven_table import LABELS, by, missing, summary, unevenness, worlds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT_OUT = ("line",)  # far above all others; it is in the table


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Above: what unevenness looks like; below: what it costs whom."""
    with plots.canvas(13.0, 7.2) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.0, 1.75])
        _examples(parts[0].subplots(1, 4, sharey=True))
        panels = parts[1].subplots(1, 4, gridspec_kw={"width_ratios": [1.1, 1, 1.15, 0.9]})
        _lines(panels[0], unevenness(rows), "unevenness: sd of gaps / mean gap")
        _lines(panels[1], missing(rows), "coordinates missing (unevenness 1)")
        _by_gap(panels[2], rows)
        _worlds(panels[3], rows)
        panels[0].set_ylabel("RMSE of the next observation")
        titles = ("Growing unevenness", "Growing missing rate", "Where the error is", "Two worlds")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, [f"told {x}" if x[0] != "(" else x for x in labels],
                      loc="outside lower center", ncols=4, frameon=False)  # fmt: skip
    return figure


def _examples(panels: Sequence[Axes]) -> None:
    shown = (("autonomous", 0.0), ("autonomous", 1.0), ("autonomous", 2.0), ("driven", 1.0))
    for axes, (world, cv) in zip(panels, shown, strict=True):
        one = turning(1, 25, cv, seed=4, world=world)
        t, x = one.observed.times[0], one.observed.values[0]
        axes.vlines(t, -1.9, -1.65, color=plots.GREY, lw=1)
        for c, colour in enumerate((plots.BLUE, plots.RED)):
            axes.plot(t, x[:, c], "o", color=colour, ms=3.5, mew=0)
        axes.set_title(f"{world}, unevenness {cv:g}", loc="left")
        axes.set_xlim(0, 11)
        axes.set_ylim(-1.95, 1.75)
        axes.set_xlabel("t")
    panels[0].set_ylabel("a series: two coordinates")


def _style(model: str) -> dict[str, Any]:
    dashed = model not in LABELS or LABELS[model].startswith("(")
    colour = plots.colours([m for m in LABELS if m not in _LEFT_OUT])[model]
    return {"color": colour, "ls": "--" if dashed else "-"}


def _lines(axes: Axes, groups: dict[str, list[Row]], label: str) -> None:
    x = range(len(groups))
    for model, name in LABELS.items():
        if model in _LEFT_OUT:
            continue
        found = [by(group, model=model) for group in groups.values()]
        if not all(found):
            continue
        means = [summary(mine).mean for mine in found]
        axes.plot(x, means, marker="o", ms=4, label=name, lw=1.7, **_style(model))
        low = [min(row["rmse"] for row in mine) for mine in found]
        high = [max(row["rmse"] for row in mine) for mine in found]
        axes.fill_between(x, low, high, color=_style(model)["color"], alpha=0.13, lw=0)
    axes.set_xticks(list(x), list(groups))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)


def _by_gap(axes: Axes, rows: Sequence[Row]) -> None:
    """At unevenness 1: short gaps are easy for all, long ones tell the models apart."""
    group = by(rows, world="autonomous", unevenness=1.0, missing=0.0)
    names = ("<0.1", "0.1–0.2", "0.2–0.4", "0.4–0.8", "0.8–1.6", ">1.6")
    for model in LABELS:
        if model in _LEFT_OUT:
            continue
        mine = by(group, model=model)
        points = []
        for i in range(len(names)):
            values = [row["rmse_by_gap"][i] for row in mine if row["rmse_by_gap"][i] is not None]
            if values:
                points.append((i, Summary.of(values).mean))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.5, **_style(model))
    axes.set_xticks(range(len(names)), names, rotation=25)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("gap Δt before the observation (unevenness 1)")


def _worlds(axes: Axes, rows: Sequence[Row]) -> None:
    """What an RNN is told, by world: a line joins the same model in both."""
    groups = worlds(rows)
    x = range(len(groups))
    for model in LABELS:
        if model in _LEFT_OUT:
            continue
        found = [by(group, model=model) for group in groups.values()]
        if all(found):
            axes.plot(
                x, [summary(mine).mean for mine in found], marker="o", ms=4, lw=1.5, **_style(model)
            )
    decides = {"autonomous": "the gap decides", "driven": "the date decides"}
    axes.set_xticks(list(x), [f"{name}\n({decides[name]})" for name in groups])
    axes.set_xlim(-0.3, len(groups) - 0.7)
    axes.set_ylim(bottom=0)
