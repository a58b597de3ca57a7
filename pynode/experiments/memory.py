"""Memory and accuracy of gradients against the length of the integration.

Chen et al. 2018 promise gradients in constant memory. Which methods keep the promise, what the
others need, and where the method that keeps it best (``backsolve``) is wrong.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pynode.experiments import memory_figure, memory_table
from pynode.experiments.gradient_problems import cost, forward_bytes, relaxation, spun_network
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of

METHODS: dict[str, dict[str, Any]] = {
    "discrete": {"sensitivity": "discrete"},
    "discrete, 8 checkpoints": {"sensitivity": "discrete", "checkpoints": 8},
    "interpolating": {"sensitivity": "interpolating"},
    "gauss": {"sensitivity": "gauss"},
    "backsolve": {"sensitivity": "backsolve"},
    "reversible": {"sensitivity": "reversible"},
}
TOLERANCES: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    lengths: tuple[float, ...]
    decays: tuple[float, ...]
    batch: int
    hidden: int


SCALES = {
    "demo": Scale(
        seeds=5,
        lengths=(1.0, 4.0, 16.0, 64.0),
        decays=(5.0, 10.0, 20.0, 40.0, 80.0),
        batch=16,
        hidden=64,
    ),
    "paper": Scale(
        seeds=10,
        lengths=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
        decays=(2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
        batch=64,
        hidden=128,
    ),
}


@dataclass(frozen=True)
class Spec:
    """All methods on one problem over a range of lengths T, or of decay rates λ."""

    problem: str
    seed: int
    values: tuple[float, ...]
    batch: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.problem}-seed{self.seed}"

    @property
    def counts_bytes(self) -> bool:
        """Only for one seed: memory depends on the number of steps and hardly on anything else."""
        return self.problem == "length" and self.seed == 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment memory``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    seeds = range(scale.seeds)
    specs = [Spec("length", s, scale.lengths, scale.batch, scale.hidden) for s in seeds]
    specs += [Spec("decay", s, scale.decays, 1, 0) for s in seeds]
    config = {"scale": arguments.scale, **asdict(scale), "solver": "tsit5", **TOLERANCES}
    study = Study("memory", specs, work, config, memory_table.render, memory_figure.draw)
    return study.run(arguments)


def work(spec: Spec, folder: Path) -> Row:
    """Every method at every value: a list of points."""
    points = []
    for value in spec.values:
        if spec.problem == "length":
            problem = spun_network(spec.seed, value, spec.batch, spec.hidden)
        else:
            problem = relaxation(spec.seed, value)
        truth = problem.truth()
        if spec.counts_bytes:
            least = forward_bytes(problem, **TOLERANCES)
            points.append({"method": "forward only", "value": value, "peak_bytes": least})
        for method, options in METHODS.items():
            found = cost(problem, truth, memory=spec.counts_bytes, **options, **TOLERANCES)
            points.append({"method": method, "value": value, **found})
    return {"points": points}
