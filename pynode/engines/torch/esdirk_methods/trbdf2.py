"""TR-BDF2: order 2, L-stable, two implicit stages, with an error estimate of order 3.

Bank et al. 1985, as the ESDIRK pair of Hosea & Shampine 1996, Analysis and implementation of
TR-BDF2, Appl. Numer. Math. 20, table 1: γ = 2 − √2, d = γ/2, w = √2/4; the embedded solution has
weights (1 − w)/3, (3w + 1)/3, d/3 and order 3. It is not stable at infinity, hence the filter.
"""

import math

from pynode.engines.torch.esdirk import EsdirkTableau, hermite, lower

_W = math.sqrt(2.0) / 4.0
_D = 1.0 - math.sqrt(2.0) / 2.0
_A = lower((_D,), (_W, _W), gamma=_D)

TABLEAU = EsdirkTableau(
    name="trbdf2",
    order=2,
    a=_A,
    error=((4.0 * _W - 1.0) / 3.0, -1.0 / 3.0, 2.0 * _D / 3.0),
    error_order=2,
    filtered=True,
    interpolant=hermite(_A[-1]),
    interpolant_order=2,
    reference="Hosea & Shampine 1996, Analysis and implementation of TR-BDF2, table 1",
)
