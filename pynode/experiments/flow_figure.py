"""The flow experiment's figure: what was learned, how noise becomes data, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynode import plots
from pynode.experiments.flow_table import (
    LABELS,
    PLAIN,
    VARIANTS,
    by,
    compared,
    costs,
    equal_likelihood,
    round_trips,
)
from pynode.experiments.study import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF = 4.4  # pictures show [-HALF, HALF]²
_FILMED = "pinwheel"
_EXTENT = (-HALF, HALF, -HALF, HALF)


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Data above learned densities; a filmstrip; four panels of numbers."""
    pictures = {
        row["density"]: np.load(file)
        for row in by(rows, model="cnf", regularised=PLAIN, seed=0)
        if (file := out / "runs" / _name(row) / "picture.npz").exists()
    }
    with plots.canvas(13.0, 10.0) as figure:
        parts: Any = figure.subfigures(3, 1, height_ratios=[3.45, 2.1, 3.4])
        top, middle, bottom = parts
        _gallery(top, pictures)
        if pictures:
            name = _FILMED if _FILMED in pictures else list(pictures)[-1]
            _filmstrip(middle, name, pictures[name])
        panels = bottom.subplots(1, 4, gridspec_kw={"width_ratios": [1.25, 1.1, 1, 1]})
        _likelihoods(panels[0], rows)
        _regularisers(panels[1], rows)
        _round_trips(panels[2], rows)
        _costs(panels[3], rows)
    return figure


def _name(row: Row) -> str:
    return f"cnf-{row['density']}-seed{row['seed']}"


def _gallery(figure: Any, pictures: dict[str, Any]) -> None:
    grid = figure.subplots(2, max(1, len(pictures)), squeeze=False)
    for column, (name, picture) in enumerate(pictures.items()):
        upper, lower = grid[:, column]
        upper.plot(*picture["data"].T, ".", color=plots.GREEN, ms=1.6, mew=0, alpha=0.7)
        upper.set_title(name, fontweight="bold")
        _image(lower, picture["log_p"])
        for axes in (upper, lower):
            _square(axes)
    for axes, text in zip(grid[:, 0], ("test points", "density of the CNF"), strict=True):
        axes.set_ylabel(text)


def _filmstrip(figure: Any, name: str, picture: Any) -> None:
    path, times = picture["path"], picture["times"]
    frames = figure.subplots(1, len(times), squeeze=False)[0]
    start = path[0]
    # Each point keeps the colour of the direction in which it began.
    colour = np.arctan2(start[:, 1], start[:, 0])
    for axes, positions, t in zip(frames, path, times, strict=True):
        axes.scatter(*positions.T, c=colour, cmap="hsv", alpha=0.75, s=2.2, lw=0)
        axes.set_title(f"t = {t:.2f}")
        _square(axes)
    frames[0].set_ylabel(f"noise to {name}")


def _image(axes: Axes, log_p: Any) -> None:
    p = np.exp(log_p)
    axes.imshow(
        np.sqrt(p), origin="lower", extent=_EXTENT, cmap="magma",
        vmax=math.sqrt(float(np.quantile(p, 0.995))), interpolation="bilinear",
    )  # fmt: skip


def _square(axes: Axes) -> None:
    axes.set_xlim(-HALF, HALF)
    axes.set_ylim(-HALF, HALF)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def _likelihoods(axes: Axes, rows: Sequence[Row]) -> None:
    """Dots for seeds, a bar at their mean; the entropy as a line."""
    colours = plots.colours(LABELS)
    names = compared(rows)
    x = 0
    ticks = []
    for name in names:
        first = x
        for model, label in LABELS.items():
            mine = by(rows, model=model, density=name, regularised=PLAIN)
            if not mine:
                continue
            nlls = [row["nll"] for row in mine]
            axes.plot([x] * len(nlls), nlls, "o", color=colours[model], ms=4, mew=0, alpha=0.75,
                      label=label if name == names[0] else None)  # fmt: skip
            mean = Summary.of(nlls).mean
            axes.plot([x - 0.35, x + 0.35], [mean, mean], color=colours[model], lw=2)
            x += 1
        floor = by(rows, density=name)[0].get("entropy")
        if floor is not None:
            axes.plot([first - 0.5, x - 0.5], [floor, floor], "--", color=plots.GREY, lw=1)
            axes.annotate("entropy", (first - 0.4, floor), xytext=(0, -9), fontsize=7.5,
                          textcoords="offset points", color="#606060")  # fmt: skip
        ticks.append(((first + x - 1) / 2, name))
        x += 1
    axes.set_xticks([t for t, _ in ticks], [n for _, n in ticks])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("test −log p, nats (lower is better)")
    axes.set_title("Likelihood", loc="left", fontweight="bold")
    if names:
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.04 * (high - low), high + 0.45 * (high - low))


