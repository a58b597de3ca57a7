"""How fast a solver could be at most, and where the time of ours goes.

``python -m benchmarks.floors`` writes docs/floors.md. An eager solver's floor is the field alone:
as many evaluations as the solve made, each of the state that the one before returned, and for
gradients one backward pass through all of them. A solver whose own work cost nothing would take
that long. Of compiled ones the floor is what no compiler takes away: the field's matrix products,
which a BLAS does at nearly the machine's rate. It needs Julia, and jax with diffrax, for the last
two tables.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import inside_julia, machine
from benchmarks.cases import Case, all_cases
from benchmarks.contenders import Contender, all_contenders
from benchmarks.contenders.torch_problem import TorchProblem
from benchmarks.measure import keep_freed_memory
from benchmarks.run import environment
from pynode import NeuralODE
from pynode.engines.torch.linearized import MOST
from pynode.field import FlatField
from pynode.lowering import lower
from pynode.solution import Statistics
from pynode.state import StateLayout

CASES = (
    "spiral-b1-1e-3", "spiral-b256-1e-3", "spiral-b256-1e-7", "cnf-exact", "cnf-hutchinson",
)  # fmt: skip
HEAVY = ("cnf-exact", "cnf-hutchinson", "large")
ROUNDS = 9
PAGE = Path(__file__).parent.parent / "docs" / "floors.md"

HEAD = """# How fast solves can be

Written by `python -m benchmarks.floors`; do not edit.

* Machine: {machine}, one thread. {versions}.

Without `compile=True` each evaluation of the field is torch's own operations, called one by one,
and no solver can make them faster. *field alone* is the time of as many evaluations as pynode's
solve made, with nothing between them (gradients: and one backward pass through all of them). *at
most* is how many times faster than torchdiffeq a solver would be whose own work cost nothing. But
each state that a solver evaluates the field at is made of the stages before it: *and sums* is the
field with one product of stages and weights after each evaluation, without a step's other work
(errors, outputs, cotangents of all but the last stage). That work is operations of torch, too:
*operations* counts those of pynode's solve, and of the field alone, with what autograd makes of
them (the field alone goes back through each evaluation, a solve only through those of accepted
steps). The least of them, the addition of two states, takes *each*. Times are in ms, medians of
{rounds} rounds that take turns; *×* is against torchdiffeq.

So where *at most* is near 1, as for the flows, no eager solver can be much faster than torchdiffeq;
and where states are small, the solver's operations, at a price of one to several µs each, are what
`compile=True` does away with.
"""


PARTS = """
## Where an eager solve's time goes

