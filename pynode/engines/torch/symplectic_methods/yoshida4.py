"""Yoshida's composition of three leapfrog steps: order 4.

Source: H. Yoshida, *Construction of higher order symplectic integrators*, Phys. Lett. A 150 (1990)
262-268, eq. 2.11; also E. Forest and R. D. Ruth, Physica D 43 (1990) 105-117.
"""

from pynode.engines.torch.symplectic import Composition

_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))

METHOD = Composition(
    name="yoshida4",
    order=4,
    weights=(_OUTER, 1.0 - 2.0 * _OUTER, _OUTER),
    reference="Yoshida, Phys. Lett. A 150 (1990) 262-268, eq. 2.11",
)