def _regularisers(axes: Axes, rows: Sequence[Row]) -> None:
    """Evaluations of the field for each variant: at equal likelihood, and at the end."""
    colours = plots.colours(VARIANTS)
    equal = equal_likelihood(rows)
    variants = by(rows, model="cnf")
    where = {row["density"] for row in variants if row["regularised"] != PLAIN}
    for i, variant in enumerate(VARIANTS):
        if variant not in equal:
            continue
        mine = [r for r in by(variants, regularised=variant) if r["density"] in where]
        ends = [row["nfe"] for row in mine]
        axes.plot([i + 0.14] * len(ends), ends, "^", color=colours[variant], ms=4, mew=0, alpha=0.6)
        axes.plot([i - 0.14] * len(equal[variant]), equal[variant], "o", color=colours[variant],
                  ms=5, mew=0, alpha=0.8)  # fmt: skip
        mean = Summary.of(equal[variant]).mean
        axes.plot([i - 0.34, i + 0.06], [mean, mean], color=colours[variant], lw=2)
    axes.plot([], [], "o", color=plots.GREY, ms=5, mew=0, label="at equal −log p")
    axes.plot([], [], "^", color=plots.GREY, ms=4, mew=0, label="at the end of training")
    axes.set_xticks(range(len(VARIANTS)), list(VARIANTS.values()))
    axes.set_xlim(-0.6, len(VARIANTS) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("nfe at tolerance 1e-5")
    axes.set_title("Regularisers", loc="left", fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False, loc="lower left")


def _round_trips(axes: Axes, rows: Sequence[Row]) -> None:
    found = round_trips(rows)
    if found:
        tolerances, errors, _ = zip(*found, strict=True)
        axes.loglog(tolerances, errors, "o-", color=plots.BLUE, ms=4)
        for tolerance, error, nfe in found:
            axes.annotate(f"{nfe:.0f} nfe", (tolerance, error), xytext=(5, -9), fontsize=7.5,
                          textcoords="offset points", color="#606060")  # fmt: skip
        axes.loglog(tolerances, tolerances, ":", color=plots.GREY, lw=1)
        axes.invert_xaxis()
    axes.set_xlabel("tolerance of the solves")
    axes.set_ylabel("largest distance, data → noise → data")
    axes.set_title("Inversion", loc="left", fontweight="bold")


def _costs(axes: Axes, rows: Sequence[Row]) -> None:
    found = costs(rows)
    d = [c["features"] for c in found]
    for trace, colour in (("exact", plots.RED), ("hutchinson", plots.BLUE)):
        axes.loglog(d, [c[f"{trace}_vjp"] for c in found], "o-", color=colour, ms=4,
                    label=f"{trace.capitalize()}, passes")  # fmt: skip
        base = found[0][f"{trace}_seconds"] if found else 1.0
        axes.loglog(d, [c[f"{trace}_seconds"] / base for c in found], "s--", color=colour, ms=3,
                    lw=1, alpha=0.7, label=f"{trace.capitalize()}, time (D = 2: 1)")  # fmt: skip
    axes.set_xticks(d, [str(x) for x in d])
    axes.minorticks_off()
    axes.set_ylim(top=axes.get_ylim()[1] * 4)
    axes.set_xlabel("dimension D")
    axes.set_ylabel("for each evaluation of the field")
    axes.set_title("Cost of the trace", loc="left", fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")
