"""One step of any explicit Runge-Kutta method, and dense output inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from pynode.engines.torch.tableau import Tableau
from pynode.field import FlatField

RightHandSide = Callable[[float, Tensor], Tensor]

FEW = 8
"""Times inside one step up to which plain numbers are faster than tensors."""


class Jumps:
    """Times at which the field may jump, each with its neighbours in the state's precision.

    A step that ends on a jump evaluates the field just before it, a step that starts there just
    after it: what the field returns at the jump itself belongs to one side only.
    """

    def __init__(self, times: Sequence[float], dtype: torch.dtype) -> None:
        self._sides: dict[float, tuple[float, float]] = {}
        for t in times:
            here = torch.tensor(t, dtype=dtype)
            lower, upper = (
                float(torch.nextafter(here, torch.tensor(x, dtype=dtype)))
                for x in (-math.inf, math.inf)
            )
            self._sides[t] = lower, upper

    def ends(self, t: float, t1: float) -> tuple[float, float]:
        """The first and the last time at which a step from t to t1 evaluates the field."""
        if not self._sides:
            return t, t1
        forwards = t1 > t
        first = self._sides[t][forwards] if t in self._sides else t
        last = self._sides[t1][not forwards] if t1 in self._sides else t1
        return first, last

    def __contains__(self, t: float) -> bool:
        return t in self._sides


class StepCoefficients(Protocol):
    """What dense output and error estimate need of a method's coefficients, as tensors.

    Attributes:
        error, error_low: rows of the error estimate over the stages.
        extra_a, extra_c: stages that only the interpolant needs.
        interpolant_rows, interpolant: (stages, degree), as numbers and as a float64 tensor.
    """

    error: Tensor | None
    error_low: Tensor | None
    extra_a: list[Tensor]
    extra_c: tuple[float, ...]
    degree: int

    @property
    def interpolant_rows(self) -> list[list[float]]: ...

    @property
    def interpolant(self) -> Tensor: ...


class Coefficients:
    """A tableau as tensors of one dtype on one device; ``nothing`` is a zero."""

    def __init__(self, tableau: Tableau, dtype: torch.dtype, device: torch.device) -> None:
        def tensor(row: tuple[float, ...]) -> Tensor:
            return torch.tensor(row, dtype=dtype, device=device)

        self.tableau = tableau
        self.a = [tensor(row) for row in tableau.a]
        self.extra_a = [tensor(row) for row in tableau.extra_a]
        self.extra_c = tableau.extra_c
        self.b, self.nothing = tensor(tableau.b), tensor((0.0,))
        self.error = None if tableau.error is None else tensor(tableau.error)
        self.error_low = None if tableau.error_low is None else tensor(tableau.error_low)
        degree = max(len(row) for row in tableau.interpolant)
        rows = [list(row) + [0.0] * (degree - len(row)) for row in tableau.interpolant]
        self.interpolant_rows = rows
        self.interpolant = torch.tensor(rows, dtype=torch.float64)
        self.degree = degree


@lru_cache(maxsize=64)
def coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Coefficients:
    return Coefficients(tableau, dtype, device)


class Piece:
    """One step of a solution and its dense output.

    Attributes:
        t, t1: where it starts and ends; ``dt = t1 - t``.
        z, z1: states (N,) there.
        coefficients: of its method.
        stages: (s, N), one row a stage.
        last: the time at which the field is evaluated at the end: ``t1`` but for jumps.
        error: the error estimate (N,), where it is not the coefficients' row over the stages.
        failure: None, or the error to reject the step with: infinity where Newton's iteration did
            not converge, NaN where the field was not finite in it.
    """

    __slots__ = (
        "_extended", "coefficients", "dt", "error", "failure", "last", "stages", "t", "t1", "z",
        "z1",
    )  # fmt: skip

    def __init__(
        self,
        c: StepCoefficients,
        t: float,
        t1: float,
        z: Tensor,
        z1: Tensor,
        stages: Tensor,
        last: float | None = None,
        error: Tensor | None = None,
        failure: float | None = None,
    ) -> None:
        self.coefficients = c
        self.error, self.failure = error, failure
        self.last = t1 if last is None else last
        self._extended = not c.extra_a
        self.t, self.t1, self.dt = t, t1, t1 - t
        self.z, self.z1 = z, z1
        self.stages = stages

    @property
    def degree(self) -> int:
        """Of the polynomial that dense output is."""
        return self.coefficients.degree

    def frozen(self) -> Piece:
        """A copy that outlives the step: the stages' buffer is used again by the next one."""
        c = self.coefficients
        copy = Piece(c, self.t, self.t1, self.z, self.z1, self.stages.clone(), self.last)
        copy._extended = self._extended
        return copy

    def at(self, t: float, rhs: RightHandSide) -> Tensor:
        """The state (N,) at a time inside the step."""
        if t == self.t1:
            return self.z1
        if t == self.t:
            return self.z
        self.extend(rhs)
        theta = (t - self.t) / self.dt
        weights = torch.tensor(
            [_polynomial(row, theta) for row in self.coefficients.interpolant_rows],
            dtype=self.z.dtype,
            device=self.z.device,
        )
        return torch.addmv(self.z, self.stages.t(), weights, alpha=self.dt)

    def at_each(self, times: list[float], rhs: RightHandSide) -> Tensor:
        """The states (m, N) at times inside the step."""
        if all(t == self.t1 for t in times):
            return self.z1.expand(len(times), -1)
        weights = self.weights(times, rhs)
        return torch.addmm(self.z.unsqueeze(0), weights, self.stages, alpha=self.dt)

    def at_samples(
        self, times: list[float], samples: Tensor, rows: int, rhs: RightHandSide
    ) -> Tensor:
        """Row ``samples[j]`` of the (rows, D) state at ``times[j]``, as (m, D)."""
        weights = self.weights(times, rhs)
        stages = self.stages.reshape(len(self.stages), rows, -1)[:, samples]
        z = self.z.reshape(rows, -1)[samples]
        return z + self.dt * torch.einsum("ms,smd->md", weights, stages)

    def weights(self, times: list[float], rhs: RightHandSide) -> Tensor:
        """Weights (m, stages) of the stages at times inside the step."""
        self.extend(rhs)
        if len(times) > FEW:
            return self._weights(self._fractions(times))
        rows = self.coefficients.interpolant_rows
        thetas = [(t - self.t) / self.dt for t in times]
        table = [[_polynomial(row, theta) for row in rows] for theta in thetas]
        return torch.tensor(table, dtype=self.z.dtype, device=self.z.device)

    def _weights(self, theta: Tensor) -> Tensor:
        c = self.coefficients
        powers = torch.stack([theta**j for j in range(1, c.degree + 1)], dim=1)
        weights = powers @ c.interpolant.t()
        return weights.to(device=self.z.device, dtype=self.z.dtype)

    def _fractions(self, times: list[float]) -> Tensor:
        """Times as fractions of the step."""
        return (torch.tensor(times, dtype=torch.float64) - self.t) / self.dt

    def extend(self, rhs: RightHandSide) -> None:
        """Evaluate the stages that only the interpolant needs."""
        if self._extended:
            return
        c = self.coefficients
        for node, row in zip(c.extra_c, c.extra_a, strict=True):
            z = torch.addmv(self.z, self.stages.t(), row, alpha=self.dt)
            k = rhs(self.last if node == 1.0 else self.t + node * self.dt, z)
            self.stages = torch.cat([self.stages, k.unsqueeze(0)])
        self._extended = True


