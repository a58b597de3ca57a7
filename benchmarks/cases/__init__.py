"""The problems, as plain data. A new case is one file here and one name in ``_FILES``."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_FILES = ("spiral", "van_der_pol", "small_mlp", "latent", "cnf", "stiff", "large", "growth")


@dataclass(frozen=True)
class Case:
    """An initial value problem that every contender solves.

    Attributes:
        name, title: how the command line and the report call it.
        field: a name of ``fields.FIELDS``.
        params: the field's arrays, float64; contenders cast them to ``dtype``.
        z0: (B, D).
        times: (T,), or each sample's own (B, T), increasing, the first shared by all.
        rtol, atol: of the local error.
        dtype: "float32" or "float64".
        stiff: explicit methods are out of the question.
        gradients: ways to compute gradients that are measured; None: all there are.
        checked: rows of the batch that are compared with the reference.
        wrt_params: whether the reference's directions move parameters as well as z0. (They need
            all rows checked.)
        memory: whether its peak memory is measured.
        parallel: large enough for more threads to matter; the others run on one only.
        quick: whether BENCH=quick runs it, and quick_gradients, with which gradients.
        growth: for the growth figures, (what grows, its value).
    """

    name: str
    title: str
    field: str
    params: list[np.ndarray]
    z0: np.ndarray
    times: np.ndarray
    rtol: float
    atol: float
    dtype: str = "float64"
    stiff: bool = False
    gradients: tuple[str, ...] | None = None
    checked: slice = field(default_factory=lambda: slice(None))
    wrt_params: bool = True
    memory: bool = False
    parallel: bool = False
    quick: bool = False
    quick_gradients: tuple[str, ...] = ("discrete", "backsolve", "gauss")
    growth: tuple[str, int] | None = None

    def weights(self) -> np.ndarray:
        """(T, B, D): the loss is the sum of the outputs times these."""
        shape = (self.times.shape[-1], *self.z0.shape)
        rng = np.random.default_rng(7)
        return rng.standard_normal(shape) / np.sqrt(shape[0])

    def directions(self) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """In which (z0, params) the reference differentiates the loss."""
        rng = np.random.default_rng(11)
        found = []
        for _ in range(2):
            v = np.zeros_like(self.z0)
            v[self.checked] = rng.standard_normal(v[self.checked].shape)
            scale = float(self.wrt_params)
            found.append((v, [scale * rng.standard_normal(x.shape) for x in self.params]))
        return found


def all_cases(quick: bool = False) -> list[Case]:
    """Every case in the order in which they run; or those of BENCH=quick, with fewer gradients."""
    found: list[Case] = []
    for name in _FILES:
        module: Any = importlib.import_module(f"benchmarks.cases.{name}")
        found += module.cases()
    if not quick:
        return found
    return [replace(case, gradients=case.quick_gradients) for case in found if case.quick]


def layers(sizes: tuple[int, ...], seed: int, gain: float = 1.0) -> list[np.ndarray]:
    """W, b of a fully connected network, normal with standard deviation gain/√fan_in."""
    rng = np.random.default_rng(seed)
    params: list[np.ndarray] = []
    for i, o in itertools.pairwise(sizes):
        params += [rng.standard_normal((o, i)) * gain / np.sqrt(i), rng.standard_normal(o) * 0.1]
    return params
