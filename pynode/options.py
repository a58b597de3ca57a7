"""The choices of a solve, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from pynode import catalogue
from pynode.errors import InputError

CONTROLLERS = {
    "i": (1.0, 0.0, 0.0),
    "pi": (0.7, -0.4, 0.0),
    "pid": (0.55, -0.27, 0.05),
}
"""Exponents (b1, b2, b3) of the step-size controllers, see ``engines/torch/controller.py``."""

PER_SAMPLE_SENSITIVITIES = ("gauss", "discrete")


@dataclass(frozen=True)
class SolveOptions:
    """How to solve and differentiate; every field is a keyword of NeuralODE and of solve().

    Attributes:
        solver: a name of ``pynode.solvers()`` or one of its aliases.
        sensitivity: a name of ``pynode.sensitivities()``; default: ``"interpolating"``, and
            ``"gauss"`` for stiff solvers, which solve the adjoint with matrices of a sample's size,
            and for steps per sample.
        rtol, atol: relative and absolute tolerance of the local error, in the state's units;
            numbers, or tensors that broadcast against the state.
        engine: ``"torch"``.
        step_control: ``"joint"``, one step size for the whole batch; or ``"per_sample"``: each
            sample (first dimension of the state) has its own time, t0, direction, step size,
            rejections and outcome, as if it were solved alone. The field receives t of shape
            (B,), where B is the number of samples that are still on their way.
        batched_time: for steps per sample: the field f(t, z) is written for t of shape (B,)
            (True), or for one number, so that it is vmapped over the samples (False); default:
            found out by a few evaluations at the start.
        batched_args: for steps per sample: tensors in ``args`` whose first dimension is B hold
            one entry a sample (True), or belong to all samples (False); default: found out, where
            there are such tensors.
        max_steps: largest number of attempted steps; of each sample with steps per sample.
        adaptive: choose step sizes by the error estimate; default: whenever the solver has one.
        dt: the step size where steps are fixed, the first step size where they are adaptive
            (default: chosen after Hairer, Norsett, Wanner, Solving ODEs I, section II.4).
        dt_max: largest step size.
        controller: ``"i"``, ``"pi"`` or ``"pid"``.
        norm: of the scaled error: ``"rms"``, ``"max"``, or a function of a state to a number.
        tstops: times that a step must end on, where the field jumps, say. (Evaluation times
            need none: they are reached by interpolation.)
        checkpoints: keep at most about this many states of the forward pass for the backward
            pass and recompute the rest; default: keep all that the sensitivity needs.
        adjoint_rtol, adjoint_atol, adjoint_solver, adjoint_max_steps: of the adjoint's own
            solve; default: as forward.
        adjoint_seminorm: leave the parameters' gradient out of the adjoint's error norm (Kidger,
            Chen, Lyons 2021, "Hey, that's not an ODE": fewer steps).
        throw: raise SolveError when a solve fails; otherwise return what there is.
        dense: keep dense output, for ``sol(s)``.
        jac: for stiff solvers, ∂f/∂z as a function of (t, z) or (t, z, args) that returns (D, D)
            or (B, D, D); default: by automatic differentiation, samples taken to be independent.
    """

    solver: str = "tsit5"
    sensitivity: str = None  # type: ignore[assignment]  # a name once it has been checked
    rtol: float | Tensor = 1e-6
    atol: float | Tensor = 1e-8
    engine: str = "torch"
    step_control: str = "joint"
    batched_time: bool | None = None
    batched_args: bool | None = None
    max_steps: int = 10_000
    adaptive: bool | None = None
    dt: float | None = None
    dt_max: float = math.inf
    controller: str = "pi"
    norm: str | Callable[[Any], Any] = "rms"
    tstops: Sequence[float] = ()
    checkpoints: int | None = None
    adjoint_rtol: float | None = None
    adjoint_atol: float | None = None
    adjoint_solver: str | None = None
    adjoint_max_steps: int | None = None
    adjoint_seminorm: bool = False
    throw: bool = True
    dense: bool = False
    jac: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "solver", catalogue.solver(self.solver).name)
        if self.sensitivity is None:
            stiff = catalogue.solver(self.adjoint_solver or self.solver).stiff
            gauss = stiff or self.step_control == "per_sample"
            set_(self, "sensitivity", "gauss" if gauss else "interpolating")
        set_(self, "sensitivity", catalogue.sensitivity(self.sensitivity).name)
        if self.adjoint_solver is not None:
            set_(self, "adjoint_solver", catalogue.solver(self.adjoint_solver).name)
        set_(self, "tstops", _numbers("tstops", self.tstops))
        _one_of("engine", self.engine, catalogue.ENGINES)
        _one_of("step_control", self.step_control, ("joint", "per_sample"))
        _one_of("controller", self.controller, tuple(CONTROLLERS))
        if not callable(self.norm):
            _one_of("norm", self.norm, ("rms", "max"))
        self._check_numbers()
        self._check_steps()
        self._check_step_control()

    def _check_numbers(self) -> None:
        for name in ("rtol", "atol", "adjoint_rtol", "adjoint_atol"):
            value = getattr(self, name)
            if value is not None and not _nonnegative(value):
                raise InputError(f"{name}={value!r}: a tolerance is a finite number, 0 or more")
        if _is_zero(self.rtol) and _is_zero(self.atol):
            raise InputError("rtol and atol are both 0: no step could ever be accepted")
        for name in ("dt", "dt_max"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and float(value) > 0):
                raise InputError(
                    f"{name}={value!r}: a step size is a positive number (its sign follows the "
                    "direction of the times)"
                )
        if self.dt is not None and not math.isfinite(self.dt):
            raise InputError("dt is infinite")
        for name in ("max_steps", "adjoint_max_steps", "checkpoints"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise InputError(f"{name}={value!r}: a whole number, 1 or more, is needed")

    def _check_steps(self) -> None:
        info = catalogue.solver(self.solver)
        if self.adaptive and not info.adaptive:
            raise InputError(
                f"{self.solver} has no error estimate and cannot be adaptive: give dt=..., or "
                "choose another solver (heun, bs3, tsit5, ...)"
            )
        if not self.is_adaptive and self.dt is None:
            raise InputError(
                f"{self.solver} takes fixed steps here: give their size as dt=..., in units of t"
            )
        backward = self.adjoint_solver or self.solver
        if catalogue.solver(backward).stiff and self.sensitivity in ("backsolve", "interpolating"):
            raise InputError(
                f"sensitivity={self.sensitivity!r} with the stiff solver {backward} would need a "
                "Jacobian of the size of all parameters: use 'gauss', 'quadrature' or 'discrete', "
                "or give an explicit adjoint_solver"
            )
        if self.jac is not None and not info.stiff:
            raise InputError(f"jac= has no meaning for {self.solver}, which is explicit")
        if self.checkpoints is not None and self.sensitivity == "backsolve":
            raise InputError("backsolve keeps no states, so checkpoints= has no meaning for it")

    def _check_step_control(self) -> None:
        if self.step_control == "joint":
            for name in ("batched_time", "batched_args"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}= has a meaning only with step_control='per_sample'")
            return
        if self.sensitivity not in PER_SAMPLE_SENSITIVITIES:
            raise InputError(
                f"sensitivity={self.sensitivity!r} is not there for step_control='per_sample', "
                "whose samples cannot share one adjoint state of all parameters: use 'gauss' or "
                "'discrete'"
            )
        if self.checkpoints is not None:
            raise InputError(
                "checkpoints= is not there for step_control='per_sample': leave it out ('gauss' "
                "keeps the stages of the accepted steps), or use step_control='joint'"
            )

    @property
    def is_adaptive(self) -> bool:
        adaptive = catalogue.solver(self.solver).adaptive
        return adaptive if self.adaptive is None else self.adaptive

    def backward(self) -> SolveOptions:
        """The options of the adjoint's solve."""
        own = {
            "solver": self.adjoint_solver,
            "rtol": self.adjoint_rtol,
            "atol": self.adjoint_atol,
            "max_steps": self.adjoint_max_steps,
        }
        changes: dict[str, Any] = {k: v for k, v in own.items() if v is not None}
        for name in ("rtol", "atol"):
            if name not in changes and isinstance(getattr(self, name), Tensor):
                # The adjoint is another state: a per-entry tolerance has no meaning for it.
                changes[name] = float(getattr(self, name).min())
        info = catalogue.solver(changes.get("solver", self.solver))
        adaptive = self.is_adaptive and info.adaptive
        return replace(self, **changes, adaptive=adaptive, norm="rms", dense=False)

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> SolveOptions:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(keywords) - known)
        if unknown:
            raise InputError(f"unknown option {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**keywords)


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(x) for x in values)
    except (TypeError, ValueError):
        raise InputError(f"{name}={values!r}: a sequence of numbers is needed") from None
    if not all(math.isfinite(x) for x in found):
        raise InputError(f"{name} hold NaN or infinity")
    return found


def _nonnegative(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool((value >= 0).all()) and bool(value.isfinite().all())
    return isinstance(value, Real) and math.isfinite(value) and float(value) >= 0


def _is_zero(value: float | Tensor) -> bool:
    return not bool((value > 0).any()) if isinstance(value, Tensor) else value == 0