def _advanced(z: Tensor, stages: Tensor, weights: Tensor, dt: float, nothing: Tensor) -> Tensor:
    """z + Σ dt·w_i k_i with the sum first: added one by one, each term would round to z's ulp.

    Of ``nothing``, which addmv wants to add to, beta takes 0: it scales within the product, so that
    no sum of unscaled stages overflows.
    """
    return z + torch.addmv(nothing, stages, weights, beta=0.0, alpha=dt)


def _polynomial(row: list[float], theta: float) -> float:
    """row[0]·θ + row[1]·θ² + …"""
    value = 0.0
    for coefficient in reversed(row):
        value = (value + coefficient) * theta
    return value


class _Buffer:
    """Stages in one preallocated tensor: for solves without an autograd tape."""

    def __init__(self, count: int, like: Tensor, shape: tuple[int, ...] = (-1,)) -> None:
        self.stages = torch.empty((count, len(like)), dtype=like.dtype, device=like.device)
        self._rows = list(self.stages.unbind())
        self._shaped = list(self.stages.view(count, *shape).unbind())
        self._heads = [self.stages[:i].t() for i in range(count + 1)]

    def put(self, i: int, k: Tensor) -> None:
        self._rows[i].copy_(k)

    def put_shaped(self, i: int, k: Tensor) -> None:
        self._shaped[i].copy_(k)

    def head(self, i: int) -> Tensor:
        """The first i stages as (N, i)."""
        return self._heads[i]

    def first_from_last(self) -> None:
        self._rows[0].copy_(self._rows[-1])


