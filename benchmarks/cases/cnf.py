"""(e) FFJORD's 2-D flow, concatsquash 64-64-64, T=0.5, batch 512: exact trace and Hutchinson's."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.cases import Case


def squash_layers(sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """W, b, and the gate's g, h and bias k of each layer."""
    rng = np.random.default_rng(seed)
    params: list[np.ndarray] = []
    for i, o in itertools.pairwise(sizes):
        params.append(rng.standard_normal((o, i)) * 1.5 / np.sqrt(i))
        params += [rng.standard_normal(o) * 0.5 for _ in range(4)]
    return params


def cases() -> list[Case]:
    rng = np.random.default_rng(5)
    x, logp = rng.standard_normal((512, 2)), np.zeros((512, 1))
    noise = rng.choice([-1.0, 1.0], (512, 2))
    found = []
    for trace, z0 in (("exact", [x, logp]), ("hutchinson", [x, logp, noise])):
        found.append(
            Case(
                name=f"cnf-{trace}",
                title=f"CNF 2-D, 64-64-64, B=512, {trace} trace",
                field=f"cnf_{trace}",
                params=squash_layers((2, 64, 64, 64, 2), seed=5),
                z0=np.concatenate(z0, 1),
                times=np.array([0.0, 0.5]),
                rtol=1e-5,
                atol=1e-5,
                dtype="float32",
                gradients=("discrete", "backsolve", "gauss"),
                checked=slice(0, 64),
                wrt_params=False,
                parallel=True,
            )
        )
    return found
