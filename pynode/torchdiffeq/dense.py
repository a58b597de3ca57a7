"""odeint_dense: the solution as a function of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pynode.functional
from pynode.errors import InputError, SolveError
from pynode.torchdiffeq.arguments import Func, SolveFailure, check
from pynode.torchdiffeq.integrate import adaptive_options, default_tolerance_allowed


def odeint_dense(
    func: Func,
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Tensor], Any]:
    """The solution between t0 and t1.

    Args:
        func, y0, rtol, atol, method, options: see :func:`pynode.torchdiffeq.odeint`; the method
            must be adaptive.

    Returns:
        A function of a time, or a tensor of times of any shape, to the states there.

    Raises:
        InputError, SolveFailure: see :func:`pynode.torchdiffeq.odeint`.
    """
    ends = [torch.as_tensor(s).detach() for s in (t0, t1)]
    t = torch.stack([s.to(ends[0]) for s in ends])
    t = t if t.is_floating_point() else t.double()
    call = check(func, y0, t, rtol, atol, method, options)
    if call.method.kind != "adaptive":
        raise InputError(f"odeint_dense needs an adaptive method, and {method} is none")
    try:
        with default_tolerance_allowed(call):
            options = adaptive_options(call)
            sol = pynode.functional.solve(call.func, call.y0, call.t, dense=True, **options)
    except SolveError as error:
        raise SolveFailure.of(error) from None
    return lambda t_eval: call.restore(sol(t_eval))
