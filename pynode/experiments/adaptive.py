"""One trained model at many tolerances: how accurate, at what cost.

Chen et al. 2018, figure 3, and what it is good for: a small device may solve the same model more
coarsely. Two models: an ODE-Net that tells digits apart, and a learned pendulum that is followed
for a while.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pynode import NeuralODE
from pynode.data.images import LabelledImages, digits
from pynode.experiments import adaptive_figure, adaptive_table, physics
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models.classifiers import Dense, ODENet
from pynode.models.fields import MLPField

TOLERANCES = tuple(10.0**-k for k in range(1, 9))
STEPS = (1, 2, 4, 8, 16, 32)  # of euler and rk4, for digits; for the pendulum as many a unit of t
TRAINED_AT = {"rtol": 1e-3, "atol": 1e-3}
EXACT: dict[str, Any] = {"solver": "dop853", "rtol": 1e-11, "atol": 1e-12, "max_steps": 100_000}


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    epochs: int
    steps: int
    horizon: float


SCALES = {"demo": Scale(3, 15, 200, 20.0), "paper": Scale(10, 100, 2000, 50.0)}


@dataclass(frozen=True)
class Spec:
    """One model, trained once and solved many times; ``budget`` in epochs or steps."""

    task: str
    seed: int
    budget: int
    horizon: float

    @property
    def name(self) -> str:
        return f"{self.task}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment adaptive``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    budgets = {"digits": scale.epochs, "pendulum": scale.steps}
    specs = [
        Spec(task, seed, budget, scale.horizon)
        for task, budget in budgets.items()
        for seed in range(scale.seeds)
    ]
    config = {"scale": arguments.scale, **asdict(scale), "trained_at": TRAINED_AT}
    study = Study("adaptive", specs, work, config, adaptive_table.render, adaptive_figure.draw)
    return study.run(arguments)


@dataclass(frozen=True)
class Trained:
    """A trained field in float64, how it is used, and how good its output is.

    Attributes:
        field: the right-hand side.
        z0, times: what to solve.
        score: of the states (T, B, D) at ``times``.
        unit: of t; fixed steps are fractions of it.
        nfe_by_epoch: (forward, backward) while training.
        baselines: scores of what needs no ODE.
    """

    field: nn.Module
    z0: Tensor
    times: Tensor
    score: Callable[[Tensor], float]
    unit: float
    nfe_by_epoch: list[tuple[float, float]]
    baselines: dict[str, float]


def work(spec: Spec, folder: Path) -> Row:
    """Train, then solve at every tolerance and with fixed steps of every size."""
    trained = _digits(spec) if spec.task == "digits" else _pendulum(spec)
    with torch.no_grad():
        exact = NeuralODE(trained.field, **EXACT)(trained.z0, trained.times)
    points = [
        {"solver": "tsit5", "rtol": rtol, **_solve(trained, exact, rtol=rtol, atol=rtol)}
        for rtol in TOLERANCES
    ]
    for solver in ("euler", "rk4"):
        for n in STEPS:
            found = _solve(trained, exact, solver=solver, dt=trained.unit / n)
            points.append({"solver": solver, "steps": n, **found})
    return {
        "points": points,
        "nfe_by_epoch": trained.nfe_by_epoch,
        "baselines": trained.baselines,
        "exact_score": trained.score(exact),
    }


def _solve(trained: Trained, exact: Tensor, **options: Any) -> Row:
    """One way to solve: score, error, evaluations and processor time; and a gradient's work.

    The gradient is that of the last state alone, else each output would begin the adjoint anew.
    """
    node = NeuralODE(trained.field, sensitivity="interpolating", **options)
    seconds = []
    with torch.no_grad():
        for _ in range(3):
            began = time.process_time()
            zs = node(trained.z0, trained.times)
            seconds.append(time.process_time() - began)
    z0 = trained.z0.clone().requires_grad_()
    node(z0, trained.times[[0, -1]])[-1].square().mean().backward()
    return {
        "score": trained.score(zs),
        "error": float((zs - exact).norm() / exact.norm()),
        "nfe": node.stats.nfe,
        "nfe_backward": node.stats.nfe_backward,
        "seconds": sorted(seconds)[1],
    }


# -- digits ------------------------------------------------------------------------------------


def _digits(spec: Spec) -> Trained:
    train, test = digits(spec.seed)
    torch.manual_seed(spec.seed)
    model = ODENet(Dense(64, train.classes), sensitivity="interpolating", **TRAINED_AT)
    counts = _fit(model, train, spec.budget)

    def score(zs: Tensor) -> float:
        with torch.no_grad():
            return float((model.head(zs[-1]).argmax(1) == test.y).float().mean())

    baselines = {"linear classifier": _linear(train, test)}
    commonest = train.y.bincount().argmax()
    baselines["commonest class"] = float((test.y == commonest).float().mean())
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    model.double()
    field: Any = model.node.field
    return Trained(field, test.x.double(), ends, score, 1.0, counts, baselines)


def _fit(model: ODENet, train: LabelledImages, epochs: int) -> list[tuple[float, float]]:
    """Adam with a cosine schedule; mean evaluations of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches = -(-len(train) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    counts = []
    for _ in range(epochs):
        forward = backward = 0
        for rows in torch.randperm(len(train)).split(128):
            batch = train[rows]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.x), batch.y).backward()
            optimizer.step()
            schedule.step()
            forward += model.node.stats.nfe
            backward += model.node.stats.nfe_backward
        counts.append((forward / batches, backward / batches))
    return counts


def _linear(train: LabelledImages, test: LabelledImages) -> float:
    """Accuracy of least squares on one-hot classes."""
    ones = [torch.cat([images.x, torch.ones(len(images), 1)], 1) for images in (train, test)]
    wanted = nn.functional.one_hot(train.y).float()
    weights = torch.linalg.lstsq(ones[0], wanted, driver="gelsd").solution
    return float(((ones[1] @ weights).argmax(1) == test.y).float().mean())


# -- pendulum ----------------------------------------------------------------------------------


def _pendulum(spec: Spec) -> Trained:
    generator = torch.Generator().manual_seed(spec.seed)
    ts = torch.linspace(0, physics.SHORT, physics.SAMPLES)
    seen = physics.truth(physics.starts(40, generator), ts).float()
    seen = seen + 0.02 * torch.randn(seen.shape, generator=generator)
    torch.manual_seed(spec.seed)
    model = NeuralODE(MLPField(2, 32, layers=2), solver="rk4", dt=0.2, sensitivity="discrete")
    physics.train(model, seen, ts, spec.budget)
    z0 = physics.starts(64, torch.Generator().manual_seed(1000 + spec.seed))
    times = torch.linspace(0, spec.horizon, 41, dtype=torch.float64)
    wanted = physics.truth(z0, times)

    def score(zs: Tensor) -> float:
        return float((zs - wanted).square().mean().sqrt())

    still = score(z0.expand_as(wanted))
    field: Any = model.double().field
    return Trained(field, z0, times, score, 1.0, [], {"standing still": still})
