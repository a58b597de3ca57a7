"""Neural ODEs for PyTorch."""

from pynode.catalogue import sensitivities, solvers
from pynode.checks import check_gradients
from pynode.control import Control
from pynode.engines.julia.julia_field import JuliaField
from pynode.events import Event, EventRecord
from pynode.functional import ensemble, odeint, solve
from pynode.neural_ode import NeuralODE
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Solution, Statistics

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
    "odeint",
    "sensitivities",
    "solve",
    "solvers",
]
