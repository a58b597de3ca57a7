"""Train once, then choose for each device how finely the model is solved.

    python examples/choose_tolerance.py            # about a quarter of a minute

An ODE-Net learns digits; the same weights are then solved at looser and tighter tolerances. With a
second model, seeds and a figure: pynode experiment adaptive --out DIR
"""

import sys

import torch
from torch import nn

from pynode.data.images import digits
from pynode.models.classifiers import Dense, ODENet

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
torch.set_num_threads(1)
torch.manual_seed(0)
train, test = digits(seed=0)
model = ODENet(Dense(64, train.classes), rtol=1e-3, atol=1e-3)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(epochs):
    for rows in torch.randperm(len(train)).split(128):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.x[rows]), train.y[rows]).backward()
        optimizer.step()

ways = [{"rtol": 10.0**-k, "atol": 10.0**-k} for k in (1, 2, 3, 4, 5, 6)]
ways += [
    {"solver": "rk4", "dt": 1.0},
    {"solver": "euler", "dt": 1.0},
    {"solver": "euler", "dt": 0.25},
]
for options in ways:
    device = model.solved_by(**options)
    with torch.no_grad():
        accuracy = (device(test.x).argmax(1) == test.y).float().mean()
    print(f"accuracy {accuracy:.3f} with {device.node.stats.nfe:3d} evaluations: {options}")
