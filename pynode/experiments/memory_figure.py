"""The memory experiment's figure: memory, and error, against length; and error against decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode import plots
from pynode.experiments.memory_table import WRONG, methods, points, typical, values
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP"


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Three panels with a line for each method; bands span all seeds."""
    with plots.canvas(11.0, 4.5) as figure:
        left, middle, right = figure.subplots(1, 3)
        _memory(left, rows)
        _errors(middle, rows, "length")
        middle.set_title("Gradient error: a network", loc="left", fontweight="bold")
        _errors(right, rows, "decay")
        right.set_title("…and where the state decays", loc="left", fontweight="bold")
        right.set_xlabel("decay rate λ of y1' = −λ(y1 − cos θ1 t)")
        for axes in (left, middle):
            axes.set_xlabel("length T of the integration")
        low = min(axes.get_ylim()[0] for axes in (middle, right))
        high = max(axes.get_ylim()[1] for axes in (middle, right))
        for axes in (middle, right):
            axes.set_ylim(low, high)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _memory(axes: Axes, rows: Sequence[Row]) -> None:
    lengths = values(rows, "length")
    for method in methods(rows):
        _line(axes, rows, "length", method, "peak_bytes", 1e-3)
    least = [typical(points(rows, "length", "forward only", t), "peak_bytes") for t in lengths]
    axes.loglog(lengths, [x / 1e3 for x in least], "--", color=plots.GREY, label="forward only")
    axes.set_title("Peak memory", loc="left", fontweight="bold")
    axes.set_ylabel("kB alive at once, forward and backward")
    _plain_ticks(axes, lengths)


def _errors(axes: Axes, rows: Sequence[Row], problem: str) -> None:
    for method in methods(rows):
        _line(axes, rows, problem, method, "error", 1.0)
    axes.axhspan(WRONG, 1e30, color="#f6e9e6", lw=0, zorder=0)
    x = values(rows, problem)
    axes.axhline(1.0, color=plots.GREY, lw=1.0, ls=":")
    axes.annotate("error of a gradient of zero", (x[0], 1.0), xytext=(0, 3), fontsize=7.5,
                  textcoords="offset points", color="#606060")  # fmt: skip
    axes.annotate("more than 1 % off", (x[0], WRONG), xytext=(0, 3), fontsize=7.5,
                  textcoords="offset points", color="#a04030")  # fmt: skip
    axes.set_ylabel("‖g − g_ref‖ / ‖g_ref‖")
    found = [
        p["error"]
        for v in x
        for m in methods(rows)
        for p in points(rows, problem, m, v)
        if "error" in p
    ]
    axes.set_ylim(min(found) / 3, max(10.0, 3 * max(found)))
    _plain_ticks(axes, x)


def _line(
    axes: Axes, rows: Sequence[Row], problem: str, method: str, column: str, unit: float
) -> None:
    names = methods(rows)
    i = names.index(method)
    x, middle, low, high = [], [], [], []
    for value in values(rows, problem):
        found = points(rows, problem, method, value)
        numbers = [max(p[column], 1e-16) * unit for p in found if column in p]
        if numbers and not any("failed" in p for p in found):  # a line ends where a seed failed
            x.append(value)
            middle.append(math.exp(sum(map(math.log, numbers)) / len(numbers)))
            low.append(min(numbers))
            high.append(max(numbers))
    style: Any = {"color": plots.colours(names)[method]}
    axes.loglog(x, middle, "-" + _MARKERS[i], ms=max(4, 7 - i), lw=1.5, label=method, **style)
    axes.fill_between(x, low, high, alpha=0.15, lw=0, **style)


def _plain_ticks(axes: Axes, x: Sequence[float]) -> None:
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(_no_ticks())


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
