"""Fehlberg's 2(1) pair: three stages.

Source: E. Fehlberg, *Low-order classical Runge-Kutta formulas with stepsize control and their
application to some heat transfer problems*, NASA TR R-315 (1969), RK1(2), carried forward by its
formula of order 2. The last stage is evaluated at the embedded solution, so it does not open the
next step. Its error estimate, h²z''/512, is that of an unusually accurate formula of order 1: the
error of a step of what is carried forward, O(h³), may be far above the tolerance. Interpolant of
order 2: b3 = θ²/512, b2 = 255θ²/256.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="fehlberg2",
    order=2,
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(0.0, 1 / 2, 1.0),
    error=(-1 / 512, 0.0, 1 / 512),
    error_order=1,
    interpolant=((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512)),
    interpolant_order=2,
    reference="Fehlberg, NASA TR R-315 (1969), RK1(2)",
)
