"""(c) The small network of diffrax's own benchmark: MLP 4-32-4, B=64, T=100."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case


def rotating_mlp() -> list[np.ndarray]:
    """A Wᵀ tanh(W z) with A skew but for a little friction, so that solutions turn some times.

    With many turns errors of the phase grow so large that no gradient is near the reference.
    """
    rng = np.random.default_rng(3)
    w = rng.standard_normal((32, 4)) * 0.5
    a = rng.standard_normal((4, 4))
    return [w, np.zeros(32), (a - a.T - 0.1 * np.eye(4)) @ w.T / 128, np.zeros(4)]


def cases() -> list[Case]:
    return [
        Case(
            name="mlp4",
            title="MLP 4-32-4, B=64, to T=100, rtol 1e-6",
            field="mlp",
            params=rotating_mlp(),
            z0=np.random.default_rng(3).standard_normal((64, 4)),
            times=np.linspace(0, 100, 2),
            rtol=1e-6,
            atol=1e-6,
            dtype="float64",
            gradients=("discrete", "backsolve", "gauss"),
        )
    ]
