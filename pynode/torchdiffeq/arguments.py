"""A call of torchdiffeq's functions, checked, with tuples of states flattened."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, SolveError
from pynode.field import FlatField
from pynode.options import StepCallback, StepCallbacks
from pynode.torchdiffeq.methods import CALLBACKS, Method, method_named

Func = Callable[[Tensor, Any], Any]


class SolveFailure(SolveError, AssertionError):
    """A solve that failed. (torchdiffeq raises AssertionError, which its callers catch.)"""

    @classmethod
    def of(cls, error: SolveError) -> SolveFailure:
        return cls(str(error), error.retcode, error.t, error.sample, error.solution)


@dataclass(frozen=True)
class Call:
    """A checked call on one tensor as state.

    Attributes:
        func: dy/dt = func(t, y) for y in the shape of y0.
        y0: the state; a tuple is one vector, its tensors one after the other.
        t: (T,) increasing or decreasing.
        rtol, atol: numbers, or tensors that broadcast against y0.
        norm: a norm for tensors like y0; None for the root mean square.
        shapes: shapes of the tensors of a tuple, None where the state is a tensor.
        callbacks: of the forward solve.
        adjoint_of: where the state is (z, a, gradient) of an adjoint, the field of z.
    """

    func: Func
    y0: Tensor
    t: Tensor
    rtol: float | Tensor
    atol: float | Tensor
    method: Method
    options: dict[str, Any]
    norm: Callable[[Tensor], Any] | None = None
    shapes: list[torch.Size] | None = None
    callbacks: StepCallbacks | None = None
    adjoint_of: FlatField | None = None

    def restore(self, flat: Tensor) -> Any:
        """The user's structure of a state (..., *y0.shape)."""
        return flat if self.shapes is None else unflatten(flat, self.shapes)

    def number(self, name: str, default: float) -> float:
        """An option that is one number."""
        value = self.options.get(name, default)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InputError(f"option {name}={value!r}: one number is needed") from None


def check(
    func: Func,
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    suffix: str | None = "",
) -> Call:
    """A :class:`Call` of the arguments of ``odeint``.

    Args:
        suffix: of the names of the attributes of ``func`` to call back; None for no callbacks.

    Raises:
        InputError: an argument does not fit; unlike in torchdiffeq, also an unknown option.
    """
    chosen = method_named(method)
    options = {} if options is None else dict(options)
    unknown = sorted(set(options) - chosen.options)
    if unknown:
        raise InputError(
            f"{chosen.name} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(chosen.options))}"
        )
    shapes = None
    if not isinstance(y0, Tensor):
        if not isinstance(y0, tuple) or not all(isinstance(part, Tensor) for part in y0) or not y0:
            raise InputError(f"y0 must be a tensor or a tuple of tensors, not {type(y0).__name__}")
        shapes = [part.shape for part in y0]
    restore = (lambda x: x) if shapes is None else (lambda x: unflatten(x, shapes))
    flat0 = y0 if shapes is None else flatten(y0)
    call = Call(
        func=_flat_func(func, flat0, restore, shapes),
        y0=flat0,
        t=_check_times(t, flat0),
        rtol=_tolerance("rtol", rtol, shapes),
        atol=_tolerance("atol", atol, shapes),
        method=chosen,
        options=options,
        norm=_flat_norm(options.pop("norm", None), restore, shapes),
        shapes=shapes,
    )
    if suffix is None:
        return call
    return replace(call, callbacks=step_callbacks(func, call, suffix, call.restore))


def flatten(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """A tensor (..., N) as tensors of the given shapes, leading dimensions kept."""
    parts, start = [], 0
    for shape in shapes:
        stop = start + shape.numel()
        parts.append(flat[..., start:stop].view((*flat.shape[:-1], *shape)))
        start = stop
    return tuple(parts)


def rms(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()


def mixed_norm(parts: Sequence[Tensor]) -> Any:
    """The largest root mean square of several tensors."""
    return max((rms(part) for part in parts), default=0.0)


def _flat_func(func: Func, y0: Tensor, restore: Callable, shapes: Any) -> Func:
    if not callable(func):
        raise InputError(f"func is a {type(func).__name__}, which cannot be called")

    def flat(t: Tensor, y: Tensor) -> Tensor:
        value = func(t, restore(y))
        if shapes is not None:
            value = flatten(value)
        if not isinstance(value, Tensor):
            raise FieldError(f"func returned a {type(value).__name__} where a tensor is needed")
        if value.dtype != y0.dtype:
            if value.is_complex() and not y0.is_complex():
                raise FieldError("func returned complex numbers for a real state: make y0 complex")
            value = value.to(y0.dtype)  # as torchdiffeq does
        return value

    return flat


def _flat_norm(norm: Any, restore: Callable, shapes: Any) -> Callable[[Tensor], Any] | None:
    if norm is not None and not callable(norm):
        raise InputError(f"option norm={norm!r}: a function of a state is needed")
    if shapes is None:
        return norm
    chosen = mixed_norm if norm is None else norm
    return lambda x: chosen(restore(x))


def _check_times(t: Any, y0: Tensor) -> Tensor:
    if not isinstance(t, Tensor) or t.ndim != 1 or not len(t):
        raise InputError("t must be a one-dimensional torch.Tensor that is not empty")
    if not t.is_floating_point():
        raise TypeError(f"`t` must be a floating point Tensor but is a {t.dtype}")
    steps = t.detach().diff()
    if not ((steps > 0).all() or (steps < 0).all()):
        raise InputError("t must be strictly increasing or decreasing")
    if t.device != y0.device:
        warnings.warn("t is not on the same device as y0. Coercing to y0.device.", stacklevel=4)
        t = t.to(y0.device)
    return t


def _tolerance(name: str, value: Any, shapes: Any) -> float | Tensor:
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputError(f"{name} cannot require gradient")
    if shapes is not None and not isinstance(value, int | float):
        try:
            parts = list(value)
        except TypeError:  # a number in a tensor
            return float(value)
        if len(parts) != len(shapes):
            raise InputError(f"{name} has {len(parts)} entries for a tuple of {len(shapes)} states")
        return flatten(
            torch.as_tensor(part, dtype=torch.float64).expand(shape.numel())
            for part, shape in zip(parts, shapes, strict=True)
        )
    if isinstance(value, Tensor) and value.numel() > 1:
        return value
    return float(value)


def step_callbacks(
    func: Func, call: Call, suffix: str, restore: Callable[[Tensor], Any]
) -> StepCallbacks | None:
    """Those of the attributes ``callback_step`` … of ``func`` that the method calls."""
    names = [f"callback_{what}{suffix}" for what in ("step", "accept_step", "reject_step")]
    found = [getattr(func, name, None) for name in names]
    unused = [
        name
        for name, plain, callback in zip(names, CALLBACKS, found, strict=True)
        if callback is not None and plain not in call.method.callbacks
    ]
    if unused:
        warnings.warn(
            f"Solver {call.method.name!r} does not support callbacks {unused}", stacklevel=4
        )
    if all(callback is None for callback in found):
        return None

    def adapted(callback: Any) -> StepCallback | None:
        if callback is None:
            return None
        new = call.t.detach().new_tensor
        return lambda t, y, dt: callback(new(t), restore(y), new(abs(dt)))

    attempt, accepted, rejected = map(adapted, found)
    if "callback_accept_step" not in call.method.callbacks:
        accepted = rejected = None
    return StepCallbacks(attempt, accepted, rejected)


def is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
