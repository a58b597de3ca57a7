"""(f) Stiff: Robertson's reactions and HIRES, batch 64.

No backsolve: a stiff state cannot be integrated backwards. So torchdiffeq, whose implicit methods
are scipy's and know no backpropagation, has no gradient here.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case


def cases() -> list[Case]:
    rng = np.random.default_rng(6)
    a = rng.uniform(0.7, 1.0, 64)
    robertson = np.stack([a, 0 * a, 1 - a], 1)
    hires = np.tile([1.0, 0, 0, 0, 0, 0, 0, 0.0057], (64, 1))
    hires[:, 0] = a
    shared = {
        "rtol": 1e-6,
        "stiff": True,
        "gradients": ("discrete", "gauss"),
        "checked": slice(0, 8),
        "wrt_params": False,
    }
    return [
        Case(
            name="robertson",
            title="Robertson, B=64, 50 points on [0, 1e5], rtol 1e-6",
            field="robertson",
            params=[np.ones(3)],
            z0=robertson,
            times=np.concatenate([[0.0], np.logspace(-4, 5, 49)]),
            atol=1e-9,
            quick=True,
            quick_gradients=(),
            **shared,
        ),
        Case(
            name="hires",
            title="HIRES, B=64, 50 points on [0, 321.8122], rtol 1e-6",
            field="hires",
            params=[np.ones(2)],
            z0=hires,
            times=np.linspace(0, 321.8122, 50),
            atol=1e-8,
            **shared,
        ),
    ]
