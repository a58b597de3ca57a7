"""torchdiffeq's methods as data: what runs each of them, and which options it takes."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.errors import InputError

ADAPTIVE_OPTIONS = frozenset(
    [
        "norm",
        "min_step",
        "max_step",
        "first_step",
        "step_t",
        "jump_t",
        "safety",
        "ifactor",
        "dfactor",
        "max_num_steps",
        "dtype",
    ]
)
FIXED_OPTIONS = frozenset(["norm", "step_size", "grid_constructor", "interp", "perturb"])
ADAMS_OPTIONS = FIXED_OPTIONS | {"max_order", "max_iters"}
IMPLICIT_OPTIONS = FIXED_OPTIONS | {"max_iters"}
SCIPY_OPTIONS = frozenset(["norm", "solver", "min_step", "max_step"])

STEP = "callback_step"
CALLBACKS = (STEP, "callback_accept_step", "callback_reject_step")


@dataclass(frozen=True)
class Method:
    """One of torchdiffeq's methods.

    Attributes:
        name: torchdiffeq's.
        kind: ``adaptive`` and ``fixed`` are explicit Runge-Kutta methods of pynode's engine;
            ``adams``, ``implicit`` and ``scipy`` are in this package.
        solver: pynode's name of the method; of an implicit one, that of its tableau.
        options: the keys that ``options`` may have.
        callbacks: the attributes of ``func`` that are called.
    """

    name: str
    kind: str
    solver: str
    options: frozenset[str]
    callbacks: tuple[str, ...]

    @property
    def on_grid(self) -> bool:
        return self.kind in ("fixed", "adams", "implicit")


def _adaptive(name: str, solver: str) -> Method:
    return Method(name, "adaptive", solver, ADAPTIVE_OPTIONS, CALLBACKS)


def _fixed(name: str, solver: str) -> Method:
    return Method(name, "fixed", solver, FIXED_OPTIONS, (STEP,))


def _adams(name: str, solver: str) -> Method:
    return Method(name, "adams", solver, ADAMS_OPTIONS, (STEP,))


def _implicit(name: str) -> Method:
    return Method(name, "implicit", name, IMPLICIT_OPTIONS, (STEP,))


METHODS = {
    method.name: method
    for method in (
        _adaptive("dopri8", "dop853"),
        _adaptive("dopri5", "dp5"),
        _adaptive("tsit5", "tsit5"),
        _adaptive("bosh3", "bs3"),
        _adaptive("fehlberg2", "fehlberg2"),
        _adaptive("adaptive_heun", "heun"),
        _fixed("euler", "euler"),
        _fixed("midpoint", "midpoint"),
        _fixed("heun2", "heun"),
        _fixed("heun3", "heun3"),
        _fixed("rk4", "rk4_38"),
        _adams("explicit_adams", "bashforth"),
        _adams("implicit_adams", "moulton"),
        _adams("fixed_adams", "moulton"),
        _implicit("implicit_euler"),
        _implicit("implicit_midpoint"),
        _implicit("trapezoid"),
        _implicit("radauIIA3"),
        _implicit("gl4"),
        _implicit("radauIIA5"),
        _implicit("gl6"),
        _implicit("sdirk2"),
        _implicit("trbdf2"),
        Method("scipy_solver", "scipy", "LSODA", SCIPY_OPTIONS, ()),
    )
}


def method_named(name: str | None) -> Method:
    """The method; ``dopri5`` for None.

    Raises:
        InputError: there is no such method.
    """
    name = "dopri5" if name is None else name
    if name not in METHODS:
        raise InputError(f"Invalid method {name!r}. Must be one of {', '.join(METHODS)}.")
    return METHODS[name]
