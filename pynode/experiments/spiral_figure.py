"""The spiral experiment's figures, and the rules by which their content is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pynode import plots
from pynode.experiments import spiral_run
from pynode.experiments.spiral_run import RunFolder
from pynode.experiments.spiral_table import RNNS


def draw(finished: Sequence[RunFolder], rows: Sequence[dict[str, Any]], out: Path) -> str:
    """Write ``figure.png`` and ``learning_curves.png`` of the first n and seed.

    Args:
        finished: the finished runs, in the order asked for.
        rows: their rows.
        out: the folder to write into.

    Returns:
        A paragraph that says what is shown, and by which rule.
    """
    observed, seed = finished[0].spec.observed, finished[0].spec.seed
    first = [f for f in finished if (f.spec.observed, f.spec.seed) == (observed, seed)]
    shown, rule = _choose_models(first, rows)
    chooser = shown[-1].spec
    index, error = _median_series(shown[-1])
    series = spiral_run.split_data(chooser)[2][index]
    forecasts = {f.spec.model: spiral_run.forecast(f.model(), series)[0] for f in shown}
    caption = (
        f"n = {observed}, seed {seed}, held-out series {index}: its extrapolation error under "
        f"{chooser.model} is the median of all held-out series. {rule}"
    )
    plots.save(plots.forecast_figure(series, forecasts, caption=caption), out / "figure.png")
    histories = {f.spec.model: history for f in first if (history := f.history())}
    if histories:
        plots.save(plots.learning_curves(histories), out / "learning_curves.png")
    return (
        f"`figure.png` shows held-out series {index} of seed {seed} at n = {observed}: the one "
        f"whose extrapolation error under `{chooser.model}` ({error:.3f}) is the median of all "
        f"held-out series, so neither a lucky nor an unlucky one. {rule}"
    )


def _choose_models(
    finished: Sequence[RunFolder], rows: Sequence[dict[str, Any]]
) -> tuple[list[RunFolder], str]:
    """The upper and the lower row of the figure, by a rule that favours the RNNs."""
    by_model = {folder.spec.model: folder for folder in finished}
    rnns = [model for model in RNNS if model in by_model]
    lower = by_model.get("latent_ode", finished[-1])
    if not rnns or lower.spec.model in rnns:
        return [lower], f"Only {lower.spec.model} is shown: there is no pair to compare."

    def error(model: str) -> float:
        key = (model, lower.spec.observed)
        mine = [row for row in rows if (row["model"], row["observed"]) == key]
        return sum(row["extrapolation_rmse"] for row in mine) / len(mine)

    best = min(rnns, key=error)
    return [by_model[best], lower], f"Above: of the RNNs ({', '.join(rnns)}) the best, {best}."


def _median_series(folder: RunFolder) -> tuple[int, float]:
    """Index and error of the held-out series in the middle (the lower one of two)."""
    errors = folder.errors_by_series()["extrapolation"]
    order = sorted(range(len(errors)), key=errors.__getitem__)
    middle = order[(len(order) - 1) // 2]
    return middle, errors[middle]
