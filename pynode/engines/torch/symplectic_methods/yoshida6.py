"""Yoshida's composition of seven leapfrog steps, his solution A: order 6.

Source: H. Yoshida, *Construction of higher order symplectic integrators*, Phys. Lett. A 150 (1990)
262-268, table 1; digits from Hairer, Lubich, Wanner, *Geometric Numerical Integration*, eq. V.3.11.
"""

from pynode.engines.torch.symplectic import Composition

_OUTER = (0.78451361047755726382, 0.23557321335935813368, -1.17767998417887100695)

METHOD = Composition(
    name="yoshida6",
    order=6,
    weights=(*_OUTER, 1.0 - 2.0 * sum(_OUTER), *reversed(_OUTER)),
    reference="Yoshida, Phys. Lett. A 150 (1990) 262-268, table 1, solution A",
    refinements=((1 / 3, 2 / 3), (1 / 4, 3 / 4)),
)
