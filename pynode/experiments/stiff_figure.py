"""The stiff experiment's figure: Robertson's three species, and predators and prey."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynode import plots
from pynode.experiments import stiff_lotka as lotka
from pynode.experiments import stiff_robertson as robertson
from pynode.experiments.stiff_table import by_variant
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAINT = {
    "unscaled": plots.RED,
    "scaled": plots.BLUE,
    "scaled_log_time": "#e69f00",
    "universal": plots.BLUE,
    "sparse": "#e69f00",
    "black_box": plots.RED,
}
_NAMES = {
    "unscaled": "unscaled",
    "scaled": "scaled",
    "scaled_log_time": "scaled, log time",
    "universal": "universal equation",
    "sparse": "its sparse reading",
    "black_box": "black box",
}


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Above, the species and the losses; below, predictions and the interaction that was found."""
    with plots.canvas(12.5, 7.0) as figure:
        grid = figure.add_gridspec(2, 12)
        above = [figure.add_subplot(grid[0, 3 * i : 3 * i + 3]) for i in range(4)]
        variants = by_variant(rows, "robertson")
        for k, axes in enumerate(above[:3]):
            _species(axes, variants, out, k)
        _losses(above[3], variants, out)
        handles, labels = above[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
        below = [figure.add_subplot(grid[1, i : i + 4]) for i in (0, 4, 8)]
        variants = by_variant(rows, "lotka")
        for k in range(2):
            _prediction(below[k], variants, out, k)
        _interaction(below[2], variants, out)
        handles, labels = below[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _curves(out: Path, row: Row) -> dict[str, Any]:
    name = f"{row['problem']}-{row['variant']}-seed{row['seed']}"
    return json.loads((out / "runs" / name / "curves.json").read_text())


def _species(axes: Axes, variants: dict[str, list[Row]], out: Path, k: int) -> None:
    times, states = (x.numpy() for x in robertson.truth())
    seen_t, seen = (x.numpy() for x in robertson.observed())
    unit = 1e5 if k == 1 else 1.0
    axes.semilogx(times, unit * states[:, k], color=plots.GREEN, lw=1.4, label="true")
    axes.plot(seen_t, unit * seen[:, k], "o", color=plots.GREEN, ms=3, mew=0, label="observed")
    for variant, mine in variants.items():
        for i, row in enumerate(mine):
            path = _curves(out, row)["path"]
            if path is not None:
                y = unit * np.array(path)[:, k]
                axes.plot(times, y, color=_PAINT[variant], lw=1.3, alpha=1.0 if i == 0 else 0.45,
                          label=_NAMES[variant] if i == 0 else None)  # fmt: skip
    span = unit * np.ptp(states[:, k])
    low = unit * states[:, k].min()
    axes.set_ylim(low - 0.25 * span, low + 1.25 * span)
    axes.set_title(f"y{k + 1}" + (" · 10⁵" if k == 1 else ""), loc="left", fontweight="bold")
    axes.set_xlabel("t")


def _losses(axes: Axes, variants: dict[str, list[Row]], out: Path) -> None:
    for variant, mine in variants.items():
        for i, row in enumerate(mine):
            curves = _curves(out, row)
            best = np.minimum.accumulate(curves["losses"])
            axes.semilogy(curves["spent"], best, color=_PAINT[variant], lw=1.1,
                          alpha=1.0 if i == 0 else 0.45)  # fmt: skip
    axes.set_ylim(top=min(1e4, axes.get_ylim()[1]))  # some begin far above
    axes.set_title("best loss so far, in its own units", loc="left", fontweight="bold")
    axes.set_xlabel("evaluations of the field spent")


def _prediction(axes: Axes, variants: dict[str, list[Row]], out: Path, k: int) -> None:
    times, states = (x.numpy() for x in lotka.truth(121, lotka.HORIZON))
    row = next(iter(variants.values()))[0]
    seen_t, seen = (x.numpy() for x in lotka.observe(row["seed"], row["noise"]))
    axes.axvspan(lotka.WINDOW, lotka.HORIZON, color="#f6f1ee", lw=0, zorder=0)
    axes.plot(times, states[:, k], color=plots.GREEN, lw=2.4, label="true")
    axes.plot(seen_t, seen[:, k], "o", color=plots.GREEN, ms=3.5, mew=0, label="observed")
    for variant, key in (
        ("universal", "path"),
        ("universal", "sparse_path"),
        ("black_box", "path"),
    ):
        if variant not in variants:
            continue
        name = "sparse" if key == "sparse_path" else variant
        for i, row in enumerate(variants[variant]):
            path = _curves(out, row).get(key)
            if path is not None:
                axes.plot(times, np.array(path)[:, k], "--" if name == "sparse" else "-",
                          color=_PAINT[name], lw=1.3, alpha=1.0 if i == 0 else 0.35,
                          label=_NAMES[name] if i == 0 else None)  # fmt: skip
    high = states[:, k].max()
    axes.set_ylim(-0.15 * high, 1.3 * high)
    axes.set_title(("prey u", "predators v")[k], loc="left", fontweight="bold")
    axes.set_xlabel("t; shaded: never observed")


def _interaction(axes: Axes, variants: dict[str, list[Row]], out: Path) -> None:
    for i, row in enumerate(variants.get("universal", [])):
        table = np.array(_curves(out, row)["interaction"])
        product = table[:, 0] * table[:, 1]
        for k, colour in enumerate(("#0072b2", "#cc79a7")):
            name = ("N₁, learned", "N₂, learned")[k]
            axes.plot(product, table[:, 2 + k], ".", color=colour, ms=3, mew=0,
                      alpha=0.9 if i == 0 else 0.35, label=name if i == 0 else None)  # fmt: skip
    x = np.array([0.0, 2.3])  # the range of u·v in the window
    axes.plot(x, -lotka.BETA * x, color="black", lw=1.0, ls="--", label="true: −βuv, γuv")
    axes.plot(x, lotka.GAMMA * x, color="black", lw=1.0, ls="--")
    axes.set_title("the unknown half", loc="left", fontweight="bold")
    axes.set_xlabel("u · v")
    axes.legend(frameon=False, fontsize=8, markerscale=2.5)
