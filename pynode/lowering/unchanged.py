"""Whether what a program was made from is still what it was, in microseconds.

:mod:`pynode.lowering.cache` compares all that a program depends on by value, which costs more than
a small solve. Here the same things are compared by identity: where that says "unchanged" it is so,
and where it does not, the slow comparison decides.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, call, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.lowering.holdings import MISSING, content, holdings

_MISSING = repeat(MISSING)
_CONTENTS = attrgetter("cell_contents")
_RAW = attrgetter("raw")
_SMALL = 1 << 16  # bytes, up to which a copy costs less than a call of torch


class Unchanged:
    """What a field held when this was made; :meth:`holds` says whether it still does.

    The field itself is not kept alive by this, so that what is kept for it can go when it goes.

    Args:
        fn: the field.
        tensors: trainable tensors that it depends on.
        constants: tensors whose values are in the programs, with copies of them as they were.
    """

    def __init__(
        self, fn: Any, tensors: Sequence[Tensor], constants: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        # Owners, keys and values apart: so they are compared by loops that are not Python's own.
        self._sizes: tuple[list[Any], list[int]] = ([], [])
        self._entries: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._sequences: list[tuple[Any, list[Any]]] = []
        self._cells: tuple[list[Any], list[Any]] = ([], [])
        self._attributes: tuple[list[Any], list[str], list[Any]] = ([], [], [])
        self._own: list[tuple[str, Any]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._bytes = _Bytes([pair for pair in constants if _Bytes.can_be(pair[0])])
        others = [pair for pair in constants if not _Bytes.can_be(pair[0])]
        self._constants = [x for x, _ in others], [copy for _, copy in others]
        watched = list(tensors)
        for held in holdings(fn):
            self._watch(fn, *held)
            values = [value for _, value in held.parts]
            watched += [x for x in values if isinstance(x, Tensor)]
            self._arrays += [(x, x.copy()) for x in values if isinstance(x, np.ndarray)]
        each = {id(x): x for x in watched}.values()
        self._tensors = [(x, x.dtype, x.shape, x.requires_grad) for x in each]

    def _watch(self, fn: Any, kind: str, owner: Any, parts: list[tuple[Any, Any]]) -> None:
        keys, values = [key for key, _ in parts], [value for _, value in parts]
        if kind in ("mapping", "names"):
            for kept, new in zip(
                self._entries, ([owner.get] * len(parts), keys, values), strict=True
            ):
                kept += new
            if kind == "mapping":
                self._sizes[0].append(owner)
                self._sizes[1].append(len(owner))
        elif kind == "sequence":
            self._sequences.append((owner, values))
        elif kind == "cell":
            for kept, new in zip(self._cells, ([owner] * len(values), values), strict=True):
                kept += new
        elif owner is fn:
            self._own += parts
        else:
            for kept, new in zip(
                self._attributes, ([owner] * len(parts), keys, values), strict=True
            ):
                kept += new

    def holds(self, fn: Any) -> bool:
        """Whether every part is the very object that it was, and every constant has its value."""
        owners, sizes = self._sizes
        if list(map(len, owners)) != sizes:
            return False
        getters, keys, values = self._entries
        if not all(map(is_, map(call, getters, keys, _MISSING), values)):
            return False
        for x, dtype, shape, needs in self._tensors:
            if x.dtype is not dtype or x.shape != shape or x.requires_grad is not needs:
                return False
        for owner, before in self._sequences:
            if len(owner) != len(before) or not all(map(is_, owner, before)):
                return False
        owners, values = self._cells
        if not all(map(is_, _contents(owners), values)):
            return False
        for name, value in self._own:
            if getattr(fn, name, MISSING) is not value:
                return False
        owners, names, values = self._attributes
        if not all(map(is_, map(getattr, owners, names, _MISSING), values)):
            return False
        for a, b in self._arrays:
            if not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
                return False
        return self._bytes.hold() and (not self._constants[0] or self._constants_hold())

    def _constants_hold(self) -> bool:
        with contextlib.suppress(RuntimeError):  # they are of two devices
            if all(map(torch.equal, *self._constants)):
                return True
        return all(map(same, *self._constants))


class _Bytes:
    """Small tensors in the host's memory, compared byte by byte where they lie: to compare them as
    tensors takes microseconds each. (Zeros of another sign, and no NaN, are other values here.)"""

    def __init__(self, constants: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._tensors = [x for x, _ in constants]
        self._places = self._where()
        copies = [copy.contiguous() for _, copy in constants]
        sizes, addresses = [copy.nbytes for copy in copies], self._places[0]
        self._values = list(map(ctypes.string_at, map(Tensor.data_ptr, copies), sizes))
        # Not by numpy: a tensor of which it has a view cannot be resized any more.
        self._memory = [
            (ctypes.c_char * n).from_address(at) for n, at in zip(sizes, addresses, strict=True)
        ]

    def _where(self) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, self._tensors)), list(map(Tensor.numel, self._tensors))

    @staticmethod
    def can_be(x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.layout == torch.strided and x.is_contiguous()
        plain = plain and not (x.is_conj() or x.is_neg()) and type(x) in (Tensor, nn.Parameter)
        return plain and 0 < x.numel() * x.element_size() <= _SMALL

    def hold(self) -> bool:
        """Whether the tensors lie where they lay, and hold what they held."""
        return self._where() == self._places and list(map(_RAW, self._memory)) == self._values


def _contents(cells: list[Any]) -> list[Any]:
    try:
        return list(map(_CONTENTS, cells))
    except ValueError:  # a name is not bound yet
        return list(map(content, cells))


def same(tensor: Tensor, copy: Tensor) -> bool:
    """Equal in shape, dtype, device and value, NaN being equal to NaN."""
    alike = tensor.shape == copy.shape and tensor.dtype == copy.dtype
    if not alike or tensor.device != copy.device:
        return False
    return torch.equal(tensor, copy) or torch.allclose(tensor, copy, 0, 0, equal_nan=True)
