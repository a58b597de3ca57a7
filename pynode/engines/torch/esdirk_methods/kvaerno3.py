"""Kvaerno's 3(2) pair: L-stable, three implicit stages, both solutions stiffly accurate.

Kvaerno 2004, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44,
the method of order 3 with γ the root of 6γ³ − 18γ² + 9γ − 1 that makes it L-stable; its
coefficients in terms of γ as diffrax gives them.
"""

from pynode.engines.torch.esdirk import EsdirkTableau, hermite, lower

_G = 0.43586652150845899942
_A = lower(
    (_G,),
    ((-4 * _G**2 + 6 * _G - 1) / (4 * _G), (1 - 2 * _G) / (4 * _G)),
    (
        (6 * _G - 1) / (12 * _G),
        -1 / ((24 * _G - 12) * _G),
        (-6 * _G**2 + 6 * _G - 1) / (6 * _G - 3),
    ),
    gamma=_G,
)
_B, _LOW = _A[3], (*_A[2], 0.0)

TABLEAU = EsdirkTableau(
    name="kvaerno3",
    order=3,
    a=_A,
    error=tuple(x - y for x, y in zip(_B, _LOW, strict=True)),
    error_order=2,
    interpolant=hermite(_B),
    interpolant_order=3,
    reference="Kvaerno 2004, BIT 44, 489-502 (3/2); coefficients as in diffrax",
)
