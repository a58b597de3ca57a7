"""A ResNet with one block used L times is Euler's method; with L → ∞ it is an ODE.

    python examples/resnet_to_ode.py            # seconds; needs scikit-learn for its digits

An ODE-Net learns to read digits. Its weights, run as a ResNet h ← h + f(t, h)/L, come to the same
answers, the closer the more layers there are.
"""

import argparse

import torch
from torch import nn

from pynode.data.images import digits
from pynode.models.classifiers import Dense, ODENet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()
torch.manual_seed(0)
torch.set_num_threads(1)

train, test = digits(seed=0)
model = ODENet(Dense(width=64, classes=10), rtol=1e-3, atol=1e-3)
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(options.epochs):
    for rows in torch.randperm(len(train)).split(128):
        loss = nn.functional.cross_entropy(model(train.x[rows]), train.y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if epoch % 5 == 0 or epoch == options.epochs - 1:
        print(f"epoch {epoch}: loss {loss.item():.3f}, {model.node.stats.nfe} evaluations of f")

with torch.no_grad():
    exact = model.solved_by(rtol=1e-6, atol=1e-6)(test.x)
    right = (exact.argmax(1) == test.y).float().mean()
    print(f"ODE: {right:.1%} of {len(test)} unseen digits right")
    for layers in (1, 2, 4, 8, 16, 32, 64):
        resnet = model.solved_by(solver="euler", dt=1 / layers)
        logits = resnet(test.x)
        right = (logits.argmax(1) == test.y).float().mean()
        off = (logits - exact).norm() / exact.norm()
        print(f"ResNet of {layers:2d} tied layers: {right:.1%} right, logits off by {off:.1e}")
