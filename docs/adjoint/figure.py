"""The figure of docs/adjoint.md: the adjoint by its equation, and by its definition.

Run from anywhere: ``python docs/adjoint/figure.py``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pynode import plots, solve
from pynode.plots import BLUE, GREEN, GREY

OBSERVED = torch.tensor([1.0, 2.5, 4.0, 5.0], dtype=torch.float64)
TARGETS = torch.tensor([0.9, -0.7, 0.9, -0.5], dtype=torch.float64)
RATE = torch.tensor(-0.5, dtype=torch.float64)
START = torch.tensor([1.5], dtype=torch.float64)
TIGHT = {"rtol": 1e-11, "atol": 1e-11}
PUSH = 1e-4


def field(t: Tensor, z: Tensor, rate: Tensor) -> Tensor:
    return rate * z + torch.sin(2 * t)


def losses(z: Tensor, which: Tensor) -> Tensor:
    """ℓᵢ = (zᵢ − targetᵢ)²/2 of the observations asked for."""
    return 0.5 * (z[:, 0] - TARGETS[which]).square()


def loss_to_come(t: float, z: Tensor) -> float:
    """L_{>t} as a function of the state at t: the rest is solved, and observed."""
    later = t + 1e-9 < OBSERVED
    if not later.any():
        return 0.0
    times = torch.cat([torch.tensor([t], dtype=torch.float64), OBSERVED[later]])
    return losses(solve(field, z, times, args=RATE, **TIGHT).zs[1:], later).sum().item()


def by_definition(t: float, z: Tensor) -> float:
    """∂L_{>t}/∂z(t) by pushing the state up and down."""
    return (loss_to_come(t, z + PUSH) - loss_to_come(t, z - PUSH)) / (2 * PUSH)


def by_equation() -> tuple[Tensor, Tensor, Tensor]:
    """Times from the end to 0, a(t) and a_θ(t) there: solved backwards from jump to jump."""
    forward = solve(field, START, torch.tensor([0.0, 5.5], dtype=torch.float64), args=RATE, **TIGHT)

    def adjoint(t: Tensor, state: Tensor) -> Tensor:
        a, z = state[0], forward(t)[0]
        return torch.stack([-a * RATE, -a * z])  # ∂f/∂z is the rate, ∂f/∂θ is z

    state = torch.zeros(2, dtype=torch.float64)
    ends = [5.5, *OBSERVED.flip(0).tolist(), 0.0]
    times, states = [], []
    for i, (later, earlier) in enumerate(pairwise(ends)):
        if i > 0:
            jump = forward(torch.tensor(later, dtype=torch.float64))[0] - TARGETS.flip(0)[i - 1]
            state = state + torch.stack([jump, torch.zeros_like(jump)])
        t = torch.linspace(later, earlier, 40, dtype=torch.float64)
        piece = solve(adjoint, state, t, **TIGHT).zs
        times.append(t)
        states.append(piece)
        state = piece[-1]
    zs = torch.cat(states)
    return torch.cat(times), zs[:, 0], zs[:, 1]


def draw() -> Figure:
    """Three panels above one time axis."""
    grid = torch.linspace(0.0, 5.5, 400, dtype=torch.float64)
    solution = solve(field, START, grid, args=RATE, **TIGHT)
    times, a, a_rate = by_equation()
    with plots.canvas(7.2, 6.0) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        top.plot(grid, solution.zs[:, 0], color=GREEN)
        seen = solution(OBSERVED)[:, 0]
        top.vlines(OBSERVED, seen, TARGETS, color=GREY, linewidth=1)
        top.plot(OBSERVED, TARGETS, "o", color=GREEN, label="observed")
        top.set_ylabel("z(t)")
        top.legend(loc="upper right")
        middle.plot(times, a, color=BLUE, label="by its equation, with its jumps")
        at = torch.arange(0.125, 5.5, 0.25, dtype=torch.float64)
        pushed = [by_definition(t.item(), solution(t)) for t in at]
        middle.plot(at, pushed, "o", color="black", markersize=3.5, label="by its definition")
        middle.set_ylim(-0.06, 1.5)
        middle.set_ylabel("a(t) = ∂L$_{>t}$/∂z(t)")
        middle.legend(loc="upper right", ncols=2)
        bottom.plot(times, a_rate, color=BLUE)
        bottom.plot([0.0], [a_rate[-1]], "o", color=BLUE)
        bottom.annotate("dL/dθ", (0.0, a_rate[-1]), (6, 4), textcoords="offset points")
        bottom.annotate("0: an empty integral", (5.5, 0.0), (-98, 28), textcoords="offset points")
        bottom.set_ylabel("a$_θ$(t)")
        bottom.set_xlabel("t  (the adjoint is computed from right to left)")
        for axes in (top, middle, bottom):
            for t in OBSERVED:
                axes.axvline(t.item(), color=GREY, linewidth=0.6, linestyle=":")
    return figure


if __name__ == "__main__":
    plots.save(draw(), Path(__file__).with_name("figure.png"))
