"""Bogacki and Shampine's 3(2) pair: four stages, the last of which opens the next step.

Source: P. Bogacki, L. F. Shampine, *A 3(2) pair of Runge-Kutta formulas*, Appl. Math. Lett. 2
(1989) 321-325. The interpolant is the cubic Hermite polynomial through the values and slopes at
both ends of the step, written in the stages.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="bs3",
    order=3,
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    error_order=2,
    interpolant=(
        (1.0, -4 / 3, 5 / 9),
        (0.0, 1.0, -2 / 3),
        (0.0, 4 / 3, -8 / 9),
        (0.0, -1.0, 1.0),
    ),
    interpolant_order=3,
    reference="Bogacki, Shampine, Appl. Math. Lett. 2 (1989) 321-325",
)
