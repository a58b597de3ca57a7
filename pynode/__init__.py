"""Neural ODEs for PyTorch."""

from typing import TYPE_CHECKING, Any

from pynode.catalogue import sensitivities, solvers
from pynode.checks import check_gradients
from pynode.control import Control
from pynode.engines.julia.julia_field import JuliaField
from pynode.events import Event, EventRecord
from pynode.functional import ensemble, odeint, solve
from pynode.neural_ode import NeuralODE
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Solution, Statistics

if TYPE_CHECKING:
    from pynode.fitting import fit, load

__version__ = "0.1.0"

__all__ = [
    "Control",
    "Event",
    "EventRecord",
    "JuliaField",
    "NeuralODE",
    "ODEProblem",
    "Retcode",
    "Solution",
    "Statistics",
    "__version__",
    "check_gradients",
    "ensemble",
    "fit",
    "load",
    "odeint",
    "sensitivities",
    "solve",
    "solvers",
]


def __getattr__(name: str) -> Any:
    # fit and load bring pandas with them, which takes longer to import than all of pynode.
    if name in ("fit", "load"):
        from pynode import fitting

        return getattr(fitting, name)
    raise AttributeError(f"module 'pynode' has no attribute {name!r}")
