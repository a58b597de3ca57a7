"""What a neural ODE cannot do, and what a little more room does for it.

Dupont, Doucet, Teh 2019: a plain neural ODE keeps the topology of its data. Two tasks ask for
more: x → −x on a line, and a ring apart from the disc inside it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.experiments import augment_figure, augment_table
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models.augmented import AugmentedODE, SecondOrderODE
from pynode.models.fields import mlp

SOLVE: dict[str, Any] = {"solver": "tsit5", "rtol": 1e-3, "atol": 1e-4, "sensitivity": "discrete"}
MODELS = {
    "mirror": ("node", "anode1", "second_order", "mlp", "linear", "mean"),
    "annuli": ("node", "anode1", "anode5", "second_order", "mlp", "linear", "mean"),
}
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    points: int
    steps: int
    hidden: int


SCALES = {"demo": Scale(3, 128, 250, 32), "paper": Scale(10, 1000, 2000, 32)}


@dataclass(frozen=True)
class Spec:
    """One model on one task."""

    task: str
    model: str
    seed: int
    points: int
    steps: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.model}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment augment``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    specs = [
        Spec(task, model, seed, scale.points, scale.steps, scale.hidden)
        for task, models in MODELS.items()
        for model in models
        for seed in range(scale.seeds)
    ]
    config = {"scale": arguments.scale, **asdict(scale), **SOLVE, "lr": LEARNING_RATE}
    study = Study("augment", specs, work, config, augment_table.render, augment_figure.draw)
    return study.run(arguments)


def data(task: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points x (n, D) and targets y (n, 1): −x, or −1 in the disc and 1 in the ring around it."""
    if task == "mirror":
        x = 2 * torch.rand(count, 1, generator=generator) - 1
        return x, -x
    inner = torch.arange(count) < count // 2
    u = torch.rand(count, generator=generator)
    # uniform over the area: r² is uniform between the squares of the radii
    r = torch.where(inner, 0.5 * u.sqrt(), (1.0 + 1.25 * u).sqrt())
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    x = torch.stack([r * angle.cos(), r * angle.sin()], dim=1)
    return x, torch.where(inner, -1.0, 1.0).unsqueeze(1)


class Head(nn.Module):
    """An ODE and a linear map of where it ends; for x → −x the first coordinate as it is."""

    def __init__(self, task: str, ode: AugmentedODE | SecondOrderODE, ends: int) -> None:
        super().__init__()
        self.ode = ode
        self.readout = nn.Linear(ends, 1) if task == "annuli" else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.ode(x)
        return z[:, :1] if self.readout is None else self.readout(z)


def build(task: str, model: str, hidden: int) -> nn.Module:
    """A model by name, for data of the task's width."""
    width = 1 if task == "mirror" else 2
    if model == "mlp":
        return mlp(width, hidden, 1, layers=2)
    if model in ("linear", "mean"):
        return nn.Linear(width, 1)
    if model == "second_order":
        return Head(task, SecondOrderODE(width, hidden=hidden, **SOLVE), 2 * width)
    extra = 0 if model == "node" else int(model.removeprefix("anode"))
    return Head(task, AugmentedODE(width, extra, hidden=hidden, **SOLVE), width + extra)


def work(spec: Spec, folder: Path) -> Row:
    """Train, test on 1000 points that were not seen, and keep what the figure shows."""
    generator = torch.Generator().manual_seed(spec.seed)
    x, y = data(spec.task, spec.points, generator)
    x_test, y_test = data(spec.task, 1000, generator)
    torch.manual_seed(spec.seed)
    model = build(spec.task, spec.model, spec.hidden)
    curve = train(model, x, y, 0 if spec.model in ("linear", "mean") else spec.steps)
    if spec.model == "linear":
        solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
        _set_line(model, solved[:-1].T, solved[-1])
    elif spec.model == "mean":
        _set_line(model, torch.zeros_like(x[:1]), y.mean(0))
    with torch.no_grad():
        found = model(x_test)
        if isinstance(model, Head):
            keep_picture(model, spec, folder)
    return {
        "test_mse": float((found - y_test).square().mean()),
        "accuracy": float(((found >= 0) == (y_test >= 0)).float().mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
        **curve,
    }


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Any]:
    """Adam on all points at once; the loss and nfe of every tenth step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses, nfe = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            losses.append(loss.item())
            nfe.append(model.ode.node.stats.nfe if isinstance(model, Head) else 0)
    return {"losses": losses, "nfe": nfe, "steps_shown": [*range(0, steps, 10), steps - 1]}


def _set_line(model: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(model, nn.Linear)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(bias)


def keep_picture(model: Head, spec: Spec, folder: Path) -> None:
    """Paths of evenly spread points of a line, or ends of fresh points of the plane."""
    if spec.task == "mirror":
        x = torch.linspace(-1, 1, 9).unsqueeze(1)
        y = -x
    else:
        x, y = data("annuli", 400, torch.Generator().manual_seed(99))
    kept: dict[str, Any] = {"path": model.ode.path(x, torch.linspace(0, 1, 51)), "x": x, "y": y}
    if model.readout is not None:
        kept |= {"readout": model.readout.weight[0], "bias": model.readout.bias}
    np.savez(
        folder / "picture.npz",
        allow_pickle=False,
        **{name: value.numpy() for name, value in kept.items()},
    )
