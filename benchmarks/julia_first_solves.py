"""What the julia engine's first solves take, written into docs/julia.md.

``python -m benchmarks.julia_first_solves`` on a machine where `pynode julia status` is content.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks import machine
from pynode import NeuralODE, julia

PAGE = Path(__file__).resolve().parent.parent / "docs" / "julia.md"
HEADING = "First and second solves"
TIMES = torch.linspace(0, 25, 100)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))


def forward(field: nn.Module, solver: str) -> None:
    with torch.no_grad():
        NeuralODE(field, engine="julia", solver=solver)(torch.ones(1, 2), TIMES)


def gradient(field: nn.Module, solver: str, sensitivity: str) -> None:
    node = NeuralODE(field, engine="julia", solver=solver, sensitivity=sensitivity)
    node(torch.ones(1, 2), TIMES).sum().backward()


def seconds(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def measured() -> list[tuple[str, float]]:
    """In this order: each line's compilation is what those before it have left to do."""
    torch.manual_seed(0)
    field, other = network(), network()
    found = [("`pynode.julia.start()`", seconds(julia.start))]
    for solver, kinds in (("dp5", ("discrete", "gauss")), ("rodas5p", ("gauss",))):
        for which in ("first", "second"):
            found.append((f"{which} solve by `{solver}`", seconds(forward, field, solver)))
        for kind in kinds:
            for which in ("first", "second"):
                name = f"{which} gradient by `{kind}` after `{solver}`"
                found.append((name, seconds(gradient, field, solver, kind)))
    return [*found, ("first solve of another network by `dp5`", seconds(forward, other, "dp5"))]


def main() -> None:
    before = machine.load()
    lines = [f"| {what} | {taken:.2g} |" for what, taken in measured()]
    text = "\n".join(
        [
            "In one session, in this order, a network 2-50-2 in float32, B = 1, 100 outputs; "
            f"{machine.describe('cpu')}, load average before it {before or math.nan:.1f}:\n",
            "| what | seconds |",
            "| --- | ---: |",
            *lines,
            "\nMost of the first ones is the compiler's work, of which "
            "`PYTHON_JULIACALL_OPTLEVEL=0` leaves some out, at the price of slower solves.",
            "\nMade by `python -m benchmarks.julia_first_solves`.",
        ]
    )
    page = PAGE.read_text()
    section = re.compile(rf"## {HEADING}\n.*?(?=\n## )", re.DOTALL)
    if not section.search(page):
        raise SystemExit(f"{PAGE.name} has no section {HEADING!r}")
    PAGE.write_text(section.sub(lambda _: f"## {HEADING}\n\n{text}\n", page))


if __name__ == "__main__":
    main()
