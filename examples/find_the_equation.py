"""Half of an equation is known: a network learns the other half, and regression reads it.

    python examples/find_the_equation.py            # a few seconds

Prey grow and predators starve, that much is known; how they meet is not. After Rackauckas et al.
2020, Universal Differential Equations. With a stiff reaction, seeds and a figure:
pynode experiment stiff --out DIR
"""

import torch

from pynode.experiments.stiff_lotka import last_value, learn

torch.set_num_threads(1)
found = learn("universal", seed=0, steps=100, noise=0.005)
print(f"loss {found['losses'][0]:.2g} → {found['losses'][-1]:.2g}")
print("true:   u' = 1.30 u − 0.90 uv, v' = −1.80 v + 0.80 uv")
print("found:  u' = {}, v' = {}".format(*found["sparse_equations"]))
print(
    f"RMSE up to t = 12, learned from [0, 3]: the equations found {found['sparse_rmse']:.2f}, "
    f"the network itself {found['rmse']:.2g}, the last value {last_value(0, 0.005):.2f}"
)
