"""The memory experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pynode.experiments.study import Row, markdown_table

CONSTANT = 1.25  # a growth by less than this counts as none
WRONG = 0.01  # a gradient with a larger relative error misleads


def points(rows: Sequence[Row], problem: str, method: str, value: float) -> list[Row]:
    """What one method did at one value, an entry for each seed."""
    return [
        point
        for row in rows
        if row["problem"] == problem
        for point in row["points"]
        if point["method"] == method and point["value"] == value
    ]


def methods(rows: Sequence[Row]) -> list[str]:
    """The methods that give gradients, in the order of the runs."""
    names = dict.fromkeys(point["method"] for row in rows for point in row["points"])
    return [name for name in names if name != "forward only"]


def values(rows: Sequence[Row], problem: str) -> list[float]:
    """The lengths or decay rates, ascending."""
    found = {p["value"] for r in rows if r["problem"] == problem for p in r["points"]}
    return sorted(found)


def typical(found: Sequence[Row], column: str) -> float:
    """Geometric mean over the seeds that did not fail; NaN where all did."""
    numbers = [max(p[column], 1e-16) for p in found if column in p]
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def render(rows: Sequence[Row]) -> str:
    """The whole of ``table.md``."""
    parts = ["# Memory and gradient error", HEADING]
    for problem, title in (("length", "Against the length T"), ("decay", "Against the decay λ")):
        if values(rows, problem):
            parts += [f"## {title}", table(rows, problem)]
    parts += ["## What came out", *conclusions(rows)]
    return "\n\n".join(parts) + "\n"


HEADING = (
    "`tsit5`, rtol 1e-6, atol 1e-8, float64. Peak memory is the largest number of bytes of "
    "tensors that were alive at once during the forward and the backward pass; *forward only* is "
    "the solve without a gradient; both for seed 0. Errors are ‖g − g_ref‖/‖g_ref‖ over dL/dz0 "
    "and dL/dθ together, geometric means over the seeds, with the smallest and the largest in "
    "brackets; g_ref comes from `dop853` at rtol 1e-12. A gradient of zero has an error of 1: "
    "anything near that is worthless. The loss is the mean square of the last state. *Against T*: "
    "a network of 4 dimensions from random states. *Against λ*: y1' = −λ(y1 − cos θ1 t), "
    "y2' = θ2 tanh y1 on [0, 1]."
)


def table(rows: Sequence[Row], problem: str) -> str:
    """A line for each method: peak memory where it was counted, errors, evaluations and time."""
    ends = values(rows, problem)
    low, high = ends[0], ends[-1]
    symbol = "T" if problem == "length" else "λ"
    counted = problem == "length"
    header = ["method"]
    if counted:
        header += [f"peak kB, {symbol}={low:g}", f"peak kB, {symbol}={high:g}", "growth"]
    header += [f"error, {symbol}={value:g}" for value in (low, high)]
    header += ["nfe forward", "nfe backward", "ms"]
    lines = [["forward only", *_memory(rows, "forward only"), *["–"] * 5]] if counted else []
    for method in methods(rows):
        first, last = (points(rows, problem, method, value) for value in (low, high))
        counts = [_number(typical(last, c), ".0f") for c in ("nfe", "nfe_backward")]
        milliseconds = _number(1e3 * typical(last, "seconds"), ".0f")
        lines.append(
            [
                f"`{method}`",
                *(_memory(rows, method) if counted else ()),
                *(_error(first), _error(last), *counts, milliseconds),
            ]
        )
    return markdown_table(header, lines)


def _memory(rows: Sequence[Row], method: str) -> list[str]:
    ends = values(rows, "length")
    sizes = [typical(points(rows, "length", method, v), "peak_bytes") for v in (ends[0], ends[-1])]
    return [*(_number(x / 1e3, ".0f") for x in sizes), _number(sizes[1] / sizes[0], ".1f")]


def _error(found: Sequence[Row]) -> str:
    numbers = [p["error"] for p in found if "error" in p]
    failed = len(found) - len(numbers)
    said = f"{failed} of {len(found)} stopped with an error message" if failed else ""
    if not numbers:
        return said
    shown = f"{typical(found, 'error'):.1e} [{min(numbers):.0e}, {max(numbers):.0e}]"
    return f"{shown}; {said}" if said else shown


def _number(value: float, spec: str) -> str:
    return "–" if math.isnan(value) else format(value, spec)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """The claims, each with the numbers that carry or refute it."""
    said = []
    if len(values(rows, "length")) > 1:
        said += [_about_growth(rows), _about_length(rows)]
    if values(rows, "decay"):
        said.append(_about_backsolve(rows))
    return said


def growth(rows: Sequence[Row], method: str) -> float:
    """Peak memory at the largest length over that at the smallest."""
    ends = values(rows, "length")
    small, large = (
        typical(points(rows, "length", method, value), "peak_bytes")
        for value in (ends[0], ends[-1])
    )
    return large / small


def _about_growth(rows: Sequence[Row]) -> str:
    ends = values(rows, "length")
    grown = {method: growth(rows, method) for method in methods(rows)}
    flat = [f"`{m}`" for m, g in grown.items() if g < CONSTANT]
    rest = [f"`{m}` ×{g:.1f}" for m, g in grown.items() if g >= CONSTANT]
    stopped = [f"`{m}`" for m, g in grown.items() if math.isnan(g)]
    at_end = {
        m: typical(points(rows, "length", m, ends[-1]), "peak_bytes")
        for m, g in grown.items()
        if not math.isnan(g)
    }
    most, least = max(at_end, key=at_end.__getitem__), min(at_end, key=at_end.__getitem__)
    text = f"**Memory.** From T = {ends[0]:g} to T = {ends[-1]:g} (×{ends[-1] / ends[0]:g}) "
    if flat:
        text += (
            f"the memory of {', '.join(flat)} stays the same, so the promise of constant memory "
        )
        text += "holds for these. "
    else:
        text += "no method's memory stays the same: the promise of constant memory does not hold. "
    if rest:
        text += f"It grows for {', '.join(rest)}. "
    if stopped:
        text += f"Stopped before the end with an error message: {', '.join(stopped)}. "
    return text + (
        f"At the longest, `{most}` needs {at_end[most] / at_end[least]:.0f} times what `{least}` "
        "does."
    )


def _about_length(rows: Sequence[Row]) -> str:
    end = values(rows, "length")[-1]
    worst = {m: _largest(points(rows, "length", m, end)) for m in methods(rows)}
    stopped = [f"`{m}`" for m, e in worst.items() if math.isinf(e)]
    wrong = [f"`{m}`" for m, e in worst.items() if WRONG < e < math.inf]
    text = f"**Accuracy on the network**, at T = {end:g}, the worst seed: "
    text += ", ".join(f"`{m}` {_or_failed(e)}" for m, e in worst.items()) + ". "
    if wrong:
        text += f"With more than {WRONG:.0%} off, {', '.join(wrong)} cannot be trusted over this "
        text += "length. "
    if not stopped and not wrong:
        text += "Every method can be used on this problem. "
    return text.strip() + _about_reversible(stopped)


def _about_reversible(stopped: Sequence[str]) -> str:
    """Why that one stops where the others go on."""
    if "`reversible`" not in stopped:
        return ""
    return (
        " `reversible` steps two coupled states, which drift apart over long spans and where the "
        "solution contracts fast; it stops when they no longer agree to 1000 tolerances, and "
        "takes smaller steps before."
    )


def _about_backsolve(rows: Sequence[Row]) -> str:
    rates = values(rows, "decay")
    errors = [_largest(points(rows, "decay", "backsolve", rate)) for rate in rates]
    others = {
        m: max(_largest(points(rows, "decay", m, rate)) for rate in rates)
        for m in methods(rows)
        if m != "backsolve"
    }
    listed = ", ".join(f"{_or_failed(e)} at λ = {r:g}" for r, e in zip(rates, errors, strict=True))
    text = f"**Where `backsolve` is wrong.** Its worst error is {listed}. "
    wrong = [rate for rate, error in zip(rates, errors, strict=True) if error > WRONG]
    if wrong:
        text += (
            f"From λ = {wrong[0]:g} on it is more than {WRONG:.0%} off, and nothing warns of it: "
            "forwards y1 forgets where it came from at the rate e^(−λt), so backwards every error "
            "grows at that rate. "
        )
    else:
        text += "So here the expected failure does not show. "
    fine = [f"`{m}` ({e:.0e})" for m, e in others.items() if e <= WRONG]
    not_fine = [f"`{m}` ({_by_rate(rows, m)})" for m, e in others.items() if e > WRONG]
    if fine:
        text += f"Right for every λ, at worst: {', '.join(fine)}. "
    if not_fine:
        text += f"Not usable for every λ: {', '.join(not_fine)}."
    return text.strip()


def _by_rate(rows: Sequence[Row], method: str) -> str:
    worst = {rate: _largest(points(rows, "decay", method, rate)) for rate in values(rows, "decay")}
    return ", ".join(f"{_or_failed(e)} at λ = {rate:g}" for rate, e in worst.items() if e > WRONG)


def _largest(found: Sequence[Row]) -> float:
    """The largest error over the seeds; infinite if one of them failed."""
    return max((p.get("error", math.inf) for p in found), default=math.nan)


def _or_failed(error: float) -> str:
    return "stops with an error message" if math.isinf(error) else f"{error:.0e}"
