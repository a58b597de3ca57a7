"""The augment experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments.study import Row, Summary, markdown_table

TASKS = {"mirror": "x → −x on a line", "annuli": "A ring and the disc inside it"}
NAMES = {
    "node": "neural ODE",
    "anode1": "augmented, 1 more dimension",
    "anode5": "augmented, 5 more dimensions",
    "second_order": "second order",
    "mlp": "MLP of two hidden layers",
    "linear": "linear regression",
    "mean": "the mean target",
}
BOUND = 1 / 3  # the variance of a uniform variable on [−1, 1]
SOLVED = 0.02  # of a target's mean square of 1/3 and 1: a few per cent
HEADING = (
    "All points at once, Adam with a learning rate of 0.01 that falls as a cosine; `tsit5`, "
    "rtol 1e-3, atol 1e-4, for one unit of time. MSE and accuracy (the sign of the output) on "
    "1000 fresh points; mean ± standard deviation over seeds. *nfe* is that of a forward pass, at "
    "the first and at the last step of training."
)


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    parts = ["# Augmented and second-order neural ODEs", HEADING]
    for task, title in TASKS.items():
        if by_model(rows, task):
            parts += [f"## {title}", table(rows, task)]
    parts += ["## What came out", *conclusions(rows)]
    return "\n\n".join(parts) + "\n"


def by_model(rows: Sequence[Row], task: str) -> dict[str, list[Row]]:
    """Rows of a task by model, an entry for each seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["task"] == task:
            found.setdefault(row["model"], []).append(row)
    return found


def of(rows: Sequence[Row], column: str) -> Summary:
    """A column over the seeds."""
    return Summary.of([row[column] for row in rows])


def nfe(rows: Sequence[Row], place: int) -> Summary:
    """Evaluations of the field at the first (0) or the last (−1) step."""
    return Summary.of([row["nfe"][place] for row in rows])


def table(rows: Sequence[Row], task: str) -> str:
    """A line for each model."""
    lines = []
    for model, mine in by_model(rows, task).items():
        has_ode = mine[0]["nfe"] and mine[0]["nfe"][-1]
        counts = [f"{nfe(mine, i):.0f}" if has_ode else "–" for i in (0, -1)]
        accuracy = [f"{of(mine, 'accuracy'):.3f}"] if task == "annuli" else []
        lines.append(
            [NAMES[model], f"{of(mine, 'test_mse'):.2g}", *accuracy,
             str(mine[0]["parameters"]), *counts]
        )  # fmt: skip
    header = ["model", "test MSE", *(["accuracy"] if task == "annuli" else [])]
    return markdown_table([*header, "parameters", "nfe, first step", "nfe, last step"], lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """What each task showed, from the numbers."""
    said = []
    mirror, annuli = by_model(rows, "mirror"), by_model(rows, "annuli")
    if "node" in mirror:
        said.append(_about_mirror(mirror))
    if "node" in annuli:
        said.append(_about_annuli(annuli))
    return said


def _about_mirror(models: dict[str, list[Row]]) -> str:
    plain = of(models["node"], "test_mse")
    text = (
        f"**x → −x.** Paths on a line cannot cross, so a plain neural ODE keeps the order of its "
        f"points; of all maps that do, the constant 0 comes closest to −x, with an MSE of "
        f"{BOUND:.3f}. The neural ODE ends at {plain:.3f}"
    )
    # a test set of 1000 points has a variance that is 0.01 off
    kept = plain.mean > BOUND - 0.03
    text += ", as it must. " if kept else ", below that bound: its solver's steps are too coarse. "
    return text + _others(models)


def _about_annuli(models: dict[str, list[Row]]) -> str:
    plain = of(models["node"], "test_mse")
    text = (
        "**The ring and the disc.** No flow of the plane sets the disc outside of its ring, so a "
        "straight line can never part all of them. "
    )
    if plain.mean <= SOLVED:
        text += (
            f"Even so the neural ODE gets to an MSE of {plain:.4f}: on finitely many points it can "
            "squeeze the disc out through a narrow gap, so the claim shows in the work, not in the "
            "error. "
        )
    else:
        text += f"The neural ODE ends at an MSE of {plain:.4f}. "
    text += _others(models)
    start, end = nfe(models["node"], 0), nfe(models["node"], -1)
    text += f" Its evaluations of the field go from {start.mean:.0f} to {end.mean:.0f} in training"
    wide = [m for m in models if m.startswith("anode")]
    ends = {m: nfe(models[m], -1).mean for m in wide}
    for m in wide:
        text += f"; {NAMES[m]}: {nfe(models[m], 0).mean:.0f} to {ends[m]:.0f}"
    return text + _more_or_less(end.mean, ends)


def _more_or_less(plain: float, ends: dict[str, float]) -> str:
    if not ends:
        return "."
    if all(plain > value for value in ends.values()):
        return ". So the plain one works harder."
    if all(plain <= value for value in ends.values()):
        return ". So here the plain one does not need more evaluations, unlike in the paper."
    return ". So the evaluations do not settle it here."


def _against(models: dict[str, list[Row]], name: str) -> str:
    """The error, and by what factor it is below the plain model's, if the seeds can tell."""
    plain = {row["seed"]: row["test_mse"] for row in models["node"]}
    mine = {row["seed"]: row["test_mse"] for row in models[name]}
    logs = Summary.of([math.log(plain[s] / mine[s]) for s in sorted(plain.keys() & mine.keys())])
    said = f"{of(models[name], 'test_mse').mean:.2g}"
    if logs.mean - logs.half_width > 0:
        factor = math.exp(logs.mean)
        shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
        return f"{said}, {shown} times less"
    return f"{said}, the difference within the noise of {logs.n} seeds"


def _others(models: dict[str, list[Row]]) -> str:
    odes = [m for m in ("anode1", "anode5", "second_order") if m in models]
    plain = of(models["node"], "test_mse").mean
    good = [m for m in odes if of(models[m], "test_mse").mean < min(SOLVED, plain)]
    bad = [m for m in odes if m not in good]
    text = ""
    if good:
        listed = ", ".join(f"{NAMES[m]} ({_against(models, m)})" for m in good)
        text = f"With room to go around the error is lower: {listed}."
    if bad:
        listed = ", ".join(f"{NAMES[m]} ({_against(models, m)})" for m in bad)
        text += f"{' ' if text else ''}The claim does not hold here for {listed}."
    simple = [m for m in ("linear", "mlp") if m in models]
    easy = [m for m in simple if of(models[m], "test_mse").mean < SOLVED]
    if easy:
        listed = " and ".join(NAMES[m] for m in easy)
        text += f" (It is no hard task: {listed} can do it too.)"
    return text
