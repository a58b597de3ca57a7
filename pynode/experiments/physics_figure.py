"""The physics experiment's figure: paths in the plane of (q, p), and the energy against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pynode import plots
from pynode.experiments.physics_table import NAMES, by_model
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN = ("plain", "hamiltonian", "separable")
_PAINT = {
    "plain": plots.BLUE,
    "hamiltonian": "#d55e00",
    "separable": "#009e73",
    "spring": "#b5b5b5",
}


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Two fresh starts of the first seed under three models; drift over all seeds."""
    models = by_model(rows)
    shown = [model for model in _DRAWN if model in models]
    with plots.canvas(3.3 * len(shown) + 0.4, 6.4) as figure:
        grid = figure.add_gridspec(2, 2 * len(shown), height_ratios=[1.15, 1.0])
        for i, model in enumerate(shown):
            axes = figure.add_subplot(grid[0, 2 * i : 2 * i + 2])
            _plane(axes, _kept(out, models[model][0]), model)
            if i == 0:
                axes.set_ylabel("p")
        left = figure.add_subplot(grid[1, : len(shown)])
        for model in shown:
            kept = _kept(out, models[model][0])
            left.plot(kept["t"], kept["energy"][:, 0], color=_PAINT[model], lw=1.2,
                      label=NAMES[model])  # fmt: skip
        kept = _kept(out, models[shown[0]][0])
        left.axhline(kept["energy"][0, 0], color="black", ls="--", lw=1.2, label="true")
        left.set_title("Energy of one path", loc="left", fontweight="bold")
        left.set_ylabel("p²/2 + 1 − cos q")
        right = figure.add_subplot(grid[1, len(shown) :])
        _drift(right, models, out)
        for axes in (left, right):
            axes.set_xlabel("t")
            axes.margins(x=0.01)
        handles, labels = left.get_legend_handles_labels()
        more, names = right.get_legend_handles_labels()
        handles += [h for h, name in zip(more, names, strict=True) if name not in labels]
        labels += [name for name in names if name not in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _kept(out: Path, row: Row) -> dict[str, np.ndarray]:
    with np.load(out / "runs" / f"{row['model']}-seed{row['seed']}" / "paths.npz") as kept:
        return dict(kept)


def _plane(axes: Axes, kept: dict[str, np.ndarray], model: str) -> None:
    for i in range(kept["true"].shape[1]):
        axes.plot(*kept["found"][:, i].T, ".", color=_PAINT[model], ms=4.5, mew=0, alpha=0.7)
        q0, p0 = kept["found"][0, i]
        _level(axes, 0.5 * p0**2 + 1 - np.cos(q0))
        axes.plot(q0, p0, "o", color="black", ms=5)
    axes.set_title(NAMES[model], loc="left", fontweight="bold")
    axes.set_xlabel("q")
    axes.set_aspect("equal", adjustable="box")
    size = 1.25 * np.abs(kept["true"]).max()
    axes.set_xlim(-size, size)
    axes.set_ylim(-size, size)


def _level(axes: Axes, energy: float) -> None:
    """All (q, p) of that energy, where the true path lies."""
    q = np.arccos(1 - energy) * np.cos(np.linspace(0, np.pi, 201))
    p = np.sqrt(np.maximum(0.0, 2 * (energy - 1 + np.cos(q))))
    axes.plot(np.r_[q, q[::-1]], np.r_[p, -p[::-1]], "--", color="black", lw=1.0)


def _drift(axes: Axes, models: dict[str, list[Row]], out: Path) -> None:
    for model, colour in _PAINT.items():
        if model not in models:
            continue
        t = _kept(out, models[model][0])["t"][1:]
        drifts = np.array([_kept(out, row)["drift"][1:] for row in models[model]])
        axes.loglog(t, np.exp(np.log(drifts).mean(0)), color=colour, lw=1.5, label=NAMES[model])
        axes.fill_between(t, drifts.min(0), drifts.max(0), color=colour, alpha=0.15, lw=0)
    axes.axvspan(t[0], 3.0, color="#eef4ee", lw=0, zorder=0)
    axes.annotate("as long as the\nstretches learned from", (t[0], 1), xytext=(4, -4), va="top",
                  xycoords=("data", "axes fraction"), textcoords="offset points",
                  fontsize=7.5, color="#507050")  # fmt: skip
    axes.set_title("Drift |E(t) − E(0)|, all starts", loc="left", fontweight="bold")
