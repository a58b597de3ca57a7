"""(h) Growth: time and memory against steps, batch, dimension and parameters, one at a time."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case, layers

BASE = {"steps": 20, "batch": 64, "dimension": 8, "hidden": 64}
GRID = {
    "steps": (20, 80, 320),
    "batch": (16, 256, 2048),
    "dimension": (2, 32, 256),
    "hidden": (16, 256, 1024),
}


def cases() -> list[Case]:
    return [_case(axis, value) for axis, values in GRID.items() for value in values]


def _case(axis: str, value: int) -> Case:
    size = {**BASE, axis: value}
    d, h = size["dimension"], size["hidden"]
    return Case(
        name=f"growth-{axis}-{value}",
        title=f"Growth: {axis} = {value}",
        field="mlp",
        params=layers((d, h, d), seed=9),
        z0=np.random.default_rng(9).standard_normal((size["batch"], d)),
        # The number of steps grows with the time that is solved over.
        times=np.array([0.0, size["steps"] / 10]),
        rtol=1e-4,
        atol=1e-5,
        dtype="float32",
        gradients=("discrete", "gauss") if axis == "steps" else ("discrete",),
        checked=slice(0, 8),
        wrt_params=False,
        memory=True,
        growth=(axis, value),
    )
