"""Controls: inputs that change in time, interpolated from data, differentiable in it.

They travel to the field in ``args`` (alone or anywhere in a nest): neural controlled
differential equations dz/dt = f(z)·dx/dt, and driven systems dz/dt = f(z, x(t)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.errors import InputError

KINDS = ("cubic", "linear", "hermite")


class Control:
    """x(t) through given points.

    Outside its times it stays at the first or last value, so its derivative is 0 there: the state
    of a neural CDE then keeps what it was when the sample's series ended.

    Where x or its derivative jumps, steps should end. A solve whose ``args`` hold a control
    therefore takes as ``tstops``, unless told otherwise: all knots of a linear one (its derivative
    jumps there); the first and the last time of the others, which have continuous derivatives in
    between. Where each sample has times of its own it takes none, as they would be too many.

    Args:
        ts: (T,) increasing times, T ≥ 2, that all samples share, or (B, T) each sample's own,
            padded with NaN at the end.
        xs: (..., T, C) values, or (T,) for one number; with (B, T) times (B, T, C). NaN is a
            missing value: it is filled linearly between the known ones of the same channel before
            and after it, and by the nearest known one at the ends.
        kind: ``"cubic"``, natural cubic splines (twice differentiable, but x(t) depends on later
            points); ``"linear"``; ``"hermite"``, cubic with backward differences as slopes
            (Morrill, Kidger, Yang, Lyons 2021, Neural controlled differential equations for
            online prediction tasks: once differentiable, and up to a knot x(t) depends on nothing
            later than the knot).
        tstops: whether its knots are tstops of a solve; default: as said above.

    Attributes:
        knots: what a solve takes as tstops.

    Raises:
        InputError: shapes do not fit, times do not increase, or a channel has no value at all.

    Example:
        >>> x = Control(ts, xs)  # ts (T,), xs (B, T, C)
        >>> node = NeuralODE(lambda t, z, x: f(z, x.derivative(t)))
        >>> zs = node(z0, [0.0, 1.0], x)
    """

    def __init__(self, ts: Any, xs: Tensor, kind: str = "cubic", tstops: bool | None = None):
        if kind not in KINDS:
            raise InputError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
        times, values = _checked(ts, xs)
        self.kind = kind
        self.own_times = times.ndim == 2
        self._numbers = values.ndim == 1
        self.knots = _knots(times, kind, tstops)
        times = times.to(values)
        x = values.unsqueeze(-1) if self._numbers else values
        x = x.movedim(-2, 0)  # (T, ..., C)
        t = times.t().unsqueeze(-1) if self.own_times else times
        shape = t.shape if self.own_times else (-1, *(1,) * (x.ndim - 1))
        t = t.reshape(shape)  # (T, B, 1) or (T, 1, ...)
        real = ~t.detach().isnan()
        filled = _fill(t, x, real)
        # Padding: constant pieces of length 1 after the last time, never looked at.
        steps = torch.where(real[1:], t[1:] - t[:-1], 1.0)
        pieces = _COEFFICIENTS[kind](steps, filled, real[1:])
        constant = [torch.zeros_like(filled[:1])] * (len(pieces) - 1)
        before, after = [filled[:1], *constant], [filled[-1:], *constant]
        self.coefficients = torch.stack(
            [torch.cat(parts) for parts in zip(before, pieces, after, strict=True)], dim=1
        )
        flat = times.t() if self.own_times else times
        self.lefts = torch.cat([flat[:1], flat])
        self.edges = _edges(times.detach())

    def __call__(self, t: float | Tensor) -> Tensor:
        """x(t), (..., C) or (B, C); for ``t`` of any shape, with its shape before."""
        return self._at(t, self._value)

    def derivative(self, t: float | Tensor) -> Tensor:
        """dx/dt at t, shaped as x(t); at a knot where it jumps, that of the later piece."""
        return self._at(t, self._slope)

    def __repr__(self) -> str:
        pieces, _, *shape = self.coefficients.shape
        return f"Control({self.kind}, {pieces - 1} times, x(t) {tuple(shape)})"

    def _at(self, t: float | Tensor, what: Any) -> Tensor:
        if not isinstance(t, Tensor):
            t = torch.full((), t, dtype=self.lefts.dtype, device=self.lefts.device)
        if t.ndim:
            flat = torch.stack([self._at(s, what) for s in t.reshape(-1)])
            return flat.reshape(*t.shape, *flat.shape[1:])
        t = t.to(self.lefts)
        here = t.detach().reshape(1)
        if self.own_times:
            here = here.repeat(len(self.edges), 1)
        k = torch.searchsorted(self.edges, here, right=True)
        if self.own_times:
            k = k[:, 0]
            rows = torch.arange(len(k), device=k.device)
            c = self.coefficients[k, :, rows].unbind(1)
            u = (t - self.lefts[k, rows]).unsqueeze(-1)
        else:
            c = self.coefficients.index_select(0, k)[0].unbind(0)
            u = t - self.lefts.index_select(0, k)[0]
        found = what(u, c)
        return found[..., 0] if self._numbers else found

    @staticmethod
    def _value(u: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        value = c[-1]
        for coefficient in c[-2::-1]:
            value = torch.addcmul(coefficient, u, value)
        return value

    @staticmethod
    def _slope(u: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        if len(c) == 2:
            return c[1]
        return c[1] + u * (2.0 * c[2] + 3.0 * u * c[3])


def controls(args: Any) -> list[Control]:
    """The controls among ``args``."""
    leaves = pytree.tree_leaves(args, is_leaf=lambda x: isinstance(x, Control))
    return [leaf for leaf in leaves if isinstance(leaf, Control)]


def _checked(ts: Any, xs: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(xs, Tensor) or not xs.is_floating_point():
        kind = xs.dtype if isinstance(xs, Tensor) else type(xs).__name__
        raise InputError(f"a control's values are a floating-point tensor, not {kind}")
    times = ts if isinstance(ts, Tensor) else torch.as_tensor(ts, dtype=torch.float64)
    times = (times if times.is_floating_point() else times.double()).to(xs.device)
    if times.ndim == 2:
        fits = xs.ndim == 3 and xs.shape[:2] == times.shape
    else:
        length = xs.shape[0 if xs.ndim == 1 else -2] if xs.ndim else 0
        fits = times.ndim == 1 and length == len(times) and xs.numel() > 0
    if not fits:
        raise InputError(
            f"a control's times have shape {tuple(times.shape)} and its values "
            f"{tuple(xs.shape)}: give (T,) and (..., T, C), or (B, T) and (B, T, C)"
        )
    rows = times.detach() if times.ndim == 2 else times.detach().unsqueeze(0)
    real = ~rows.isnan()
    gaps = (real[:, 1:] & ~real[:, :-1]).any()
    steps = rows[:, 1:] - rows[:, :-1]
    if rows.isinf().any() or gaps or not real[:, 0].all():
        raise InputError("a control's times hold infinity, or NaN not at the end of a row")
    if times.ndim == 1 and (len(times) < 2 or not real.all()):
        raise InputError("a control needs two or more times, none of them NaN")
    if not ((steps > 0) | ~real[:, 1:]).all():
        raise InputError("a control's times must increase, without repetition, along each row")
    if xs.detach().isinf().any():
        raise InputError("a control's values hold infinity; NaN stands for missing values")
    return times, xs


def _knots(times: Tensor, kind: str, tstops: bool | None) -> tuple[float, ...]:
    if tstops is None:
        tstops = times.ndim == 1
    if not tstops:
        return ()
    if kind != "linear":
        ends = [times[..., 0], torch.where(times.isnan(), -math.inf, times).amax(-1)]
        times = torch.stack(ends)
    found = times.detach().double().reshape(-1)
    return tuple(sorted({t for t in found.tolist() if not math.isnan(t)}))


def _edges(times: Tensor) -> Tensor:
    """Times to search, (T,) or (B, T): the last belongs to the piece before it."""
    padded = torch.where(times.isnan(), math.inf, times).clone()
    last = (~times.isnan()).sum(dim=-1, keepdim=True) - 1
    value = padded.gather(-1, last)
    return padded.scatter(-1, last, torch.nextafter(value, torch.full_like(value, math.inf)))


def _fill(t: Tensor, x: Tensor, real: Tensor) -> Tensor:
    """x (T, ..., C) without NaN: linear between known values, constant beyond, and in padding."""
    known = ~x.detach().isnan() & real
    if known.all():
        return x
    if not known.any(dim=0).all():
        where = tuple((~known.any(dim=0)).nonzero()[0].tolist())
        raise InputError(f"a control has no value at all at index {where} of (..., channel)")
    count = len(x)
    index = torch.arange(count, device=x.device).reshape(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
    before = torch.where(known, index, -1).cummax(dim=0).values
    after = torch.where(known, index, count).flip(0).cummin(dim=0).values.flip(0)
    left = torch.where(before < 0, after, before)
    right = torch.where(after == count, before, after)
    clean = torch.where(known, x, 0.0)
    times = torch.where(real, t, 0.0).expand(x.shape)
    x_left, x_right = clean.gather(0, left), clean.gather(0, right)
    t_left, t_right = times.gather(0, left), times.gather(0, right)
    span = torch.where(left == right, 1.0, t_right - t_left)
    filled = x_left + (x_right - x_left) * torch.where(left == right, 0.0, (times - t_left) / span)
    return torch.where(known, x, filled)


def _linear(h: Tensor, x: Tensor, real: Tensor) -> list[Tensor]:
    return [x[:-1], (x[1:] - x[:-1]) / h]


def _hermite(h: Tensor, x: Tensor, real: Tensor) -> list[Tensor]:
    ahead = (x[1:] - x[:-1]) / h
    slope = torch.cat([ahead[:1], ahead[:-1]])
    # Padding is constant, but the slope before it must not run on into it.
    slope = torch.where(real, slope, 0.0)
    return [x[:-1], slope, 2.0 * (ahead - slope) / h, (slope - ahead) / h**2]


def _cubic(h: Tensor, x: Tensor, real: Tensor) -> list[Tensor]:
    """Natural cubic splines, by the tridiagonal system for the second derivatives m."""
    ahead = (x[1:] - x[:-1]) / h
    inner = real[1:]  # knots 1 to T - 2 that are not the last of their row
    m = _tridiagonal(
        torch.where(inner, h[:-1], 0.0),
        torch.where(inner, 2.0 * (h[:-1] + h[1:]), 1.0),
        torch.where(inner, h[1:], 0.0),
        torch.where(inner, 6.0 * (ahead[1:] - ahead[:-1]), 0.0),
    )
    zero = torch.zeros_like(x[:1])
    m = torch.cat([zero, m, zero])
    slope = ahead - h * (2.0 * m[:-1] + m[1:]) / 6.0
    pieces = [slope, 0.5 * m[:-1], (m[1:] - m[:-1]) / (6.0 * h)]
    return [x[:-1], *(torch.where(real, piece, 0.0) for piece in pieces)]


def _tridiagonal(lower: Tensor, diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """Solve tridiagonal systems along the first dimension (Thomas' algorithm)."""
    if not len(right):
        return right
    factors: list[Tensor] = []
    values: list[Tensor] = []
    for low, mid, up, r in zip(lower, diagonal, upper, right, strict=True):
        pivot = mid - low * factors[-1] if factors else mid
        values.append((r - low * values[-1]) / pivot if values else r / pivot)
        factors.append(up / pivot)
    solved = [values[-1]]
    for factor, value in zip(factors[-2::-1], values[-2::-1], strict=True):
        solved.append(value - factor * solved[-1])
    return torch.stack(solved[::-1])


_COEFFICIENTS = {"linear": _linear, "hermite": _hermite, "cubic": _cubic}


def _flatten(control: Control) -> tuple[list[Any], Any]:
    children = [control.coefficients, control.lefts, control.edges]
    return children, (control.kind, control.own_times, control._numbers, control.knots)


def _unflatten(children: Any, context: Any) -> Control:
    control = object.__new__(Control)
    control.coefficients, control.lefts, control.edges = children
    control.kind, control.own_times, control._numbers, control.knots = context
    return control


# Tensors in a control are found wherever args are taken apart.
pytree.register_pytree_node(
    Control, _flatten, _unflatten, serialized_type_name="pynode.control.Control"
)
