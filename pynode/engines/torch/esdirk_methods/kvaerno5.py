"""Kvaerno's 5(4) pair: L-stable, six implicit stages, both solutions stiffly accurate.

Kvaerno 2004, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44,
the method of order 5 with γ = 0.26; coefficients as in OrdinaryDiffEq.jl and diffrax. Dense output
of order 4 by :func:`~pynode.engines.torch.esdirk.quartic`.
"""

from pynode.engines.torch.esdirk import EsdirkTableau, lower, quartic

# fmt: off
_A = lower(
    (0.26,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403,
     0.06962479448202728),
    gamma=0.26,
)
# fmt: on
_B, _LOW = _A[6], (*_A[5], 0.0)

TABLEAU = EsdirkTableau(
    name="kvaerno5",
    order=5,
    a=_A,
    error=tuple(x - y for x, y in zip(_B, _LOW, strict=True)),
    error_order=4,
    interpolant=quartic(_A),
    interpolant_order=4,
    reference="Kvaerno 2004, BIT 44, 489-502 (5/4); coefficients as in OrdinaryDiffEq.jl",
)
