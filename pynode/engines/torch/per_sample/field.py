"""The field on some of the samples, each at a time of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.field import FlatField, UserField
from pynode.solution import Statistics
from pynode.state import State, StateLayout


class At:
    """Where a right-hand side is evaluated.

    Attributes:
        t: (n,), times; a float64 array on the host, or a tensor of the state's dtype where it
            is differentiated by.
        rows: (n,), which sample of the batch each is.
        stages: (stages, n), the times of a step of which ``t`` is number ``i``.
    """

    __slots__ = ("i", "rows", "stages", "t")

    def __init__(
        self, t: Any, rows: np.ndarray, stages: StageTimes | None = None, i: int = 0
    ) -> None:
        self.t, self.rows, self.stages, self.i = t, rows, stages, i

    def time(self, z: Tensor) -> Tensor:
        """The times as a field receives them for states like z."""
        return as_time(self.t, z) if self.stages is None else self.stages.on(z)[self.i]


class StageTimes:
    """The times (stages, n) of a step, carried to the device at once if they are asked for."""

    __slots__ = ("_found", "times")

    def __init__(self, times: np.ndarray) -> None:
        self.times = times
        self._found: tuple[Tensor, ...] | None = None

    def at(self, i: int, rows: np.ndarray) -> At:
        return At(self.times[i], rows, self, i)

    def on(self, z: Tensor) -> tuple[Tensor, ...]:
        if self._found is None:
            self._found = as_time(self.times, z).unbind()
        return self._found


@dataclass(frozen=True)
class Calling:
    """How a field is called for some of the samples.

    Attributes:
        vmapped: it is written for a scalar t: each sample is a batch of one, under vmap.
        compacts: it may be called with some of the samples; else with all of them, always.
        sliced: which leaves of args hold one entry a sample.
    """

    vmapped: bool
    compacts: bool
    sliced: tuple[bool, ...]


class RowField(FlatField):
    """The user's field as a function of times and states of some samples.

    Attributes:
        calling: how the field is called.
        park: (B, D), states for the samples that are not asked for, where the field has to be
            called with all of them.
        park_t: (B,), their times.
    """

    def __init__(
        self,
        fn: UserField,
        layout: StateLayout,
        args: Any,
        stats: Statistics,
        calling: Calling,
        park: Tensor,
        park_t: np.ndarray,
        backward: bool = False,
    ) -> None:
        super().__init__(fn, layout, args, stats, backward)
        assert layout.rows is not None
        self.calling = calling
        self.park, self.park_t = park, park_t
        self.rows = layout.rows
        self._leaves, self._spec = pytree.tree_flatten(args)
        self._all = self._rows = np.arange(self.rows)
        self._counts, self._since = np.zeros(self.rows, dtype=np.int64), 0
        self._slices = any(calling.sliced)
        self._dims = tuple(0 if sliced else None for sliced in calling.sliced)

    def for_backward(self) -> RowField:
        return RowField(
            self.fn,
            self.layout,
            self.args,
            self.stats,
            self.calling,
            self.park,
            self.park_t,
            backward=True,
        )

    def __call__(self, t: Any, z: Tensor) -> Tensor:
        """dz/dt at ``t`` (an :class:`At`, or times (B,)), in the shape of z: (n, D) or (n·D,).

        Where the field does not compact, the rows must differ from each other.
        """
        if isinstance(t, np.ndarray):
            t = At(t, self._all)
        rows = t.rows
        if self.backward:
            self.stats.nfe_backward += 1
        else:
            self.stats.nfe += 1
            self._count(rows)
        if self.calling.compacts or self._is_whole(rows):
            value = self.call(None if self.form == "z" else t.time(z), z, rows)
            return value if z.ndim == 1 else value.view_as(z)
        time, full, index = self.embed(t, z, rows)
        return self.call(time, full, self._all).reshape(self.rows, -1)[index].reshape(z.shape)

    def call(self, time: Tensor | None, z: Tensor, rows: np.ndarray) -> Tensor:
        """dz/dt (n·D,) at times (n,)."""
        layout = self.layout.of_rows(len(rows))
        state = layout.restore(z if z.ndim == 1 else z.reshape(-1))
        if self.form == "z":
            value = self.fn(state)
        elif self.form == "tz" and not self.calling.vmapped:
            value = self.fn(time, state)
        else:
            value = self.apply(self._fn, time, state, rows)
        return layout.flatten_derivative(value)

    def _fn(self, time: Any, state: State, args: Any) -> State:
        return self.fn(time, state) if self.form == "tz" else self.fn(time, state, args)

    def apply(
        self, fn: Callable[..., Any], time: Tensor | None, state: State, rows: np.ndarray
    ) -> Any:
        """``fn(time, state, args)`` of some samples, called as the field is."""
        leaves = self._leaves
        if self._slices and not self._is_whole(rows):
            leaves = [
                leaf[torch.from_numpy(rows).to(leaf.device)] if dim == 0 else leaf
                for leaf, dim in zip(leaves, self._dims, strict=True)
            ]
        if not self.calling.vmapped:
            return fn(time, state, self._args(leaves))

        def one(time: Any, state: State, leaves: list[Any]) -> Any:
            lifted = [
                leaf.unsqueeze(0) if dim == 0 else leaf
                for leaf, dim in zip(leaves, self._dims, strict=True)
            ]
            value = fn(time, pytree.tree_map(lambda x: x.unsqueeze(0), state), self._args(lifted))
            return pytree.tree_map(lambda x: x.squeeze(0), value)

        assert time is not None
        return torch.func.vmap(one, in_dims=(0, 0, list(self._dims)))(time, state, leaves)

    def _args(self, leaves: list[Any]) -> Any:
        return None if self.args is None else pytree.tree_unflatten(leaves, self._spec)

    def _is_whole(self, rows: np.ndarray) -> bool:
        return len(rows) == self.rows and bool((rows == self._all).all())

    def _count(self, rows: np.ndarray) -> None:
        """One evaluation more; added up when the samples change."""
        if rows is not self._rows:
            self._counts[self._rows] += self._since
            self._rows, self._since = rows, 0
        self._since += 1

    @property
    def counts(self) -> np.ndarray:
        """(B,), evaluations in which each sample took part."""
        self._counts[self._rows] += self._since
        self._since = 0
        return self._counts.copy()

    def embed(self, at: At, z: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,) and states (B, D) of all samples, those not in ``rows`` parked.

        Returns:
            Times, states, and ``rows`` as an index into them.
        """
        index = torch.from_numpy(rows).to(z.device)
        full = self.park.to(z).index_copy(0, index, z.reshape(len(rows), -1))
        time = as_time(self.park_t, z).index_copy(0, index, at.time(z))
        return time, full, index


def as_time(t: Any, z: Tensor) -> Tensor:
    """Times as the field receives them."""
    if isinstance(t, Tensor):
        return t
    return torch.from_numpy(np.ascontiguousarray(t)).to(device=z.device, dtype=z.dtype)


def distinct(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Positions in groups, in none of which a sample comes twice."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    fresh = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(rows)), 0))
    turn = np.arange(len(rows)) - first
    for i in range(int(turn.max()) + 1 if len(rows) else 0):
        yield order[turn == i]
