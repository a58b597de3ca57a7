"""The gradients experiment's figure: which gradient (above) and which solver (below)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode import plots
from pynode.experiments.gradients_table import TARGET, TITLES, groups, mean
from pynode.experiments.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = {"network": "tsit5", "forgetful": "tsit5", "stiff": "rodas5p"}
BELOW = "gauss"
_MARKERS = "osD^vPX"


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """A column for each problem; above, sensitivities of one solver; below, solvers with one."""
    present = [problem for problem in TITLES if groups(rows, problem)]
    with plots.canvas(3.7 * len(present) + 1.6, 7.0) as figure:
        grid = figure.subplots(2, len(present), squeeze=False)
        sensitivities = list(
            dict.fromkeys(key[1] for problem in present for key in groups(rows, problem))
        )
        solvers = list(
            dict.fromkeys(key[0] for problem in present for key in groups(rows, problem))
        )
        for column, problem in enumerate(present):
            found = groups(rows, problem)
            above = {k[1]: v for k, v in found.items() if k[0] == USUAL[problem] and _torch(k)}
            below = {k[0]: v for k, v in found.items() if k[1] == BELOW and _torch(k)}
            upper, lower = grid[:, column]
            _lines(upper, above, sensitivities, "rtol")
            _lines(lower, below, solvers, "milliseconds")
            upper.set_title(TITLES[problem], loc="left", fontweight="bold")
            upper.set_title(f"solver {USUAL[problem]}", loc="right", fontsize=9)
            lower.set_title(f"sensitivity {BELOW}", loc="right", fontsize=9)
            upper.invert_xaxis()
            upper.set_xlabel("rtol, ever tighter")
            lower.set_xlabel("processor time, ms")
            _plain_ticks(lower)
        for line, names in ((grid[0], sensitivities), (grid[1], solvers)):
            line[0].set_ylabel("relative error of the gradient")
            _legend(line[-1], names)
    return figure


def _torch(key: tuple[str, str, str]) -> bool:
    return key[2] == "torch"


def _lines(axes: Axes, lines: dict[str, Any], names: Sequence[str], against: str) -> None:
    for name, tolerances in lines.items():
        x, middle, low, high = [], [], [], []
        for rtol, points in sorted(tolerances.items(), reverse=True):
            errors = [max(p["error"], 1e-14) for p in points if "error" in p]
            if len(errors) == len(points):  # a line has a gap where a seed failed
                x.append(rtol if against == "rtol" else 1e3 * mean(points, "seconds"))
                middle.append(mean(points, "error"))
                low.append(min(errors))
                high.append(max(errors))
        axes.loglog(x, middle, **_look(name, names))
        axes.fill_between(x, low, high, alpha=0.15, lw=0, color=plots.colours(names)[name])
    axes.axhline(TARGET, color=plots.GREY, ls=":", lw=1)
    axes.set_ylim(1e-12, 30)


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _look(name: str, names: Sequence[str]) -> dict[str, Any]:
    i = list(names).index(name)
    dash = "-" if i < 7 else "--"
    return {
        "color": plots.colours(names)[name],
        "marker": _MARKERS[i % 7],
        "ls": dash,
        "ms": 4,
        "lw": 1.5,
    }


def _legend(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **_look(name, names)) for name in names]
    handles.append(Line2D([], [], color=plots.GREY, ls=":", label="the table's target"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
