"""x → −x on a line: what a neural ODE cannot do, and what one more dimension does for it.

    python examples/room_to_turn.py            # a few seconds

Paths of an ODE never cross, so on a line it keeps the order of its points; in the plane they go
around one another. With a second task, seeds and a figure: pynode experiment augment --out DIR
"""

import sys

import torch

from pynode.experiments.augment import build, data, train

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
torch.set_num_threads(1)
x, y = data("mirror", 128, torch.Generator().manual_seed(0))
print(f"the constant 0 has an error of {y.square().mean():.3f}")
for name in ("node", "anode1", "second_order"):
    torch.manual_seed(0)
    model = build("mirror", name, hidden=32)
    train(model, x, y, steps)
    with torch.no_grad():
        error = (model(x) - y).square().mean()
        ends = model(torch.tensor([[-1.0], [0.0], [1.0]]))[:, 0].tolist()
    print(f"{name:12s} error {error:.4f}; −1, 0, 1 go to", *(f"{end:+.2f}" for end in ends))
