"""Continuous normalizing flows: what they learn, invert and cost.

Chen et al. 2018, sections 4 and 4.1, and Grathwohl et al. 2019 (FFJORD), on eight two-dimensional
densities: the CNF beside flows of layers with as many parameters and beside two estimates that
need no training; regularised CNFs at equal likelihood; both traces against the dimension.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.data.densities import DENSITIES, density, entropy
from pynode.experiments import flow_figure, flow_table
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models.cnf import CNF, ConcatSquashField, FlowRegularisation
from pynode.models.flows import CouplingFlow, Flow, PlanarFlow

COMPARED = ("moons", "checkerboard")  # where all flows and all seeds are run
PLAIN = "none"
REGULARISED = {
    PLAIN: FlowRegularisation(),
    "rnode": FlowRegularisation(kinetic=0.01, jacobian=0.01),
    "steer": FlowRegularisation(steer=0.25),
    "taynode": FlowRegularisation(taylor=0.01),
}
DIMENSIONS = (2, 4, 8, 16, 32, 64)
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
FRAMES = 7
GRID = 110  # points along each side of a picture of a density
HALF = 4.4  # pictures show [-HALF, HALF]²
DURATION = 1.0
_POINTS = 5000  # of each training and test set
_TRACKED = 1000  # test points at each look during training
_LOOKS = 10
_TEST_TOLERANCE, _TRAIN_TOLERANCE = 1e-5, 1e-2


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    steps: int
    batch_size: int
    hidden: int
    layers: int
    lr: float


SCALES = {
    "demo": Scale(seeds=3, steps=400, batch_size=256, hidden=32, layers=2, lr=0.02),
    "paper": Scale(seeds=5, steps=10_000, batch_size=512, hidden=64, layers=3, lr=0.005),
}


@dataclass(frozen=True)
class FlowRun:
    """One model on one density.

    Attributes:
        model: ``cnf``, ``coupling``, ``planar``, ``gaussian``, ``kde``, or ``cost``, which measures
            the traces instead of learning.
        regularised: a key of ``REGULARISED``; of the CNF.
    """

    model: str
    density: str
    seed: int
    regularised: str
    steps: int
    batch_size: int
    hidden: int
    layers: int
    lr: float

    @property
    def name(self) -> str:
        variant = "" if self.regularised == PLAIN else f"-{self.regularised}"
        return f"{self.model}{variant}-{self.density}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment flow``."""
    parser.add_argument(
        "--densities", nargs="+", choices=DENSITIES, default=list(DENSITIES), help="default: all"
    )
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale = scale_of(arguments, SCALES)
    names = list(dict.fromkeys(arguments.densities))
    config = {"scale": arguments.scale, "densities": names, **asdict(scale)}
    return Study(
        name="flow",
        specs=specs(scale, names),
        work=work,
        config=config,
        table=lambda rows: flow_table.render(rows, config),
        figure=flow_figure.draw,
    ).run(arguments)


def specs(scale: Scale, densities: list[str]) -> list[FlowRun]:
    """All runs, the long ones first."""
    compared = [name for name in densities if name in COMPARED] or densities[:1]

    def spec(model: str, where: str, seed: int, regularised: str = PLAIN) -> FlowRun:
        options = asdict(scale)
        del options["seeds"]
        return FlowRun(model, where, seed, regularised, **options)

    seeds = range(scale.seeds)
    runs = [spec("cnf", compared[-1], s, r) for r in REGULARISED if r != PLAIN for s in seeds]
    for name in densities:
        runs += [spec("cnf", name, s) for s in (seeds if name in compared else (0,))]
    for model in ("planar", "coupling"):
        runs += [spec(model, name, s) for name in compared for s in seeds]
    for model in ("gaussian", "kde"):
        runs += [spec(model, n, s) for n in densities for s in (seeds if n in compared else (0,))]
    return [*runs, spec("cost", "none", 0)]


# -- one run ------------------------------------------------------------------------------------


def work(spec: FlowRun, folder: Path) -> Row:
    """Train and measure one model; pictures are left in ``folder``."""
    if spec.model == "cost":
        return {"costs": [trace_costs(d, spec.hidden, spec.seed) for d in DIMENSIONS]}
    train = density(spec.density, _POINTS, seed=1000 + spec.seed)
    test = density(spec.density, _POINTS, seed=2000 + spec.seed)
    floor = entropy(spec.density)
    if spec.model in _UNTRAINED:
        return {"nll": _UNTRAINED[spec.model](train, test), "entropy": floor}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        flow = make(spec)
        began = time.process_time()
        curve = fit(flow, train, test, spec)
        row: Row = {"parameters": flow.n_parameters, "entropy": floor, "curve": curve}
        row["train_seconds"] = round(time.process_time() - began, 2)
        row["nll"], row["nfe"] = evaluate(flow, test)
        if isinstance(flow, CNF) and spec.regularised == PLAIN:
            row["round_trip"] = [round_trip(flow, test[:500], tol) for tol in TOLERANCES]
            if spec.seed == 0:
                np.savez(folder / "picture.npz", data=test[:4000].numpy(), **picture(flow))
    return row


def make(spec: FlowRun) -> Flow:
    """The model of a run: all have about as many parameters as its CNF."""
    hidden = (spec.hidden,) * spec.layers
    budget = sum(p.numel() for p in ConcatSquashField(2, hidden).parameters())
    if spec.model == "planar":
        return PlanarFlow(2, layers=max(1, round(budget / 5)))
    if spec.model == "coupling":
        layers = 8  # a layer with h hidden units has 4h + 2 parameters
        return CouplingFlow(2, layers, hidden=max(1, round((budget / layers - 2) / 4)))
    regularisation = REGULARISED[spec.regularised]
    return CNF(2, hidden=hidden, duration=DURATION, regularisation=regularisation,
               rtol=_TRAIN_TOLERANCE, atol=_TRAIN_TOLERANCE)  # fmt: skip


