"""DETEST: evaluations that pynode's dp5 and torchdiffeq's dopri5 need for the same error.

Not collected by pytest; needs torchdiffeq. ``python tests/detest_comparison.py`` solves the 25
problems at tolerances 1e-3 to 1e-9 by both and writes the section "DETEST" of docs/verified.md.
For each problem the evaluations of torchdiffeq are fitted by a power of the error that it made;
a ratio is pynode's evaluations over what this fit says at pynode's error, so below 1 is fewer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engines" / "torch")]

import torch  # noqa: E402
from detest_problems import END, PROBLEMS, Problem, solution  # noqa: E402
from torchdiffeq_suite import write  # noqa: E402

import pynode  # noqa: E402

TOLERANCES = [10.0**-k for k in range(3, 10)]
CONTROLLERS = ("pi", "i")
FLOOR = 1e-12  # errors below are those of the reference

Result = list[list[float]]  # evaluations and error, for each tolerance


def run(odeint: Any, p: Problem, **options: Any) -> Result:
    found, t = [], torch.tensor([0.0, END], dtype=torch.float64)
    y0 = torch.tensor(p.start, dtype=torch.float64)
    for tol in TOLERANCES:
        count = 0

        def field(s: Any, y: Any) -> Any:
            nonlocal count
            count += 1
            return p.torch(s, y)

        with torch.no_grad():
            y = odeint(field, y0, t, rtol=tol, atol=tol, **options)[-1]
        found.append([count, max(float(np.abs(y.numpy() - solution(p.name)).max()), 1e-16)])
    return found


def measure() -> dict[str, dict[str, Result]]:
    import torchdiffeq

    results = {"torchdiffeq": {n: run(torchdiffeq.odeint, p) for n, p in PROBLEMS.items()}}
    for kind in CONTROLLERS:
        results[kind] = {
            n: run(pynode.odeint, p, solver="dp5", controller=kind) for n, p in PROBLEMS.items()
        }
    return results


def ratios(mine: Result, reference: Result) -> list[float]:
    """Of evaluations at equal error, where the errors overlap."""
    errors = np.log10([e for _, e in reference])
    fit = np.polyfit(errors, np.log10([n for n, _ in reference]), 1)
    return [
        n / 10 ** float(np.polyval(fit, np.log10(e)))
        for n, e in mine
        if e > FLOOR and errors.min() - 0.5 <= np.log10(e) <= errors.max() + 0.5
    ]


def mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def worst(results: dict[str, Result], names: list[str]) -> float:
    """Largest error, in units of the tolerance."""
    return max(
        error / tol
        for n in names
        for (_, error), tol in zip(results[n], TOLERANCES, strict=True)
        if error > FLOOR
    )


def section(results: dict[str, dict[str, Result]]) -> str:
    reference = results["torchdiffeq"]
    lines = [
        f"Evaluations of pynode's `dp5` over those of torchdiffeq's `dopri5` at equal error, and "
        f"the largest error in units of the tolerance; tolerances {TOLERANCES[0]:g} to "
        f"{TOLERANCES[-1]:g}, torch {torch.__version__}. How ratios are made is told in "
        "`tests/detest_comparison.py`.",
        "",
        "| class | controller | mean ratio | largest of a problem | largest of a single solve | "
        "error / tolerance | torchdiffeq's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    classes = [*"ABCDE", ""]
    for group in classes:
        names = [n for n in PROBLEMS if n.startswith(group)]
        for kind in CONTROLLERS:
            each = {n: ratios(results[kind][n], reference[n]) for n in names}
            lines.append(
                f"| {group or 'all'} | `{kind}` | {mean([r for x in each.values() for r in x]):.2f}"
                f" | {max(mean(x) for x in each.values()):.2f}"
                f" | {max(max(x) for x in each.values()):.2f}"
                f" | {worst(results[kind], names):.0f} | {worst(reference, names):.0f} |"
            )
    lines += ["", "Made by `python tests/detest_comparison.py`."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="keep the raw figures here, or use those there")
    path = parser.parse_args().json
    if path is not None and path.exists():
        results = json.loads(path.read_text())
    else:
        results = measure()
        if path is not None:
            path.write_text(json.dumps(results))
    write("DETEST", section(results))


if __name__ == "__main__":
    main()
