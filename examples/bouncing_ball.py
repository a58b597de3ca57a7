"""A ball bounces; its restitution and gravity are learned from when it hits the floor.

    python examples/bouncing_ball.py            # seconds; --figure draws bouncing_ball.png

The floor is an event: its time is found on the dense output, its jump turns the speed around,
and gradients go through both.
"""

import argparse
import math

import torch
from torch import Tensor, nn

from pynode import Event, NeuralODE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=6, help="of the optimiser")
parser.add_argument("--figure", action="store_true", help="draw bouncing_ball.png")
options = parser.parse_args()
torch.set_default_dtype(torch.float64)

HEIGHT, GRAVITY, RESTITUTION = 10.0, 9.81, 0.8


class Ball(nn.Module):
    """dz/dt for z = (height, speed), and what the floor does to z."""

    def __init__(self, gravity: float, restitution: float) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity))
        self.restitution = nn.Parameter(torch.tensor(restitution))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[1], -self.gravity])

    def bounce(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[0], -self.restitution * z[1]])

    def floor(self) -> Event:
        return Event(lambda t, z: z[0], direction=-1, jump=self.bounce, name="floor")


def hits(count: int) -> Tensor:
    """When the true ball hits the floor, in closed form."""
    first = math.sqrt(2 * HEIGHT / GRAVITY)
    flights = [first] + [2 * first * RESTITUTION**k for k in range(1, count)]
    return torch.tensor(flights).cumsum(0)


# 1. A solve with events, against the closed form.
z0 = torch.tensor([HEIGHT, 0.0])
times = torch.linspace(0.0, 8.0, 161)
true = Ball(GRAVITY, RESTITUTION)
with torch.no_grad():
    sol = NeuralODE(true, rtol=1e-8, atol=1e-10).solve(z0, times, events=[true.floor()])
record = sol.events[0]
energy = GRAVITY * sol.zs[:, 0] + sol.zs[:, 1] ** 2 / 2
bounces = torch.searchsorted(record.times, times)
exact_energy = GRAVITY * HEIGHT * RESTITUTION ** (2.0 * bounces)
print(f"{len(record)} bounces in 8 s; {sol.stats.nfe} evaluations of the field")
print(f"largest error of their times: {(record.times - hits(len(record))).abs().max():.1e} s")
print(f"largest relative error of the energy: {(energy / exact_energy - 1).abs().max():.1e}")

# 2. Gravity and restitution from the times of the first four bounces alone. A ball with other
# parameters may bounce less or more often by then, or come to rest: what there is is compared.
observed = hits(4)
ball = Ball(gravity=7.0, restitution=0.7)
node = NeuralODE(ball, rtol=1e-8, atol=1e-10, throw=False)
optimiser = torch.optim.LBFGS(ball.parameters(), line_search_fn="strong_wolfe", max_iter=5)


def loss() -> Tensor:
    """Mean squared error of the times of the bounces that there are."""
    found = node.solve(z0, [0.0, 1.2 * observed[-1]], events=[ball.floor()]).events[0].times
    count = min(len(found), len(observed))
    return (found[:count] - observed[:count]).square().mean()


def closure() -> Tensor:
    optimiser.zero_grad()
    value = loss()
    value.backward()
    return value


for step in range(options.steps):
    value = optimiser.step(closure)
    print(
        f"step {step}: loss {value.item():.1e}, gravity {ball.gravity.item():.6f}, "
        f"restitution {ball.restitution.item():.6f}"
    )
print(f"true: gravity {GRAVITY}, restitution {RESTITUTION}")

if options.figure:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.plot(times, sol.zs[:, 0])
    pyplot.plot(record.times, record.states[:, 0], "o")
    pyplot.xlabel("t [s]")
    pyplot.ylabel("height [m]")
    pyplot.savefig("bouncing_ball.png", dpi=160)
    print("see bouncing_ball.png")
