"""The physics experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments.study import Row, Summary, markdown_table

NAMES = {
    "plain": "plain field",
    "hamiltonian": "Hamiltonian field",
    "separable": "separable Hamiltonian, leapfrog",
    "spring": "spring (one parameter)",
    "still": "standing still",
}
HEADING = (
    "A pendulum, q'' = −sin q, learned from short, noisy stretches (3 units of time, about half a "
    "swing) and followed for {horizon:g}. Energy is the true one, p²/2 + 1 − cos q, along the "
    "path that a model predicts from an exact start; its drift is |E(t) − E(0)|, against energies "
    "of 0.2 to 1.5. RMSE is of (q, p). Mean ± standard deviation over {seeds} seeds of data and "
    "weights, each tested on 16 fresh starts."
)


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    heading = HEADING.format(horizon=rows[0]["horizon"], seeds=len({row["seed"] for row in rows}))
    parts = ["# A Hamiltonian field and a plain one", heading, "## Results", table(rows)]
    parts += ["## What came out", *conclusions(rows)]
    return "\n\n".join(parts) + "\n"


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by model, an entry for each seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def of(rows: Sequence[Row], column: str) -> Summary:
    """A column over the seeds."""
    return Summary.of([row[column] for row in rows])


def table(rows: Sequence[Row]) -> str:
    """A line for each model."""
    header = ["model", "RMSE, 3 units", f"RMSE, {rows[0]['horizon']:g} units", "energy drift, mean",
              "energy drift, at the end", "drift of its own energy", "parameters"]  # fmt: skip
    lines = []
    for model, mine in by_model(rows).items():
        own = [row["own_drift"] for row in mine if row["own_drift"] is not None]
        lines.append(
            [
                NAMES[model],
                *(f"{of(mine, c):.3f}" for c in ("rmse_short", "rmse_long")),
                *(f"{of(mine, c):.3f}" for c in ("drift_mean", "drift_end")),
                f"{max(own):.0e}" if own else "–",
                str(mine[0]["parameters"]),
            ]
        )
    return markdown_table(header, lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Whether the energy is kept, and what that is worth."""
    models = by_model(rows)
    if "plain" not in models:
        return ["Run the plain field beside the others to compare."]
    said = []
    for name in ("hamiltonian", "separable"):
        if name in models:
            said.append(_against_plain(models, name))
    said.append(_long_error(models))
    return said


def _against_plain(models: dict[str, list[Row]], name: str) -> str:
    mine = {row["seed"]: row["drift_end"] for row in models[name]}
    plain = {row["seed"]: row["drift_end"] for row in models["plain"]}
    ratios = [math.log(plain[s] / mine[s]) for s in sorted(mine.keys() & plain.keys())]
    summary = Summary.of(ratios)
    factor = math.exp(summary.mean)
    text = (
        f"**{NAMES[name][0].upper()}{NAMES[name][1:]}.** At the end of the horizon its energy is "
        f"{of(models[name], 'drift_end').mean:.3f} off, the plain field's "
        f"{of(models['plain'], 'drift_end').mean:.3f}: "
    )
    if summary.mean - summary.half_width > 0:
        low = math.exp(summary.mean - summary.half_width)
        return text + (
            f"{factor:.1f} times less (geometric mean over seeds; at least {low:.1f} with 95 % "
            "confidence). The claim holds."
        )
    if summary.mean + summary.half_width < 0:
        return text + f"{1 / factor:.1f} times more. The claim does not hold here."
    return text + f"a factor of {factor:.1f}, which is within the noise of the seeds."


def _long_error(models: dict[str, list[Row]]) -> str:
    ranking = sorted(models, key=lambda m: of(models[m], "rmse_long").mean)
    listed = ", ".join(f"{NAMES[m]} {of(models[m], 'rmse_long').mean:.2f}" for m in ranking)
    still = of(models["still"], "rmse_long").mean if "still" in models else math.inf
    lost = [NAMES[m] for m in ranking if m != "still" and of(models[m], "rmse_long").mean > still]
    text = f"**The path itself.** RMSE over the whole horizon, best first: {listed}. "
    if lost:
        text += f"No better than standing still: {', '.join(lost)}. "
    return text + (
        "A kept energy keeps the swing's size, not its phase: a period that is slightly wrong adds "
        "up, so the energy is right for far longer than the place. (And standing still keeps its "
        "energy perfectly: a kept energy is needed, and not enough.)"
    )
