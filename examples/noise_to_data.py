"""A continuous normalizing flow learns two moons, and is run both ways.

    python examples/noise_to_data.py            # about a minute

One network f says how points move; where they end is the density, and running the same ODE
backwards inverts it exactly, with nothing built in for that.
"""

import argparse

import torch

from pynode.data.densities import density
from pynode.models import CNF

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400, help="of the optimiser")
parser.add_argument("--figure", action="store_true", help="draw noise_to_data.png")
options = parser.parse_args()
torch.manual_seed(0)
torch.set_num_threads(1)

train, test = density("moons", 5000, seed=0), density("moons", 2000, seed=1)

# 1. Maximum likelihood. Coarse solves are good enough to learn by.
flow = CNF(2, hidden=(32, 32), duration=1.0, rtol=1e-2, atol=1e-2)
optimiser = torch.optim.Adam(flow.parameters(), lr=0.02)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, options.steps)
for step in range(options.steps):
    loss = flow.loss(train[torch.randint(len(train), (256,))]).total
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    if step % 50 == 0 or step == options.steps - 1:
        print(f"step {step}: −log p {loss.item():.3f}, {flow.nfe} evaluations of f")

# 2. How likely are points that it has not seen? The same field, solved more finely.
fine = CNF(2, field=flow.field, duration=1.0, rtol=1e-6, atol=1e-6)
with torch.no_grad():
    learned = fine.log_prob(test).mean()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    print(f"test log p {learned:.3f} nats; of one Gaussian {gaussian.log_prob(test).mean():.3f}")

    # 3. Data to noise and back.
    z, _ = fine.to_base(test)
    print(f"noise: mean {z.mean():+.3f}, standard deviation {z.std():.3f}")
    print(f"back again: off by at most {(fine.to_data(z) - test).abs().max():.1e}")

    # 4. New points, and how they came about.
    path = fine.path(torch.randn(2000, 2), torch.linspace(0, 1, 5))

if options.figure:
    from pynode import plots

    with plots.canvas(12.0, 2.8) as figure:
        for axes, points, t in zip(
            figure.subplots(1, 5), path, (0, 0.25, 0.5, 0.75, 1), strict=True
        ):
            axes.plot(*points.T, ".", ms=2)
            axes.set_title(f"t = {t}")
            axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    figure.savefig("noise_to_data.png", dpi=160)
    print("see noise_to_data.png")
