"""(a) A spiral: an MLP 2-50-2, 100 points on [0, 25].

The network is fitted to dz/dt = Az, eight turns. The cubic spiral, whose frequency depends on the
amplitude, turns a loose tolerance into errors of phase so large that no gradient is comparable.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case

TRUE = np.array([[-0.05, 2.0], [-2.0, -0.05]])


def spiral_mlp() -> list[np.ndarray]:
    """Random features with an output layer fitted to dz/dt = Az, so that solutions do spiral."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((50, 2)), rng.uniform(-2, 2, 50)
    z = rng.uniform(-2.4, 2.4, (4000, 2))
    features = np.concatenate([np.tanh(z @ w.T + b), np.ones((4000, 1))], 1)
    system = features.T @ features + 1.0 * np.eye(51)
    out = np.linalg.solve(system, features.T @ (z @ TRUE.T))
    return [w, b, out[:50].T.copy(), out[50].copy()]


def cases() -> list[Case]:
    rng = np.random.default_rng(1)
    found = []
    for batch, rtol, dtype in (
        (1, 1e-3, "float32"),
        (256, 1e-3, "float32"),
        (1, 1e-7, "float64"),
        (256, 1e-7, "float64"),
    ):
        z0 = np.array([[2.0, 0.0]]) + 0.1 * rng.standard_normal((batch, 2)) * (batch > 1)
        found.append(
            Case(
                name=f"spiral-b{batch}-{rtol:.0e}".replace("e-0", "e-"),
                title=f"Spiral MLP 2-50-2, B={batch}, 100 points on [0, 25], rtol {rtol:.0e}",
                field="mlp",
                params=spiral_mlp(),
                z0=z0,
                times=np.linspace(0, 25, 100),
                rtol=rtol,
                atol=rtol / 10,
                dtype=dtype,
                # One of the large ones says enough about memory and threads: these calls are long.
                memory=batch > 1 and dtype == "float32",
                parallel=batch > 1 and dtype == "float32",
                quick=dtype == "float32",
            )
        )
    return found
