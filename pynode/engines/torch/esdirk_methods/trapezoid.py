"""The trapezoidal rule: order 2, A-stable but not L-stable."""

from pynode.engines.torch.esdirk import EsdirkTableau, hermite, lower

_A = lower((0.5,), gamma=0.5)

TABLEAU = EsdirkTableau(
    name="trapezoid",
    order=2,
    a=_A,
    interpolant=hermite(_A[-1]),
    interpolant_order=2,
    reference="Hairer & Wanner, Solving ODEs II, section IV.3 (trapezoidal rule)",
)