def fit(flow: Flow, train: Tensor, test: Tensor, spec: FlowRun) -> list[Row]:
    """Maximum likelihood by Adam with a one-cycle learning rate; looks at the test points on the
    way, which decide nothing.

    The learning rate of the flows of layers is a quarter of the CNF's: with more they diverge.
    """
    lr = spec.lr if isinstance(flow, CNF) else spec.lr / 4
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, max(spec.steps, 2))
    curve: list[Row] = []
    for step in range(1, spec.steps + 1):
        batch = train[torch.randint(len(train), (spec.batch_size,))]
        loss = flow.loss(batch).total if isinstance(flow, CNF) else -flow.log_prob(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step * _LOOKS % spec.steps < _LOOKS:
            nll, nfe = evaluate(flow, test[:_TRACKED])
            curve.append({"step": step, "nll": nll, "nfe": nfe})
    return curve


@torch.no_grad()
def evaluate(flow: Flow, points: Tensor) -> tuple[float, int]:
    """Mean −log p with the exact trace at the tolerance of tests, and its nfe (0 without ODE)."""
    if not isinstance(flow, CNF):
        return -flow.log_prob(points).mean().item(), 0
    exact = at_tolerance(flow, _TEST_TOLERANCE)
    return -exact.log_prob(points).mean().item(), exact.nfe


def at_tolerance(flow: CNF, tolerance: float) -> CNF:
    """The same field, solved more or less finely."""
    return CNF(
        flow.features, field=flow.field, duration=flow.duration, rtol=tolerance, atol=tolerance
    )


@torch.no_grad()
def round_trip(flow: CNF, points: Tensor, tolerance: float) -> Row:
    """The largest distance between points and what to_data(to_base(points)) gives, in float64."""
    double = copy.deepcopy(at_tolerance(flow, tolerance)).double()
    x = points.double()
    z, _ = double.to_base(x)
    error = (double.to_data(z) - x).norm(dim=1).max().item()
    return {"tolerance": tolerance, "error": error, "nfe": double.nfe}


@torch.no_grad()
def picture(flow: CNF) -> dict[str, Any]:
    """p on a grid, and points on their way from noise to data with the p of each moment."""
    flow = at_tolerance(flow, 1e-4)
    side = torch.linspace(-HALF, HALF, GRID)
    grid = torch.cartesian_prod(side, side)
    log_p = flow.log_prob(grid).reshape(GRID, GRID).T
    z = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.0, flow.duration, FRAMES)
    return {
        "log_p": log_p.numpy(),
        "path": flow.path(z, times).numpy(),
        "times": times.numpy(),
    }


# -- what needs no training ---------------------------------------------------------------------


def _gaussian(train: Tensor, test: Tensor) -> float:
    """The normal distribution of the training points' mean and covariance."""
    fitted = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    return -fitted.log_prob(test).mean().item()


def _kde(train: Tensor, test: Tensor) -> float:
    """Gaussians about the training points, as wide as predicts a held-out fifth of them best."""
    cut = len(train) * 4 // 5
    widths = torch.logspace(-1.5, -0.3, 9).tolist()
    width = min(widths, key=lambda w: _kde_nll(train[:cut], train[cut:], w))
    return _kde_nll(train, test, width)


def _kde_nll(centres: Tensor, points: Tensor, width: float) -> float:
    total = 0.0
    for chunk in points.split(500):
        squares = torch.cdist(chunk, centres).square()
        total -= torch.logsumexp(-squares / (2 * width**2), dim=1).sum().item()
    constant = np.log(2 * np.pi * width**2) + np.log(len(centres))
    return total / len(points) + float(constant)


_UNTRAINED: dict[str, Callable[[Tensor, Tensor], float]] = {"gaussian": _gaussian, "kde": _kde}


# -- the traces ---------------------------------------------------------------------------------


def trace_costs(features: int, hidden: int, seed: int, batch: int = 64) -> Row:
    """What both traces cost and how far the estimate is off, for one untrained field.

    Returns:
        Vector-Jacobian products for each evaluation of the field, seconds of a loss with its
        gradient (fixed steps, the best of three), and the standard deviation of the estimated
        log-density over draws of ε, relative to D.
    """
    row: Row = {"features": features}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field = _CountBackward(ConcatSquashField(features, (hidden, hidden)))
        x = torch.randn(batch, features)
        for trace in ("exact", "hutchinson"):
            flow = CNF(features, field=field, trace=trace, adaptive=False, dt=0.25)
            with torch.no_grad():
                field.count = 0
                flow.log_prob(x, trace=trace)
            row[f"{trace}_vjp"] = field.count / flow.nfe
            row[f"{trace}_seconds"] = min(_seconds(flow, x) for _ in range(3))
        with torch.no_grad():
            draws = torch.stack([flow.log_prob(x, trace="hutchinson") for _ in range(20)])
        row["hutchinson_sd"] = draws.std(0).mean().item()
    return row


def _seconds(flow: CNF, x: Tensor) -> float:
    began = time.process_time()
    flow.loss(x).total.backward()
    return time.process_time() - began


class _CountBackward(nn.Module):
    """A field that counts the backward passes through it."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.count = field, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out = self.field(t, z)
        if out.requires_grad:
            out.register_hook(self._called)
        return out

    def _called(self, _: Tensor) -> None:
        self.count += 1
