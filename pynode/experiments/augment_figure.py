"""The augment experiment's figure: paths on a line, points of a plane, and the work of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynode import plots
from pynode.experiments.augment_table import BOUND, NAMES, by_model
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ODES = ("node", "anode1", "anode5", "second_order")
_PAINT = plots.colours([*_ODES, "mlp"])


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Above x → −x, below the ring; at the right how training went."""
    with plots.canvas(13.0, 6.6) as figure:
        grid = figure.subplots(2, 4)
        for axes, model in zip(grid[0], ("node", "anode1", "second_order"), strict=False):
            _paths(axes, _picture(rows, out, "mirror", model), model)
        _curves(grid[0, 3], rows, "mirror", "losses")
        grid[0, 3].axhline(BOUND, color=plots.GREY, ls=":", lw=1)
        grid[0, 3].annotate("no order-keeping map gets below", (60, BOUND), xytext=(2, 4),
                            textcoords="offset points", fontsize=7.5, color="#606060")  # fmt: skip
        grid[0, 3].set_title("training loss", loc="left", fontweight="bold")
        for axes, model in zip(grid[1], ("node", "anode5"), strict=False):
            _ends(axes, _picture(rows, out, "annuli", model), model)
        for axes, column in zip(grid[1, 2:], ("losses", "nfe"), strict=True):
            _curves(axes, rows, "annuli", column)
        grid[1, 2].set_title("training loss", loc="left", fontweight="bold")
        grid[1, 3].set_title("evaluations of the field", loc="left", fontweight="bold")
        for axes in (grid[0, 3], *grid[1, 2:]):
            axes.set_xlabel("step of training")
        shown = [name for name in (*_ODES, "mlp") if by_model(rows, "annuli").get(name)]
        figure.legend(_handles(shown), [NAMES[n] for n in shown], loc="outside lower center",
                      ncols=5, frameon=False)  # fmt: skip
    return figure


def _handles(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=_PAINT[name], lw=2) for name in names]


def _picture(rows: Sequence[Row], out: Path, task: str, model: str) -> dict[str, np.ndarray]:
    seed = by_model(rows, task)[model][0]["seed"]
    with np.load(out / "runs" / f"{task}-{model}-seed{seed}" / "picture.npz") as kept:
        return dict(kept)


def _paths(axes: Axes, kept: dict[str, np.ndarray], model: str) -> None:
    t = np.linspace(0, 1, len(kept["path"]))
    for i, (start, target) in enumerate(zip(kept["x"][:, 0], kept["y"][:, 0], strict=True)):
        colour = plots.BLUE if start < 0 else plots.RED
        axes.plot(t, kept["path"][:, i, 0], color=colour, lw=1.3, alpha=0.35 + 0.65 * abs(start))
        axes.plot(1.04, target, "_", color=colour, ms=9, mew=2, clip_on=False)
    axes.set_title(NAMES[model], loc="left", fontweight="bold")
    axes.set_xlabel("t")
    axes.set_ylabel("x(t); bars: where it should end")
    axes.set_ylim(-1.35, 1.35)


def _ends(axes: Axes, kept: dict[str, np.ndarray], model: str) -> None:
    """Where the ODE takes the points, seen so that the readout's boundary is an upright line."""
    z = kept["path"][-1]
    direction = kept["readout"] / np.linalg.norm(kept["readout"])
    rest = z - np.outer(z @ direction, direction)
    rest = rest - rest.mean(0)
    widest = np.linalg.svd(rest, full_matrices=False)[2][0]
    z = np.stack([z @ kept["readout"] + kept["bias"], rest @ widest], 1)
    inner = kept["y"][:, 0] < 0
    axes.axvline(0.0, color=plots.GREY, ls=":", lw=1.2)
    for chosen, colour, name in ((inner, plots.BLUE, "disc"), (~inner, plots.RED, "ring")):
        axes.plot(*z[chosen].T, "o", ms=3, mew=0, alpha=0.7, color=colour, label=name)
    axes.set_title(NAMES[model], loc="left", fontweight="bold")
    axes.set_xlabel("output of the readout (dotted: the boundary)")
    axes.set_ylabel("where points end, across it")
    axes.legend(frameon=False, loc="best", handletextpad=0.1)


def _curves(axes: Axes, rows: Sequence[Row], task: str, column: str) -> None:
    """A line for the mean over seeds, in a band from the least to the most."""
    for model, mine in by_model(rows, task).items():
        values = np.array([row[column] for row in mine])
        if model not in _PAINT or not values.any():
            continue
        x = mine[0]["steps_shown"][: values.shape[1]]
        middle = np.exp(np.log(values).mean(0)) if column == "losses" else values.mean(0)
        axes.plot(x, middle, color=_PAINT[model], lw=1.6)
        axes.fill_between(x, values.min(0), values.max(0), color=_PAINT[model], alpha=0.15, lw=0)
    if column == "losses":
        axes.set_yscale("log")
