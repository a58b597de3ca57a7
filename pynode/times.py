"""Evaluation times: shared by the batch, or each sample's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.transforms import is_batched, transforms_active


class OneSolveError(InputError):
    """Times that one solve for the whole batch cannot serve, but steps per sample may."""


@dataclass(frozen=True)
class Checked:
    """Shared times as they were when they were checked last: to look at each again would take as
    long as some solves."""

    t: Tensor
    values: list[Any]
    span: tuple[float, float, float]

    def are(self, t: Tensor) -> bool:
        alike = t.shape == self.t.shape and t.dtype == self.t.dtype and t.device == self.t.device
        return alike and not transforms_active() and torch.equal(t, self.t)


class Times:
    """Checked evaluation times.

    Attributes:
        t: (T,) shared, or (B, T) per sample with NaN where a series is shorter; differentiable.
        t0: 0-d tensor, or (B,) of equal values, at which the initial state holds;
            differentiable (often a view of ``t``).
        start, end: first and furthest time, as numbers.
        direction: 1.0 forwards, -1.0 backwards in time.
        checked: what other times are compared with to be known as these; None where each sample
            has its own, or ``t0`` was given.
    """

    values: list[Any]
    checked: Checked | None = None
    _t0: Tensor | None = None
    _last: Checked | None = None

    def __init__(self, t: Any, t0: Any = None) -> None:
        self.t = _as_tensor(t)
        self.per_sample = self.t.ndim == 2
        last = Times._last
        if t0 is None and last is not None and last.are(self.t):
            self.values = last.values
            self.start, self.end, self.direction = last.span
            self.checked = last
            return
        self._check(t0)
        if t0 is None and not self.per_sample:
            span = (self.start, self.end, self.direction)
            self.checked = Times._last = Checked(self.t.detach().clone(), self.values, span)

    def _check(self, t0: Any) -> None:
        self.values = self.t.detach().tolist()
        flat = _finite_rows(self.t, self.values)
        self._t0, self.start = self._initial_time(t0, flat)
        self.direction, self.end = self._span(flat)
        self._check_order(flat)

    def head(self, n: int) -> Times:
        """The first n of shared times, with start and direction as they are."""
        part = copy.copy(self)
        part.t, part.values, part.checked = self.t[:n], self.values[:n], None
        return part

    def _initial_time(self, t0: Any, rows: list[list[float]]) -> tuple[Tensor, float]:
        if t0 is not None:
            try:
                # In the precision of t, so that t0=0.7 is not after a float32 time of 0.7.
                tensor = (
                    t0 if isinstance(t0, Tensor) else torch.tensor(float(t0), dtype=self.t.dtype)
                )
            except (TypeError, ValueError):
                raise InputError(f"t0 must be one finite number, not {t0!r}") from None
            if tensor.ndim:
                raise OneSolveError(f"t0 must be one finite number, not {t0!r}")
            value = float(tensor.detach())
            if not math.isfinite(value):
                raise InputError(f"t0 must be one finite number, not {t0!r}")
            return tensor, value
        if not self.per_sample:
            return self.t[0], rows[0][0]
        firsts = [row[0] for row in rows]
        if min(firsts) != max(firsts):
            raise OneSolveError(
                f"the samples' first times differ (from {min(firsts):g} to {max(firsts):g}), so "
                "it is not clear when z0 holds: give t0=..., one time for all samples"
            )
        return self.t[:, 0], firsts[0]

    def _span(self, rows: list[list[float]]) -> tuple[float, float]:
        low, high = min(map(min, rows)), max(map(max, rows))
        if low < self.start < high:
            raise InputError(
                f"t0={self.start:g} lies between the times ({low:g} to {high:g}): all times must "
                "be on one side of it. Solve once in each direction."
            )
        if low == high == self.start:
            raise InputError(
                f"all times equal {self.start:g}: two or more distinct times are needed"
            )
        return (1.0, high) if high > self.start else (-1.0, low)

    def _check_order(self, rows: list[list[float]]) -> None:
        for b, row in enumerate(rows):
            if row == sorted(row, reverse=self.direction < 0):
                continue
            for i in range(len(row) - 1):
                if (row[i + 1] - row[i]) * self.direction < 0:
                    where = f"sample {b}, " if self.per_sample else ""
                    way = "increase" if self.direction > 0 else "decrease"
                    raise InputError(
                        f"times must {way} from t0={self.start:g} on, but {where}t[{i}]="
                        f"{row[i]:g} is followed by t[{i + 1}]={row[i + 1]:g}: sort them"
                    )

    @property
    def t0(self) -> Tensor:
        return self.t[0] if self._t0 is None else self._t0

    @property
    def samples(self) -> int | None:
        return len(self.values) if self.per_sample else None

    @property
    def given(self) -> Tensor:
        return self.t


class OwnTimes:
    """Checked evaluation times for solves in which every sample steps by itself.

    Each sample has its own t0, direction and end; its times must be in order and on one side of
    its t0. A sample whose times all equal its t0 is allowed: it is never integrated.

    Attributes:
        t: (B, T), NaN where a series is shorter; differentiable (shared times are expanded).
        t0: (B,), the times at which the samples of z0 hold; differentiable.
        values: (B, T), as float64 numbers on the host.
        start, end, direction: (B,), first and furthest times, and 1.0, -1.0 or, for a sample
            that is never integrated, 0.0.
    """

    per_sample = True

    def __init__(self, t: Any, t0: Any, samples: int) -> None:
        self.given = _as_tensor(t)
        rows = _finite_rows(self.given, self.given.detach().tolist())
        if self.given.ndim == 2 and len(rows) != samples:
            raise InputError(
                f"times for {len(rows)} samples were given, but the state has {samples}: its "
                "first dimension must be the batch"
            )
        self.t = self.given if self.given.ndim == 2 else self.given.expand(samples, -1)
        self.t0 = self._initial_times(t0, samples)
        self.values: np.ndarray = self.t.detach().to("cpu", torch.float64).numpy()
        self.start: np.ndarray = self.t0.detach().to("cpu", torch.float64).numpy()
        self._check_order()

    def _initial_times(self, t0: Any, samples: int) -> Tensor:
        if t0 is None:
            return self.t[:, 0]
        try:
            tensor = t0 if isinstance(t0, Tensor) else torch.tensor(t0, dtype=self.t.dtype)
        except (TypeError, ValueError):
            tensor = torch.tensor(math.nan)
        if tuple(tensor.shape) not in ((), (samples,)) or not bool(tensor.isfinite().all()):
            raise InputError(
                f"t0 must be one finite number, or one for each of the {samples} samples, "
                f"not {t0!r}"
            )
        return tensor.expand(samples)

    def _check_order(self) -> None:
        path = np.concatenate([self.start[:, None], self.values], axis=1)
        moves = np.sign(np.nan_to_num(np.diff(path, axis=1)))
        forwards, backwards = (moves > 0).any(axis=1), (moves < 0).any(axis=1)
        for b in np.flatnonzero(forwards & backwards)[:1]:
            raise InputError(
                f"the times of sample {b} go up and down, its t0={self.start[b]:g} counted: they "
                "must increase, or decrease, from t0 on. Sort them, and solve once in each "
                "direction if they lie on both sides of t0."
            )
        if not (forwards | backwards).any():
            raise InputError("all times equal t0: two or more distinct times are needed")
        self.direction = forwards.astype(float) - backwards.astype(float)
        key = np.where(np.isnan(path), -np.inf, path * self.direction[:, None])
        self.end = np.take_along_axis(path, key.argmax(axis=1)[:, None], axis=1)[:, 0]

    def rest(self, t0: Tensor, done: np.ndarray) -> OwnTimes:
        """The times after the first ``done`` (B,), from ``t0`` (B,) on; directions stay.

        A sample that has none left is not integrated.
        """
        slots = self.values.shape[1]
        place = np.arange(slots) + done[:, None]
        known = (place < slots) & (done < self.counts)[:, None]
        place = np.minimum(place, slots - 1)
        index = torch.from_numpy(place).to(self.t.device)
        mask = torch.from_numpy(known).to(self.t.device)
        part = copy.copy(self)
        part.t = torch.where(mask, self.t.gather(1, index), torch.nan)
        part.t0 = t0
        part.values = np.where(known, np.take_along_axis(self.values, place, axis=1), np.nan)
        part.start = t0.detach().to("cpu", torch.float64).numpy()
        left = known.any(axis=1)
        part.direction = np.where(left, self.direction, 0.0)
        part.end = np.where(left, self.end, part.start)
        return part

    @property
    def counts(self) -> np.ndarray:
        """(B,), how many times each sample has."""
        return (~np.isnan(self.values)).sum(axis=1)

    @property
    def samples(self) -> int:
        return len(self.values)


def _finite_rows(t: Tensor, values: list[Any]) -> list[list[float]]:
    """Rows of numbers without padding; inf anywhere and NaN in shared times are errors."""
    if t.ndim not in (1, 2) or t.numel() == 0:
        raise InputError(
            f"times have shape {tuple(t.shape)}: give (T,) for times that all samples "
            "share, or (B, T) or a list of 1-D tensors for each sample's own"
        )
    if t.ndim == 1:
        # The sum is quicker to look at; where it is infinite it may only have overflowed.
        if not (math.isfinite(sum(values)) or all(map(math.isfinite, values))):
            raise InputError("times hold NaN or infinity: shared times must be finite")
        return [values]
    rows = []
    for b, row in enumerate(values):
        n = next((i for i, x in enumerate(row) if math.isnan(x)), len(row))
        if n == 0 or not all(math.isnan(x) for x in row[n:]):
            raise InputError(
                f"times of sample {b}: NaN may only pad the end of a row that has at least one time"
            )
        if any(math.isinf(x) for x in row[:n]):
            raise InputError(f"times of sample {b} hold infinity")
        rows.append(row[:n])
    return rows


def _as_tensor(t: Any) -> Tensor:
    if isinstance(t, Tensor):
        return _real(t)
    if isinstance(t, Sequence) and any(isinstance(row, Tensor) for row in t):
        rows = [_real(row) for row in t]
        dimensions = {row.ndim for row in rows}
        if dimensions == {0}:
            return torch.stack(rows)
        if dimensions != {1}:
            raise InputError("a list of times must hold 1-D tensors, one for each sample")
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)
    return _real(t)


def _real(t: Any) -> Tensor:
    if isinstance(t, Tensor) and is_batched(t):
        raise InputError(
            "times may not be mapped over by torch.func.vmap, for steps are decided by their "
            "values: give each sample's times as (B, T) without vmap"
        )
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"times cannot be read as numbers: {error}") from None
    if t.is_complex():
        raise InputError("times are complex: time must be real")
    return t if t.is_floating_point() else t.to(torch.float64)
