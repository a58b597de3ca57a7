"""Which way does a spiral turn? A neural controlled differential equation learns it.

    python examples/neural_cde.py            # well below a minute on one core

128 spirals to learn from and 128 others to be tested on, as in Diffrax's example of Kidger,
Morrill, Foster, Lyons 2020, Neural controlled differential equations for irregular time series:
the hidden state follows dz/dt = F(z)·dx/dt, driven by the data x = (time, two coordinates), which
are interpolated by Hermite cubics with backward differences.
"""

import argparse
import math
import time

import torch
from torch import Tensor, nn

from pynode import Control, NeuralODE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--series", type=int, default=128, help="in each of training and test set")
parser.add_argument("--steps", type=int, default=60, help="of the optimiser")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_num_threads(1)


def spirals(count: int, length: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Times (length,), data (count, length, 3), and whether each turns clockwise (count,)."""
    angle = 2 * math.pi * torch.rand(count)
    ts = torch.linspace(0, 4 * math.pi, length)
    start = torch.stack([angle.cos(), angle.sin()], dim=1)
    # The matrix [[-0.3, 2], [-2, -0.3]]: turning while shrinking; half of them mirrored.
    decay, c, s = (-0.3 * ts).exp(), (2 * ts).cos(), (2 * ts).sin()
    turn = torch.stack([torch.stack([c, s], -1), torch.stack([-s, c], -1)], -2)
    xs = decay[:, None] * torch.einsum("tij,bj->bti", turn, start)
    clockwise = torch.arange(count) < count // 2
    xs[~clockwise, :, 0] *= -1
    xs = xs + 0.01 * torch.randn_like(xs)
    with_time = torch.cat([ts.expand(count, length).unsqueeze(-1), xs], dim=-1)
    return ts, with_time, clockwise.to(xs)


class NeuralCDE(nn.Module):
    """Series in, one logit each out."""

    def __init__(self, channels: int = 3, hidden: int = 8, width: int = 64) -> None:
        super().__init__()
        self.channels, self.hidden = channels, hidden
        self.initial = nn.Sequential(
            nn.Linear(channels, width), nn.Softplus(), nn.Linear(width, hidden)
        )
        self.field = nn.Sequential(
            nn.Linear(hidden, width),
            nn.Softplus(),
            nn.Linear(width, hidden * channels),
            nn.Tanh(),
        )
        self.readout = nn.Linear(hidden, 1)
        self.node = NeuralODE(self.follow, rtol=1e-2, atol=1e-3, sensitivity="discrete")

    def follow(self, t: Tensor, z: Tensor, x: Control) -> Tensor:
        matrix = self.field(z).reshape(-1, self.hidden, self.channels)
        return (matrix @ x.derivative(t).unsqueeze(-1)).squeeze(-1)

    def forward(self, ts: Tensor, xs: Tensor) -> Tensor:
        z0 = self.initial(xs[:, 0])
        z = self.node(z0, ts[[0, -1]], Control(ts, xs, kind="hermite"))[-1]
        return self.readout(z).squeeze(-1)


ts, train, train_turns = spirals(options.series)
_, test, test_turns = spirals(options.series)
model = NeuralCDE()
optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
batch = min(32, options.series)
begin = time.perf_counter()
for step in range(options.steps):
    chosen = torch.randperm(options.series)[:batch]
    logits = model(ts, train[chosen])
    loss = nn.functional.binary_cross_entropy_with_logits(logits, train_turns[chosen])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 10 == 0 or step == options.steps - 1:
        accuracy = ((logits > 0) == (train_turns[chosen] > 0)).float().mean()
        print(
            f"step {step}: loss {loss.item():.3f}, accuracy {accuracy:.3f}, "
            f"{time.perf_counter() - begin:.0f} s"
        )
with torch.no_grad():
    accuracy = ((model(ts, test) > 0) == (test_turns > 0)).float().mean()
print(f"held-out accuracy {accuracy:.3f} on {options.series} spirals, {model.node.stats.nfe} nfe")
