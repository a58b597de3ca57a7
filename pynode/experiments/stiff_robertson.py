"""Robertson's reaction learned by a neural ODE, with scaling and without.

Kim, Ji, Deng, Ma, Rackauckas 2021, Stiff Neural Ordinary Differential Equations: three species on
scales five orders apart, over ten decades of time.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pynode import NeuralODE
from pynode.errors import PynodeError

DTYPE = torch.float64
VARIANTS = ("unscaled", "scaled", "scaled_log_time")
LEARNING_RATE = 0.02
FIRST, LAST = -5.0, 5.0  # decades of t
OBSERVED, BETWEEN = 50, 4  # observations; parts of each gap that are judged


def robertson(t: Tensor, y: Tensor) -> Tensor:
    """Robertson 1966: rates 0.04, 3e7, 1e4."""
    a, b, c = y.unbind(-1)
    slow, fast, mixed = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([mixed - slow, slow - mixed - fast, fast], -1)


@cache
def truth() -> tuple[Tensor, Tensor]:
    """Times (T,), equally spaced in their logarithm, and states (T, 3)."""
    times = torch.logspace(FIRST, LAST, BETWEEN * (OBSERVED - 1) + 1, dtype=DTYPE)
    start = torch.tensor([1.0, 0.0, 0.0], dtype=DTYPE)
    atol = torch.tensor([1e-10, 1e-14, 1e-10], dtype=DTYPE)
    node = NeuralODE(robertson, solver="rodas5p", rtol=1e-8, atol=atol)
    with torch.no_grad():
        return times, node(start, times, t0=0.0)


def observed() -> tuple[Tensor, Tensor]:
    """Those of them that are learned from."""
    times, states = truth()
    return times[::BETWEEN].contiguous(), states[::BETWEEN].contiguous()


class StiffNetwork(nn.Module):
    """Kim et al.'s network, six hidden layers of five GELUs, as the slope in one of three ways.

    ``unscaled``: dy/dt = net(y). ``scaled``: dy/dt = s/t_N · net(y/s) with s the range of each
    species and t_N the last time. ``scaled_log_time``: dy/dlog₁₀t = s · net(y/s), so that each
    decade of time counts the same.
    """

    def __init__(self, variant: str, scale: Tensor, hidden: int = 5, layers: int = 6) -> None:
        super().__init__()
        self.variant = variant
        self.scale: Tensor
        self.register_buffer("scale", scale)
        widths = [3, *[hidden] * layers]
        modules: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            modules += [nn.Linear(a, b), nn.GELU()]
        self.net = nn.Sequential(*modules, nn.Linear(hidden, 3)).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.variant == "unscaled":
            return self.net(y)
        slope = self.scale * self.net(y / self.scale)
        return slope / 10.0**LAST if self.variant == "scaled" else slope


class RobertsonModel(nn.Module):
    """States (T, 3) at times, from the first observation on."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.ts, self.ys = observed()
        scale = self.ys.amax(0) - self.ys.amin(0)
        unit = torch.ones_like(scale) if variant == "unscaled" else scale
        self.log_time = variant == "scaled_log_time"
        self.weight = unit
        self.node = NeuralODE(
            StiffNetwork(variant, scale),
            solver="rosenbrock23",  # at this tolerance half the cost of rodas5p
            sensitivity="discrete",
            rtol=1e-3,
            atol=1e-5 * unit,
            max_steps=2000,
        )

    def forward(self, times: Tensor) -> Tensor:
        t = times.log10() if self.log_time else times
        return self.node(self.ys[0], t)

    def loss(self) -> Tensor:
        """Mean absolute error over the observations, in the variant's own units."""
        return ((self(self.ts) - self.ys) / self.weight).abs().mean()


def learn(variant: str, seed: int, budget: int) -> dict[str, Any]:
    """Train by Adam until ``budget`` evaluations of the field are spent on forward passes.

    The budget is in evaluations, for one step of training costs each variant another number.
    """
    torch.manual_seed(seed)
    model = RobertsonModel(variant)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    spent = [0]
    stopped = ""
    best, kept = math.inf, _copy(model)
    while spent[-1] < budget:
        for group in optimizer.param_groups:  # a cosine over the budget
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * spent[-1] / budget))
        optimizer.zero_grad()
        try:
            loss = model.loss()
            loss.backward()
        except PynodeError as error:
            stopped = f"{type(error).__name__}: {error}"
            break
        losses.append(loss.item())
        spent.append(spent[-1] + model.node.stats.nfe)
        if loss.item() < best:
            best, kept = loss.item(), _copy(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.load_state_dict(kept)
    return {"losses": losses, "spent": spent[1:], "stopped": stopped, **judge(model)}


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def judge(model: RobertsonModel) -> dict[str, Any]:
    """The path at times between the observations, and its error in units of each range."""
    times, wanted = truth()
    try:
        with torch.no_grad():
            found = model(times)
    except PynodeError as error:
        return {"path": None, "errors": [math.inf] * 3, "error": math.inf, "failed": str(error)}
    scale = wanted.amax(0) - wanted.amin(0)
    errors = ((found - wanted) / scale).abs().mean(0)
    return {
        "path": found.tolist(),
        "errors": errors.tolist(),
        "error": float(errors.mean()),
        "nfe": model.node.stats.nfe,
    }


def baselines() -> dict[str, float]:
    """Errors, in the same units, of the mean of the observations and of straight lines."""
    ts, ys = observed()
    times, wanted = truth()
    scale = wanted.amax(0) - wanted.amin(0)
    place = torch.searchsorted(ts, times).clamp(1, len(ts) - 1)
    share = ((times.log10() - ts[place - 1].log10()) / (ts[1] / ts[0]).log10()).unsqueeze(1)
    lines = ys[place - 1] * (1 - share) + ys[place] * share
    return {
        "mean of the observations": float(((ys.mean(0) - wanted) / scale).abs().mean()),
        "lines between them, in log t": float(((lines - wanted) / scale).abs().mean()),
    }
