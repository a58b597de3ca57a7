"""(d) The ODE of a latent ODE's training step: each series has 100 irregular times of its own.

The recognition network, the decoder and the optimiser's step cost the same in every library and
are left out. Contenders that know only shared times solve on the union of all and pick from it.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case, layers


def cases() -> list[Case]:
    rng = np.random.default_rng(4)
    times = np.sort(rng.uniform(0.01, 5, (50, 100)).astype(np.float32).astype(float), axis=1)
    times[:, 0] = 0
    return [
        Case(
            name="latent",
            title="Latent ODE's step: B=50, latent 10, 100 units, 100 irregular times each",
            field="mlp",
            params=layers((10, 100, 10), seed=4, gain=1.2),
            z0=rng.standard_normal((50, 10)),
            times=times,
            rtol=1e-3,
            atol=1e-4,
            dtype="float32",
            gradients=("discrete", "backsolve", "gauss"),
            parallel=True,
        )
    ]
