"""The gradients experiment's results in words: the cheapest way to a gradient of some accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments.study import Row, markdown_table

TARGET = 1e-4  # a relative error that no optimiser notices
TITLES = {
    "network": "A network",
    "forgetful": "A state that forgets",
    "stiff": "A stiff problem",
}
WORDS = {
    "network": "A network of 4 dimensions and 580 parameters, 16 states at once.",
    "forgetful": (
        "y1' = −λ(y1 − cos θ1 t), y2' = θ2 tanh y1, one state: forwards y1 forgets where it came "
        "from at the rate λ."
    ),
    "stiff": "Van der Pol's oscillator creeping along its slow path, 4 states at once.",
}
HEADING = (
    "The gradient of the mean square of the last state with respect to the first state and the "
    "parameters, in float64. For each solver and sensitivity the cheapest setting whose gradient "
    f"is off by at most {TARGET:g} (‖g − g_ref‖/‖g_ref‖, worst seed), fastest first. *ms* is "
    "processor time of one thread, forward and backward, the geometric mean over the seeds; *nfe* "
    "evaluations of the field forward and backward, *vjp* its vector–Jacobian products; *kB* the "
    "bytes of tensors alive at once, at rtol 1e-6 (of the torch engine). `differences` is what "
    "needs no theory: central differences of the loss, one number at a time."
)

Key = tuple[str, str, str]  # solver, sensitivity, engine


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    parts = ["# Gradients: error against cost", HEADING]
    for problem, title in TITLES.items():
        if groups(rows, problem):
            parts += [f"## {title}", WORDS[problem], table(rows, problem)]
    parts += ["## What came out", *conclusions(rows)]
    return "\n\n".join(parts) + "\n"


def groups(rows: Sequence[Row], problem: str) -> dict[Key, dict[float, list[Row]]]:
    """Points by solver, sensitivity and engine, and then by tolerance: one for each seed."""
    found: dict[Key, dict[float, list[Row]]] = {}
    for row in rows:
        if row["problem"] == problem:
            for point in row["points"]:
                key = point["solver"], point["sensitivity"], point["engine"]
                found.setdefault(key, {}).setdefault(point["rtol"], []).append(point)
    return found


def mean(points: Sequence[Row], column: str) -> float:
    """Geometric mean over the seeds; NaN where there is none."""
    numbers = [max(p[column], 1e-16) for p in points if column in p]
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def worst(points: Sequence[Row]) -> float:
    """The largest error over the seeds; infinite if one of them failed."""
    return max(p.get("error", math.inf) for p in points)


def cheapest(tolerances: dict[float, list[Row]]) -> tuple[float, list[Row]] | None:
    """The tolerance and points that reach the target in the least time."""
    good = [(rtol, ps) for rtol, ps in tolerances.items() if worst(ps) <= TARGET]
    return min(good, key=lambda found: mean(found[1], "seconds"), default=None)


def table(rows: Sequence[Row], problem: str) -> str:
    """A line for each solver and sensitivity that reaches the target; then those that do not."""
    found = groups(rows, problem)
    engines = dict.fromkeys(engine for *_, engine in found)
    best = {key: good for key, tols in found.items() if (good := cheapest(tols))}
    lines = []
    for key in sorted(best, key=lambda key: mean(best[key][1], "seconds")):
        rtol, points = best[key]
        kilobytes = [p["peak_bytes"] / 1e3 for ps in found[key].values() for p in ps
                     if "peak_bytes" in p]  # fmt: skip
        counts = [_count(points, c) for c in ("nfe", "nfe_backward", "vjp")]
        lines.append(
            [
                f"`{key[0]}`",
                f"`{key[1]}`",
                *([key[2]] if len(engines) > 1 else []),
                f"{rtol:.0e}",
                f"{worst(points):.0e}",
                *counts,
                f"{1e3 * mean(points, 'seconds'):.3g}",
                f"{kilobytes[0]:.0f}" if kilobytes else "–",
            ]
        )
    header = ["solver", "sensitivity", *(["engine"] if len(engines) > 1 else []), "rtol"]
    header += ["error", "nfe forward", "nfe backward", "vjp", "ms", "kB"]
    text = markdown_table(header, lines)
    missed = [key for key in found if key not in best]
    if missed:
        text += "\n\nNot reached: " + "; ".join(_missed(key, found[key]) for key in missed) + "."
    return text


def _missed(key: Key, tolerances: dict[float, list[Row]]) -> str:
    error = min(worst(points) for points in tolerances.values())
    said = f"`{key[0]}` with `{key[1]}`" + ("" if key[2] == "torch" else f" ({key[2]})")
    return f"{said} ({'fails' if math.isinf(error) else f'at best {error:.0e}'})"


def _count(points: Sequence[Row], column: str) -> str:
    value = mean(points, column)
    return "–" if math.isnan(value) else f"{value:.0f}"


def conclusions(rows: Sequence[Row]) -> list[str]:
    """For each problem what was fastest and leanest; then what never failed."""
    said = []
    for problem, title in TITLES.items():
        found = groups(rows, problem)
        best = {key: good for key, tols in found.items() if (good := cheapest(tols))}
        if best:
            said.append(f"**{title}.** " + _winners(best, found))
    if said:
        said.append(_robust(rows))
    return said


def _winners(
    best: dict[Key, tuple[float, list[Row]]], found: dict[Key, dict[float, list[Row]]]
) -> str:
    times = {key: mean(points, "seconds") for key, (_, points) in best.items()}
    ranking = sorted(times, key=times.__getitem__)
    solvers = list(dict.fromkeys(key[0] for key in ranking))
    names = list(dict.fromkeys(key[1] for key in ranking))
    text = f"Fastest is {_name(ranking[0])} in {1e3 * times[ranking[0]]:.3g} ms. By sensitivity, "
    text += "each with its best solver, in multiples of that: "
    text += ", ".join(f"`{n}` {_best(times, 1, n) / times[ranking[0]]:.1f}" for n in names)
    text += "; by solver, each with its best sensitivity: "
    text += ", ".join(f"`{s}` {_best(times, 0, s) / times[ranking[0]]:.1f}" for s in solvers) + "."
    bytes_ = {
        key[1]: p["peak_bytes"]
        for key, tols in found.items()
        if key[0] == ranking[0][0] and key in best
        for ps in tols.values()
        for p in ps
        if "peak_bytes" in p
    }
    if len(bytes_) > 1:
        least = min(bytes_, key=bytes_.__getitem__)
        most = max(bytes_, key=bytes_.__getitem__)
        text += (
            f" With `{ranking[0][0]}`, `{least}` needs the least memory and `{most}` "
            f"{bytes_[most] / bytes_[least]:.0f} times as much."
        )
    return text


def _best(times: dict[Key, float], place: int, name: str) -> float:
    return min(value for key, value in times.items() if key[place] == name)


def _name(key: Key) -> str:
    return f"`{key[0]}` with `{key[1]}`" + ("" if key[2] == "torch" else f" ({key[2]} engine)")


def reached(rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each sensitivity the problems on which some solver reached the target with it."""
    names: dict[str, list[str]] = {}
    for problem in TITLES:
        found = groups(rows, problem)
        for key, tolerances in found.items():
            done = names.setdefault(key[1], [])
            if cheapest(tolerances) and problem not in done:
                done.append(problem)
    return names


def _robust(rows: Sequence[Row]) -> str:
    done = reached(rows)
    present = [problem for problem in TITLES if groups(rows, problem)]
    everywhere = [f"`{n}`" for n, problems in done.items() if len(problems) == len(present)]
    text = f"**Everywhere.** On all problems here {', '.join(everywhere) or 'no sensitivity'} "
    text += f"{'reaches' if len(everywhere) < 2 else 'reach'} an error of {TARGET:g} with some "
    text += "solver."
    for name, problems in done.items():
        missing = [TITLES[p].lower() for p in present if p not in problems]
        if missing:
            text += f" `{name}` does not on: {', '.join(missing)}."
    return text
