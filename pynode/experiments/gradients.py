"""Every kind of gradient with every kind of solver: error against cost, and which to choose."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pynode import julia
from pynode.catalogue import ENGINES, sensitivities, solver
from pynode.errors import PynodeError
from pynode.experiments import gradients_figure, gradients_table
from pynode.experiments.gradient_problems import (
    Gradient,
    GradientProblem,
    by_differences,
    cost,
    relaxation,
    spun_network,
    van_der_pol,
)
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of

EXPLICIT = ("bs3", "tsit5", "vern7")
STIFF = ("rosenbrock23", "kvaerno5", "rodas5p", "fbdf")
SOLVERS = {"network": EXPLICIT, "forgetful": ("tsit5", "dop853"), "stiff": ("tsit5", *STIFF)}
BASELINE = "differences"


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    length: float
    decay: float
    mu: float
    tolerances: tuple[float, ...]
    repeats: int


SCALES = {
    "demo": Scale(3, 2.0, 20.0, 20.0, (1e-2, 1e-4, 1e-6, 1e-8), 1),
    "paper": Scale(5, 16.0, 40.0, 200.0, tuple(10.0**-k for k in range(2, 11)), 5),
}


@dataclass(frozen=True)
class Spec:
    """All solvers and sensitivities on one problem, with one engine."""

    problem: str
    engine: str
    seed: int
    strength: float
    tolerances: tuple[float, ...]
    repeats: int

    @property
    def name(self) -> str:
        return f"{self.problem}-{self.engine}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment gradients``."""
    add_common_arguments(parser, SCALES)
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, help="default: torch, and julia where it is ready"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    ready = ("torch", "julia") if julia.status().ready else ("torch",)
    engines = tuple(dict.fromkeys(arguments.engines or ready))
    strengths = {"stiff": scale.mu, "network": scale.length, "forgetful": scale.decay}
    specs = [
        Spec(problem, engine, seed, strength, tuple(scale.tolerances), scale.repeats)
        for problem, strength in strengths.items()
        for engine in engines
        for seed in range(scale.seeds)
    ]
    config = {"scale": arguments.scale, "engines": engines, **asdict(scale)}
    study = Study("gradients", specs, work, config, gradients_table.render, gradients_figure.draw)
    return study.run(arguments)


def make(spec: Spec) -> GradientProblem:
    """The problem of that name and strength."""
    if spec.problem == "network":
        return spun_network(spec.seed, spec.strength)
    if spec.problem == "forgetful":
        return relaxation(spec.seed, spec.strength)
    # A quarter of a period: the state creeps along, with a rate of μ(x² − 1) across its path.
    return van_der_pol(spec.seed, spec.strength, end=0.4 * spec.strength)


def work(spec: Spec, folder: Path) -> Row:
    """Every solver, sensitivity and tolerance that the engine has: a list of points."""
    problem = make(spec)
    truth = problem.truth()
    memory = spec.seed == 0 and spec.engine == "torch"
    points: list[Row] = []
    for method in SOLVERS[spec.problem]:
        for sensitivity in _sensitivities(method, spec.engine):
            for options in _tolerances(spec, method):
                how = {"solver": method, "sensitivity": sensitivity, "engine": spec.engine}
                found = cost(
                    problem,
                    truth,
                    memory=memory and options["rtol"] == 1e-6,
                    repeats=spec.repeats,
                    **how,
                    **options,
                )
                points.append({**how, "rtol": options["rtol"], **found})
    points += _baseline(spec, problem, truth)
    return {"points": points}


def _sensitivities(method: str, engine: str) -> list[str]:
    info = solver(method)
    if engine not in info.engines:
        return []
    names = [s.name for s in sensitivities() if engine in s.engines]
    without = {"backsolve", "reversible"} | ({"interpolating"} if engine == "julia" else set())
    return [s for s in names if not (info.stiff and s in without)]


def _tolerances(spec: Spec, method: str) -> Iterator[dict[str, Any]]:
    """Looser than a method of that order can be expected to be used with are left out."""
    tightest = 10.0 ** (-2 * solver(method).order)
    if spec.problem == "stiff" and not solver(method).stiff:
        tightest = 1e-4
    for rtol in spec.tolerances:
        if rtol >= 0.5 * tightest:
            yield {"rtol": rtol, "atol": 0.01 * rtol, "max_steps": 20_000}


def _baseline(spec: Spec, problem: GradientProblem, truth: Gradient) -> list[Row]:
    """Central differences, by the solver that suits the problem."""
    if spec.engine != "torch":
        return []
    method = "rodas5p" if spec.problem == "stiff" else "tsit5"
    how = {"solver": method, "sensitivity": BASELINE, "engine": "torch"}
    points = []
    for options in _tolerances(spec, method):
        try:
            found = by_differences(problem, truth, probes=3, solver=method, **options)
        except PynodeError as error:
            found = {"failed": str(error)}
        points.append({**how, "rtol": options["rtol"], **found})
    return points
