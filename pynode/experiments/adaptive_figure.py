"""The adaptive experiment's figure: Chen et al.'s figure 3, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pynode import plots
from pynode.experiments.adaptive_table import SCORES, TITLES, of_task, points
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {
    "tsit5": (plots.BLUE, "o", "adaptive: tsit5, rtol 1e-1 … 1e-8"),
    "rk4": ("#e69f00", "s", "fixed steps: rk4"),
    "euler": ("#cc79a7", "^", "fixed steps: euler"),
}
_TASKS = {"digits": plots.BLUE, "pendulum": plots.RED}


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Above, what the two models give for their cost; below, the solver's own work."""
    with plots.canvas(11.5, 7.2) as figure:
        grid = figure.add_gridspec(2, 6)
        above = [figure.add_subplot(grid[0, 3 * i : 3 * i + 3]) for i in range(2)]
        below = [figure.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(3)]
        for axes, task in zip(above, TITLES, strict=True):
            if of_task(rows, task):
                _cost(axes, rows, task)
        handles, labels = above[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        _errors(below[0], rows)
        _backward(below[1], rows)
        _training(below[2], rows)
    return figure


def _cost(axes: Axes, rows: Sequence[Row], task: str) -> None:
    for solver, (colour, marker, label) in _LOOKS.items():
        settings = points(rows, task, solver)
        x = [np.mean([p["nfe"] for p in same]) for same in settings]
        scores = np.array([[p["score"] for p in same] for same in settings])
        axes.plot(x, scores.mean(1), "-", marker=marker, color=colour, ms=5, lw=1.6, label=label)
        axes.fill_between(x, scores.min(1), scores.max(1), color=colour, alpha=0.13, lw=0)
        if solver == "tsit5":
            for i in (0, 2, len(x) - 1):
                axes.annotate(f"{settings[i][0]['rtol']:.0e}", (x[i], scores.mean(1)[i]),
                              xytext=(0, 7 if task == "pendulum" else -13), ha="center",
                              textcoords="offset points", fontsize=7.5, color=colour)  # fmt: skip
    axes.set_xscale("log")
    _level(axes, rows, task)
    axes.set_title(TITLES[task], loc="left", fontweight="bold")
    axes.set_xlabel("evaluations of the field, forward")
    axes.set_ylabel(SCORES[task])


def _level(axes: Axes, rows: Sequence[Row], task: str) -> None:
    """The better of the baselines, and limits in which a run-away does not hide the rest."""
    mine = of_task(rows, task)
    levels = {n: float(np.mean([r["baselines"][n] for r in mine])) for n in mine[0]["baselines"]}
    name, level = next(iter(levels.items()))
    best = float(np.mean([row["exact_score"] for row in mine]))
    axes.axhline(level, color=plots.GREY, ls=":", lw=1.2)
    axes.annotate(name, (0.99, level), xycoords=("axes fraction", "data"), ha="right",
                  xytext=(0, 3), textcoords="offset points", fontsize=7.5,
                  color="#606060")  # fmt: skip
    if task == "digits":
        axes.set_ylim(min(level, best) - 0.01, min(1.0, best + 0.015))
    else:
        axes.set_yscale("log")
        axes.set_ylim(0.6 * min(level, best), 2.0 * max(level, best))


def _errors(axes: Axes, rows: Sequence[Row]) -> None:
    for task, colour in _TASKS.items():
        if not of_task(rows, task):
            continue
        settings = points(rows, task, "tsit5")
        x = [same[0]["rtol"] for same in settings]
        errors = np.array([[max(p["error"], 1e-9) for p in same] for same in settings])
        axes.loglog(x, np.exp(np.log(errors).mean(1)), "-o", color=colour, ms=4, lw=1.5,
                    label=TITLES[task])  # fmt: skip
        axes.fill_between(x, errors.min(1), errors.max(1), color=colour, alpha=0.15, lw=0)
    axes.plot([1e-1, 1e-8], [1e-1, 1e-8], ":", color=plots.GREY, lw=1.2, label="error = tolerance")
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("Error of the solver", loc="left", fontweight="bold")
    axes.set_xlabel("rtol = atol, ever tighter")
    axes.set_ylabel("relative error of the states")


def _backward(axes: Axes, rows: Sequence[Row]) -> None:
    high = 0.0
    for task, colour in _TASKS.items():
        if not of_task(rows, task):
            continue
        found = [p for same in points(rows, task, "tsit5") for p in same]
        axes.loglog([p["nfe"] for p in found], [p["nfe_backward"] for p in found], "o",
                    color=colour, ms=4, mew=0, alpha=0.7, label=TITLES[task])  # fmt: skip
        high = max(high, *(p["nfe"] for p in found))
    low = 10.0
    axes.plot([low, high], [low, high], ":", color=plots.GREY, lw=1.2, label="as many")
    axes.plot([low, high], [low / 2, high / 2], "--", color=plots.GREY, lw=1.2,
              label="half as many (Chen et al.)")  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("The backward pass", loc="left", fontweight="bold")
    axes.set_xlabel("nfe forward")
    axes.set_ylabel("nfe backward")


def _training(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = np.array([row["nfe_by_epoch"] for row in of_task(rows, "digits")])
    if counts.size:
        epochs = np.arange(1, counts.shape[1] + 1)
        for i, (name, dash) in enumerate((("forward", "-"), ("backward", "--"))):
            axes.plot(epochs, counts[:, :, i].mean(0), dash, color=plots.BLUE, lw=1.6, label=name)
            axes.fill_between(epochs, counts[:, :, i].min(0), counts[:, :, i].max(0),
                              color=plots.BLUE, alpha=0.15, lw=0)  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
    axes.set_title("nfe while training on digits", loc="left", fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("evaluations of the field")
