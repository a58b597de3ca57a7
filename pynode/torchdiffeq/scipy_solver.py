"""scipy's solvers, by ``scipy.integrate.solve_ivp``: on the CPU, in numpy, without gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import GradientError, InputError, SolveError
from pynode.torchdiffeq.arguments import Call


def integrate_by_scipy(call: Call) -> Tensor:
    """The states (T, *y0.shape); a gradient through them is an error, not silence.

    Raises:
        SolveError: scipy failed.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise InputError("scipy_solver needs scipy: pip install scipy") from None
    y0, times = call.y0, call.t.detach().cpu().double().numpy()
    real = y0.real.dtype if y0.is_complex() else y0.dtype

    def func(t: float, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            state = torch.from_numpy(y).to(y0.device, y0.dtype).reshape(y0.shape)
            f = call.func(torch.tensor(t, dtype=real, device=y0.device), state)
        return f.reshape(-1).cpu().numpy()

    solver = str(call.options.get("solver", call.method.solver))
    sol = solve_ivp(
        func,
        (times[0], times[-1]),
        y0.detach().reshape(-1).cpu().numpy(),
        method=solver,
        t_eval=times,
        rtol=_as_numpy(call.rtol, y0),
        atol=_as_numpy(call.atol, y0),
        **_steps(call),
    )
    if not sol.success:
        raise SolveError(f"scipy's {solver} failed: {sol.message}", "scipy", float(sol.t[-1]))
    states = torch.from_numpy(np.ascontiguousarray(sol.y.T)).to(y0.device, y0.dtype)
    return _NoGradient.apply(states.reshape(-1, *y0.shape), y0)


def _steps(call: Call) -> dict[str, float]:
    chosen = {"max_step": call.number("max_step", float("inf"))}
    if call.number("min_step", 0.0):
        chosen["min_step"] = call.number("min_step", 0.0)
    return chosen


def _as_numpy(tolerance: float | Tensor, y0: Tensor) -> Any:
    if not isinstance(tolerance, Tensor):
        return tolerance
    return tolerance.expand(y0.shape).reshape(-1).cpu().numpy()


class _NoGradient(torch.autograd.Function):
    """Says so when a gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, y0: Tensor) -> Tensor:
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise GradientError(
            "odeint with method='scipy_solver' runs outside of torch and has no gradient: use "
            "odeint_adjoint"
        )
