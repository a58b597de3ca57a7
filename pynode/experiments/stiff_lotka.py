"""Half of an equation is known; a network learns the rest, and sparse regression reads it.

Rackauckas et al. 2020, Universal Differential Equations for Scientific Machine Learning, section
3: predators and prey, u' = αu − βuv, v' = −δv + γuv, whose interaction is unknown.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pynode import NeuralODE
from pynode.errors import PynodeError
from pynode.experiments.collocation import central_slopes, match_slopes
from pynode.experiments.sparse_regression import in_words, monomials, sparse_fit
from pynode.models.fields import mlp

DTYPE = torch.float64
ALPHA, BETA, GAMMA, DELTA = 1.3, 0.9, 0.8, 1.8
START = (0.44249296, 4.6280594)
WINDOW, HORIZON, SAMPLES = 3.0, 12.0, 31
NAMES = ("u", "v")
DEGREE, TOLERANCE = 2, 0.1
VARIANTS = ("universal", "black_box", "regression")
SOLVE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "sensitivity": "discrete", "max_steps": 2000}


def lotka_volterra(t: Tensor, z: Tensor) -> Tensor:
    """The truth."""
    u, v = z.unbind(-1)
    return torch.stack([ALPHA * u - BETA * u * v, -DELTA * v + GAMMA * u * v], -1)


@cache
def truth(count: int, end: float) -> tuple[Tensor, Tensor]:
    """Times (count,) and states (count, 2)."""
    times = torch.linspace(0, end, count, dtype=DTYPE)
    with torch.no_grad():
        node = NeuralODE(lotka_volterra, solver="vern7", rtol=1e-10, atol=1e-12)
        return times, node(torch.tensor(START, dtype=DTYPE), times)


def observe(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """What is learned from: the window, with noise of that share of each species' mean."""
    times, clean = truth(SAMPLES, WINDOW)
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(clean.shape, generator=generator, dtype=DTYPE)
    return times, clean + noise * clean.mean(0) * error


class PartlyKnown(nn.Module):
    """u' = αu + N₁(u, v), v' = −δv + N₂(u, v); with nothing known, the network alone."""

    def __init__(self, known: bool, hidden: int = 16) -> None:
        super().__init__()
        self.known = known
        self.net = mlp(2, hidden, 2, layers=2).to(DTYPE)
        self.rates: Tensor
        self.register_buffer("rates", torch.tensor([ALPHA, -DELTA], dtype=DTYPE) * known)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rates * z + self.net(z)


class Polynomial(nn.Module):
    """dz/dt = rates·z + coefficients of monomials of z."""

    def __init__(self, rates: Tensor, coefficients: Tensor) -> None:
        super().__init__()
        self.rates, self.coefficients = rates, coefficients

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        terms, _ = monomials(z.unsqueeze(0), NAMES, DEGREE)
        return self.rates * z + (terms @ self.coefficients)[0]


def fit(field: nn.Module, ts: Tensor, zs: Tensor, steps: int) -> list[float]:
    """Slopes first, then Adam through the solver, then L-BFGS; the loss of each evaluation."""
    match_slopes(field, central_slopes(ts, zs), zs.std(0), 5 * steps, 0.01)
    node = NeuralODE(field, **SOLVE)
    losses: list[float] = []
    size = zs.std(0)

    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad()
        loss = ((node(zs[0], ts) - zs) / size).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer: torch.optim.Optimizer = torch.optim.Adam(field.parameters(), lr=0.002)
    for _ in range(steps // 2):
        loss_and_gradient()
        optimizer.step()
    optimizer = torch.optim.LBFGS(
        field.parameters(), max_iter=2 * steps, history_size=50, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss_and_gradient)
    return losses


def learn(variant: str, seed: int, steps: int, noise: float) -> dict[str, Any]:
    """Learn from the window and predict four times as far."""
    ts, zs = observe(seed, noise)
    torch.manual_seed(seed)
    row: dict[str, Any] = {}
    if variant == "regression":
        # with the same knowledge as the universal equation has
        rates = torch.tensor([ALPHA, -DELTA], dtype=DTYPE)
        _, states, slopes = central_slopes(ts, zs)
        return row | _read(rates, states, slopes - rates * states, zs[0])
    field = PartlyKnown(variant == "universal")
    row["losses"] = fit(field, ts, zs, steps)
    row["path"], row["rmse"] = predict(field, zs[0])
    if variant == "universal":
        with torch.no_grad():
            path = NeuralODE(field, **SOLVE)(zs[0], torch.linspace(0, WINDOW, 200, dtype=DTYPE))
            learned = field.net(path)
        row |= {f"sparse_{k}": x for k, x in _read(field.rates, path, learned, zs[0]).items()}
        u, v = path.unbind(1)
        wanted = torch.stack([-BETA * u * v, GAMMA * u * v], 1)
        row["interaction"] = torch.cat([path, learned, wanted], 1).tolist()
    return row


def _read(rates: Tensor, states: Tensor, values: Tensor, start: Tensor) -> dict[str, Any]:
    """Sparse coefficients, the equations in words, and what they predict."""
    terms, labels = monomials(states, NAMES, DEGREE)
    coefficients = sparse_fit(terms, values, TOLERANCE)
    full = coefficients.clone()
    for k, name in enumerate(NAMES):
        full[labels.index(name), k] += rates[k]
    path, rmse = predict(Polynomial(rates, coefficients), start)
    return {
        "coefficients": full.tolist(),
        "terms": labels,
        "equations": [in_words(full[:, k], labels) for k in range(2)],
        "right_terms": right_terms(full, labels),
        "path": path,
        "rmse": rmse,
    }


def right_terms(coefficients: Tensor, labels: list[str]) -> bool:
    """Whether exactly the terms of the true equations are there."""
    wanted = torch.zeros_like(coefficients, dtype=torch.bool)
    wanted[labels.index("u"), 0] = wanted[labels.index("uv"), 0] = True
    wanted[labels.index("v"), 1] = wanted[labels.index("uv"), 1] = True
    return bool(((coefficients != 0) == wanted).all())


def predict(field: nn.Module, start: Tensor) -> tuple[list[Any] | None, float | None]:
    """Path over the horizon and its RMSE beyond the window; None where it does not get there."""
    times, wanted = truth(121, HORIZON)
    try:
        with torch.no_grad():
            found = NeuralODE(field, rtol=1e-6, atol=1e-8, max_steps=5000)(start, times)
    except PynodeError:
        return None, None
    beyond = times > WINDOW
    return found.tolist(), float((found - wanted)[beyond].square().mean().sqrt())


def last_value(seed: int, noise: float) -> float:
    """RMSE beyond the window of the last observation, which stands still."""
    times, wanted = truth(121, HORIZON)
    last = observe(seed, noise)[1][-1]
    return float((last - wanted)[times > WINDOW].square().mean().sqrt())
