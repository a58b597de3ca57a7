"""All methods of this engine by name, and what makes their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pynode.engines.torch.derivatives import StiffField
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.reversible import ReversibleStepper
from pynode.engines.torch.rosenbrock import RosenbrockStepper, RosenbrockTableau
from pynode.engines.torch.rosenbrock_methods import ROSENBROCKS
from pynode.engines.torch.runge_kutta import ExplicitStepper, Jumps
from pynode.engines.torch.symplectic import Composition, SeparableField, SymplecticStepper
from pynode.engines.torch.symplectic_methods import SYMPLECTICS
from pynode.engines.torch.tableau import Tableau
from pynode.field import FlatField

Method = Tableau | RosenbrockTableau | Composition
Stepper = ExplicitStepper | RosenbrockStepper | ReversibleStepper | SymplecticStepper

METHODS: dict[str, Method] = {**TABLEAUS, **ROSENBROCKS, **SYMPLECTICS}


def make_stepper(
    method: Method, system: Any, like: Tensor, taped: bool, tstops: Sequence[float] = ()
) -> Stepper:
    """A stepper of the method.

    Args:
        system: f(t, z); for an implicit method a :class:`StiffSystem`.
        taped: keep every operation visible to autograd and torch.func.
        tstops: times at which the field may jump.
    """
    jumps = Jumps(tstops, like.dtype)
    if isinstance(method, RosenbrockTableau):
        return RosenbrockStepper(method, system, like, jumps)
    if isinstance(method, Composition):
        return SymplecticStepper(method, system, like, jumps)
    return ExplicitStepper(method, system, like, taped, jumps)


def as_system(
    method: Method, field: FlatField, jac: Any
) -> FlatField | StiffField | SeparableField:
    """The field as the method's stepper wants it."""
    if isinstance(method, Composition):
        return SeparableField(field, method.name)
    return StiffField(field, jac) if isinstance(method, RosenbrockTableau) else field