The same gradients (of the states' sum) in parts, in ms. *forward* without autograd, *kept* is what
autograd adds to that, *backward* what follows: of the field, called as often as the solve calls
it, and what the solver's own operations add to each. The field's part is what every solver pays;
only the solver's is left to shorten. (It comes out negative where the solve goes back through
fewer evaluations than the field alone does: not through that for the first step's size.) Of the
solver's part in *kept* and *backward* most is autograd's: a node for each operation, a cotangent
for each stage by each later one. (One node of our own for each stage, and a backward pass of its
own for each evaluation, were tried by hand, and were not or hardly faster: what is called from
Python costs as much again.)

| case | field: forward | kept | backward | solver: forward | kept | backward | together |
|---|---:|---:|---:|---:|---:|---:|---:|
"""

PRODUCTS = """
## Compiled, and in Julia

Here the field's operations are not called one by one, and most of them become one pass over
memory. The matrix products remain. *products* counts those of one evaluation (gradients: of one
evaluation and its pullback) of {least} multiplications or more, *each evaluation* is what they take
together, each by torch's BLAS or numpy's, whichever is faster, and *at most* how many times faster
than torchdiffeq a solver would be that did them alone, as often as torchdiffeq evaluates the field.

| case | | torchdiffeq | evaluations | products | each evaluation, ms | GFLOP/s | at most |
|---|---|---:|---:|---:|---:|---:|---:|
"""
LEAST = 4096

SMALL = """
## One small system, by the julia engine

Of a call by the julia engine, in µs: *in Julia* is the solve there, *evaluations* the field's part
of that, its number and the time of *each*; the rest of the call is Python's: a module's call, new
tensors, looking whether times, parameters or the field have changed. *at most* is how many times
faster than diffrax, whose whole call is one of XLA's, a call would be that were nothing but the
solve, or nothing but the evaluations. (Both in loops that run alone in Julia, with warm caches.)

| case | diffrax | pynode julia | × | in Julia | at most | evaluations | each | together | at most |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""
HEAVY_IN_JULIA = """
## Large fields, by the julia engine

Where the time of such a solve by the julia engine goes, in ms, in loops that run alone in Julia.
*each* is one evaluation of the field, and *products* what its matrix products take of that by the
BLAS. A gradient evaluates again and pulls back: how often, and what both take for *each* of these
evaluations. (Of a step all stages are evaluated, then all pulled back, so that what was kept for
that has left the processor's nearer caches.) The rest is tanh and its derivatives, products with
the tangents' factors, and sums, each one pass over memory.

| case | solve | evaluations | each | products | gradient | again and back | each | products |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
"""


class Operations(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> int:
    """How many of torch's operations a run makes."""
    with Operations() as found:
        run()
    return found.count


def chain(
    p: TorchProblem, evaluations: int, backward: bool = True, sums: bool = False
) -> Callable[[], Any]:
    """The field alone, so many times; forward and backward where the problem is about gradients.

    Args:
        sums: between two evaluations, add a product of stages and weights, as all solvers must.
    """
    stages, weights = torch.zeros(p.z0.numel(), 6, dtype=p.dtype), torch.zeros(6, dtype=p.dtype)
    shape = p.z0.shape

    def run() -> Any:
        t, z = p.times.reshape(-1)[0], p.z0
        with torch.set_grad_enabled(p.gradient):
            for _ in range(evaluations):
                z = p.field(t, z)
                if sums:
                    z = torch.addmv(z.reshape(-1), stages, weights).reshape(*shape)
            if p.gradient and backward:
                return torch.autograd.grad(z.sum(), [p.z0, *p.field.arrays], allow_unused=True)
        return z

    return run


def medians(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Milliseconds of each, taking turns."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs * 3:  # warm, with what memory allocators keep
        run()
    gc.collect()
    gc.freeze()
    for _ in range(ROUNDS):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(found) for found in times]


def row(case: Case, mode: str, contenders: dict[str, Contender]) -> str:
    """One line of the table."""
    base = contenders["torchdiffeq"].prepare(case, mode, "cpu")
    mine = contenders["pynode torch"].prepare(case, mode, "cpu")
    raw = mine.run()
    evaluations = mine.counts(raw)["field calls"]
    problem = TorchProblem(case, "cpu", mode != "forward")
    z = problem.z0.detach()
    field = chain(problem, evaluations)
    sums = chain(problem, evaluations, sums=True)
    theirs, ours, alone, summed = medians([base.run, mine.run, field, sums])
    # By itself: after a gradient malloc sorts what that has freed, for some calls to come.
    additions = medians([lambda: [z + z for _ in range(100)]])[0]
    counts = f"{operations(mine.run)} / {operations(field)}"
    return (
        f"| {case.name} | {mode} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} | "
        f"{evaluations} | {alone:.2f} | {theirs / alone:.2f} | {summed:.2f} | "
        f"{theirs / summed:.2f} | {counts} | {additions * 10:.2f} |"
    )


def parts_row(case: Case) -> str:
    """One line of the table of parts."""
    plain, taped = TorchProblem(case, "cpu", False), TorchProblem(case, "cpu", True)
    options = {"solver": "dp5", "rtol": case.rtol, "atol": case.atol, "controller": "i"}
    options["sensitivity"] = "discrete"
    nodes = [NeuralODE(p.field, **options) for p in (plain, taped)]

    def solve(gradient: bool, backward: bool) -> Callable[[], Any]:
        p, node = (plain, taped)[gradient], nodes[gradient]

        def run() -> Any:
            with torch.set_grad_enabled(gradient):
                zs = node(p.z0, p.times)
            if not backward:
                return zs
            return torch.autograd.grad(zs.sum(), [p.z0, *p.field.arrays])

        return run

    solve(False, False)()
    count = nodes[0].stats.nfe
    field = [chain(plain, count), chain(taped, count, backward=False), chain(taped, count)]
    times = medians([*field, solve(False, False), solve(True, False), solve(True, True)])
    of_field = [times[0], times[1] - times[0], times[2] - times[1]]
    whole = [times[3], times[4] - times[3], times[5] - times[4]]
    own = [x - y for x, y in zip(whole, of_field, strict=True)]
    numbers = " | ".join(f"{x:.2f}" for x in (*of_field, *own, times[5]))
    return f"| {case.name} | {numbers} |"


def products(case: Case, program: str) -> list[tuple[int, int, int]]:
    """(m, n, k) of the large matrix products in one of the field's programs."""
    p = TorchProblem(case, "cpu", True)
    z0 = p.z0.detach()
    field = FlatField(p.field, StateLayout(z0), None, Statistics())
    lowered = lower(field, z0.reshape(-1), float(p.times[0]), (program,), tensors=p.field.arrays)
    sizes = [i.integers[:3] for i in lowered.programs[program].code if i.op == "mm"]
    return [(m, n, k) for m, n, k in sizes if m * n * k >= LEAST]


@functools.cache
def product_time(size: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Milliseconds of one product, by the faster of two BLAS."""
    m, n, k = size
    a, b, out = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.empty(m, n)
    out = out.to(dtype)
    x, y, z = a.numpy(), b.numpy(), out.numpy()
    repeats = max(1, 10**8 // (m * n * k))
    by_torch = lambda: [torch.mm(a, b, out=out) for _ in range(repeats)]  # noqa: E731
    by_numpy = lambda: [np.matmul(x, y, out=z) for _ in range(repeats)]  # noqa: E731
    return min(medians([by_torch, by_numpy])) / repeats


def product_row(case: Case, mode: str, contenders: dict[str, Contender]) -> str:
    """One line of the table of products."""
    base = contenders["torchdiffeq"].prepare(case, mode, "cpu")
    evaluations = base.counts(base.run())["field calls"]
    sizes = products(case, "f" if mode == "forward" else "pullback")
    dtype = getattr(torch, case.dtype)
    known = {size: product_time(size, dtype) for size in set(sizes)}
    each = sum(known[size] for size in sizes)
    rate = sum(2e-6 * math.prod(size) for size in sizes) / each
    theirs = medians([base.run])[0]
    return (
        f"| {case.name} | {mode} | {theirs:.2f} | {evaluations} | {len(sizes)} | {each:.3f} | "
        f"{rate:.0f} | {theirs / (evaluations * each):.2f} |"
    )


def small_row(case: Case, contenders: dict[str, Contender]) -> str:
    """One line of the table of small systems."""

    def calls(name: str) -> Callable[[], Any]:
        run = contenders[name].prepare(case, "forward", "cpu").run
        return lambda: [run() for _ in range(100)]

    theirs, ours = (10 * ms for ms in medians([calls("diffrax"), calls("pynode julia")]))
    solve, each, evaluations = inside_julia.small(case)
    return (
        f"| {case.name} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} | {solve:.0f} | "
        f"{theirs / solve:.2f} | {evaluations:.0f} | {each:.3f} | {evaluations * each:.0f} | "
        f"{theirs / (evaluations * each):.2f} |"
    )


def heavy_row(case: Case) -> str:
    """One line of the last table."""
    solve, each, evaluations, gradient, back, again = inside_julia.heavy(case)
    dtype = getattr(torch, case.dtype)
    f, pullback = (
        sum(product_time(size, dtype) for size in products(case, program))
        for program in ("f", "pullback")
    )
    return (
        f"| {case.name} | {solve:.2f} | {evaluations:.0f} | {each:.3f} | {f:.3f} | "
        f"{gradient:.2f} | {again:.0f} | {back:.3f} | {pullback:.3f} |"
    )


def main() -> int:
    os.environ.update(environment(1))  # of jax and Julia, which are yet to start
    torch.set_num_threads(1)
    threadpool_limits(1)
    keep_freed_memory(True)
    contenders = {c.name: c for c in all_contenders()}
    versions = ", ".join(
        f"{name} {v}" for name, v in machine.versions().items() if name in ("torch", "torchdiffeq")
    )
    lines = [
        HEAD.format(machine=machine.describe("cpu"), versions=versions, rounds=ROUNDS),
        "| case | | torchdiffeq | pynode | × | evaluations | field alone | at most | and sums | "
        "at most | operations | each, µs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in all_cases(False):
        if case.name in CASES:
            # Discrete gradients of small states do not evaluate one by one (linearized.py).
            modes = ["forward"] if case.z0.size <= MOST else ["forward", "gradient/discrete"]
            lines += [row(case, mode, contenders) for mode in modes]
            print(case.name, file=sys.stderr, flush=True)
    lines.append(PARTS.rstrip())
    for case in all_cases(False):
        if case.name in CASES and case.z0.size > MOST:
            lines.append(parts_row(case))
    lines.append(PRODUCTS.format(least=LEAST).rstrip())
    for case in all_cases(False):
        if case.name in HEAVY:
            modes = ("forward", "gradient/discrete")
            lines += [product_row(case, mode, contenders) for mode in modes]
    for name in ("diffrax", "pynode julia"):
        why = contenders[name].missing("cpu")
        if why:
            raise SystemExit(f"the last tables need {name}: {why}")
        contenders[name].start(1)
    lines.append(SMALL.rstrip())
    for case in all_cases(False):
        if case.name.startswith("spiral-b1-"):
            lines.append(small_row(case, contenders))
    lines.append(HEAVY_IN_JULIA.rstrip())
    for case in all_cases(False):
        if case.name in HEAVY:
            lines.append(heavy_row(case))
    PAGE.write_text("\n".join(lines) + "\n")
    print(PAGE.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
