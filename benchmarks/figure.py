"""The plot: every contender against torchdiffeq, and how time and memory grow."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from benchmarks.report import Result

MARKERS = "osD^vPX*<>"


def draw(result: Result, path: Path) -> None:
    """Write the figure as a PNG."""
    measured = {row.case for row in result.rows if row.times}  # a short run leaves cases out
    growing = sorted({axis for case, (axis, _) in result.growth.items() if case in measured})
    cases = [case for case in result.titles if case in measured and case not in result.growth]
    grown = ["time"] if growing else []
    if any(row.memory for row in result.rows if row.case in result.growth):
        grown.append("memory")
    height = max(3.0, 0.35 * len(cases) + 1.5) + 2.5 * len(grown)
    figure = plt.figure(figsize=(11, height), layout="constrained")
    weights = [0.35 * len(cases) + 1.5, *[2.5 for _ in grown]]
    parts = figure.subfigures(len(weights), 1, height_ratios=weights, squeeze=False)[:, 0]
    names = list(dict.fromkeys(r.contender for r in result.rows if r.contender != "all"))
    style = {
        name: {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }
    _ratios(parts[0], result, cases, style)
    for part, what in zip(parts[1:], grown, strict=True):
        _growth(part, result, growing, style, what)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratios(part: Any, result: Result, cases: list[str], style: dict[str, dict]) -> None:
    from benchmarks.report import BASE, fastest, ratios

    threads = min((row.threads for row in result.rows), default=1)
    axes = part.subplots(1, 2, sharey=True)
    for ax, what in zip(axes, ("forward", "gradient"), strict=True):
        for y, case in enumerate(cases):
            rows = [r for r in result.rows if (r.case, r.threads) == (case, threads)]
            base = fastest(rows, BASE, what)
            for name, look in style.items():
                row = fastest(rows, name, what)
                values = ratios(base, row) if row else []
                if values:
                    middle = statistics.median(values)
                    ax.plot([min(values), max(values)], [y, y], color=look["color"], lw=1)
                    ax.plot(middle, y, ls="", label=name, **look)
        ax.axvline(1, color="grey", lw=0.8)
        ax.set(xscale="log", xlabel="times faster than torchdiffeq", ylim=(len(cases) - 0.5, -0.5))
        ax.set_title("forward" if what == "forward" else "forward + gradient, the fastest of each")
        ax.grid(alpha=0.3, which="both", axis="x")
    axes[0].set_yticks(range(len(cases)), cases)
    _legend(part, axes)


def _growth(
    part: Any, result: Result, growing: list[str], style: dict[str, dict], what: str
) -> None:
    from benchmarks.report import fastest

    threads = min(row.threads for row in result.rows)
    axes = part.subplots(1, len(growing), sharey=True, squeeze=False)[0]
    for ax, axis in zip(axes, growing, strict=True):
        points = sorted((value, case) for case, (a, value) in result.growth.items() if a == axis)
        seen: set[int] = set()
        for name, look in style.items():
            xs, ys = [], []
            for value, case in points:
                rows = [r for r in result.rows if (r.case, r.threads) == (case, threads)]
                row = fastest(rows, name, "gradient")
                y = None
                if row is not None:
                    y = row.median if what == "time" else row.memory
                if y:
                    xs.append(value)
                    ys.append(y * 1e3 if what == "time" else y / 2**20)
            if xs:
                ax.plot(xs, ys, label=name, ms=4, lw=1, **look)
            seen.update(xs)
        ax.set(xscale="log", yscale="log", xlabel=axis)
        values = sorted(seen)
        ax.set_xticks(values, labels=[str(value) for value in values])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("gradient, ms" if what == "time" else "gradient, peak MB")
    _legend(part, axes)


def _legend(part: Any, axes: Any) -> None:
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        part.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
