"""Symplectic methods by name; a new one is one file and two lines here."""

from pynode.engines.torch.symplectic import Composition
from pynode.engines.torch.symplectic_methods.leapfrog import METHOD as LEAPFROG
from pynode.engines.torch.symplectic_methods.yoshida4 import METHOD as YOSHIDA4
from pynode.engines.torch.symplectic_methods.yoshida6 import METHOD as YOSHIDA6

SYMPLECTICS: dict[str, Composition] = {m.name: m for m in (LEAPFROG, YOSHIDA4, YOSHIDA6)}
