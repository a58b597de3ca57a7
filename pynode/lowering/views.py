"""Arrays while a program is made: contiguous values, and strided views of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pynode.lowering.instructions import Array

Shape = tuple[int, ...]


def row_major(shape: Sequence[int]) -> Shape:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


@dataclass(eq=False)
class Value:
    """A contiguous array: a slot of the program, a constant, or what a node makes.

    Attributes:
        shape: row-major.
        slot: where it lies, for inputs and outputs.
        constant: its contents, for constants.
        node: what makes it, otherwise.
        home: the value inside whose memory it lies, with offset and strides, once placed.
    """

    shape: Shape
    slot: int | None = None
    constant: Array | None = None
    node: Node | None = None
    home: tuple[Value, int, Shape] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def view(self) -> View:
        return View(self, self.shape, row_major(self.shape), 0)


@dataclass(eq=False)
class Node:
    """An instruction to be: operation, kind, operands, and the value that it makes.

    ``where`` are the places that the operands of an ``assemble`` go to: (offset, strides) each.
    """

    op: str
    kind: str | None
    operands: tuple[View, ...]
    value: Value
    extra: tuple[Any, ...] = ()
    where: tuple[tuple[int, Shape], ...] = field(default=())


@dataclass(frozen=True, eq=False)
class View:
    """Entries of a value: [i, j, …] at offset + i·strides[0] + j·strides[1] + …"""

    value: Value
    shape: Shape
    strides: Shape
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def key(self) -> tuple[Any, ...]:
        return (id(self.value), self.shape, self.strides, self.offset)

    @property
    def is_contiguous(self) -> bool:
        pairs = zip(self.shape, self.strides, row_major(self.shape), strict=True)
        return all(n == 1 or s == r for n, s, r in pairs)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its value, in order."""
        return self.offset == 0 and self.size == self.value.size and self.is_contiguous

    @property
    def number(self) -> float | None:
        """The one number that it holds everywhere, if it is such a constant."""
        if self.value.constant is None or any(
            s and n > 1 for n, s in zip(self.shape, self.strides, strict=True)
        ):
            return None
        return float(self.value.constant.reshape(-1)[self.offset])

    def numpy(self) -> Array:
        """The entries of a constant."""
        assert self.value.constant is not None
        flat = np.ascontiguousarray(self.value.constant).reshape(-1)
        index = np.full(self.shape, self.offset, dtype=np.int64)
        for axis, (n, s) in enumerate(zip(self.shape, self.strides, strict=True)):
            index += (np.arange(n) * s).reshape((-1,) + (1,) * (len(self.shape) - axis - 1))
        return flat[index]

    def permute(self, dims: Sequence[int]) -> View:
        return replace(
            self,
            shape=tuple(self.shape[d] for d in dims),
            strides=tuple(self.strides[d] for d in dims),
        )

    def transpose(self, a: int, b: int) -> View:
        order = list(range(len(self.shape)))
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def expand(self, shape: Sequence[int]) -> View:
        """Broadcast to a shape, by torch's rules (-1 keeps a dimension)."""
        lead = len(shape) - len(self.shape)
        old = (1,) * lead + self.shape
        strides = (0,) * lead + self.strides
        full = tuple(o if n == -1 else n for n, o in zip(shape, old, strict=True))
        steps = tuple(s if o == n else 0 for n, o, s in zip(full, old, strides, strict=True))
        return replace(self, shape=full, strides=steps)

    def select(self, dim: int, index: int) -> View:
        dim %= len(self.shape)
        index %= self.shape[dim]
        return View(
            self.value,
            self.shape[:dim] + self.shape[dim + 1 :],
            self.strides[:dim] + self.strides[dim + 1 :],
            self.offset + index * self.strides[dim],
        )

    def slice(self, dim: int, start: int, length: int, step: int = 1) -> View:
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[dim]
        shape[dim] = length
        strides[dim] *= step
        return View(self.value, tuple(shape), tuple(strides), offset)

    def flip(self, dim: int) -> View:
        return self.slice(dim, self.shape[dim] - 1, self.shape[dim], -1)

    def reshape(self, shape: Sequence[int]) -> View | None:
        """The same entries in another shape, if that needs no copy."""
        strides: list[int] = []
        left = list(shape)
        for size, step in reversed(merged(self.shape, (self.strides,))):
            room, stride = size, step[0]
            while left and (room > 1 or left[-1] == 1):
                n = left.pop()
                if room % n:
                    return None
                strides.append(stride)
                room //= n
                stride *= n
            if room > 1:
                return None
        strides += [0] * len(left)  # dimensions of one entry
        return replace(self, shape=tuple(shape), strides=tuple(reversed(strides)))


def merged(shape: Shape, strides: Sequence[Shape]) -> list[tuple[int, Shape]]:
    """The same loop over several arrays in the fewest dimensions: (size, stride of each array)."""
    dims: list[tuple[int, Shape]] = []
    for axis, n in enumerate(shape):
        steps = tuple(s[axis] for s in strides)
        if n == 1:
            continue
        if dims and dims[-1][1] == tuple(s * n for s in steps):
            dims[-1] = (dims[-1][0] * n, steps)
        else:
            dims.append((n, steps))
    return dims
