"""The classical Runge-Kutta method: order 4, four stages, no error estimate.

Source: W. Kutta, *Beitrag zur näherungsweisen Integration totaler Differentialgleichungen*,
Z. Math. Phys. 46 (1901) 435-453; Hairer, Norsett, Wanner, *Solving ODEs I*, table II.1.2.
The interpolant is the one of order 3 on the four stages (same book, section II.6).
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="rk4",
    order=4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    interpolant=(
        (1.0, -3 / 2, 2 / 3),
        (0.0, 1.0, -2 / 3),
        (0.0, 1.0, -2 / 3),
        (0.0, -1 / 2, 2 / 3),
    ),
    interpolant_order=3,
    reference="Kutta, Z. Math. Phys. 46 (1901) 435-453",
)
