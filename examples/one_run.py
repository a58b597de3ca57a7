"""One run, two languages: this file and one_run.jl do the same to the same folder.

    python examples/one_run.py --out results/one_run        # writes the folder, solves, fits
    julia --project=. examples/one_run.jl results/one_run   # the same without Python, and compares

The run is a fit: a small network learns the field of a damped pendulum from one trajectory, seen at
twenty times. Both sides solve the same initial value problem, differentiate the same loss, and take
the same steps of gradient descent (with Adam's moments); each writes what it found, and the second
to run says how far the two are apart. A folder is data only: see docs/julia.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pynode import NeuralODE, odeint

LEARNING_RATE = 0.02


def pendulum(t: Tensor, z: Tensor) -> Tensor:
    angle, speed = z.unbind(-1)
    return torch.stack([speed, -torch.sin(angle) - 0.2 * speed], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/one_run"))
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)

    t = torch.linspace(0.0, 6.0, 20)
    z0 = torch.tensor([[1.5, 0.0]])
    targets = odeint(pendulum, z0, t, rtol=1e-9, atol=1e-11)
    field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    node = NeuralODE(field, solver="tsit5", sensitivity="gauss", rtol=1e-8, atol=1e-10)
    folder = node.export(arguments.out, z0, t, targets=targets)

    optimizer = torch.optim.Adam(field.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(arguments.epochs):
        optimizer.zero_grad()
        loss = (node(z0, t) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        zs = node(z0, t)
    p = torch.cat([x.detach().reshape(-1) for x in field.parameters()])
    np.savez(folder / "python.npz", losses=losses, p=p.numpy(), zs=zs.reshape(len(t), -1).numpy())
    print(f"Python: loss {losses[0]:.6f} at first, {losses[-1]:.6f} after {len(losses)} epochs")
    compare(folder)


def compare(folder: Path) -> None:
    """How far apart the two languages are, once both have run."""
    if not (folder / "julia.npz").is_file():
        print(f"now: julia --project=. examples/one_run.jl {folder}")
        return
    here, there = np.load(folder / "python.npz"), np.load(folder / "julia.npz")
    for name in ("losses", "p", "zs"):
        print(f"{name}: largest difference {np.abs(here[name] - there[name]).max():.1e}")


if __name__ == "__main__":
    main()
