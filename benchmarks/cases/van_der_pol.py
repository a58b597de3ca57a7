"""(b) Van der Pol: μ=2 as in torchode's paper, and μ=25, where samples want steps of their own."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Case


def cases() -> list[Case]:
    rng = np.random.default_rng(2)
    found = []
    for mu, batch, end in ((2.0, 256, 10.0), (25.0, 64, 30.0)):
        found.append(
            Case(
                name=f"vdp-mu{mu:.0f}",
                title=f"Van der Pol μ={mu:.0f}, B={batch}, 50 points on [0, {end:.0f}]",
                field="van_der_pol",
                params=[np.array([mu])],
                z0=rng.uniform(-2, 2, (batch, 2)),
                times=np.linspace(0, end, 50),
                rtol=1e-6,
                atol=1e-6,
                # It jumps, and there gradients are hundreds to thousands of tolerances off.
                gradients=() if mu > 2 else ("discrete", "backsolve", "gauss"),
                quick=mu > 2,
                quick_gradients=(),
            )
        )
    return found
