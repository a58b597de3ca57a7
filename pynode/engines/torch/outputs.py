"""Evaluation times on the torch engine: values are read off each step, cotangents put back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import torch
from torch import Tensor

from pynode.engines.torch.runge_kutta import Piece, RightHandSide
from pynode.state import StateLayout
from pynode.times import Times


class Outputs:
    """Evaluation times that all samples share.

    An *entry* is one value to be produced, and entries are numbered in the order in which a
    solve passes them.
    """

    def __init__(self, times: Times, layout: StateLayout) -> None:
        self.direction = times.direction
        self.layout = layout
        self.start = times.start
        self.slots = len(times.t) if not times.per_sample else times.t.shape[1]
        self.at = self._entries(times)
        self._keys = [self.direction * t for t in self.at]

    def _entries(self, times: Times) -> list[float]:
        return list(times.values)

    def until(self, t: float) -> int:
        """Number of entries at or before ``t``."""
        return bisect_right(self._keys, self.direction * t)

    def initial(self, z0: Tensor) -> Tensor:
        """Values of the entries at the start."""
        return z0.expand(self.until(self.start), -1)

    def values(self, piece: Piece, lo: int, hi: int, rhs: RightHandSide) -> Tensor:
        """Values of the entries lo to hi, all inside one step."""
        if hi - lo == 1:
            return piece.at(self.at[lo], rhs).unsqueeze(0)
        return piece.at_each(self.at[lo:hi], rhs)

    def assemble(self, chunks: list[Tensor], like: Tensor) -> Tensor:
        """Values of all entries as (T, N); entries that were not reached are NaN."""
        missing = len(self.at) - sum(len(chunk) for chunk in chunks)
        if missing:
            chunks = [*chunks, _nan(missing, self.layout.size, like)]
        return torch.cat(chunks)

    def moments_reversed(self) -> Iterator[tuple[float, int, int]]:
        """Distinct times from the last to the first, each with its range of entries."""
        hi = len(self.at)
        while hi:
            t = self.at[hi - 1]
            lo = hi - 1
            while lo and self.at[lo - 1] == t:
                lo -= 1
            yield t, lo, hi
            hi = lo

    def cotangent(self, grad: Tensor, lo: int, hi: int) -> Tensor:
        """The part of dL/dzs (T, N) that belongs to the entries lo to hi."""
        return grad[lo:hi]

    def jump(self, a: Tensor, grad: Tensor, lo: int, hi: int) -> None:
        """Add the cotangents of entries lo to hi, all at one time, to the adjoint (N,)."""
        for i in range(lo, hi):
            a.add_(grad[i])

    def reset(self, z: Tensor, zs: Tensor, lo: int, hi: int) -> None:
        """Overwrite a state (N,) by what the forward pass found at these entries."""
        z.copy_(zs[hi - 1])


class SampleOutputs(Outputs):
    """Evaluation times of each sample's own, in one joint solve."""

    def _entries(self, times: Times) -> list[float]:
        entries = sorted(
            (
                (t, i, b)
                for b, row in enumerate(times.values)
                for i, t in enumerate(row)
                if t == t  # padding is NaN
            ),
            key=lambda entry: self.direction * entry[0],
        )
        device = self.layout.device
        self._slot = torch.tensor([i for _, i, _ in entries], device=device)
        self._sample = torch.tensor([b for _, _, b in entries], device=device)
        return [t for t, _, _ in entries]

    @property
    def _rows(self) -> int:
        assert self.layout.rows is not None
        return self.layout.rows

    def samples(self, lo: int, hi: int) -> Tensor:
        """Whose the entries lo to hi are."""
        return self._sample[lo:hi]

    def initial(self, z0: Tensor) -> Tensor:
        return z0.reshape(self._rows, -1)[self._sample[: self.until(self.start)]]

    def values(self, piece: Piece, lo: int, hi: int, rhs: RightHandSide) -> Tensor:
        return piece.at_samples(self.at[lo:hi], self._sample[lo:hi], self._rows, rhs)

    def assemble(self, chunks: list[Tensor], like: Tensor) -> Tensor:
        found = torch.cat(chunks)
        zs = _nan(self.slots, self.layout.size, like).reshape(self.slots, self._rows, -1)
        where = (self._slot[: len(found)], self._sample[: len(found)])
        return zs.index_put(where, found).reshape(self.slots, -1)

    def cotangent(self, grad: Tensor, lo: int, hi: int) -> Tensor:
        cube = grad.reshape(self.slots, self._rows, -1)
        return cube[self._slot[lo:hi], self._sample[lo:hi]]

    def jump(self, a: Tensor, grad: Tensor, lo: int, hi: int) -> None:
        rows = a.view(self._rows, -1)
        rows.index_add_(0, self._sample[lo:hi], self.cotangent(grad, lo, hi))

    def reset(self, z: Tensor, zs: Tensor, lo: int, hi: int) -> None:
        z.view(self._rows, -1)[self._sample[lo:hi]] = self.cotangent(zs, lo, hi)


def outputs(times: Times, layout: StateLayout) -> Outputs:
    return (SampleOutputs if times.per_sample else Outputs)(times, layout)


def _nan(count: int, size: int, like: Tensor) -> Tensor:
    return torch.full((count, size), float("nan"), dtype=like.dtype, device=like.device)
