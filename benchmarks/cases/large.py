"""(g) A field so large that the solver's own work hardly counts: MLP 512-1024-512, B=1024."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case, layers


def cases() -> list[Case]:
    return [
        Case(
            name="large",
            title="MLP 512-1024-512, B=1024, 2 points on [0, 1], rtol 1e-3",
            field="mlp",
            params=layers((512, 1024, 512), seed=8),
            z0=np.random.default_rng(8).standard_normal((1024, 512)),
            times=np.array([0.0, 1.0]),
            rtol=1e-3,
            atol=1e-4,
            dtype="float32",
            gradients=("discrete", "backsolve"),
            checked=slice(0, 8),
            wrt_params=False,
            parallel=True,
        )
    ]
