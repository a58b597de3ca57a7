"""The explicit trapezoidal rule, often called Heun's method: order 2, two stages.

Source: C. Runge, *Über die numerische Auflösung von Differentialgleichungen*, Math. Ann. 46
(1895) 167-178; Hairer, Norsett, Wanner, *Solving ODEs I*, section II.1. The error estimate is
the difference from the Euler step; the interpolant is the parabola that both stages determine:
b1 = θ - θ²/2 and b2 = θ²/2.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="heun",
    order=2,
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    error=(-1 / 2, 1 / 2),
    error_order=1,
    interpolant=((1.0, -1 / 2), (0.0, 1 / 2)),
    interpolant_order=2,
    reference="Runge, Math. Ann. 46 (1895) 167-178",
)
