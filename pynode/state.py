"""Flattening of states: engines see one real vector, users their own structure."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.errors import FieldError, InputError

State = Any
"""A tensor, or a (nested) tuple, list or dict of tensors."""

_LEAF = pytree.tree_structure(0)


class StateLayout:
    """How a state of the user's is laid out in one real vector of ``size`` entries.

    A complex tensor counts as its real and imaginary parts. Where all tensors share their
    leading dimension B, the vector is a row-major (B, size / B) matrix, one row a sample, so
    that a sample's entries lie together; otherwise the tensors follow each other.

    Attributes:
        size: number of real entries.
        rows: B, or None where there is no common leading dimension.
        dtype: real dtype of the vector.
        device: device of the state.
        plain: the state is one real tensor.
        sizes: the first tensor's shape as arguments of ``view``, which takes numbers one by one
            faster than a tuple.
    """

    def __init__(self, z0: State) -> None:
        leaves, self.spec = ([z0], _LEAF) if type(z0) is Tensor else pytree.tree_flatten(z0)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            kinds = sorted({type(leaf).__name__ for leaf in leaves}) or ["nothing"]
            raise InputError(
                "the state z0 must be a tensor, or a tuple or dict of tensors; "
                f"it holds {', '.join(kinds)}. Wrap numbers and arrays in torch.as_tensor."
            )
        self.shapes = [tuple(leaf.shape) for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.device = leaves[0].device
        self.single = self.spec is _LEAF or self.spec == _LEAF
        self._check(leaves)
        self.dtype = real_dtype(self.dtypes[0])
        self.rows = self._common_rows()
        parts = [2 if dtype.is_complex else 1 for dtype in self.dtypes]
        per = self.rows or 1
        self.widths = [
            math.prod(shape) * p // per for shape, p in zip(self.shapes, parts, strict=True)
        ]
        self.width = sum(self.widths)
        self.size = self.width * per
        self._keys = list(z0) if isinstance(z0, dict) else []
        self.plain = self.single and not self.dtypes[0].is_complex
        self.sizes = _sizes(self.shapes[0])
        self._of_rows: dict[int, StateLayout] = {}

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for states of equal structure, shapes and dtypes."""
        return tuple(self.shapes), tuple(self.dtypes), str(self.spec)

    @classmethod
    def of(cls, z0: State) -> StateLayout:
        """The layout of a state, shared by all states of one tensor like it: not to be changed."""
        if type(z0) is not Tensor:
            return cls(z0)
        key = (z0.shape, z0.dtype, z0.device)
        found = _LAYOUTS.get(key)
        if found is None:
            if len(_LAYOUTS) >= 256:
                _LAYOUTS.clear()
            found = _LAYOUTS[key] = cls(z0)
        return found

    def _check(self, leaves: list[Tensor]) -> None:
        for leaf in leaves:
            if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
                raise InputError(
                    f"the state has dtype {leaf.dtype}: integers have no derivative. "
                    "Use z0.to(torch.get_default_dtype())."
                )
            if leaf.numel() == 0:
                raise InputError(f"the state has a tensor of shape {tuple(leaf.shape)}: no entries")
        if len({leaf.device for leaf in leaves}) > 1:
            devices = sorted({str(leaf.device) for leaf in leaves})
            raise InputError(f"the state lies on several devices ({', '.join(devices)}): move it")
        if len({real_dtype(leaf.dtype) for leaf in leaves}) > 1:
            dtypes = sorted({str(leaf.dtype) for leaf in leaves})
            raise InputError(
                f"the state mixes precisions ({', '.join(dtypes)}): cast its tensors to one"
            )

    def _common_rows(self) -> int | None:
        leading = {shape[0] if shape else None for shape in self.shapes}
        rows = leading.pop()
        if leading or rows is None or (self.single and len(self.shapes[0]) < 2):
            return None
        return rows

    def batch(self, samples: int) -> None:
        """Read the first dimension as the batch, for states whose samples are single numbers."""
        if any(not shape or shape[0] != samples for shape in self.shapes):
            raise InputError(
                f"times for {samples} samples were given, but the state has shape "
                f"{self.shapes[0] if self.single else self.shapes}: its first dimension must be "
                "the batch"
            )
        if self.rows is None:
            self.rows = samples
            self.widths = [w // samples for w in self.widths]
            self.width //= samples

    def of_rows(self, rows: int) -> StateLayout:
        """The layout of a state with as many samples."""
        assert self.rows is not None
        if rows == self.rows:
            return self
        found = self._of_rows.get(rows)
        if found is None:
            found = self._of_rows[rows] = copy.copy(self)
            vars(found).pop("key", None)
            found.shapes = [(rows, *shape[1:]) for shape in self.shapes]
            found.sizes = _sizes(found.shapes[0])
            found.rows, found.size = rows, rows * self.width
        return found

    def flatten(self, state: State) -> Tensor:
        """The state as a vector (size,)."""
        if self.plain:
            return state.reshape(-1)
        leaves = pytree.tree_leaves(state)
        if len(leaves) == 1:
            one = leaves[0]
            return (torch.view_as_real(one.resolve_conj()) if one.is_complex() else one).reshape(-1)
        # Not view_as_real, whose backward pass refuses cotangents at odd places of a vector.
        parts = [torch.stack((x.real, x.imag), -1) if x.is_complex() else x for x in leaves]
        if self.rows is None:
            return torch.cat([part.reshape(-1) for part in parts])
        return torch.cat([part.reshape(self.rows, -1) for part in parts], dim=1).reshape(-1)

    def restore(self, flat: Tensor) -> State:
        """A vector (..., size) as the user's state, leading dimensions kept."""
        if self.plain and flat.ndim == 1:
            return flat.view(*self.sizes)
        if self.plain and flat.ndim == 2:  # as below, without what slicing a shape costs
            return flat.reshape(flat.shape[0], *self.shapes[0])
        lead = flat.shape[:-1]
        if self.plain:
            return flat.reshape((*lead, *self.shapes[0]))
        if self.rows is None:
            pieces = flat.split(self.widths, dim=-1)
        else:
            matrix = flat.reshape((*lead, self.rows, self.width))
            pieces = matrix.split(self.widths, dim=-1)
        leaves = [
            _as_complex(piece.reshape((*lead, *shape, 2)))
            if dtype.is_complex
            else piece.reshape(lead + shape)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.spec)

    def flatten_derivative(self, value: State) -> Tensor:
        """What a field returned as a vector (size,), after checking that it fits the state.

        Raises:
            FieldError: the structure, a shape, a dtype or the device differs from the state's.
        """
        if self.plain:
            if (
                isinstance(value, Tensor)
                and value.shape == self.shapes[0]
                and value.dtype == self.dtypes[0]
            ):
                return value.reshape(-1)
            raise FieldError(self._mismatch(value))
        if self._keys and isinstance(value, dict) and set(value) == set(self._keys):
            value = {key: value[key] for key in self._keys}  # in z0's order
        leaves, spec = pytree.tree_flatten(value)
        fits = spec == self.spec and all(
            isinstance(x, Tensor) and tuple(x.shape) == shape and x.dtype == dtype
            for x, shape, dtype in zip(leaves, self.shapes, self.dtypes, strict=True)
        )
        if not fits:
            raise FieldError(self._mismatch(value))
        return self.flatten(value)

    def _mismatch(self, value: State) -> str:
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.spec:
            return (
                f"the field returned {_describe(value)}, but the state is a {self.describe()}: "
                "return the time derivative in the same structure"
            )
        for got, shape, dtype in zip(leaves, self.shapes, self.dtypes, strict=True):
            if not isinstance(got, Tensor):
                return f"the field returned a {type(got).__name__} where a tensor is needed"
            if tuple(got.shape) != shape:
                return (
                    f"the field returned shape {tuple(got.shape)} for a state of shape {shape}: "
                    "a derivative has the shape of the state"
                )
            if got.dtype != dtype:
                return (
                    f"the field returned dtype {got.dtype} for a state of dtype {dtype}: cast the "
                    "state, or the field's parameters (field.double(), z0.float(), ...)"
                )
        return f"the field returned {_describe(value)}, which does not fit the state"

    def describe(self) -> str:
        if self.single:
            return f"tensor of shape {self.shapes[0]} and dtype {self.dtypes[0]}"
        return f"structure of {len(self.shapes)} tensors of shapes {self.shapes}"

    def locate(self, entry: int) -> tuple[int | None, str]:
        """Sample index (or None) and a readable place of a flat entry."""
        if self.rows is None:
            return None, f"state entry {entry}"
        sample, column = divmod(entry, self.width)
        return sample, f"sample {sample}, state entry {column}"


_LAYOUTS: dict[tuple, StateLayout] = {}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _sizes(shape: tuple[int, ...]) -> tuple[Any, ...]:
    return shape or ((),)  # for one number: view() without arguments is an error


def _as_complex(pairs: Tensor) -> Tensor:
    return torch.complex(pairs[..., 0], pairs[..., 1])


def _describe(value: State) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
