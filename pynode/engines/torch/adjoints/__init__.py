"""The sensitivities that run their own backward pass, by name."""

from pynode.engines.torch.adjoints.backsolve import backsolve
from pynode.engines.torch.adjoints.discrete import discrete
from pynode.engines.torch.adjoints.gauss import gauss
from pynode.engines.torch.adjoints.interpolating import interpolating
from pynode.engines.torch.adjoints.quadrature import quadrature
from pynode.engines.torch.adjoints.reversible import reversible
from pynode.engines.torch.adjoints.sweep import Adjoint, AdjointProblem
from pynode.engines.torch.adjoints.vjp import VJP

ADJOINTS: dict[str, Adjoint] = {
    "backsolve": backsolve,
    "discrete": discrete,
    "gauss": gauss,
    "interpolating": interpolating,
    "quadrature": quadrature,
    "reversible": reversible,
}

__all__ = ["ADJOINTS", "VJP", "Adjoint", "AdjointProblem"]
