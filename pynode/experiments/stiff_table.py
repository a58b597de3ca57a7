"""The stiff experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments import stiff_lotka as lotka
from pynode.experiments.study import Row, Summary, markdown_table

ROBERTSON = {
    "unscaled": "unscaled: dy/dt = net(y)",
    "scaled": "scaled: dy/dt = s/t_N · net(y/s)",
    "scaled_log_time": "scaled, in log time: dy/dlog₁₀t = s · net(y/s)",
}
LOTKA = {
    "universal": "universal: αu + N₁, −δv + N₂",
    "sparse": "… its networks read by sparse regression",
    "black_box": "black box: a network alone",
    "regression": "sparse regression on the data's slopes, α and δ known",
}
_WORDS_ROBERTSON = (
    "Kim et al.'s network (six hidden layers of five GELUs) from 50 points of one path, equally "
    "spaced in log t from 1e-5 to 1e5; `rosenbrock23`, rtol 1e-3, gradients by `discrete`, Adam. "
    "Each variant may spend {budget} evaluations of its field on forward passes. Error: mean "
    "absolute error of y/s, with s the range of each species, at {points} times, those between "
    "the observations among them; the mean over seeds, and each."
)
_WORDS_LOTKA = (
    "31 observations of [0, 3] with noise of {noise:.1%} of each species' mean; α and δ are known "
    "to the universal equation, the interaction −βuv and γuv to nobody. Adam and then L-BFGS, "
    "`tsit5`. RMSE is of a prediction up to t = 12, over what lies beyond the observations. True: "
    "u' = 1.30 u − 0.90 uv, v' = −1.80 v + 0.80 uv. Sparse regression takes the fewest of all "
    "monomials up to degree 2 that come within 10 % of the values."
)


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    parts = ["# Stiff and half-known equations"]
    mine = by_variant(rows, "robertson")
    if mine:
        first = next(iter(mine.values()))
        words = _WORDS_ROBERTSON.format(budget=f"{first[0]['budget']:,}", points=197)
        parts += ["## Robertson's reaction", words, robertson_table(mine)]
    other = by_variant(rows, "lotka")
    if other:
        noise = next(iter(other.values()))[0]["noise"]
        parts += ["## Predators and prey", _WORDS_LOTKA.format(noise=noise), lotka_table(other)]
    parts.append("## What came out")
    parts += [_about_robertson(mine)] if mine else []
    parts += [_about_lotka(other)] if other else []
    return "\n\n".join(parts) + "\n"


def by_variant(rows: Sequence[Row], problem: str) -> dict[str, list[Row]]:
    """Rows of a problem by variant, an entry for each seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["problem"] == problem:
            found.setdefault(row["variant"], []).append(row)
    return found


# -- Robertson ---------------------------------------------------------------------------------


def robertson_table(variants: dict[str, list[Row]]) -> str:
    """A line for each variant and baseline."""
    lines = []
    for variant, mine in variants.items():
        errors = [row["error"] for row in mine]
        species = [_size(max(row["errors"][k] for row in mine)) for k in range(3)]
        steps = f"{Summary.of([row['training_steps'] for row in mine]).mean:.0f}"
        each = ", ".join(_size(error) for error in errors)
        lines.append([ROBERTSON[variant], _size(_mean(errors)), each, *species, steps])
    for name, error in next(iter(variants.values()))[0]["baselines"].items():
        lines.append([name, _size(error), *["–"] * 5])
    header = ["", "error", "each seed", "y1, worst", "y2, worst", "y3, worst", "steps of training"]
    return markdown_table(header, lines)


def _mean(errors: Sequence[float]) -> float:
    return math.fsum(errors) / len(errors)


def _size(error: float) -> str:
    if math.isinf(error):
        return "fails"
    return f"{error:.3f}" if 0.01 <= error < 100 else f"{error:.1e}"


