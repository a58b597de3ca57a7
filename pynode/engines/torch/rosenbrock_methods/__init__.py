"""Rosenbrock methods by name. A new one is one file here and one line in the table."""

from pynode.engines.torch.rosenbrock import RosenbrockTableau
from pynode.engines.torch.rosenbrock_methods import rodas4, rodas5p, rosenbrock23

ROSENBROCKS: dict[str, RosenbrockTableau] = {
    module.TABLEAU.name: module.TABLEAU for module in (rosenbrock23, rodas4, rodas5p)
}
