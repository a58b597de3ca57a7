"""Leapfrog, Verlet's or Störmer's method, in its kick-drift-kick form (velocity Verlet): order 2.

Source: Hairer, Lubich, Wanner, *Geometric numerical integration illustrated by the
Störmer-Verlet method*, Acta Numerica 12 (2003) 399-450, eq. 1.4.
"""

from pynode.engines.torch.symplectic import Composition

METHOD = Composition(
    name="leapfrog",
    order=2,
    weights=(1.0,),
    reference="Verlet, Phys. Rev. 159 (1967) 98-103; Swope et al., J. Chem. Phys. 76 (1982) 637",
)
