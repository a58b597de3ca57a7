"""Figures. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.solution import Solution, named_leaves
from pynode.train.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pynode.data.spirals import ForecastTask

# Okabe and Ito's palette, which survives colour blindness and print, in the article's roles.
GREEN, BLUE, RED, GREY = "#2a9d5c", "#1f6fb4", "#d1392b", "#8a8a8a"
_CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a")

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.edgecolor": "#b0b0b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A new figure of that size in inches; what is drawn inside the block has pynode's style."""
    with _style():
        yield _new_figure((width, height))


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, told apart by the colour-blind too; they repeat after seven."""
    return {name: _CYCLE[i % len(_CYCLE)] for i, name in enumerate(names)}


def forecast_figure(
    task: ForecastTask,
    forecasts: Mapping[str, Tensor],
    *,
    caption: str = "",
    coordinate_names: Sequence[str] = ("x", "y"),
) -> Figure:
    """One series as several models see it, one row of panels for each model.

    At the left the (x, y) plane, at the right each coordinate against time. Green line: the true
    series; green dots: what was observed of it (in the plane, where both coordinates were); blue:
    the model inside the window; red: its prediction beyond. After the figure in the introductory
    article this package grew from.

    Args:
        task: exactly one series of two coordinates.
        forecasts: from the name of each model to its values (Q, 2) at the Q times of
            ``task.clean``. Rows are in this order.
        caption: a sentence or two below the panels, wrapped to their width.
        coordinate_names: labels of the axes.

    Returns:
        The figure; see :func:`save`.

    Raises:
        InputError: not one series, not two coordinates, or a forecast of another shape.
    """
    if len(task) != 1 or task.clean.coordinates != 2:
        raise InputError(
            f"forecast_figure draws one series of two coordinates, not {len(task)} of "
            f"{task.clean.coordinates}: index the task first, task[i]"
        )
    if not forecasts:
        raise InputError("forecasts is empty: give at least one model's values")
    series = _Series(task, coordinate_names)
    for name, values in forecasts.items():
        if tuple(values.shape) != tuple(series.true.shape):
            raise InputError(
                f"forecast {name!r} has shape {tuple(values.shape)}; the clean series "
                f"{tuple(series.true.shape)}"
            )
    figure = _new_figure((9.6, 3.5 * len(forecasts) + 0.95))
    with _style():
        grid = figure.add_gridspec(2 * len(forecasts), 2, width_ratios=[1.0, 1.45])
        for row, (name, values) in enumerate(forecasts.items()):
            plane = figure.add_subplot(grid[2 * row : 2 * row + 2, 0])
            _draw_plane(plane, series, name, values)
            upper = figure.add_subplot(grid[2 * row, 1])
            lower = figure.add_subplot(grid[2 * row + 1, 1], sharex=upper)
            for coordinate, axes in enumerate((upper, lower)):
                _draw_coordinate(axes, series, values, coordinate)
            upper.tick_params(labelbottom=False)
            lower.set_xlabel("time since the first point of the window")
        _set_limits(figure.axes, series, forecasts)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        if caption:
            figure.supxlabel(textwrap.fill(caption, 125), fontsize=8, color="#505050")
    return figure


def solution_figure(solution: Solution, entries: int = 6) -> Figure:
    """The first entries of a solution against time, one panel for each tensor of the state.

    See :meth:`pynode.Solution.plot`.
    """
    if entries < 1:
        raise InputError(f"entries={entries}: at least one entry of the state is drawn")
    named = named_leaves(solution.zs)
    ts = solution.ts.detach().cpu()
    curves = _dense_values(solution)
    figure = _new_figure((8.0, 2.6 * len(named) + 0.7))
    with _style():
        grid = figure.subplots(len(named), 1, squeeze=False, sharex=True)[:, 0]
        for i, (axes, (name, zs)) in enumerate(zip(grid, named, strict=True)):
            curve = (curves[0], curves[1][i]) if curves else None
            _draw_entries(axes, name, ts, zs.detach().cpu(), curve, entries)
            steps = getattr(solution.dense, "steps", ())
            axes.plot(steps, [0.0] * len(steps), "|", color=GREY, ms=7, mew=0.7, clip_on=False,
                      transform=axes.get_xaxis_transform(), zorder=3)  # fmt: skip
        grid[-1].set_xlabel("t")
        grid[0].set_title(textwrap.fill(f"{solution.retcode}: {solution.stats}", 110), loc="left")
    return figure


def learning_curves(
    histories: Mapping[str, Iterable[Mapping[str, Any]]], *, column: str = "valid_loss"
) -> Figure:
    """A column of several training histories against epochs, a small panel for each model.

    Each panel has its own vertical scale: the losses of different models are not comparable.

    Args:
        histories: from the name of a model to the rows of its :class:`pynode.train.History`.
        column: which one; ``train_`` in place of ``valid_`` is drawn beside it where there is one.

    Raises:
        InputError: ``histories`` is empty, or a row has no such column.
    """
    if not histories:
        raise InputError("histories is empty: give at least one model's rows")
    columns = min(4, len(histories))
    lines = -(-len(histories) // columns)
    figure = _new_figure((2.9 * columns + 0.3, 2.2 * lines + 0.5))
    with _style():
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (name, rows) in zip(grid.flat, histories.items(), strict=False):
            _draw_history(axes, name, list(rows), column)
        for axes in grid.flat[len(histories) :]:
            axes.set_visible(False)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def save(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write ``figure`` to ``path`` atomically, in the format of its ending."""
    kind = path.suffix.lstrip(".") or "png"
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))


