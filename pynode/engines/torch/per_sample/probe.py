"""Finding out how a field may be called when every sample has a time of its own.

Nothing is assumed that a few evaluations at the start can show. They are made at distinct times
inside the samples' spans, since a (B,) time may broadcast against a (B, D) state, silently
wrong, and equal times would not tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines.torch.per_sample.field import At, Calling, RowField, as_time
from pynode.errors import FieldError, InputError
from pynode.field import UserField
from pynode.options import SolveOptions
from pynode.solution import Statistics
from pynode.state import StateLayout
from pynode.times import OwnTimes

_MIXED = (
    "steps per sample need samples that do not influence each other, but the field's value for "
    "one sample changes with the others, or from call to call. Batch normalisation in training "
    "mode, attention across samples and dropout do so: put such modules into eval mode or take "
    "them out, or use step_control='joint'"
)
_CLOSED_OVER = (
    "it cannot be called for one sample alone. If it closes over tensors with one entry a "
    "sample, hand them over as args with batched_args=True, or write the field for t of shape "
    "(B,)"
)

_MANY_ROWS = (
    ". Tensors of args that belong to all samples must not have as many rows as there are samples, "
    "if others hold one entry a sample: give the former as x[None]"
)


def row_field(
    fn: UserField,
    layout: StateLayout,
    args: Any,
    stats: Statistics,
    z0: Tensor,
    times: OwnTimes,
    options: SolveOptions,
) -> RowField:
    """The field as steps per sample call it, after the evaluations that show how.

    Raises:
        InputError: samples influence each other, or the field cannot be called so.
    """
    assert layout.rows is not None
    park = z0.detach().reshape(layout.rows, -1)

    def make(calling: Calling) -> RowField:
        return RowField(fn, layout, args, stats, calling, park, times.start)

    with torch.no_grad():
        calling = _Probe(make, park, times, options, args).calling()
    return make(calling)


class _Probe:
    def __init__(
        self, make: Any, z: Tensor, times: OwnTimes, options: SolveOptions, args: Any
    ) -> None:
        self.make, self.z = make, z
        self.rows = len(z)
        self.all = np.arange(self.rows)
        self.pair = self.all[[-1, 0]] if self.rows > 2 else self.all[-1:]
        self.batched_time = options.batched_time
        self.slicings = _slicings(args, self.rows, options.batched_args)
        self.unsliced = tuple(False for _ in pytree.tree_leaves(args))
        u = (np.random.default_rng(0).permutation(self.rows) + 0.61) / self.rows
        self.t = times.start + u * (times.end - times.start)

    def calling(self) -> Calling:
        plain = self.make(Calling(False, False, self.unsliced))
        if plain.form == "z":
            return self._compact(plain(At(self.t, self.all), self.z))
        vector = None
        if self.batched_time is not False:
            vector = self._try(plain, self.t, self.all, self.z)
        if vector is not None and self._is_right(plain, vector):
            return self._compact(vector)
        if self.batched_time:
            # Says what is wrong, in the field's own words.
            plain(At(self.t, self.all), self.z)
        return self._vmapped(plain)

    def _is_right(self, plain: RowField, vector: Tensor) -> bool:
        """Whether a vector of times gave each sample what its own time alone gives it."""
        if self.batched_time or self.rows == 1:
            return True
        last = self._scalar(plain, self.rows - 1)
        # A field that refuses a scalar time is written for a vector.
        return last is None or _close(last, vector[-1])

    def _scalar(self, plain: RowField, row: int) -> Tensor | None:
        """Row ``row`` of the field for all samples at that sample's time, a 0-d tensor."""
        t = as_time(self.t, self.z)[row]
        try:
            return plain.call(t, self.z, self.all).reshape(self.z.shape)[row]
        except Exception:
            return None
        finally:
            plain.stats.nfe += 1

    def _try(self, field: RowField, t: Any, rows: np.ndarray, z: Tensor) -> Tensor | None:
        try:
            return field(At(t, rows), z)
        except Exception:
            return None

    def _compact(self, value: Tensor) -> Calling:
        """How to call a field that takes (B,) times, or none, with some of the samples."""
        for sliced in self.slicings:
            calling = Calling(False, True, sliced)
            if self.rows == 1:
                return calling
            pair = self._try(
                self.make(calling), self.t[self.pair], self.pair, self.z[torch.tensor(self.pair)]
            )
            if pair is not None and _close(pair, value[torch.tensor(self.pair)]):
                return calling
        self._check_independent(value)
        return Calling(False, False, self.unsliced)

    def _check_independent(self, value: Tensor) -> None:
        """Changing all samples but the last must not change the last."""
        other = self.z * 1.07 + 0.013
        other[-1] = self.z[-1]
        changed = self.make(Calling(False, False, self.unsliced))(At(self.t, self.all), other)
        if not _close(changed[-1], value[-1]):
            raise InputError(_MIXED)

    def _vmapped(self, plain: RowField) -> Calling:
        """How to call a field of a scalar time."""
        failure: Exception | None = None
        differs = False
        truth = [self._scalar(plain, int(row)) for row in self.pair]
        for sliced in self.slicings:
            calling = Calling(True, True, sliced)
            try:
                got = self.make(calling)(
                    At(self.t[self.pair], self.pair), self.z[torch.tensor(self.pair)]
                )
            except Exception as error:
                failure = error
                continue
            if all(x is None or _close(y, x) for x, y in zip(truth, got, strict=True)):
                return calling
            differs = True
        if differs:
            raise InputError(_MIXED)
        if truth[0] is None:  # not even as a joint solve would call it: let the field speak
            plain.call(as_time(self.t, self.z)[-1], self.z, self.all)
        assert failure is not None
        if isinstance(failure, FieldError):
            raise InputError(f"the field takes a scalar t, and {_CLOSED_OVER}") from failure
        raise InputError(
            "the field takes a scalar t, so steps per sample call it under torch.vmap, where it "
            f"fails ({type(failure).__name__}: {_first_line(failure)}). Write it for t of shape "
            "(B,), without branches on values and without random numbers; or, if it closes over "
            "tensors with one entry a sample, hand them over as args with batched_args=True"
            f"{_MANY_ROWS if len(self.slicings) > 1 else ''}"
        ) from failure


def _slicings(args: Any, rows: int, batched: bool | None) -> list[tuple[bool, ...]]:
    """Which leaves of args may hold one entry a sample: the candidates in order."""
    leaves = pytree.tree_leaves(args)
    fits = tuple(isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows for x in leaves)
    none = tuple(False for _ in leaves)
    if batched and not any(fits):
        shapes = [tuple(x.shape) for x in leaves if isinstance(x, Tensor)]
        raise InputError(
            f"batched_args=True, but no tensor in args has first dimension {rows}, the number of "
            f"samples (shapes: {shapes})"
        )
    if batched is not None or not any(fits):
        return [fits if batched else none]
    return [none, fits]


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of another batch size."""
    size = torch.nan_to_num(b.abs(), 0.0, 0.0).amax()
    tolerance = float(torch.finfo(a.dtype).eps ** 0.7 * (size + 1e-30))
    return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
