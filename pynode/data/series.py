"""The container of irregular time series: each series has its own times, values may be missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pynode.errors import InputError

Index: TypeAlias = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class IrregularSeries:
    """B series of up to T observations of C coordinates, padded at the end.

    An observation has a time and up to C values; those that are missing have ``mask`` False. The
    fields are tensors of one floating dtype on one device and are not to be changed in place.

    Attributes:
        times: (B, T), finite and strictly increasing in each row, NaN where padded.
        values: (B, T, C), finite where observed; 0 elsewhere, whatever was given there.
        mask: (B, T, C) bool, True where observed; False where padded.

    Raises:
        InputError: shapes, dtypes or devices do not fit, times are not finite and increasing
            before the padding, an observed value is not finite, or a series has no value at all.
    """

    times: Tensor
    values: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        _check_shapes(self.times, self.values, self.mask)
        _check_times(self.times)
        _check_values(self.times, self.values, self.mask)
        clean = self.values.masked_fill(~self.mask, 0.0)
        object.__setattr__(self, "values", clean)

    # -- in and out ---------------------------------------------------------------------------

    @classmethod
    def from_ragged(cls, times: Sequence[Tensor], values: Sequence[Tensor]) -> IrregularSeries:
        """Pad series of different lengths.

        Args:
            times: B tensors (n_b,), each increasing, with n_b >= 1.
            values: B tensors (n_b, C), NaN where missing. Times take on their dtype.

        Raises:
            InputError: the lists or lengths do not match, or as for the class.
        """
        if len(times) != len(values):
            raise InputError(
                f"{len(times)} tensors of times but {len(values)} of values: each series needs both"
            )
        if len(times) == 0:
            raise InputError("there is no series: give at least one")
        for b, (t, x) in enumerate(zip(times, values, strict=True)):
            _check_ragged(b, t, x, values[0])
        dtype = values[0].dtype
        padded = pad_sequence(list(values), batch_first=True, padding_value=math.nan)
        return cls(
            times=pad_sequence(
                [t.to(dtype) for t in times], batch_first=True, padding_value=math.nan
            ),
            values=padded,
            mask=~padded.isnan(),
        )

    def ragged(self) -> tuple[list[Tensor], list[Tensor]]:
        """What :meth:`from_ragged` takes: B times (n_b,) and B values (n_b, C) with NaN."""
        values = self.values.masked_fill(~self.mask, math.nan)
        lengths = self.lengths.tolist()
        return (
            [t[:n] for t, n in zip(self.times, lengths, strict=True)],
            [x[:n] for x, n in zip(values, lengths, strict=True)],
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> IrregularSeries:
        """The series on another device, or in another floating dtype."""
        device = self.values.device if device is None else torch.device(device)
        dtype = self.values.dtype if dtype is None else dtype
        return IrregularSeries(
            self.times.to(device, dtype), self.values.to(device, dtype), self.mask.to(device)
        )

    # -- sizes --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return (
            f"IrregularSeries({len(self)} series of up to {self.times.shape[1]} observations of "
            f"{self.coordinates} coordinates, {self.n_observed} values)"
        )

    @property
    def coordinates(self) -> int:
        return self.values.shape[2]

    @property
    def valid(self) -> Tensor:
        """(B, T) bool: True where there is an observation, False where padded."""
        return ~self.times.isnan()

    @property
    def lengths(self) -> Tensor:
        """(B,) number of observations of each series."""
        return self.valid.sum(dim=1)

    @property
    def n_observed(self) -> int:
        """Number of observed values of all series and coordinates together."""
        return int(self.mask.sum())

    # -- parts --------------------------------------------------------------------------------

    def __getitem__(self, index: Index) -> IrregularSeries:
        """Some of the series, with no more padding than they need.

        Args:
            index: a number (which gives one series, B = 1), a slice, a list or tensor of
                numbers, or a bool tensor (B,).

        Raises:
            IndexError: a series that does not exist.
        """
        rows = as_rows(index, len(self), self.times.device)
        return _trimmed(self.times[rows], self.values[rows], self.mask[rows])

    def split(self, fractions: Sequence[float], seed: int) -> tuple[IrregularSeries, ...]:
        """Disjoint random parts that together are all series, see :func:`split_rows`."""
        return tuple(self[rows] for rows in split_rows(len(self), fractions, seed))

    def before(self, t: float) -> IrregularSeries:
        """The observations earlier than ``t``.

        Raises:
            InputError: a series has no value before ``t``.
        """
        keep = self.times < t
        try:
            return _trimmed(
                self.times.masked_fill(~keep, math.nan),
                self.values,
                self.mask & keep.unsqueeze(-1),
            )
        except InputError as error:
            raise InputError(f"before(t={t:g}): {error}") from None

    def union(self) -> tuple[Tensor, Tensor, Tensor]:
        """All series on the one grid of all their times.

        Returns:
            grid (U,), strictly increasing; values (B, U, C), 0 where not observed; mask (B, U, C).
        """
        valid = self.valid
        grid = self.times[valid].unique()
        row, column = valid.nonzero(as_tuple=True)
        slot = torch.searchsorted(grid, self.times[valid])
        shape = (len(self), len(grid), self.coordinates)
        values, mask = self.values.new_zeros(shape), self.mask.new_zeros(shape)
        values[row, slot] = self.values[row, column]
        mask[row, slot] = self.mask[row, column]
        return grid, values, mask

    @staticmethod
    def concatenate(parts: Sequence[IrregularSeries]) -> IrregularSeries:
        """The series of all parts, one after the other.

        Raises:
            InputError: there is no part, or they differ in coordinates, dtype or device.
        """
        if not parts:
            raise InputError("there is nothing to concatenate")
        kinds = {(p.coordinates, p.values.dtype, p.values.device) for p in parts}
        if len(kinds) > 1:
            listed = "; ".join(sorted(f"{c} coordinates, {dt}, {dev}" for c, dt, dev in kinds))
            raise InputError(f"the parts are of different kinds ({listed}): convert them first")
        longest = max(p.times.shape[1] for p in parts)
        padded = [p.padded(longest) for p in parts]
        return IrregularSeries(
            torch.cat([p.times for p in padded]),
            torch.cat([p.values for p in padded]),
            torch.cat([p.mask for p in padded]),
        )

    def padded(self, length: int) -> IrregularSeries:
        """The same series with T = ``length``, which is at least the present T."""
        extra = length - self.times.shape[1]
        if extra < 0:
            raise InputError(f"cannot pad {self.times.shape[1]} observations to {length}: too few")
        pad = torch.nn.functional.pad
        return IrregularSeries(
            pad(self.times, (0, extra), value=math.nan),
            pad(self.values, (0, 0, 0, extra)),
            pad(self.mask, (0, 0, 0, extra)),
        )


def as_rows(index: Index, count: int, device: torch.device) -> Tensor:
    """An index of one dimension of size ``count`` as a tensor of row numbers."""
    if isinstance(index, int):
        if not -count <= index < count:
            raise IndexError(f"series {index} of {count}")
        index = [index % count]
    rows = torch.arange(count, device=device)
    if isinstance(index, slice):
        return rows[index]
    chosen = torch.as_tensor(index, device=device)
    if chosen.numel() == 0:
        chosen = chosen.long()
    return rows[chosen].reshape(-1)


def split_rows(count: int, fractions: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Row numbers 0..count-1 in random disjoint parts of the given relative sizes.

    Args:
        fractions: sizes of the parts, positive, with sum 1; the borders are rounded, so that
            every row is in exactly one part.
        seed: the same seed gives the same parts.

    Raises:
        InputError: the fractions are not positive numbers with sum 1.
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions {tuple(fractions)}: positive numbers with sum 1 are needed")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    borders = [round(count * sum(fractions[:i])) for i in range(1, len(fractions))]
    return tuple(order.tensor_split(borders))


def _trimmed(times: Tensor, values: Tensor, mask: Tensor) -> IrregularSeries:
    longest = int((~times.isnan()).sum(dim=1).max()) if len(times) else 0
    return IrregularSeries(times[:, :longest], values[:, :longest], mask[:, :longest])


def _check_ragged(b: int, t: Tensor, x: Tensor, first: Tensor) -> None:
    if t.ndim != 1 or x.ndim != 2:
        raise InputError(
            f"series {b}: times have shape {tuple(t.shape)} and values {tuple(x.shape)}; needed "
            "are (n,) and (n, C). For a single coordinate use values.unsqueeze(-1)"
        )
    if len(t) != len(x):
        raise InputError(f"series {b}: {len(t)} times but {len(x)} rows of values")
    if len(t) == 0:
        raise InputError(f"series {b} has no observation at all: leave it out")
    if x.shape[1] != first.shape[1]:
        raise InputError(
            f"series {b} has {x.shape[1]} coordinates, series 0 has {first.shape[1]}: mark "
            "coordinates that are missing by NaN"
        )
    if not x.is_floating_point() or x.dtype != first.dtype:
        raise InputError(
            f"series {b} has values of {x.dtype}, series 0 of {first.dtype}: use one floating dtype"
        )
    if not t.isfinite().all():
        raise InputError(f"series {b}: a time is NaN or infinite: every observation needs its time")


def _check_shapes(times: Tensor, values: Tensor, mask: Tensor) -> None:
    shapes = f"times {tuple(times.shape)}, values {tuple(values.shape)}, mask {tuple(mask.shape)}"
    fits = (
        times.ndim == 2
        and values.ndim == 3
        and values.shape[:2] == times.shape
        and mask.shape == values.shape
        and values.shape[2] > 0
    )
    if not fits:
        raise InputError(f"{shapes}: needed are (B, T), (B, T, C) and (B, T, C) with C > 0")
    if mask.dtype != torch.bool:
        raise InputError(f"the mask has dtype {mask.dtype}: use mask.bool()")
    if not times.is_floating_point() or times.dtype != values.dtype:
        raise InputError(
            f"times have dtype {times.dtype} and values {values.dtype}: use one floating dtype"
        )
    if len({times.device, values.device, mask.device}) > 1:
        raise InputError("times, values and mask lie on different devices: move them to one")


def _check_times(times: Tensor) -> None:
    padded = times.isnan()
    if (b := _first_row(times.isinf())) is not None:
        raise InputError(f"series {b}: a time is infinite")
    if (b := _first_row(padded[:, :-1] & ~padded[:, 1:])) is not None:
        raise InputError(f"series {b}: a time is NaN before the last one: NaN only pads the end")
    if (b := _first_row(times[:, 1:] <= times[:, :-1])) is not None:
        i = int((times[b, 1:] <= times[b, :-1]).nonzero()[0])
        first, second = times[b, i : i + 2].tolist()
        how = "is there twice" if first == second else f"is followed by {second:g}"
        raise InputError(
            f"series {b}: times must increase strictly, but {first:g} {how}: sort them, and merge "
            "observations of one moment"
        )


def _check_values(times: Tensor, values: Tensor, mask: Tensor) -> None:
    if (b := _first_row((times.isnan().unsqueeze(-1) & mask).flatten(1))) is not None:
        raise InputError(f"series {b}: a value is marked as observed where there is no time")
    if (b := _first_row((mask & ~values.isfinite()).flatten(1))) is not None:
        raise InputError(
            f"series {b}: an observed value is NaN or infinite: set its mask to False (NaN in "
            "from_ragged does so) if it is missing"
        )
    if (b := _first_row(~mask.flatten(1).any(dim=1, keepdim=True))) is not None:
        raise InputError(f"series {b} has no observation at all: leave it out")


def _first_row(bad: Tensor) -> int | None:
    """The first row with a True in it."""
    rows = bad.any(dim=1)
    return int(rows.nonzero()[0]) if bool(rows.any()) else None