def rmse_beyond(task: ForecastTask, values: Tensor) -> float:
    """Root mean squared error of ``values`` (B, Q, C) beyond the window, over all that is known."""
    beyond = task.clean.mask & (task.clean.times > task.window).unsqueeze(-1)
    return (values - task.clean.values)[beyond].square().mean().sqrt().item()


class _Series:
    """The one series as numpy arrays, cut at the end of the window."""

    def __init__(self, task: ForecastTask, names: Sequence[str]) -> None:
        self.task, self.names = task, tuple(names)
        known = task.clean.valid[0]
        self.t = task.clean.times[0].cpu().numpy()
        self.true = task.clean.values[0].cpu().numpy()
        inside = (task.clean.times[0] <= task.window) & known
        # Models that predict a point from those before it have nothing to say until then.
        begun = task.clean.times[0] > task.observed.times[0, 0]
        self.inside = (inside & begun).cpu().numpy()
        self.beyond = (~inside & known).cpu().numpy()
        # the red line starts where the blue one ends
        self.beyond[max(int(inside.sum()) - 1, 0)] = True
        self.seen_t = task.observed.times[0].cpu().numpy()
        self.seen = task.observed.values[0].cpu().numpy()
        self.mask = task.observed.mask[0].cpu().numpy()


def _dense_values(solution: Solution) -> tuple[Tensor, list[Tensor]] | None:
    """Times between the ends of a solve and the tensors of its state there, if it kept them."""
    steps = getattr(solution.dense, "steps", None)
    if not steps:
        return None
    assert solution.dense is not None
    fine = torch.linspace(0.0, 1.0, max(400, 4 * len(steps)), dtype=torch.float64)
    s = (steps[0] + fine * (steps[-1] - steps[0])).clamp(min(steps), max(steps))
    with torch.no_grad():
        return s, [x.cpu() for _, x in named_leaves(solution.dense(s))]


def _draw_entries(
    axes: Axes,
    name: str,
    ts: Tensor,
    zs: Tensor,
    curve: tuple[Tensor, Tensor] | None,
    entries: int,
) -> None:
    shape = tuple(zs.shape[1:])
    columns = zs.reshape(len(zs), -1)
    drawn = min(entries, columns.shape[1])
    for i in range(drawn):
        place = [int(k) for k in np.unravel_index(i, shape)] if shape else []
        label = ("z" if name == "zs" else "") + (str(place) if place else "")
        times = ts if ts.ndim == 1 else ts[place[0]]
        style: Any = {"color": _CYCLE[i % len(_CYCLE)]}
        for part, dash in _parts(columns[:, i]):
            if curve is None:
                axes.plot(times, part, dash, lw=1.2, label=label, **style)
            axes.plot(times, part, "o", ms=3.6, mew=0, **style)
        if curve is not None:
            s, values = curve
            for part, dash in _parts(values.reshape(len(values), -1)[:, i]):
                axes.plot(s, part, dash, lw=1.4, label=label, **style)
    if columns.shape[1] > drawn:
        axes.plot([], [], " ", label=f"{columns.shape[1] - drawn} more")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.set_ylabel(name.replace("zs", "z", 1))
    axes.margins(x=0.01)


