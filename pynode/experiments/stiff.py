"""Two ways in which knowing the problem helps a neural ODE to learn a hard one.

Robertson's stiff reaction with scaled equations and losses (Kim et al. 2021), beside the same
network without; and a universal differential equation (Rackauckas et al. 2020), in which a
network stands for the unknown half of Lotka and Volterra's equations and is then read by sparse
regression.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from pynode.experiments import stiff_figure, stiff_lotka, stiff_robertson, stiff_table
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.train.files import write_json


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``.

    Attributes:
        seeds: of weights and noise.
        evaluations: of the field in forward passes, for each of Robertson's variants.
        steps: for each of Lotka and Volterra's, half of them of Adam and twice of L-BFGS.
        noise: of an observation of those, as a share of the species' mean.
    """

    seeds: int
    evaluations: int
    steps: int
    noise: float


SCALES = {"demo": Scale(3, 15_000, 100, 0.005), "paper": Scale(10, 1_000_000, 500, 0.005)}
_HEAVY = ("path", "losses", "spent", "interaction", "sparse_path")  # of files beside the row


@dataclass(frozen=True)
class Spec:
    """One variant of one problem."""

    problem: str
    variant: str
    seed: int
    budget: int
    noise: float

    @property
    def name(self) -> str:
        return f"{self.problem}-{self.variant}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment stiff``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    seeds = range(scale.seeds)
    specs = [
        Spec("robertson", v, s, scale.evaluations, 0.0)
        for v in stiff_robertson.VARIANTS
        for s in seeds
    ]
    specs += [
        Spec("lotka", v, s, scale.steps, scale.noise) for v in stiff_lotka.VARIANTS for s in seeds
    ]
    config = {"scale": arguments.scale, **asdict(scale)}
    study = Study("stiff", specs, work, config, stiff_table.render, stiff_figure.draw)
    return study.run(arguments)


def work(spec: Spec, folder: Path) -> Row:
    """Learn and judge; what is long goes into ``curves.json``."""
    if spec.problem == "robertson":
        row = stiff_robertson.learn(spec.variant, spec.seed, spec.budget)
        row["baselines"] = stiff_robertson.baselines()
        row["training_steps"] = len(row["losses"])
    else:
        row = stiff_lotka.learn(spec.variant, spec.seed, spec.budget, spec.noise)
        row["baselines"] = {"last value": stiff_lotka.last_value(spec.seed, spec.noise)}
    write_json(folder / "curves.json", {key: row.pop(key) for key in _HEAVY if key in row})
    return row
