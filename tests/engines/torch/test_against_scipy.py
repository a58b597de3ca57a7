"""Adaptive solvers at tight tolerances against scipy's DOP853 at 1e-13, both ways in time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pynode import solve, solvers
from pynode.catalogue import SolverInfo

EXPLICIT = [info for info in solvers() if info.adaptive and not info.stiff]
RTOLS = {2: 1e-5, 3: 1e-7}
"""By order; 1e-9 otherwise. At 1e-9 a method of order 2 would take 1e6 steps."""
OUTPUTS = 7


def lotka_volterra(x: Any, y: Any) -> tuple:
    return x * (1.5 - y), y * (x - 3.0)


def kepler(x: Any, y: Any, u: Any, v: Any) -> tuple:
    cube = (x * x + y * y) ** 1.5
    return u, v, -x / cube, -y / cube


def van_der_pol(x: Any, v: Any) -> tuple:
    return v, 2.0 * (1 - x * x) * v - x


def lorenz(x: Any, y: Any, w: Any) -> tuple:
    return 10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w


@dataclass(frozen=True)
class Problem:
    """A field on numbers, tensors or arrays.

    Attributes:
        back: how far back it can be solved from ``end``: perturbations of Lorenz' system grow as
            exp(13.7 t) backwards in time, those of Van der Pol's off the limit cycle likewise.
    """

    field: Callable[..., tuple]
    z0: tuple[float, ...]
    end: float
    back: float


PROBLEMS = {
    "lotka_volterra": Problem(lotka_volterra, (1.0, 1.0), 6.0, 6.0),
    "kepler": Problem(kepler, (0.5, 0.0, 0.0, 3.0**0.5), 6.0, 6.0),  # e = 0.5, at the pericentre
    "van_der_pol": Problem(van_der_pol, (2.0, 0.0), 6.0, 1.5),
    "lorenz": Problem(lorenz, (1.0, 1.0, 1.0), 10.0, 0.25),
}


def exact(problem: Problem, z0: Sequence[float], times: np.ndarray) -> np.ndarray:
    span = times[0], times[-1]
    tolerances = {"rtol": 1e-13, "atol": 1e-14}
    return solve_ivp(
        lambda t, z: problem.field(*z), span, z0, "DOP853", t_eval=times, **tolerances
    ).y.T


@cache
def reference(name: str, way: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (T,), states (T, D) and growth (T,), in the order in which a solve passes them.

    The growth is the largest factor by which an error made on the way has grown at each output:
    max over j of ‖∂z(t_i)/∂z(t_j)‖, from Jacobians of the stretches between outputs.
    """
    problem = PROBLEMS[name]
    times = np.linspace(0.0, problem.end, OUTPUTS)
    zs = exact(problem, problem.z0, times)
    if way == "backwards":
        last = zs[-1]
        times = np.linspace(problem.end, problem.end - problem.back, OUTPUTS)
        zs = exact(problem, last, times)
    eps, units = 1e-6, np.eye(zs.shape[1])
    jacobians = []
    for i in range(OUTPUTS - 1):
        stretch = times[i : i + 2]
        ends = [exact(problem, zs[i] + eps * unit, stretch)[-1] for unit in units]
        jacobians.append((np.array(ends) - zs[i + 1]).T / eps)
    growth = [1.0]
    for i in range(1, OUTPUTS):
        product, norms = units, [1.0]
        for jacobian in reversed(jacobians[:i]):
            product = product @ jacobian
            norms.append(np.linalg.norm(product, 2))
        growth.append(max(norms))
    return times, zs, np.array(growth)


def agrees(info: SolverInfo, name: str, way: str) -> None:
    """The error is within the tolerance times the growth of errors on the way."""
    problem, (times, zs, growth) = PROBLEMS[name], reference(name, way)
    rtol = RTOLS.get(info.order, 1e-9)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack(problem.field(*z))

    sol = solve(
        field,
        torch.tensor(zs[0]),
        times,
        solver=info.name,
        rtol=rtol,
        atol=rtol * 1e-2,
        max_steps=100_000,
        dense=False,
    )
    # Low orders take more steps, whose errors add up.
    allowed = (5 if info.order > 3 else 30) * growth * rtol * np.abs(zs).max()
    errors = np.abs(sol.zs.numpy() - zs).max(axis=1)
    assert (errors <= allowed).all(), errors / allowed
    assert allowed[-1] < 0.1 * np.abs(zs).max(), "a bound that says nothing"
    assert np.abs(zs[-1] - zs[0]).max() > 0.1 * np.abs(zs).max(), "nothing moved"


@pytest.mark.parametrize("way", ["forwards", "backwards"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("info", [s for s in EXPLICIT if s.order > 2], ids=lambda s: s.name)
def test_agrees_with_scipy(info, name, way):
    agrees(info, name, way)


@pytest.mark.parametrize("way", ["forwards", "backwards"])
@pytest.mark.parametrize("name", ["lotka_volterra", "kepler", "van_der_pol"])
@pytest.mark.parametrize("info", [s for s in EXPLICIT if s.order == 2], ids=lambda s: s.name)
def test_methods_of_order_two_agree_with_scipy(info, name, way):
    agrees(info, name, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["forwards", "backwards"])
@pytest.mark.parametrize(
    # fehlberg2's error estimate is 1/512 of a typical one: it meets no tolerance here
    "info",
    [s for s in EXPLICIT if s.order == 2 and s.name != "fehlberg2"],
    ids=lambda s: s.name,
)
def test_methods_of_order_two_agree_with_scipy_on_lorenz(info, way):
    agrees(info, "lorenz", way)


@pytest.mark.parametrize("info", [s for s in EXPLICIT if s.order > 3], ids=lambda s: s.name)
def test_there_and_back_again(info):
    """Kepler's orbit forwards, then backwards from where that ended, dense output included."""
    problem = PROBLEMS["kepler"]

    def field(z: Tensor) -> Tensor:
        return torch.stack(problem.field(*z))

    z0 = torch.tensor(problem.z0, dtype=torch.float64)
    options = {"solver": info.name, "rtol": 1e-10, "atol": 1e-12}
    there = solve(field, z0, [0.0, 6.0], **options)
    back = solve(field, there.zs[-1], [6.0, 0.0], **options)
    torch.testing.assert_close(back.zs[-1], z0, rtol=0, atol=1e-6)
    s = torch.linspace(0.0, 6.0, 37, dtype=torch.float64)
    torch.testing.assert_close(back(s), there(s), rtol=0, atol=1e-6)
