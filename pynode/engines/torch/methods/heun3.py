"""Heun's method of order 3: three stages, no error estimate.

Source: K. Heun, *Neue Methoden zur approximativen Integration der Differentialgleichungen einer
unabhängigen Veränderlichen*, Z. Math. Phys. 45 (1900) 23-38; Hairer, Norsett, Wanner, *Solving
ODEs I*, table II.1.1. Interpolant of order 2: b1 = θ - 3θ²/4, b3 = 3θ²/4.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="heun3",
    order=3,
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
    c=(0.0, 1 / 3, 2 / 3),
    interpolant=((1.0, -3 / 4), (0.0, 0.0), (0.0, 3 / 4)),
    interpolant_order=2,
    reference="Heun, Z. Math. Phys. 45 (1900) 23-38",
)
