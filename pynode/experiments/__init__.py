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
    "memory": Experiment(
        "pynode.experiments.memory",
        "memory and error of every kind of gradient against the length of the integration",
    ),
    "gradients": Experiment(
        "pynode.experiments.gradients",
        "sensitivities × solvers × tolerances × engines: which gradient to choose",
    ),
    "augment": Experiment(
        "pynode.experiments.augment",
        "x → −x and a ring around a disc: what needs an augmented or a second-order ODE",
    ),
    "physics": Experiment(
        "pynode.experiments.physics",
        "a pendulum learned by a Hamiltonian field and by a plain one: energy over a long time",
    ),
    "flow": Experiment(
        "pynode.experiments.flow",
        "continuous normalizing flows on eight densities, beside flows of layers",
    ),
    "classify": Experiment(
        "pynode.experiments.classify",
        "from ResNet to ODE-Net on handwritten digits, and the limit between them",
    ),
    "adaptive": Experiment(
        "pynode.experiments.adaptive",
        "one trained model at many tolerances: accuracy against cost (Chen et al. 2018, figure 3)",
    ),
    "uneven": Experiment(
        "pynode.experiments.uneven",
        "what an RNN should be told of uneven times: t, Δt, both, decay, a learned embedding",
    ),
    "stiff": Experiment(
        "pynode.experiments.stiff",
        "Robertson's reaction with scaling and without; a half-known equation, recovered",
    ),
    "series": Experiment(
        "pynode.experiments.series",
        "all models of uneven series on Rubanova's periodic toy, or the hopper",
    ),
}
