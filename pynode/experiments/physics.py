"""A field that is given by an energy against one that may be anything, over a long time.

Greydanus, Dzamba, Yosinski 2019: a pendulum is learned from short, noisy stretches and then
followed for far longer. What a Hamiltonian field cannot do is to gain or to lose its own energy.
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

from pynode import NeuralODE
from pynode.experiments import physics_figure, physics_table
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models.fields import MLPField
from pynode.models.hamiltonian import HamiltonianField, SeparableHamiltonianField

MODELS = ("plain", "hamiltonian", "separable", "spring", "still")
SHORT = 3.0  # length of a stretch to learn from, about half a swing
SAMPLES = 16  # observations in it
LEARNING_RATE = 0.01
TIGHT = {"solver": "vern7", "rtol": 1e-9, "atol": 1e-10, "max_steps": 100_000}


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``; ``horizon`` in units of t, 2π a small swing."""

    seeds: int
    stretches: int
    steps: int
    hidden: int
    noise: float
    horizon: float


SCALES = {
    "demo": Scale(3, 40, 300, 32, 0.02, 100.0),
    "paper": Scale(10, 100, 2000, 64, 0.02, 1000.0),
}


@dataclass(frozen=True)
class Spec:
    """One model and one seed."""

    model: str
    seed: int
    stretches: int
    steps: int
    hidden: int
    noise: float
    horizon: float

    @property
    def name(self) -> str:
        return f"{self.model}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment physics``."""
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale: Scale = scale_of(arguments, SCALES)
    values = {k: v for k, v in asdict(scale).items() if k != "seeds"}
    specs = [Spec(model, seed, **values) for model in MODELS for seed in range(scale.seeds)]
    config = {"scale": arguments.scale, **asdict(scale), "lr": LEARNING_RATE}
    study = Study("physics", specs, work, config, physics_table.render, physics_figure.draw)
    return study.run(arguments)


# -- the pendulum ------------------------------------------------------------------------------


def pendulum(t: Tensor, z: Tensor) -> Tensor:
    """q'' = −sin q, the state (q, p)."""
    q, p = z.unbind(-1)
    return torch.stack([p, -torch.sin(q)], dim=-1)


def energy(z: Tensor) -> Tensor:
    """H = p²/2 + 1 − cos q, which the pendulum keeps; from 2 on it turns over."""
    q, p = z.unbind(-1)
    return 0.5 * p.square() + 1 - torch.cos(q)


def starts(count: int, generator: torch.Generator) -> Tensor:
    """States of energies spread over [0.2, 1.5] at a random phase, float64."""
    u = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    wanted = 0.2 + 1.3 * u[:, 0]
    angle = 2 * math.pi * u[:, 1]
    z = torch.stack([angle.cos(), angle.sin()], dim=-1)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, math.pi)
    for _ in range(50):  # the energy grows along a ray, inside the region where it swings
        middle = (low + high) / 2
        above = energy(middle.unsqueeze(-1) * z) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low.unsqueeze(-1) * z


@torch.no_grad()
def truth(z0: Tensor, ts: Tensor) -> Tensor:
    """States (T, B, 2) of the pendulum."""
    return NeuralODE(pendulum, **TIGHT)(z0, ts)


# -- the models --------------------------------------------------------------------------------


class Pairs(nn.Module):
    """A field of states (q, p) as a tuple, in place of one tensor (..., 2)."""

    def __init__(self, node: NeuralODE) -> None:
        super().__init__()
        self.node = node

    def forward(self, z0: Tensor, ts: Tensor) -> Tensor:
        return torch.cat(self.node((z0[..., :1], z0[..., 1:]), ts), dim=-1)


class Spring(nn.Module):
    """The pendulum taken for a spring: q'' = −k q, k the only parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.0))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        q, p = z.unbind(-1)
        return torch.stack([p, -self.stiffness * q], dim=-1)


class Still(nn.Module):
    """What moves by nothing: the last value."""

    def forward(self, z0: Tensor, ts: Tensor) -> Tensor:
        return z0.expand(len(ts), *z0.shape)


def build(model: str, hidden: int) -> nn.Module:
    """A module that takes states (B, 2) and times to states (T, B, 2)."""
    solver: dict[str, Any] = {"solver": "rk4", "dt": 0.2, "sensitivity": "discrete"}
    if model == "still":
        return Still()
    if model == "separable":
        field = SeparableHamiltonianField(1, hidden)
        return Pairs(NeuralODE(field, solver="leapfrog", dt=0.1))
    fields = {
        "plain": lambda: MLPField(2, hidden, layers=2),
        "hamiltonian": lambda: HamiltonianField(1, hidden, layers=2),
        "spring": Spring,
    }
    return NeuralODE(fields[model](), **solver)


def train(model: nn.Module, seen: Tensor, ts: Tensor, steps: int) -> list[float]:
    """Adam; a stretch is started from its first, noisy observation."""
    parameters = list(model.parameters())
    if not parameters:
        return []
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(seen[0], ts) - seen).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def work(spec: Spec, folder: Path) -> Row:
    """Learn from stretches, then follow fresh starts over the horizon."""
    generator = torch.Generator().manual_seed(spec.seed)
    ts = torch.linspace(0, SHORT, SAMPLES)
    clean = truth(starts(spec.stretches, generator), ts).float()
    seen = clean + spec.noise * torch.randn(clean.shape, generator=generator)
    torch.manual_seed(spec.seed)
    model = build(spec.model, spec.hidden)
    losses = train(model, seen, ts, spec.steps)
    z0 = starts(16, torch.Generator().manual_seed(1000 + spec.seed))
    far = torch.linspace(0, spec.horizon, round(2 * spec.horizon) + 1, dtype=torch.float64)
    wanted = truth(z0, far)
    found = follow(model.double(), z0, far)
    drift = (energy(found) - energy(z0)).abs().mean(1)
    off = (found - wanted).square().mean((1, 2)).sqrt()
    short = far <= SHORT
    np.savez(folder / "paths.npz", t=far, found=found[:, :2], true=wanted[:, :2],
             energy=energy(found[:, :2]), drift=drift)  # fmt: skip
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_mse": losses[-1] if losses else float((seen[:1] - seen).square().mean()),
        "rmse_short": float(off[short].square().mean().sqrt()),
        "rmse_long": float(off.square().mean().sqrt()),
        "drift_mean": float(drift.mean()),
        "drift_end": float(drift[-20:].mean()),
        "own_drift": own_drift(model, found),
    }


@torch.no_grad()
def follow(model: nn.Module, z0: Tensor, ts: Tensor) -> Tensor:
    """The model over the horizon by a solver tight enough to show the field and not its solver.

    The separable model keeps its leapfrog steps: they are a part of it.
    """
    if isinstance(model, NeuralODE):
        return NeuralODE(model.field, **{**TIGHT, "rtol": 1e-7, "atol": 1e-8})(z0, ts)
    return model(z0, ts)


@torch.no_grad()
def own_drift(model: nn.Module, path: Tensor) -> float | None:
    """The largest change of the learned energy along its own paths, against its spread."""
    node: Any = model.node if isinstance(model, Pairs) else model
    field = getattr(node, "field", None)
    if isinstance(field, HamiltonianField):
        own = field.energy(path)
    elif isinstance(field, SeparableHamiltonianField):
        own = field.energy((path[..., :1], path[..., 1:]))
    else:
        return None
    return float((own - own[0]).abs().max() / own[0].std())
