"""The adaptive experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments.study import Row, Summary, markdown_table

TITLES = {"digits": "An ODE-Net on digits", "pendulum": "A learned pendulum"}
SCORES = {"digits": "test accuracy", "pendulum": "RMSE of (q, p)"}
HEADING = (
    "Each model is trained once and solved with `tsit5` at tolerances from 1e-1 to 1e-8 "
    "(rtol = atol), and with fixed steps. *Solver error* is that of the states against the same "
    "model solved at 1e-11: it says how well the ODE is solved, not how good the model is; the "
    "score says both. *ms* is processor time of one thread for a forward pass of all test cases "
    "together, in float64; backward counts are of `interpolating`. Mean ± standard deviation over "
    "seeds."
)
CLOSE = {"digits": 0.005, "pendulum": 0.02}  # accuracy lost; relative increase of the RMSE


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    parts = ["# One model, many tolerances", HEADING]
    for task, title in TITLES.items():
        if of_task(rows, task):
            parts += [f"## {title}", table(rows, task), _baselines(rows, task)]
    parts += ["## What came out", *conclusions(rows)]
    return "\n\n".join(parts) + "\n"


def of_task(rows: Sequence[Row], task: str) -> list[Row]:
    """Rows of a task, an entry for each seed."""
    return [row for row in rows if row["task"] == task]


def points(rows: Sequence[Row], task: str, solver: str) -> list[list[Row]]:
    """For each setting of a solver, from coarse to fine, the points of all seeds."""
    found = [[p for p in row["points"] if p["solver"] == solver] for row in of_task(rows, task)]
    return [list(same) for same in zip(*found, strict=True)]


def of(found: Sequence[Row], column: str) -> Summary:
    """A column over the seeds."""
    return Summary.of([p[column] for p in found])


def table(rows: Sequence[Row], task: str) -> str:
    """A line for each tolerance, then for each fixed step."""
    lines = []
    for solver in ("tsit5", "euler", "rk4"):
        for same in points(rows, task, solver):
            first = same[0]
            unit = "" if task == "digits" else " a unit of t"
            how = f"rtol {first['rtol']:.0e}" if "rtol" in first else f"{first['steps']}{unit}"
            if "steps" in first:
                how += " step" if first["steps"] == 1 and not unit else " steps" if not unit else ""
            error = math.exp(of([{"e": math.log(max(p["error"], 1e-16))} for p in same], "e").mean)
            lines.append(
                [
                    f"`{solver}`, {how}",
                    f"{of(same, 'score'):.3f}",
                    f"{error:.0e}",
                    f"{of(same, 'nfe').mean:.0f}",
                    f"{of(same, 'nfe_backward').mean:.0f}",
                    f"{1e3 * of(same, 'seconds').mean:.1f}",
                ]
            )
    header = ["solver", SCORES[task], "solver error", "nfe forward", "nfe backward", "ms"]
    return markdown_table(header, lines)


def _baselines(rows: Sequence[Row], task: str) -> str:
    mine = of_task(rows, task)
    said = [f"{n} {Summary.of([r['baselines'][n] for r in mine])}" for n in mine[0]["baselines"]]
    exact = Summary.of([row["exact_score"] for row in mine])
    return f"Without an ODE: {', '.join(said)}. The model solved at 1e-11: {exact}."


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Chen et al.'s four observations, and what the tolerance is worth in use."""
    said = [_use(rows, task) for task in TITLES if of_task(rows, task)]
    if of_task(rows, "digits"):
        said += [_error_follows(rows), _time_follows(rows), _backward(rows), _training(rows)]
    return said


