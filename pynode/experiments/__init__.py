"""Experiments: data, models, metrics and figure of one question each.

A new one is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``, and a line in
the table below.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Experiment:
    """An entry of the table.

    Attributes:
        module: where its ``add_arguments`` and ``run`` are; imported when it is asked for.
        summary: a line for the help text.
    """

    module: str
    summary: str

    def load(self) -> ModuleType:
        """Import the module."""
        return import_module(self.module)


EXPERIMENTS: dict[str, Experiment] = {
    "spiral": Experiment(
        "pynode.experiments.spiral",
        "RNNs against the latent ODE on irregular, incomplete spirals (Chen et al. 2018, table 2)",
    ),
    "flow": Experiment(
        "pynode.experiments.flow",
        "continuous normalizing flows on eight densities, beside flows of layers",
    ),
    "classify": Experiment(
        "pynode.experiments.classify",
        "from ResNet to ODE-Net on handwritten digits, and the limit between them",
    ),
    "uneven": Experiment(
        "pynode.experiments.uneven",
        "what an RNN should be told of uneven times: t, Δt, both, decay, a learned embedding",
    ),
    "series": Experiment(
        "pynode.experiments.series",
        "all models of uneven series on Rubanova's periodic toy, or the hopper",
    ),
}
