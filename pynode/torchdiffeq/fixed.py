"""Steps from one grid point to the next, and outputs between them."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

import pynode.functional
from pynode.engines.torch.runge_kutta import Jumps
from pynode.errors import InputError, SolveError
from pynode.field import FlatField
from pynode.problem import ODEProblem
from pynode.solution import Statistics
from pynode.time_gradients import carry, shift_outputs, zero_shift
from pynode.torchdiffeq.adams import AdamsStepper
from pynode.torchdiffeq.arguments import Call, is_positive
from pynode.torchdiffeq.implicit import ImplicitStepper


class Stepper(Protocol):
    """Makes steps on flat states (N,), in order."""

    def step(self, t: float, t1: float, z: Tensor) -> Tensor:
        """The state at t1 from that at t."""


@dataclass(frozen=True)
class Output:
    """A time that is asked for: on grid point ``i``, or between it and the next one."""

    i: int
    between: bool


def integrate_on_grid(call: Call) -> Tensor:
    """The states (T, *y0.shape) by a method with fixed steps."""
    grid, outputs = _snapped(_grid(call), call.t)
    needed = sorted({i + k for o in outputs for i in (o.i,) for k in range(1 + o.between)})
    exact = {
        o.i: t for o, t in zip(outputs, call.t.double().unbind(), strict=True) if not o.between
    }
    times = torch.stack(
        [
            exact[i] if i in exact else call.t.new_tensor(grid[i], dtype=torch.float64)
            for i in needed
        ]
    )
    states = _states_at(call, grid, times)
    row = {i: k for k, i in enumerate(needed)}
    found = []
    for output, t in zip(outputs, call.t.double().unbind(), strict=True):
        left = row[output.i]
        if output.between:
            ends = (times[left], times[left + 1], states[left], states[left + 1])
            found.append(Interpolant(call, *ends)(t))
        else:
            found.append(states[left])
    return torch.stack(found)


class Interpolant:
    """The state between two grid points, as the option ``interp`` says.

    ``cubic`` evaluates func at both when it is first called.
    """

    def __init__(
        self, call: Call, t0: Tensor | float, t1: Tensor | float, y0: Tensor, y1: Tensor
    ) -> None:
        self.t0, self.dt, self.y0, self.y1 = t0, t1 - t0, y0, y1
        self._slopes = lambda: [self._slope(call, t, y) for t, y in ((t0, y0), (t1, y1))]
        self._linear = interpolation(call) == "linear"

    def __call__(self, t: Tensor | float) -> Tensor:
        y0, y1 = self.y0, self.y1
        x = (t - self.t0) / self.dt
        x = x.to(y0) if isinstance(x, Tensor) else x
        if self._linear:
            return y0 + x * (y1 - y0)
        f0, f1 = self._ends
        rest = (1 - 2 * x) * (y1 - y0) + (x - 1) * f0 + x * f1
        return y0 + x * (y1 - y0) + x * (x - 1) * rest

    @cached_property
    def _ends(self) -> list[Tensor]:
        with torch.set_grad_enabled(self.y0.requires_grad or self.y1.requires_grad):
            return self._slopes()

    def _slope(self, call: Call, t: Tensor | float, y: Tensor) -> Tensor:
        real = y.real.dtype if y.is_complex() else y.dtype
        return self.dt * call.func(torch.as_tensor(t, device=y.device).to(real), y)


def interpolation(call: Call) -> str:
    interp = call.options.get("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise InputError(f"Unknown interpolation method {interp}: 'linear' or 'cubic'")
    return interp


def step_size(call: Call) -> float | None:
    if call.options.get("step_size") is None:
        return None
    size = call.number("step_size", 0.0)
    if not is_positive(size):
        raise InputError(f"option step_size={size!r}: a positive number is needed")
    return size


def perturbed(call: Call) -> bool:
    perturb = call.options.get("perturb", False)
    if not isinstance(perturb, bool):
        raise InputError(f"option perturb={perturb!r}: True or False is needed")
    return perturb


def _grid(call: Call) -> list[float]:
    """Grid points from the first time to the last, as torchdiffeq places them."""
    size, constructor = step_size(call), call.options.get("grid_constructor")
    interpolation(call)
    if size is not None and constructor is not None:
        raise InputError("step_size and grid_constructor are mutually exclusive arguments.")
    times = call.t.tolist()
    if constructor is not None:
        return _checked_grid(constructor(call.func, call.y0, call.t), times)
    if size is None:
        return times
    span = abs(times[-1] - times[0])
    count = max(math.ceil(span / size - 4 * torch.finfo(call.t.dtype).eps * span / size), 1)
    step = math.copysign(size, times[-1] - times[0])
    return [*(times[0] + i * step for i in range(count)), times[-1]]


def _checked_grid(points: Any, times: list[float]) -> list[float]:
    grid = torch.as_tensor(points).detach().to(torch.float64).tolist()
    close = [
        abs(a - b) <= 1e-6 * abs(times[-1] - times[0])
        for a, b in ((grid[0], times[0]), (grid[-1], times[-1]))
    ]
    if not all(close):
        raise InputError(
            f"grid_constructor returned a grid from {grid[0]:g} to {grid[-1]:g}: it must begin "
            f"and end with t, {times[0]:g} to {times[-1]:g}"
        )
    grid[0], grid[-1] = times[0], times[-1]
    direction = 1.0 if times[-1] > times[0] else -1.0
    if any((b - a) * direction <= 0 for a, b in itertools.pairwise(grid)):
        raise InputError("grid_constructor returned a grid that is not in the order of t")
    return grid


def _snapped(grid: list[float], t: Tensor) -> tuple[list[float], list[Output]]:
    """The grid with points moved by rounding onto the times, and where the times are in it."""
    direction = 1.0 if grid[-1] > grid[0] else -1.0
    keys = [direction * g for g in grid]
    rounding = 8 * torch.finfo(t.dtype).eps * max(abs(grid[0]), abs(grid[-1]))
    grid, outputs = list(grid), []
    for time in t.tolist():
        i = bisect_left(keys, direction * time - rounding)
        if abs(grid[i] - time) <= rounding:
            grid[i] = time
            outputs.append(Output(i, False))
        else:
            outputs.append(Output(i - 1, True))
    return grid, outputs


def _states_at(call: Call, grid: list[float], times: Tensor) -> Tensor:
    """The states at ``times``, all of them grid points."""
    if call.method.kind == "fixed":
        return pynode.functional.odeint(
            call.func,
            call.y0,
            times,
            solver=call.method.solver,
            sensitivity="discrete",
            grid=grid,
            tstops=grid if perturbed(call) else (),
            max_steps=len(grid),
            callbacks=call.callbacks,
        )
    problem = ODEProblem(call.func, call.y0, times)
    field = FlatField(call.func, problem.layout, None, Statistics())
    z = problem.layout.flatten(call.y0)
    if problem.times.t0.requires_grad:
        z = carry(field, problem.times.start, z, -zero_shift(problem.times.t0), problem.layout.rows)
    wanted = set(problem.times.values)
    states = [z] if grid[0] in wanted else []
    for t1, z1 in march(call, field, grid, z):
        if t1 in wanted:
            states.append(z1)
    zs = torch.stack(states)
    if times.requires_grad:
        zs = shift_outputs(field, problem, zs)
    return problem.layout.restore(zs)


def march(
    call: Call, field: FlatField, grid: list[float] | Iterator[float], z: Tensor
) -> Iterator[tuple[float, Tensor]]:
    """Each grid point after the first with the state there, by this package's own methods.

    Raises:
        SolveError: a step gives NaN or infinity.
    """
    stepper = make_stepper(call, field, z)
    for t, t1 in itertools.pairwise(grid):
        if call.callbacks is not None and call.callbacks.attempt is not None:
            call.callbacks.attempt(t, field.layout.restore(z), t1 - t)
        z = stepper.step(t, t1, z)
        if not math.isfinite(float(z.detach().sum())) and not z.isfinite().all():
            raise SolveError(
                f"{call.method.name}: the step of size {abs(t1 - t):.3g} from t={t:.6g} gives NaN "
                "or infinity. Steps may be too large for the problem: lessen step_size",
                "non_finite",
                t,
            )
        yield t1, z


def make_stepper(call: Call, field: FlatField, z: Tensor) -> Stepper:
    kind = AdamsStepper if call.method.kind == "adams" else ImplicitStepper
    return kind(call, field, _sides(call, z))


def _sides(call: Call, z: Tensor) -> Any:
    """Where a step evaluates the field at its ends: just inside where ``perturb`` is set."""
    if not perturbed(call):
        return lambda t, t1: (t, t1)
    return lambda t, t1: Jumps((t, t1), z.dtype).ends(t, t1)
