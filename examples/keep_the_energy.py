"""A pendulum learned from short glimpses, then followed for a long time.

    python examples/keep_the_energy.py            # about a quarter of a minute

A field that may be anything leaks energy; one that is given by an energy cannot. With seeds,
baselines and a figure: pynode experiment physics --out DIR
"""

import sys

import torch

from pynode.experiments.physics import build, energy, follow, starts, train, truth

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
torch.set_num_threads(1)

# Forty stretches of half a swing, observed with noise.
generator = torch.Generator().manual_seed(0)
ts = torch.linspace(0, 3, 16)
seen = truth(starts(40, generator), ts).float()
seen = seen + 0.02 * torch.randn(seen.shape, generator=generator)

# Fresh starts, followed for sixteen swings.
z0 = starts(16, generator)
far = torch.linspace(0, 100, 201, dtype=torch.float64)
for name in ("plain", "hamiltonian", "separable"):
    torch.manual_seed(0)
    model = build(name, hidden=32)
    losses = train(model, seen, ts, steps)
    path = follow(model.double(), z0, far)
    drift = (energy(path) - energy(z0)).abs().mean(1)
    print(f"{name:12s} loss {losses[-1]:.4f}; energy off by {drift[20]:.3f} at t = 10, "
          f"{drift[-1]:.3f} at t = 100")  # fmt: skip
