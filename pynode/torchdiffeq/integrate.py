"""Checked calls handed to pynode's engine, to the methods of this package, or to scipy."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pynode.functional
from pynode.errors import InputError, SolveError
from pynode.torchdiffeq.arguments import Call, SolveFailure
from pynode.torchdiffeq.fixed import integrate_on_grid
from pynode.torchdiffeq.scipy_solver import integrate_by_scipy


def integrate(call: Call) -> Tensor:
    """The states at all times, (T, *y0.shape).

    Raises:
        SolveFailure: the solve failed.
    """
    if len(call.t) == 1:
        return call.y0.unsqueeze(0)
    try:
        if call.method.kind == "scipy":
            return integrate_by_scipy(call)
        if call.method.on_grid:
            return integrate_on_grid(call)
        with default_tolerance_allowed(call):
            return pynode.functional.odeint(call.func, call.y0, call.t, **adaptive_options(call))
    except SolveError as error:
        raise SolveFailure.of(error) from None


@contextlib.contextmanager
def default_tolerance_allowed(call: Call) -> Iterator[None]:
    """No warning of torchdiffeq's default rtol, which is below the rounding of float32."""
    with warnings.catch_warnings():
        if torch.as_tensor(call.rtol).min() >= 1e-7:
            warnings.filterwarnings("ignore", message="rtol=.* is below the rounding")
        yield


def adaptive_options(call: Call) -> dict[str, Any]:
    """torchdiffeq's options of adaptive methods as pynode's."""
    options = call.options
    dtype = options.get("dtype", torch.float64)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"option dtype={dtype!r}: a floating-point torch.dtype is needed")
    steps, jumps = (_times(name, options.get(name)) for name in ("step_t", "jump_t"))
    if len({*steps, *jumps}) < len(steps) + len(jumps):
        raise InputError("`step_t` and `jump_t` must not have any repeated elements between them.")
    first = options.get("first_step")
    limit = call.number("max_num_steps", 2**31 - 1)
    return {
        "solver": call.method.solver,
        "sensitivity": "discrete",
        "rtol": call.rtol,
        "atol": call.atol,
        "controller": "i",  # torchdiffeq's
        "norm": "rms" if call.norm is None else call.norm,
        "tstops": [*steps, *jumps],
        "dt": None if first is None else abs(call.number("first_step", 0.0)),
        "dt_min": call.number("min_step", 0.0),
        "dt_max": call.number("max_step", float("inf")),
        "safety": call.number("safety", 0.9),
        "grow": call.number("ifactor", 10.0),
        "shrink": call.number("dfactor", 0.2),
        # torchdiffeq counts anew after each output.
        "max_steps": int(limit) * max(len(call.t) - 1, 1),
        "callbacks": call.callbacks,
    }


def _times(name: str, values: Any) -> list[float]:
    if values is None:
        return []
    try:
        return [float(x) for x in values]
    except (TypeError, ValueError):
        raise InputError(f"option {name}={values!r}: a 1-D tensor of times is needed") from None
