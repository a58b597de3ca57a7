"""The choices of a solve, checked in one place."""

from __future__ import annotations

import functools
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

StepCallback = Callable[[float, Any, float], object]


@dataclass(frozen=True)
class StepCallbacks:
    """What is called in the forward solve, with the t, the state there, and the signed step size.

    Attributes:
        attempt: before each attempted step.
        accepted, rejected: after it.
    """

    attempt: StepCallback | None = None
    accepted: StepCallback | None = None
    rejected: StepCallback | None = None


PER_SAMPLE_SENSITIVITIES = ("gauss", "discrete")
COMPILED_SENSITIVITIES = ("discrete", "gauss", "interpolating", "backsolve")


@dataclass(frozen=True)
class SolveOptions:
    """How to solve and differentiate; every field is a keyword of NeuralODE and of solve().

    Attributes:
        solver: a name of ``pynode.solvers()`` or one of its aliases.
        sensitivity: a name of ``pynode.sensitivities()``; default: ``"interpolating"``, and
            ``"gauss"`` for stiff solvers, which solve the adjoint with matrices of a sample's size,
            and for steps per sample; ``"discrete"`` for symplectic solvers, which cannot solve it.
        rtol, atol: relative and absolute tolerance of the local error, in the state's units;
            numbers, or tensors that broadcast against the state.
        engine: ``"torch"``, or ``"julia"``, which needs a Julia installation (docs/julia.md).
        lowering: for the julia engine, how the field gets there: ``"program"``, traced and run
            inside Julia, or ``"callback"``, evaluated by torch, slowly, for fields that cannot be
            traced.
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
        max_events: largest number of times that events may change the state; of each sample with
            steps per sample.
        adaptive: choose step sizes by the error estimate; default: whenever the solver has one.
        dt: the step size where steps are fixed, the first step size where they are adaptive
            (default: chosen after Hairer, Norsett, Wanner, Solving ODEs I, section II.4).
        dt_min, dt_max: smallest and largest step size. A step of size ``dt_min`` is accepted
            whatever its error.
        grid: instead of ``dt``, times between which fixed steps go; those inside the solve count.
        controller: ``"i"``, ``"pi"`` or ``"pid"`` (``fbdf`` has one of its own; with the julia
            engine "pi" stands for what each solver brings, and there is no "pid").
        safety, shrink, grow: the controller's safety factor, and the least and the largest
            factor by which it changes the step size.
        norm: of the scaled error: ``"rms"``, ``"max"``, or a function of a state to a number.
        tstops: times that a step must end on, where the field jumps, say. (Evaluation times
            need none: they are reached by interpolation.)
        checkpoints: keep at most about this many states of the forward pass for the backward
            pass and recompute the rest; default: keep all that the sensitivity needs.
        coupling: λ of ``sensitivity="reversible"``, above 0 and at most 1 (default 0.999). Rounding
            grows by 1/λ a step when steps are undone; a smaller λ makes the forward pass stabler.
        adjoint_rtol, adjoint_atol, adjoint_solver, adjoint_max_steps: of the adjoint's own
            solve, which ``discrete`` and ``reversible`` have not; default: as forward.
        adjoint_seminorm: leave the parameters' gradient out of the adjoint's error norm (Kidger,
            Chen, Lyons 2021, "Hey, that's not an ODE": fewer steps). Of ``interpolating`` and
            ``backsolve``.
        through_steps: for ``discrete``: differentiate through the choice of step sizes as well, so
            that gradients are those of the whole computation. By default step sizes count as
            given, which leaves out a part of the size of the tolerance. Of use where tolerances are
            loose and gradients are checked by finite differences, or where the loss is about the
            solver's own work. Not under ``torch.func`` transforms.
        callbacks: functions to call at each step of the forward solve.
        throw: raise SolveError when a solve fails; otherwise return what there is.
        dense: keep dense output, for ``sol(s)``.
        compile: for the torch engine and explicit solvers (docs/compile.md): on the CPU make
            machine code of the field and the whole solve, forward and backward; on CUDA replay
            steps as graphs. The first solve of a field, shape and dtype waits seconds for a
            compiler.
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
    max_events: int = 1000
    adaptive: bool | None = None
    dt: float | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf
    grid: Sequence[float] = ()
    controller: str = "pi"
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    norm: str | Callable[[Any], Any] = "rms"
    tstops: Sequence[float] = ()
    checkpoints: int | None = None
    coupling: float | None = None
    adjoint_rtol: float | None = None
    adjoint_atol: float | None = None
    adjoint_solver: str | None = None
    adjoint_max_steps: int | None = None
    adjoint_seminorm: bool = False
    through_steps: bool = False
    callbacks: StepCallbacks | None = None
    throw: bool = True
    dense: bool = False
    jac: Callable[..., Tensor] | None = None
    lowering: str = "program"
    compile: bool = False

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "solver", catalogue.solver(self.solver).name)
        if self.sensitivity is None:
            backward = catalogue.solver(self.adjoint_solver or self.solver)
            gauss = backward.stiff or self.step_control == "per_sample"
            usual = "gauss" if gauss else "interpolating"
            set_(self, "sensitivity", "discrete" if backward.separable else usual)
        set_(self, "sensitivity", catalogue.sensitivity(self.sensitivity).name)
        if self.adjoint_solver is not None:
            set_(self, "adjoint_solver", catalogue.solver(self.adjoint_solver).name)
        set_(self, "tstops", _numbers("tstops", self.tstops))
        set_(self, "grid", _numbers("grid", self.grid))
        _one_of("engine", self.engine, catalogue.ENGINES)
        _one_of("lowering", self.lowering, ("program", "callback"))
        _one_of("step_control", self.step_control, ("joint", "per_sample"))
        _one_of("controller", self.controller, tuple(CONTROLLERS))
        if not callable(self.norm):
            _one_of("norm", self.norm, ("rms", "max"))
        self._check_numbers()
        self._check_steps()
        self._check_engine()
        self._check_step_control()
        if self.compile:
            self._check_compile()

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
        if not 0 <= self.dt_min <= self.dt_max or math.isinf(self.dt_min):
            raise InputError(f"dt_min={self.dt_min!r}: a number from 0 to dt_max={self.dt_max!r}")
        if not (0 < self.safety <= 1 and 0 < self.shrink < 1 < self.grow):
            raise InputError(
                f"safety={self.safety!r}, shrink={self.shrink!r}, grow={self.grow!r}: "
                "0 < safety <= 1 and 0 < shrink < 1 < grow are needed"
            )
        for name in ("max_steps", "max_events", "adjoint_max_steps", "checkpoints"):
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
        if self.grid and (self.adaptive or self.dt is not None):
            raise InputError("grid= says where fixed steps go: leave out dt and adaptive=True")
        if not self.is_adaptive and self.dt is None and not self.grid:
            raise InputError(
                f"{self.solver} takes fixed steps here: give their size as dt=..., in units of t"
            )
        backward = catalogue.solver(self.adjoint_solver or self.solver)
        for one in (info, backward):
            if not self.is_adaptive and not one.one_step:
                raise InputError(
                    f"{one.name} chooses its method along with its steps, which cannot be fixed: "
                    "use it with adaptive steps, or a one-step solver (kvaerno5, rodas5p, ...)"
                )
        if self.checkpoints is not None and not info.one_step:
            raise InputError(
                f"checkpoints= has no meaning for {info.name}, whose steps depend on those before "
                "them and cannot be made again from one state: leave it out, or use a one-step "
                "solver (kvaerno5, rodas5p, ...)"
            )
        own = (self.controller, self.safety) != ("pi", 0.9)
        if self.solver == "fbdf" and own:
            raise InputError(
                f"controller={self.controller!r} and safety={self.safety!r} have no meaning for "
                "fbdf, which chooses order and step size together: leave them out"
            )
        joint = self.sensitivity in ("backsolve", "interpolating")
        if backward.stiff and self.engine == "julia" and joint:
            raise InputError(
                f"sensitivity={self.sensitivity!r} with the stiff solver {backward.name} would "
                "solve linear systems of the size of all parameters in Julia: use 'gauss' or "
                "'quadrature', or give an explicit adjoint_solver"
            )
        if info.stiff and self.engine == "julia" and self.sensitivity == "discrete":
            raise InputError(
                f"sensitivity='discrete' with the stiff solver {info.name} is not there for "
                "engine='julia': use 'gauss' or 'quadrature', or engine='torch'"
            )
        if backward.stiff and self.sensitivity == "backsolve":
            raise InputError(
                f"sensitivity='backsolve' with the stiff solver {backward.name} would need a "
                "Jacobian of state and adjoint together, and integrate backwards what decays "
                "forwards: use 'gauss', 'interpolating', 'quadrature' or 'discrete', or give an "
                "explicit adjoint_solver"
            )
        exact = self.sensitivity in ("discrete", "reversible")
        if backward.separable and not exact:
            raise InputError(
                f"{backward.name} is for separable states (q, p), which the system of "
                f"sensitivity={self.sensitivity!r} has not: use 'discrete', or give an "
                "adjoint_solver of another kind"
            )
        if self.jac is not None and not info.stiff:
            raise InputError(f"jac= has no meaning for {self.solver}, which is explicit")
        if self.checkpoints is not None and self.sensitivity in ("backsolve", "reversible"):
            raise InputError(
                f"{self.sensitivity} keeps no states, so checkpoints= has no meaning for it"
            )
        if exact:
            self._check_no_adjoint_solve()
        self._check_reversible(info.stiff or info.separable)
        if self.through_steps:
            self._check_through_steps(info.stiff)

    def _check_through_steps(self, stiff: bool) -> None:
        if self.sensitivity != "discrete" or self.checkpoints is not None:
            raise InputError("through_steps=True needs sensitivity='discrete' without checkpoints")
        if not self.is_adaptive:
            raise InputError("through_steps=True has no meaning for fixed steps")
        if stiff:
            raise InputError(f"through_steps=True needs an explicit solver, not {self.solver}")

    def _check_no_adjoint_solve(self) -> None:
        own = ("rtol", "atol", "solver", "max_steps")
        given = [f"adjoint_{name}" for name in own if getattr(self, f"adjoint_{name}") is not None]
        given += ["adjoint_seminorm"] if self.adjoint_seminorm else []
        if given:
            raise InputError(
                f"{given[0]}= has no meaning for {self.sensitivity!r}, whose backward pass goes "
                "through the forward pass's own steps: use 'gauss' or 'interpolating', or leave "
                "it out"
            )

    def _check_reversible(self, other: bool) -> None:
        if self.sensitivity != "reversible":
            if self.coupling is not None:
                raise InputError("coupling= has a meaning for sensitivity='reversible' only")
            return
        if other:
            raise InputError(
                "sensitivity='reversible' needs an explicit Runge-Kutta solver, not "
                f"{self.solver}: use 'discrete' with checkpoints=..."
            )
        if self.coupling is None:
            object.__setattr__(self, "coupling", 0.999)
        assert self.coupling is not None
        if not (isinstance(self.coupling, Real) and 0.0 < self.coupling <= 1.0):
            raise InputError(f"coupling={self.coupling!r}: a number above 0, at most 1, is needed")

    def _check_engine(self) -> None:
        chosen: dict[str, catalogue.SolverInfo | catalogue.SensitivityInfo] = {
            "solver": catalogue.solver(self.solver),
            "adjoint_solver": catalogue.solver(self.adjoint_solver or self.solver),
            "sensitivity": catalogue.sensitivity(self.sensitivity),
        }
        for name, info in chosen.items():
            if self.engine not in info.engines:
                raise InputError(
                    f"engine={self.engine!r} has no {name} {info.name!r}; it is in "
                    f"{', '.join(info.engines)}"
                )
        if self.engine != "julia" and self.lowering != "program":
            raise InputError(
                f"lowering={self.lowering!r} has no meaning for engine={self.engine!r}"
            )

    @property
    def stops(self) -> tuple[float, ...]:
        """Times that a step ends on."""
        return (*self.tstops, *self.grid)

    def _check_step_control(self) -> None:
        if self.step_control == "joint":
            for name in ("batched_time", "batched_args"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}= has a meaning only with step_control='per_sample'")
            return
        if self.engine == "julia":
            return
        plain = {"dt_min": 0.0, "grid": (), "callbacks": None, "through_steps": False}
        given = [name for name, value in plain.items() if getattr(self, name) != value]
        if given:
            raise InputError(f"{given[0]}= is not there for step_control='per_sample'")
        for name in (self.solver, self.adjoint_solver or self.solver):
            if not catalogue.solver(name).per_sample:
                raise InputError(
                    f"{name} has no steps per sample: use an explicit Runge-Kutta or a Rosenbrock "
                    "method (tsit5, rodas5p, ...), or step_control='joint'"
                )
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

    def _check_compile(self) -> None:
        if self.engine != "torch":
            raise InputError(
                f"compile=True has no meaning for engine={self.engine!r}: leave it out"
            )
        for name in (self.solver, self.adjoint_solver or self.solver):
            info = catalogue.solver(name)
            if info.stiff or info.separable:
                raise InputError(
                    f"compile=True is for explicit Runge-Kutta methods (tsit5, dp5, vern7, ...), "
                    f"not {name}: use compile=False"
                )
        if self.sensitivity not in COMPILED_SENSITIVITIES:
            raise InputError(
                f"compile=True has no sensitivity={self.sensitivity!r}; it has "
                f"{', '.join(COMPILED_SENSITIVITIES)}"
            )
        plain = {"step_control": "joint", "checkpoints": None, "callbacks": None,
                 "through_steps": False}  # fmt: skip
        given = [name for name, value in plain.items() if getattr(self, name) != value]
        if callable(self.norm):
            given.append("norm")
        if given:
            value = getattr(self, given[0])
            raise InputError(
                f"compile=True has no {given[0]}={value if isinstance(value, str) else '...'}: "
                "leave it out, or use compile=False"
            )

    @property
    def is_adaptive(self) -> bool:
        if self.grid:
            return False
        adaptive = catalogue.solver(self.solver).adaptive
        return adaptive if self.adaptive is None else self.adaptive

    def backward(self) -> SolveOptions:
        """The options of the adjoint's solve."""
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            return self._made_backward()  # their values may have changed
        return self._backward

    @functools.cached_property
    def _backward(self) -> SolveOptions:
        return self._made_backward()

    def _made_backward(self) -> SolveOptions:
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
        changes["adaptive"] = self.is_adaptive and info.adaptive
        changes["jac"] = self.jac if info.stiff else None
        if info.name == "fbdf":
            changes |= {"controller": "pi", "safety": 0.9}
        return replace(self, **changes, norm="rms", dense=False, checkpoints=None, callbacks=None)

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
