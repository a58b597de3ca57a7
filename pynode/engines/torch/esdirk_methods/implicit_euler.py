"""Backward Euler: order 1, L-stable, one implicit stage; the explicit one only foretells it."""

from pynode.engines.torch.esdirk import EsdirkTableau, hermite, lower

_A = lower((0.0,), gamma=1.0)

TABLEAU = EsdirkTableau(
    name="implicit_euler",
    order=1,
    a=_A,
    interpolant=hermite(_A[-1]),
    interpolant_order=1,
    reference="Hairer & Wanner, Solving ODEs II, section IV.3 (implicit Euler)",
)
