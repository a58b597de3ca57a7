"""The explicit midpoint method of Runge: order 2, two stages, error against the Euler step.

Source: C. Runge, *Über die numerische Auflösung von Differentialgleichungen*, Math. Ann. 46
(1895) 167-178; Hairer, Norsett, Wanner, *Solving ODEs I*, table II.1.1. The interpolant
is the parabola that both stages determine: b1 = θ - θ² and b2 = θ².
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="midpoint",
    order=2,
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
    c=(0.0, 1 / 2),
    error=(-1.0, 1.0),
    error_order=1,
    interpolant=((1.0, -1.0), (0.0, 1.0)),
    interpolant_order=2,
    reference="Runge, Math. Ann. 46 (1895) 167-178",
)