class _Tape:
    """Stages as separate tensors that autograd or torch.func can follow."""

    def __init__(self, count: int, like: Tensor) -> None:
        self._list: list[Tensor] = []

    def put(self, i: int, k: Tensor) -> None:
        del self._list[i:]
        self._list.append(k)

    def head(self, i: int) -> Tensor:
        return self.stages_of(i).t()

    def stages_of(self, i: int) -> Tensor:
        return torch.stack(self._list[:i])

    @property
    def stages(self) -> Tensor:
        return torch.stack(self._list)

    def first_from_last(self) -> None:
        self._list = [self._list[-1]]


def stage_store(count: int, like: Tensor, taped: bool) -> _Buffer | _Tape:
    """Where the stages (count, N) of a step are kept."""
    return (_Tape if taped else _Buffer)(count, like)


class ExplicitStepper:
    """Attempts steps of an explicit Runge-Kutta method.

    Args:
        tableau: the method.
        rhs: f(t, z) on flat states (N,).
        like: a state, for its size, dtype and device.
        taped: keep every operation visible to autograd and torch.func, at the price of
            allocations; otherwise work in preallocated buffers, under ``torch.no_grad()``.
        jumps: times at which the field may jump.
    """

    def __init__(
        self, tableau: Tableau, rhs: RightHandSide, like: Tensor, taped: bool, jumps: Jumps
    ) -> None:
        self.tableau = tableau
        self.coefficients = coefficients(tableau, like.dtype, like.device)
        self.rhs = rhs
        self._store: _Buffer | _Tape
        self._evaluate: Any
        if isinstance(rhs, FlatField) and rhs.shape and not taped:
            # The field's values go to their rows in the shape they have.
            self._store = _Buffer(tableau.stages, like, rhs.shape)
            self._evaluate, self._put = rhs.shaped, self._store.put_shaped
        else:
            self._store = stage_store(tableau.stages, like, taped)
            self._evaluate, self._put = rhs, self._store.put
        self._nodes = tableau.c[1:]
        # One tensor of times for all stages; on another device it would cost a synchronisation.
        self._times_at_once = (
            isinstance(rhs, FlatField) and rhs.form != "z" and like.device.type == "cpu"
        )
        self._jumps = jumps
        self._fresh = False
        self._keeps_last = False

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        """Start at (t, z); returns the first stage f(t, z), which may be given."""
        k = self.rhs(self._jumps.ends(t, towards)[0], z) if first is None else first
        self._store.put(0, k)
        self._fresh = True
        return k

    def attempt(self, t: float, t1: float, z: Tensor) -> Piece:
        """A step from (t, z) to t1; its stages are valid until the next attempt."""
        c, store, put = self.coefficients, self._store, self._put
        evaluate = self._evaluate
        dt = t1 - t
        start, last = self._jumps.ends(t, t1)
        if not self._fresh:
            store.put(0, self.rhs(start, z))
            self._fresh = True
        self._keeps_last = self.tableau.fsal and t1 not in self._jumps
        # Not t + dt, which rounding may put behind t1.
        times: Sequence[float | Tensor]
        times = [last if node == 1.0 else t + node * dt for node in self._nodes]
        if self._times_at_once:
            times = torch.tensor(times, dtype=z.dtype).unbind()
        z_stage = z
        end = len(c.a) - 1 if self.tableau.fsal else None
        for i, time in enumerate(times, 1):
            if i == end:
                z_stage = _advanced(z, store.head(i), c.a[i], dt, c.nothing)
            else:
                z_stage = torch.addmv(z, store.head(i), c.a[i], alpha=dt)
            put(i, evaluate(time, z_stage))
        if not self.tableau.fsal:
            z_stage = _advanced(z, store.head(len(c.a)), c.b, dt, c.nothing)
        return Piece(c, t, t1, z, z_stage, store.stages, last)

    def restart(self) -> None:
        """Whatever the first stage of the next attempt would be taken from is left behind."""
        self._fresh = False

    def advance(self) -> None:
        """The last attempt was accepted."""
        if self._keeps_last:
            self._store.first_from_last()
        else:
            self._fresh = False
