"""Which sensitivity for my problem? Ask each for its error, time and memory, and compare.

    python examples/which_gradient.py            # a few seconds

Here for a network; put your own field into a GradientProblem. For more problems, solvers and
tolerances: pynode experiment gradients --out DIR, and docs/choosing.md.
"""

import torch
from torch import nn

from pynode import sensitivities
from pynode.experiments.gradient_problems import EXPLICIT_REFERENCE, GradientProblem, cost

torch.manual_seed(0)
torch.set_num_threads(1)
field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()
z0 = torch.randn(8, 2, dtype=torch.float64)
problem = GradientProblem(field, z0, end=2.0, reference=EXPLICIT_REFERENCE)

truth = problem.truth()  # through far finer steps
print("sensitivity      error      ms      kB   nfe + backward")
for info in sensitivities():
    found = cost(problem, truth, sensitivity=info.name, rtol=1e-4, atol=1e-6)
    print(
        f"{info.name:14s} {found['error']:7.0e} {1e3 * found['seconds']:7.1f} "
        f"{found['peak_bytes'] / 1e3:7.0f}   {found['nfe']:3d} + {found['nfe_backward']}"
    )
