"""Times taken inside Julia, of a case that is exported as a run and read there."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.contenders.torch_problem import TorchProblem
from pynode import NeuralODE

COMMON = """
function best(f, n, rounds = 30)
    f()
    times = map(1:rounds) do _
        start = time_ns()
        foreach(_ -> f(), 1:n)
        (time_ns() - start) / n
    end
    minimum(times) / 1000
end
exported = PyNode.Run.read_folder(run)
field, u0, p = exported.field, vec(exported.data["z0"]), vec(exported.data["p"])
reads, du = PyNode.Reads(exported.data["ts"], length(u0)), similar(u0)
options = (; solver = "dp5", rtol, atol, controller = "i")
solve(keep) = PyNode.forward(field, u0, p, reads; options..., keep)
evaluate() = PyNode.rhs!(du, field, u0, p, 0.0)
"""

SMALL = """
[best(() -> solve(:nothing), 500), best(evaluate, 20_000), solve(:nothing).stats.nfe]
"""

# As many evaluations as a step of dp5 has stages, as a gradient makes them.
HEAVY = """
function gradient()
    kept = solve(:states)
    PyNode.gradient(kept, kept.zs; sensitivity = "discrete", times = false)
    kept
end
stages = PyNode.evaluations!(field, 7, p, length(u0))
foreach(e -> copyto!(e.u, u0), stages)
λ = fill!(similar(u0), 1)
function there_and_back()
    foreach(e -> PyNode.linearize!(e, p, 0.0), stages)
    foreach(e -> PyNode.pull!(e, λ, p), reverse(stages))
end
kept = solve(:states)
before = kept.counts.rhs
PyNode.gradient(kept, kept.zs; sensitivity = "discrete", times = false)
[best(() -> solve(:nothing), 1, 9) / 1000, best(evaluate, 1) / 1000, before,
 best(gradient, 1, 9) / 1000, best(there_and_back, 1, 9) / 7000, kept.counts.rhs - before]
"""


def small(case: Case) -> list[float]:
    """Microseconds of a solve and of an evaluation in it, and how many there are."""
    return _run(case, SMALL, trainable=False)  # as the contender's forward solve


def heavy(case: Case) -> list[float]:
    """Milliseconds of a solve and of an evaluation in it, and how many there are; of a gradient and
    of one evaluation there and back, and how many there are."""
    return _run(case, HEAVY, trainable=True)


def _run(case: Case, code: str, trainable: bool) -> list[float]:
    from juliacall import Main

    problem = TorchProblem(case, "cpu", False)
    problem.field.requires_grad_(trainable)
    options: dict[str, Any] = {"solver": "dp5", "rtol": case.rtol, "atol": case.atol}
    node = NeuralODE(problem.field, engine="julia", sensitivity="discrete", **options)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        node.export(f"{folder}/run", z0=problem.z0, t=problem.times)
        inside = Main.seval(f"(run, rtol, atol) -> begin\n{COMMON}{code}\nend")
        return [float(x) for x in inside(f"{folder}/run", case.rtol, case.atol)]
