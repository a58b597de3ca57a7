"""The 25 problems of T. E. Hull, W. H. Enright, B. M. Fellen, A. E. Sedgwick, *Comparing numerical
methods for ordinary differential equations*, SIAM J. Numer. Anal. 9 (1972) 603-637, on [0, 20].

Classes: A single equations, B small systems, C moderate systems, D orbits, E of higher order.
Fields are written once, for numpy arrays and torch tensors of shape (n,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

END = 20.0


@dataclass(frozen=True)
class Problem:
    """y' = field(t, y, m) with m the functions of numpy or torch."""

    name: str
    field: Callable[[Any, Any, Any], list[Any]]
    start: tuple[float, ...]

    def torch(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack(list(self.field(t, y, torch)))

    def numpy(self, t: float, y: np.ndarray) -> np.ndarray:
        return np.stack(list(self.field(t, y, np)))


@cache
def solution(name: str) -> np.ndarray:
    """y(20) by scipy's DOP853 at a tolerance of 1e-13."""
    p = PROBLEMS[name]
    found = solve_ivp(p.numpy, (0, END), p.start, "DOP853", rtol=1e-13, atol=1e-15)
    assert found.success
    return found.y[:, -1]


def _chain(rates: list[float]) -> Callable[[Any, Any, Any], list[Any]]:
    """Decay from each species to the next; the last one is stable."""

    def field(t: Any, y: Any, m: Any) -> list[Any]:
        loss = [k * x for k, x in zip(rates, y[:-1], strict=True)]
        middle = [gain - lost for gain, lost in itertools.pairwise(loss)]
        return [-loss[0], *middle, loss[-1]]

    return field


def _diffusion(t: Any, y: Any, m: Any) -> Any:
    """y_i' = y_{i-1} - 2 y_i + y_{i+1}, zero beyond the ends."""
    zero = 0 * y[:1]
    cat = m.cat if m is torch else m.concatenate
    return cat([zero, y[:-1]]) - 2 * y + cat([y[1:], zero])


_K2, _M0 = 2.95912208286, 1.00000597682
_MASSES = (
    0.000954786104043,
    0.000285583733151,
    0.0000437273164546,
    0.0000517759138449,
    0.00000277777777778,
)
_PLANETS = (  # Jupiter, Saturn, Uranus, Neptune, Pluto: positions, then velocities
    (3.42947415189, 3.35386959711, 1.35494901715),
    (6.64145542550, 5.97156957878, 2.18231499728),
    (11.2630437207, 14.6952576794, 6.27960525067),
    (-30.1552268759, 1.65699966404, 1.43785752721),
    (-21.1238353380, 28.4465098142, 15.3882659679),
    (-0.557160570446, 0.505696783289, 0.230578543901),
    (-0.415570776342, 0.365682722812, 0.169143213293),
    (-0.325325669158, 0.189706021964, 0.0877265322780),
    (-0.0240476254170, -0.287659532608, -0.117219543175),
    (-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _five_bodies(t: Any, y: Any, m: Any) -> list[Any]:
    """The outer planets around the sun."""
    positions = [y[3 * i : 3 * i + 3] for i in range(5)]
    pull = [x / (x * x).sum() ** 1.5 for x in positions]
    accelerations = []
    for j, x in enumerate(positions):
        total = -(_M0 + _MASSES[j]) * pull[j]
        for k, other in enumerate(positions):
            if k != j:
                away = other - x
                total = total + _MASSES[k] * (away / (away * away).sum() ** 1.5 - pull[k])
        accelerations.append(_K2 * total)
    return [*y[15:], *(a for part in accelerations for a in part)]


def _orbit(t: Any, y: Any, m: Any) -> list[Any]:
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return [y[2], y[3], -y[0] / cube, -y[1] / cube]


def _orbit_start(e: float) -> tuple[float, ...]:
    return (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e)))


def _b4(t: Any, y: Any, m: Any) -> list[Any]:
    r = (y[0] ** 2 + y[1] ** 2) ** 0.5
    return [-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r]


def _unit(n: int) -> tuple[float, ...]:
    return (1.0, *(0.0 for _ in range(n - 1)))


_ALL = [
    Problem("A1", lambda t, y, m: [-y[0]], (1.0,)),
    Problem("A2", lambda t, y, m: [-(y[0] ** 3) / 2], (1.0,)),
    Problem("A3", lambda t, y, m: [y[0] * m.cos(t)], (1.0,)),
    Problem("A4", lambda t, y, m: [y[0] / 4 * (1 - y[0] / 20)], (1.0,)),
    Problem("A5", lambda t, y, m: [(y[0] - t) / (y[0] + t)], (4.0,)),
    Problem("B1", lambda t, y, m: [2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])], (1.0, 3.0)),
    Problem(
        "B2",
        lambda t, y, m: [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]],
        (2.0, 0.0, 1.0),
    ),
    Problem("B3", lambda t, y, m: [-y[0], y[0] - y[1] ** 2, y[1] ** 2], (1.0, 0.0, 0.0)),
    Problem("B4", _b4, (3.0, 0.0, 0.0)),
    Problem(
        "B5",
        lambda t, y, m: [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]],
        (0.0, 1.0, 1.0),
    ),
    Problem("C1", _chain([1.0] * 9), _unit(10)),
    Problem("C2", _chain([float(i) for i in range(1, 10)]), _unit(10)),
    Problem("C3", _diffusion, _unit(10)),
    Problem("C4", _diffusion, _unit(51)),
    Problem("C5", _five_bodies, tuple(x for body in _PLANETS for x in body)),
    *(
        Problem(f"D{i}", _orbit, _orbit_start(e))
        for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)
    ),
    Problem(
        "E1",
        lambda t, y, m: [y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])],
        (0.671396707141803, 0.0954005144474744),
    ),
    Problem("E2", lambda t, y, m: [y[1], (1 - y[0] ** 2) * y[1] - y[0]], (2.0, 0.0)),
    Problem(
        "E3",
        lambda t, y, m: [y[1], y[0] ** 3 / 6 - y[0] + 2 * m.sin(2.78535 * t)],
        (0.0, 0.0),
    ),
    Problem("E4", lambda t, y, m: [y[1], 0.032 - 0.4 * y[1] ** 2], (30.0, 0.0)),
    Problem("E5", lambda t, y, m: [y[1], (1 + y[1] ** 2) ** 0.5 / (25 - t)], (0.0, 0.0)),
]
PROBLEMS = {problem.name: problem for problem in _ALL}
