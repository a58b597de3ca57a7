"""The classify experiment's figure: the limit as a picture, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode import plots
from pynode.experiments.classify_table import LABELS, by, depths, limits, mean
from pynode.experiments.study import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = (2, 8, 32)


def draw(rows: Sequence[Row], out: Path) -> Figure:
    """Above: paths of a few digits through ResNets and their ODE; below: numbers."""
    with plots.canvas(13.0, 7.4) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.0, 1.05])
        top = parts[0].subplots(1, 4, gridspec_kw={"width_ratios": [1, 1, 1, 1.05]})
        _paths(top[:3], rows, out)
        _limit(top[3], rows)
        bottom = parts[1].subplots(1, 4, gridspec_kw={"width_ratios": [1.35, 1.15, 1, 1]})
        _accuracies(bottom[0], rows)
        _memory(bottom[1], rows)
        _trained(bottom[2], rows)
        _nfe(bottom[3], rows)
    return figure


def _paths(panels: Sequence[Axes], rows: Sequence[Row], out: Path) -> None:
    from pynode.experiments import classify  # which imports this module

    first = by(rows, model="odenet", seed=0)
    if not first:
        return
    names = classify.ClassifyRun.__dataclass_fields__
    spec = classify.ClassifyRun(**{name: first[0][name] for name in names})
    found = classify.paths(spec, out / "runs" / spec.name)
    labels = found["labels"].tolist()
    colours = plots.colours(dict.fromkeys(map(str, labels)))
    for axes, depth in zip(panels, _SHOWN, strict=True):
        for i, label in enumerate(labels):
            colour = colours[str(label)]
            axes.plot(*found["ode"][:, i].T, color=colour, lw=3.5, alpha=0.3,
                      solid_capstyle="round")  # fmt: skip
            axes.plot(*found[str(depth)][:, i].T, "o-", color=colour, lw=0.9, ms=3, mew=0)
            axes.plot(*found["ode"][0, i], "s", color="black", ms=3)
        axes.set_title(f"ResNet of {depth} tied layers", loc="left", fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_xlabel("1st principal direction of the hidden state")
    panels[0].set_ylabel("2nd principal direction")
    seen: dict[str, Any] = {}
    for label in labels:
        seen.setdefault(
            f"digit {label}", panels[2].plot([], [], color=colours[str(label)], lw=3)[0]
        )
    band = panels[2].plot([], [], color=plots.GREY, lw=3.5, alpha=0.4)[0]
    dots = panels[2].plot([], [], "o-", color=plots.GREY, lw=0.9, ms=3)[0]
    start = panels[2].plot([], [], "s", color="black", ms=3)[0]
    panels[2].legend(
        [*seen.values(), band, dots, start], [*seen, "ODE", "layers", "image"],
        fontsize=7, frameon=False, loc="best",
    )  # fmt: skip


def _limit(axes: Axes, rows: Sequence[Row]) -> None:
    found = limits(rows)
    x = list(found)
    for column, label, colour in (
        ("state_error", "last hidden state", plots.BLUE),
        ("gradient_error", "gradient", plots.RED),
    ):
        seeds = list(zip(*([p[column] for p in found[d]] for d in x), strict=True))
        for line in seeds:
            axes.loglog(x, line, color=colour, lw=0.7, alpha=0.35)
        axes.loglog(x, [mean(found[d], column) for d in x], "o-", color=colour, ms=4, label=label)
    if x:
        top = mean(found[x[-1]], "state_error")
        axes.loglog(x, [2 * top * x[-1] / d for d in x], ":", color=plots.GREY, lw=1.2,
                    label="proportional to 1/L")  # fmt: skip
    _depth_axis(axes, x)
    axes.set_ylabel("difference from the ODE, relative")
    axes.set_title("The limit", loc="left", fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False)


def _accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    shown = [m for m in LABELS if by(rows, model=m) and m != "commonest"]
    colours = plots.colours(LABELS)
    for i, model in enumerate(reversed(shown)):
        mine = by(rows, model=model)
        wrong = [100 * (1 - row["accuracy"]) for row in mine]
        summary = Summary.of(wrong)
        if summary.n > 1:
            half = summary.half_width
            axes.plot([summary.mean - half, summary.mean + half], [i, i], color=colours[model],
                      lw=5, alpha=0.25, solid_capstyle="butt")  # fmt: skip
        axes.plot(wrong, [i] * len(wrong), "o", color=colours[model], ms=4, mew=0, alpha=0.8)
        axes.plot([summary.mean] * 2, [i - 0.28, i + 0.28], color=colours[model], lw=2.2)
        size = mine[0]["parameters"]
        text = f"{size / 1e3:.1f} k" if size else "no training"
        axes.annotate(text, (1.0, i), xycoords=("axes fraction", "data"), ha="right", va="center",
                      fontsize=7.5, color="#606060")  # fmt: skip
    axes.set_yticks(range(len(shown)), [LABELS[m] for m in reversed(shown)])
    axes.set_xlim(left=0)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.22)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("test error, % (band: 95 % interval; right: parameters)")
    axes.set_title("Error", loc="left", fontweight="bold")


def _memory(axes: Axes, rows: Sequence[Row]) -> None:
    """Bytes of a training step: ResNets grow with depth, the ODE-Net's adjoint does not."""
    colours = plots.colours(LABELS)
    ode = by(rows, model="odenet", seed=0)
    if ode:
        for kind, label, colour in (
            ("tied_resnet", "tied ResNet, more layers", plots.GREY),
            ("ode", "ODE-Net, finer solves", colours["odenet"]),
        ):
            points = ode[0]["memory"][kind]
            axes.plot([p["nfe"] for p in points], [p["bytes"] / 1e3 for p in points], "o-",
                      color=colour, ms=4, label=label)  # fmt: skip
    for model, depth in (("resnet6", 6), ("resnet1", 1)):
        mine = by(rows, model=model)
        if mine:
            axes.plot(depth, mean(mine, "peak_bytes") / 1e3, "D", color=colours[model], ms=6,
                      label=LABELS[model])  # fmt: skip
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    ticks = (1, 4, 16, 64, 256)
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("evaluations of f forward")
    axes.set_ylabel("kB alive in a training step")
    axes.set_title("Memory", loc="left", fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    axes.set_ylim(top=axes.get_ylim()[1] * 3)


def _trained(axes: Axes, rows: Sequence[Row]) -> None:
    levels = depths(rows)
    runs = [by(rows, model="tied_resnet", depth=d) for d in levels]
    for depth, mine in zip(levels, runs, strict=True):
        values = [row["from_its_ode"] for row in mine]
        axes.loglog([depth] * len(values), values, "o", color=plots.BLUE, ms=3.5, mew=0, alpha=0.6)
    axes.loglog(levels, [mean(mine, "from_its_ode") for mine in runs], color=plots.BLUE, lw=1.6)
    _depth_axis(axes, levels)
    axes.set_ylabel("distance from the ODE of its weights")
    axes.set_title("Tied ResNets, trained", loc="left", fontweight="bold")


def _nfe(axes: Axes, rows: Sequence[Row]) -> None:
    mine = by(rows, model="odenet")
    for i, (label, colour) in enumerate((("forward", plots.BLUE), ("backward", plots.RED))):
        lines = [[epoch[i] for epoch in row["nfe_by_epoch"]] for row in mine]
        for line in lines:
            axes.plot(range(1, len(line) + 1), line, color=colour, lw=0.7, alpha=0.4)
        if lines:
            middle = [Summary.of(x).mean for x in zip(*lines, strict=True)]
            axes.plot(range(1, len(middle) + 1), middle, color=colour, lw=2, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("evaluations of f a solve")
    axes.set_title("ODE-Net while it learns", loc="left", fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")


def _depth_axis(axes: Axes, levels: Sequence[int]) -> None:
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    axes.set_xlabel("layers L")
