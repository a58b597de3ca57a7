"""The implicit part of Kennedy & Carpenter's ARK4(3)6L[2]SA: order 4(3), L-stable, five implicit
stages.

Kennedy & Carpenter 2003, Additive Runge-Kutta schemes for convection-diffusion-reaction equations,
Appl. Numer. Math. 44, appendix C, where it is ESDIRK4(3)6L[2]SA; coefficients as in diffrax and
OrdinaryDiffEq.jl (KenCarp4). Dense output of order 4 by
:func:`~pynode.engines.torch.esdirk.quartic`; that of the paper has order 3.
"""

from pynode.engines.torch.esdirk import EsdirkTableau, lower, quartic

# fmt: off
_A = lower(
    (1 / 4,),
    (8611 / 62500, -1743 / 31250),
    (5012029 / 34652500, -654441 / 2922500, 174375 / 388108),
    (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912),
    (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211),
    gamma=1 / 4,
)
_LOW = (
    4586570599 / 29645900160, 0.0, 178811875 / 945068544, 814220225 / 1159782912,
    -3700637 / 11593932, 61727 / 225920,
)
# fmt: on
_B = _A[5]

TABLEAU = EsdirkTableau(
    name="kencarp4",
    order=4,
    a=_A,
    error=tuple(x - y for x, y in zip(_B, _LOW, strict=True)),
    error_order=3,
    filtered=True,
    interpolant=quartic(_A),
    interpolant_order=4,
    reference="Kennedy & Carpenter 2003, Appl. Numer. Math. 44, 139-181 (implicit part)",
)
