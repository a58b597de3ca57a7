"""Kutta's 3/8 rule: order 4, four stages, no error estimate.

Source: W. Kutta, *Beitrag zur näherungsweisen Integration totaler Differentialgleichungen*,
Z. Math. Phys. 46 (1901) 435-453; Hairer, Norsett, Wanner, *Solving ODEs I*, table II.1.2. The
interpolant of order 3 is the one solution of the four conditions of order 3 on the four stages:
b2 = 15θ²/8 - 3θ³/2, b3 = 3θ²/8, b4 = θ³/2 - 3θ²/8.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="rk4_38",
    order=4,
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    interpolant=(
        (1.0, -15 / 8, 1.0),
        (0.0, 15 / 8, -3 / 2),
        (0.0, 3 / 8, 0.0),
        (0.0, -3 / 8, 1 / 2),
    ),
    interpolant_order=3,
    reference="Kutta, Z. Math. Phys. 46 (1901) 435-453",
)
