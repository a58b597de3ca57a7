"""Solvers and sensitivities as data: what there is, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.engines.torch.methods import TABLEAUS
from pynode.engines.torch.rosenbrock_methods import ROSENBROCKS
from pynode.engines.torch.steppers import METHODS, is_one_step, is_stiff
from pynode.engines.torch.symplectic_methods import SYMPLECTICS
from pynode.errors import InputError

ENGINES = ("torch", "julia")


@dataclass(frozen=True)
class SolverInfo:
    """One solver.

    Attributes:
        name: as in DifferentialEquations.jl, in lower case.
        order: order of convergence.
        adaptive: has an error estimate, so that step sizes can be chosen by it.
        stiff: suited to stiff problems.
        engines: the engines that have it.
        reference: paper or source of the coefficients.
        dense_order: order of the dense output.
        stages: evaluations of the field in one step, after the first, without those in Jacobians;
            with Newton iterations, implicit stages, each of some evaluations.
        one_step: a step depends on nothing but the state it begins with. The others cannot take
            fixed steps, and their steps cannot be made again from checkpoints.
        aliases: other names of the same method, torchdiffeq's among them.
        per_sample: can step each sample by itself (``step_control="per_sample"``).
        separable: for states (q, p) with dq a function of p and dp one of q alone.
    """

    name: str
    order: int
    adaptive: bool
    stiff: bool
    engines: tuple[str, ...]
    reference: str
    dense_order: int
    stages: int
    one_step: bool = True
    aliases: tuple[str, ...] = ()
    per_sample: bool = False
    separable: bool = False


@dataclass(frozen=True)
class SensitivityInfo:
    """One way to compute gradients.

    Attributes:
        name: as in SciMLSensitivity.jl.
        summary: what it does.
        memory: how its memory grows.
        engines: the engines that have it.
        reference: where it comes from.
    """

    name: str
    summary: str
    memory: str
    engines: tuple[str, ...]
    reference: str


_ALIASES = {
    "dp5": ("dopri5",),
    "bs3": ("bosh3",),
    "heun": ("adaptive_heun", "heun2"),
    "dop853": ("dp8",),
    "leapfrog": ("verlet", "velocity_verlet"),
}

# fmt: off
_IN_JULIA = frozenset((
    "euler", "midpoint", "heun", "rk4", "bs3", "dp5", "tsit5", "vern7", "dop853", "rosenbrock23",
    "rodas4", "rodas5p", "trbdf2", "kencarp4", "kvaerno5", "fbdf", "auto",
))
# fmt: on
"""Names of the table in julia/src/solvers.jl."""

_SOLVERS = tuple(
    SolverInfo(
        name=tableau.name,
        order=tableau.order,
        adaptive=tableau.adaptive,
        stiff=is_stiff(tableau),
        engines=ENGINES if tableau.name in _IN_JULIA else ("torch",),
        reference=tableau.reference,
        dense_order=tableau.interpolant_order,
        stages=tableau.stages - tableau.fsal,
        one_step=is_one_step(tableau),
        aliases=_ALIASES.get(tableau.name, ()),
        per_sample=tableau.name in TABLEAUS or tableau.name in ROSENBROCKS,
        separable=tableau.name in SYMPLECTICS,
    )
    for tableau in METHODS.values()
)

_SENSITIVITIES = (
    SensitivityInfo(
        "discrete",
        "automatic differentiation through the solver's own steps: exact gradients of what was "
        "computed; with checkpoints=k in bounded memory",
        "field activations of every step (by the julia engine the states, and activations of one "
        "step); with checkpoints=k about 2k states and one step",
        ENGINES,
        "Griewank & Walther 2000 (checkpointing); Onken & Ruthotto 2020",
    ),
    SensitivityInfo(
        "backsolve",
        "the adjoint ODE with the state integrated backwards beside it; gradients are wrong where "
        "the backward solve of the state is unstable",
        "constant",
        ENGINES,
        "Chen et al. 2018, algorithm 1",
    ),
    SensitivityInfo(
        "interpolating",
        "the adjoint ODE with the state read from the forward pass's dense output",
        "stages of every step; with checkpoints=k a bounded number of steps",
        ENGINES,
        "Rackauckas et al. 2020, Universal Differential Equations; Hindmarsh et al. 2005 (CVODES)",
    ),
    SensitivityInfo(
        "gauss",
        "as interpolating, the parameters' gradient by Gauss-Legendre quadrature in every "
        "backward step instead of in the ODE: cheaper with many parameters",
        "as interpolating",
        ENGINES,
        "Norcliffe & Deisenroth 2023, Faster Training of Neural ODEs Using Gauss-Legendre "
        "Quadrature",
    ),
    SensitivityInfo(
        "quadrature",
        "as interpolating, the parameters' gradient by adaptive Gauss-Kronrod quadrature after "
        "the adjoint has been solved: its error is controlled by itself",
        "as interpolating, and the dense adjoint",
        ENGINES,
        "Kim et al. 2021, Stiff Neural Ordinary Differential Equations",
    ),
    SensitivityInfo(
        "reversible",
        "steps that can be undone exactly: exact gradients of what was computed, which is another "
        "approximation than the plain solver's, of the same order at twice the evaluations; "
        "explicit solvers only",
        "constant but for the steps' times",
        ("torch",),
        "McCallum & Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs",
    ),
)

_SOLVER_BY_NAME = {name: info for info in _SOLVERS for name in (info.name, *info.aliases)}
_SENSITIVITY_BY_NAME = {info.name: info for info in _SENSITIVITIES}


def solvers() -> tuple[SolverInfo, ...]:
    """All solvers there are, as data."""
    return _SOLVERS


def sensitivities() -> tuple[SensitivityInfo, ...]:
    """All ways to compute gradients there are, as data."""
    return _SENSITIVITIES


def solver(name: str) -> SolverInfo:
    """The solver of that name or alias.

    Raises:
        InputError: there is none.
    """
    if name not in _SOLVER_BY_NAME:
        raise InputError(f"solver={name!r} is not one of {', '.join(sorted(_SOLVER_BY_NAME))}")
    return _SOLVER_BY_NAME[name]


def sensitivity(name: str) -> SensitivityInfo:
    """The sensitivity of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _SENSITIVITY_BY_NAME:
        names = ", ".join(_SENSITIVITY_BY_NAME)
        raise InputError(f"sensitivity={name!r} is not one of {names}")
    return _SENSITIVITY_BY_NAME[name]