def _use(rows: Sequence[Row], task: str) -> str:
    settings = points(rows, task, "tsit5")
    scores = [of(same, "score").mean for same in settings]
    finest = scores[-1]
    good = [i for i, score in enumerate(scores) if close(task, score, finest)]
    first = next(i for i in range(len(settings)) if all(j in good for j in range(i, len(settings))))
    cost = of(settings[first], "nfe").mean
    most = of(settings[-1], "nfe").mean
    text = (
        f"**{TITLES[task]} in use.** From rtol {settings[first][0]['rtol']:.0e} on the "
        f"{SCORES[task]} is that of 1e-08 ({finest:.3f}) to within {_margin(task)}, at {cost:.0f} "
        f"evaluations instead of {most:.0f} ({most / cost:.1f} times fewer). "
    )
    if first == 0:
        text += "So the coarsest solve is good enough here: the tolerance hardly matters. "
    else:
        text += f"At 1e-01 it is {scores[0]:.3f}. "
    for solver in ("euler", "rk4"):
        fixed = points(rows, task, solver)
        enough = [s for s in fixed if close(task, of(s, "score").mean, finest)]
        least = min((of(s, "nfe").mean for s in enough), default=math.inf)
        if least < cost:
            text += f"`{solver}` gets there with {least:.0f} evaluations, fewer than that. "
        elif math.isinf(least):
            text += f"`{solver}` does not get there with the steps that were tried. "
        else:
            text += f"`{solver}` needs {least:.0f}. "
    return text.strip()


def close(task: str, score: float, finest: float) -> bool:
    """Whether a score is as good as that of the finest solve."""
    if task == "digits":
        return score >= finest - CLOSE[task]
    return score <= finest * (1 + CLOSE[task])


def _margin(task: str) -> str:
    return "half a point" if task == "digits" else f"{CLOSE[task]:.0%}"


def _error_follows(rows: Sequence[Row]) -> str:
    slopes = []
    for task in TITLES:
        settings = points(rows, task, "tsit5")[1:6] if of_task(rows, task) else []
        x = [math.log10(same[0]["rtol"]) for same in settings]
        y = [of([{"e": math.log10(max(p["error"], 1e-16))} for p in s], "e").mean for s in settings]
        if settings:
            slopes.append((task, _slope(x, y)))
    listed = " and ".join(f"{slope:.2f} ({task})" for task, slope in slopes)
    return (
        "**Error follows tolerance.** From 1e-2 to 1e-6 the solver's error goes as the tolerance "
        f"to the power {listed}."
    )


def _time_follows(rows: Sequence[Row]) -> str:
    found = [p for same in points(rows, "digits", "tsit5") for p in same]
    x = [math.log(p["nfe"]) for p in found]
    y = [math.log(p["seconds"]) for p in found]
    slope = _slope(x, y)
    verdict = "as Chen et al. say" if 0.8 < slope < 1.25 else "which is not quite proportional"
    return f"**Time follows nfe**, as its power {slope:.2f}: {verdict}."


def _backward(rows: Sequence[Row]) -> str:
    settings = points(rows, "digits", "tsit5")
    ratios = [of(same, "nfe_backward").mean / of(same, "nfe").mean for same in settings]
    text = (
        "**The backward pass.** Chen et al. find about half as many evaluations backward as "
        f"forward; here the ratio goes from {ratios[0]:.2f} at 1e-01 to {ratios[-1]:.2f} at 1e-08"
    )
    inside = all(0.35 < ratio < 0.65 for ratio in ratios)
    return text + (", as they say." if inside else ": it is no law.")


def _training(rows: Sequence[Row]) -> str:
    mine = [row["nfe_by_epoch"] for row in of_task(rows, "digits")]
    growth = Summary.of([math.log(epochs[-1][0] / epochs[0][0]) for epochs in mine])
    first = Summary.of([epochs[0][0] for epochs in mine]).mean
    last = Summary.of([epochs[-1][0] for epochs in mine]).mean
    text = f"**Evaluations during training** go from {first:.1f} to {last:.1f} forward"
    if growth.mean - growth.half_width > 0:
        return text + f", a factor of {math.exp(growth.mean):.2f}: they grow, as Chen et al. find."
    if growth.mean + growth.half_width < 0:
        return text + ": they fall, unlike in Chen et al."
    return text + f": no change beyond the noise of {growth.n} seeds."


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line of least squares."""
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    above = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / math.fsum((a - mx) ** 2 for a in x)
