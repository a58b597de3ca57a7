"""One step of every sample, each from its own time to its own, and dense output inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.interpolation import as_column, combine, interpolation_weights
from pynode.engines.torch.per_sample.field import At, StageTimes
from pynode.engines.torch.runge_kutta import Coefficients, StepCoefficients, coefficients
from pynode.engines.torch.tableau import Tableau

RowRightHandSide = Callable[[At, Tensor], Tensor]
"""From states (n, D), or the same flat (n·D,), to their derivatives in the same shape."""


class RowJumps:
    """As :class:`~pynode.engines.torch.runge_kutta.Jumps`, for arrays of times."""

    def __init__(self, times: Sequence[float], dtype: torch.dtype) -> None:
        self._times = np.unique(np.array(times, dtype=np.float64))
        at = torch.from_numpy(self._times).to(dtype)
        ends = [torch.tensor(x, dtype=dtype) for x in (-np.inf, np.inf)]
        self._lower, self._upper = (torch.nextafter(at, end).double().numpy() for end in ends)

    def __bool__(self) -> bool:
        return len(self._times) > 0

    def beside(self, t: np.ndarray, forwards: np.ndarray) -> np.ndarray:
        """The times, those at a jump moved to its side in the given direction."""
        if not self:
            return t
        place = np.minimum(np.searchsorted(self._times, t), len(self._times) - 1)
        side = np.where(forwards, self._upper[place], self._lower[place])
        return np.where(self._times[place] == t, side, t)

    def at(self, t: np.ndarray) -> np.ndarray:
        """Which of the times are jumps."""
        return np.isin(t, self._times)


class RowStep:
    """A step of n samples.

    Attributes:
        rows: (n,), which samples.
        t, t1: (n,), where each starts and ends; ``dt = t1 - t``.
        z, z1: (n, D), states there.
        stages: (s, n, D), each times its sample's dt.
        last: (n,), when the field is evaluated at the end: ``t1`` but for jumps.
    """

    __slots__ = ("coefficients", "dt", "extended", "last", "rows", "stages", "t", "t1", "z", "z1")

    def __init__(
        self,
        c: StepCoefficients,
        rows: np.ndarray,
        t: np.ndarray,
        t1: np.ndarray,
        z: Tensor,
        z1: Tensor,
        stages: Tensor,
        last: np.ndarray,
    ) -> None:
        self.coefficients = c
        self.rows, self.t, self.t1, self.dt = rows, t, t1, t1 - t
        self.z, self.z1, self.stages, self.last = z, z1, stages, last
        self.extended = not c.extra_a

    def take(self, some: np.ndarray | None) -> RowStep:
        """A copy, of some positions, that outlives the step: its buffer is used again."""
        if some is None or len(some) == len(self.rows):
            stages = self.stages
            step = RowStep(
                self.coefficients,
                self.rows,
                self.t,
                self.t1,
                self.z,
                self.z1,
                stages if stages.requires_grad else stages.clone(),
                self.last,
            )
        else:
            index = torch.from_numpy(some).to(self.z.device)
            step = RowStep(
                self.coefficients,
                self.rows[some],
                self.t[some],
                self.t1[some],
                self.z[index],
                self.z1[index],
                self.stages[:, index],
                self.last[some],
            )
        step.extended = self.extended
        return step

    def extend(self, rhs: RowRightHandSide) -> None:
        """Evaluate the stages that only the interpolant needs."""
        if self.extended:
            return
        c = self.coefficients
        dt = as_column(self.dt, self.z)
        for node, row in zip(c.extra_c, c.extra_a, strict=True):
            flat = self.stages.reshape(len(self.stages), -1)
            z = torch.addmv(self.z.reshape(-1), flat.t(), row).view_as(self.z)
            t = self.last if node == 1.0 else self.t + node * self.dt
            k = rhs(At(t, self.rows), z) * dt
            self.stages = torch.cat([self.stages, k.unsqueeze(0)])
        self.extended = True

    def at(self, position: np.ndarray, times: np.ndarray) -> Tensor:
        """The states (m, D) of the samples at ``position`` (m,) at times inside their steps.

        Needs the step to be extended.
        """
        theta = (times - self.t[position]) / self.dt[position]
        index = torch.from_numpy(position).to(self.z.device)
        weights = interpolation_weights(self.coefficients, theta, self.z)
        stages = self.stages.index_select(1, index).transpose(0, 1)
        return combine(self.z.index_select(0, index), weights, stages)


class _Buffer:
    """Stages (n·D,) in one tensor, made anew only when the number of samples changes."""

    def __init__(self, count: int, like: Tensor) -> None:
        self.stages = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
        flat = self.stages.view(count, -1)
        self._rows = flat.unbind()
        self._heads = [flat[:i].t() for i in range(count + 1)]

    def put(self, i: int, k: Tensor, dt: Tensor) -> None:
        torch.mul(k, dt, out=self._rows[i])

    def head(self, i: int) -> Tensor:
        """The first i stages as (n·D, i)."""
        return self._heads[i]


class _Tape:
    """Stages (n·D,) as separate tensors that autograd can follow."""

    def __init__(self, count: int, like: Tensor) -> None:
        self._shape = like.shape
        self._list: list[Tensor] = []

    def put(self, i: int, k: Tensor, dt: Tensor) -> None:
        del self._list[i:]
        self._list.append(k * dt)

    def head(self, i: int) -> Tensor:
        return torch.stack(self._list[:i]).t()

    @property
    def stages(self) -> Tensor:
        return torch.stack(self._list).view(-1, *self._shape)


class RowStepper(Protocol):
    """What the loop needs of a method.

    Attributes:
        tableau, coefficients: the method's.
        rhs: the right-hand side.
    """

    @property
    def rhs(self) -> RowRightHandSide: ...

    @property
    def order_of_error(self) -> int: ...

    @property
    def coefficients(self) -> StepCoefficients: ...

    def begin(self, at: At, forwards: np.ndarray, z: Tensor, first: Tensor | None) -> Tensor: ...

    def attempt(self, rows: np.ndarray, t: np.ndarray, t1: np.ndarray, z: Tensor) -> RowStep: ...

    def advance(self, accept: np.ndarray, mask: Tensor | None) -> None: ...

    def refresh(self, stale: np.ndarray) -> None: ...

    def keep(self, keep: np.ndarray, index: Tensor) -> None: ...


class FirstStage:
    """f at the start of the next step: kept, taken from the last stage, or to be evaluated."""

    def __init__(self, rhs: RowRightHandSide, jumps: RowJumps) -> None:
        self._rhs, self._jumps = rhs, jumps
        self.value: Tensor | None = None
        self.stale: np.ndarray | None = None

    def at(self, rows: np.ndarray, t: np.ndarray, forwards: np.ndarray, z: Tensor) -> Tensor:
        """f(t, z), evaluated for the samples for which it is not known."""
        stale, value = self.stale, self.value
        if stale is None and value is not None:
            return value
        start = self._jumps.beside(t, forwards)
        if value is None or stale is None or stale.all():
            value = self._rhs(At(start, rows), z)
        else:
            some = np.flatnonzero(stale)
            index = torch.from_numpy(some).to(z.device)
            fresh = self._rhs(At(start[some], rows[some]), z[index])
            value = value.index_copy(0, index, fresh)
        self.value, self.stale = value, None
        return value

    def mark(self, stale: np.ndarray) -> None:
        if np.count_nonzero(stale):
            self.stale = stale if self.stale is None else self.stale | stale

    def keep(self, keep: np.ndarray, index: Tensor) -> None:
        if self.value is not None:
            self.value = self.value[index]
        if self.stale is not None:
            stale = self.stale[keep]
            self.stale = stale if stale.any() else None


class ExplicitRowStepper:
    """Attempts steps of an explicit Runge-Kutta method.

    Args:
        tableau: the method.
        rhs: f on some of the samples.
        taped: keep every operation visible to autograd.
        jumps: times at which the field may jump.
    """

    def __init__(
        self, tableau: Tableau, rhs: RowRightHandSide, like: Tensor, taped: bool, jumps: RowJumps
    ) -> None:
        self.tableau = tableau
        self.coefficients: Coefficients = coefficients(tableau, like.dtype, like.device)
        self.order_of_error = tableau.error_order
        self.rhs = rhs
        self._kind = _Tape if taped else _Buffer
        self._store: _Buffer | _Tape | None = None
        self._nodes = np.array(tableau.c)[:, None]
        self._at_end = np.array(tableau.c) == 1.0
        self._jumps = jumps
        self._first = FirstStage(rhs, jumps)
        self._last: Tensor | None = None
        self._t1 = np.empty(0)

    def begin(self, at: At, forwards: np.ndarray, z: Tensor, first: Tensor | None) -> Tensor:
        """Start at (t, z); returns f(t, z), which may be given."""
        self._first.value = first
        return self._first.at(at.rows, at.t, forwards, z)

    def attempt(self, rows: np.ndarray, t: np.ndarray, t1: np.ndarray, z: Tensor) -> RowStep:
        """Steps from (t, z) to t1; the stages are valid until the next attempt."""
        c, dt = self.coefficients, t1 - t
        k = self._first.at(rows, t, dt > 0, z).reshape(-1)
        if self._store is None:
            self._store = self._kind(self.tableau.stages, z)
        store = self._store
        h = as_column(dt, z).expand_as(z).reshape(-1)
        store.put(0, k, h)
        last = self._jumps.beside(t1, dt < 0)
        times = t + self._nodes * dt
        times[self._at_end] = last  # not t + dt, which rounding may put behind t1
        at = StageTimes(times)
        z_stage = flat = z.reshape(-1)
        for i in range(1, len(c.a)):
            z_stage = torch.addmv(flat, store.head(i), c.a[i])
            k = self.rhs(at.at(i, rows), z_stage)
            store.put(i, k, h)
        z1 = z_stage if self.tableau.fsal else torch.addmv(flat, store.head(len(c.a)), c.b)
        self._last, self._t1 = k.view_as(z), t1
        return RowStep(c, rows, t, t1, z, z1.view_as(z), store.stages, last)

    def advance(self, accept: np.ndarray, mask: Tensor | None) -> None:
        """Which of the last attempts were accepted; ``mask`` (n, 1) is None where all were."""
        if not self.tableau.fsal:
            self._first.mark(accept)
            return
        known = self._first.value
        assert self._last is not None and known is not None
        self._first.value = self._last if mask is None else torch.where(mask, self._last, known)
        if self._jumps:
            self._first.mark(accept & self._jumps.at(self._t1))

    def refresh(self, stale: np.ndarray) -> None:
        """The states of some samples were changed from outside."""
        self._first.mark(stale)

    def keep(self, keep: np.ndarray, index: Tensor) -> None:
        """Go on with some of the samples."""
        self._first.keep(keep, index)
        self._store = None