def _parts(x: Tensor) -> list[tuple[Tensor, str]]:
    """A real series, or the real part (solid) and the imaginary part (dashed) of a complex one."""
    return [(x.real, "-"), (x.imag, "--")] if x.is_complex() else [(x, "-")]


def _draw_plane(axes: Axes, series: _Series, name: str, values: Tensor) -> None:
    x = values.detach().cpu().numpy()
    both = series.mask.all(axis=-1)
    axes.plot(*series.true.T, color=GREEN, lw=1.4, label="true series")
    axes.plot(*series.seen[both].T, "o", color=GREEN, ms=3.6, mew=0, label="observed")
    axes.plot(*x[series.inside].T, color=BLUE, lw=1.9, label="fit")
    axes.plot(*x[series.beyond].T, color=RED, lw=1.9, label="prediction")
    error = rmse_beyond(series.task, values.detach().cpu().unsqueeze(0))
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_title(f"extrapolation RMSE {error:.3f}", loc="right")
    axes.set_xlabel(series.names[0])
    axes.set_ylabel(series.names[1], rotation=0, labelpad=8)
    axes.set_aspect("equal", adjustable="box")


def _draw_coordinate(axes: Axes, series: _Series, values: Tensor, coordinate: int) -> None:
    x = values.detach().cpu().numpy()[:, coordinate]
    seen = series.mask[:, coordinate]
    axes.axvspan(float(series.task.window), series.t.max(), color="#f6f1ee", zorder=0, lw=0)
    axes.plot(series.t, series.true[:, coordinate], color=GREEN, lw=1.4)
    axes.plot(series.seen_t[seen], series.seen[seen, coordinate], "o", color=GREEN, ms=3.2, mew=0)
    axes.plot(series.t[series.inside], x[series.inside], color=BLUE, lw=1.6)
    axes.plot(series.t[series.beyond], x[series.beyond], color=RED, lw=1.6)
    axes.set_ylabel(series.names[coordinate], rotation=0, labelpad=8)
    axes.margins(x=0.01)


def _set_limits(axes: Sequence[Axes], series: _Series, forecasts: Mapping[str, Tensor]) -> None:
    """The same scales in every row (of three panels), so that the rows compare.

    A forecast that runs away is cut off where it is a spiral's size away from the spiral: else
    nothing of the others could be seen.
    """
    lows, highs = [], []
    for coordinate in range(2):
        true = series.true[:, coordinate]
        size = true.max() - true.min()
        drawn = [v.detach()[:, coordinate].cpu().numpy() for v in forecasts.values()]
        drawn.append(series.seen[series.mask[:, coordinate], coordinate])
        lows.append(max(min([true.min(), *(d.min() for d in drawn)]), true.min() - size))
        highs.append(min(max([true.max(), *(d.max() for d in drawn)]), true.max() + size))
    half = 0.54 * max(high - low for low, high in zip(lows, highs, strict=True))
    centres = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    for plane in axes[::3]:
        plane.set_xlim(centres[0] - half, centres[0] + half)
        plane.set_ylim(centres[1] - half, centres[1] + half)
    for coordinate in range(2):
        margin = 0.06 * (highs[coordinate] - lows[coordinate])
        for panel in axes[1 + coordinate :: 3]:
            panel.set_ylim(lows[coordinate] - margin, highs[coordinate] + margin)


def _draw_history(axes: Axes, name: str, rows: list[Mapping[str, Any]], column: str) -> None:
    if not rows or column not in rows[0]:
        raise InputError(f"the history of {name!r} has no column {column!r}")
    epochs = [row["epoch"] for row in rows]
    twin = column.replace("valid_", "train_")
    if twin != column and twin in rows[0]:
        axes.plot(epochs, [row[twin] for row in rows], color=GREY, lw=1.1, label=twin)
    axes.plot(epochs, [row[column] for row in rows], color=BLUE, lw=1.4, label=column)
    best = min(range(len(rows)), key=lambda i: rows[i][column])
    axes.plot(epochs[best], rows[best][column], "o", color=RED, ms=4)
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_xlabel("epoch")


def _new_figure(size: tuple[float, float]) -> Figure:
    # Figure without pyplot: no global state, no window, any thread.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)