def _about_robertson(variants: dict[str, list[Row]]) -> str:
    mean = next(iter(variants.values()))[0]["baselines"]["mean of the observations"]
    worst = {v: max(row["error"] for row in mine) for v, mine in variants.items()}
    best = {v: min(row["error"] for row in mine) for v, mine in variants.items()}
    text = "**Robertson's reaction.** "
    if "unscaled" in worst:
        learned = best["unscaled"] < 0.5 * mean
        text += "Without scaling the network " + (
            f"learns something ({_size(best['unscaled'])}), unlike in the paper. "
            if learned
            else f"learns nothing: its best error is {_size(best['unscaled'])}, that of the mean "
            f"of the observations {mean:.3f}. "
        )
    for variant, name in (("scaled", "With scaling"), ("scaled_log_time", "In log time as well")):
        if variant not in worst:
            continue
        text += f"{name} the error is between {_size(best[variant])} and {_size(worst[variant])}"
        if worst[variant] < 0.1 * mean:
            text += ": learned by every seed. "
        elif worst[variant] < 0.5 * mean:
            text += ": better than the mean by far, and not yet exact. "
        elif best[variant] < 0.5 * mean:
            text += ": learned by some seeds only. "
        else:
            text += (
                ": with this budget no better than half of the mean's, so the claim does not hold "
                "here (Kim et al. train for far longer). "
            )
    lines = next(iter(variants.values()))[0]["baselines"].get("lines between them, in log t")
    if lines is not None:
        text += (
            f"Straight lines between the observations, {lines:.4f}, are still more exact: what an "
            "ODE has to offer here is equations and not interpolation."
            if lines < min(best.values())
            else f"Straight lines between the observations come to {lines:.4f}."
        )
    return text.strip()


# -- Lotka and Volterra ------------------------------------------------------------------------


def lotka_rows(variants: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """As given, and what sparse regression made of the universal equation."""
    shown: dict[str, list[Row]] = {}
    for variant, mine in variants.items():
        shown[variant] = mine
        if variant == "universal":
            shown["sparse"] = [
                {
                    key.removeprefix("sparse_"): x
                    for key, x in row.items()
                    if key.startswith("sparse_")
                }
                for row in mine
            ]
    return shown


def lotka_table(variants: dict[str, list[Row]]) -> str:
    """A line for each variant and the baseline."""
    lines = []
    for variant, mine in lotka_rows(variants).items():
        equations = mine[0].get("equations")
        words = f"u' = {equations[0]}, v' = {equations[1]}" if equations else "–"
        right = f"{sum(r['right_terms'] for r in mine)} of {len(mine)}" if equations else "–"
        lines.append([LOTKA[variant], _rmse(mine), right, words])
    last = Summary.of([row["baselines"]["last value"] for row in next(iter(variants.values()))])
    lines.append(["the last value", f"{last}", "–", "–"])
    return markdown_table(
        ["", "RMSE beyond", "seeds with the right terms", "equations of seed 0"], lines
    )


def _rmse(rows: Sequence[Row]) -> str:
    numbers = [row["rmse"] for row in rows if row["rmse"] is not None]
    failed = len(rows) - len(numbers)
    said = f"{failed} of {len(rows)} run away" if failed else ""
    spec = ".3f" if max(numbers, default=0) < 100 else ".0e"
    shown = format(Summary.of(numbers), spec) if numbers else ""
    return "; ".join(part for part in (shown, said) if part)


def _about_lotka(variants: dict[str, list[Row]]) -> str:
    shown = lotka_rows(variants)
    if "sparse" not in shown:
        return "**Predators and prey.** Run the universal equation to see what is found."
    sparse = shown["sparse"]
    right = sum(row["right_terms"] for row in sparse)
    text = f"**Predators and prey.** From {right} of {len(sparse)} seeds sparse regression on the "
    text += "learned networks gives exactly the true terms"
    if right:
        labels = sparse[0]["terms"]
        place = labels.index("uv")
        good = [row["coefficients"][place] for row in sparse if row["right_terms"]]
        beta = Summary.of([c[0] for c in good])
        gamma = Summary.of([c[1] for c in good])
        text += f", with {beta:.3f} uv for −{lotka.BETA} and {gamma:.3f} uv for {lotka.GAMMA}. "
    else:
        text += ": the claim does not hold here. "
    if "regression" in shown:
        other = sum(row["right_terms"] for row in shown["regression"])
        text += f"Sparse regression on the data's own slopes does so from {other}. "
    typical = {v: _middle(mine) for v, mine in shown.items()}
    order = sorted(typical, key=typical.__getitem__)
    names = {"universal": "the universal equation", "sparse": "its sparse reading",
             "black_box": "the black box", "regression": "regression on slopes"}  # fmt: skip
    listed = ", ".join(f"{names[v]} {_size(typical[v])}" for v in order)
    return text + f"Beyond the observations, RMSE of the seed in the middle, best first: {listed}."


def _middle(rows: Sequence[Row]) -> float:
    numbers = sorted(math.inf if row["rmse"] is None else row["rmse"] for row in rows)
    return numbers[len(numbers) // 2]
