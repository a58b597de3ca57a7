"""All methods of this engine by name, and what makes their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pynode.engines.torch.auto import AUTO, AutoMethod, AutoStepper
from pynode.engines.torch.bdf import BdfMethod, BdfStepper
from pynode.engines.torch.derivatives import StiffField
from pynode.engines.torch.esdirk import EsdirkStepper, EsdirkTableau
from pynode.engines.torch.esdirk_methods import ESDIRKS
from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.newton import Scale
from pynode.engines.torch.reversible import ReversibleStepper
from pynode.engines.torch.rosenbrock import RosenbrockStepper, RosenbrockTableau
from pynode.engines.torch.rosenbrock_methods import ROSENBROCKS
from pynode.engines.torch.runge_kutta import ExplicitStepper, Jumps
from pynode.engines.torch.symplectic import Composition, SeparableField, SymplecticStepper
from pynode.engines.torch.symplectic_methods import SYMPLECTICS
from pynode.engines.torch.tableau import Tableau
from pynode.field import FlatField

Method = Tableau | RosenbrockTableau | EsdirkTableau | BdfMethod | AutoMethod | Composition
Stepper = (
    ExplicitStepper
    | RosenbrockStepper
    | EsdirkStepper
    | BdfStepper
    | AutoStepper
    | ReversibleStepper
    | SymplecticStepper
)

METHODS: dict[str, Method] = {
    **TABLEAUS,
    **ROSENBROCKS,
    **ESDIRKS,
    "fbdf": BdfMethod(),
    "auto": AUTO,
    **SYMPLECTICS,
}


def make_stepper(
    method: Method,
    system: Any,
    like: Tensor,
    taped: bool,
    tstops: Sequence[float] = (),
    norm: Scale | None = None,
    transformed: bool = False,
) -> Stepper:
    """A stepper of the method.

    Args:
        system: f(t, z); for an implicit method a :class:`StiffSystem`.
        taped: keep every operation visible to autograd and torch.func.
        tstops: times at which the field may jump.
        norm: the tolerance of a step, which Newton's iteration follows; None for fixed steps.
        transformed: a torch.func transform is active.
    """
    jumps = Jumps(tstops, like.dtype)
    if isinstance(method, RosenbrockTableau):
        return RosenbrockStepper(method, system, like, jumps)
    if isinstance(method, Composition):
        return SymplecticStepper(method, system, like, jumps)
    if isinstance(method, EsdirkTableau):
        return EsdirkStepper(method, system, like, taped, jumps, norm, transformed)
    if isinstance(method, AutoMethod):
        return AutoStepper(method, system, like, taped, jumps, transformed)
    if isinstance(method, BdfMethod):
        assert norm is not None
        return BdfStepper(method, system, taped, jumps, norm, transformed)
    return ExplicitStepper(method, system, like, taped, jumps)


def is_stiff(method: Method) -> bool:
    """Whether the method needs Jacobians."""
    return not isinstance(method, Tableau | Composition)


def is_one_step(method: Method) -> bool:
    """Whether a step depends on nothing but the state that it begins with."""
    return not isinstance(method, BdfMethod | AutoMethod)


def as_system(
    method: Method, field: FlatField, jac: Any
) -> FlatField | StiffField | SeparableField:
    """The field as the method's stepper wants it."""
    if isinstance(method, Composition):
        return SeparableField(field, method.name)
    return StiffField(field, jac) if is_stiff(method) else field
