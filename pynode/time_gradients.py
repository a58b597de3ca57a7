"""Gradients with respect to times.

For z(t; t0, z0), the solution that starts at (t0, z0): ∂z/∂t = f(t, z(t)) and, since starting
later by δ from the same z0 is starting at t0 from z0 − δ·f(t0, z0), the gradient of t0 is that
of z0 times −f.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pynode.field import FlatField
from pynode.problem import ODEProblem
from pynode.times import OwnTimes


def carry(field: FlatField, t: float | Tensor, z: Tensor, s: Tensor, rows: int | None) -> Tensor:
    """z at time ``t``, carried along the flow for a duration ``s`` of value zero.

    One explicit midpoint step of length s: its value is z, its derivatives with respect to t,
    s and z are those of the flow, to second order where s is one number.

    Args:
        s: 0-d, or (rows,) for a duration of each sample's own (to first order, t a number).
    """
    s = s.to(z)
    if s.ndim:
        f = field(t, z).detach().reshape(rows, -1)  # type: ignore[arg-type]
        return (z.reshape(rows, -1) + s.unsqueeze(1) * f).reshape(-1)  # type: ignore[arg-type]
    middle = z + 0.5 * s * field(t, z)
    return z + s * field(t + 0.5 * s, middle)


def zero_shift(t: Tensor) -> Tensor:
    """Zero, with derivative one in ``t``."""
    return t - t.detach()


def output_slopes(field: FlatField, problem: ODEProblem, zs: Tensor) -> Tensor:
    """f(t_i, z_i) at all outputs, (T, N): one evaluation for each distinct time of each sample."""
    times = problem.times
    if not times.per_sample:
        return torch.stack([field(t, z) for t, z in zip(times.values, zs, strict=True)])
    if isinstance(times, OwnTimes):
        return _own_slopes(field, times, zs)
    rows = len(times.values)
    clean = torch.nan_to_num(zs).reshape(len(zs), rows, -1)
    slopes = torch.zeros_like(clean)
    for b, row in enumerate(times.values):
        for i, t in enumerate(row):
            if t == t:  # padding is NaN
                slopes[i, b] = field(t, clean[i].reshape(-1)).reshape(rows, -1)[b]
    return slopes.reshape(len(zs), -1)


def _own_slopes(field: FlatField, times: OwnTimes, zs: Tensor) -> Tensor:
    """The same where the field takes each sample's own time: one evaluation for each slot."""
    slopes = torch.zeros_like(zs)
    start = torch.nan_to_num(zs.reshape(len(zs), times.samples, -1)[0])
    for i, z in enumerate(zs.reshape(len(zs), times.samples, -1)):
        known = ~z.isnan().any(dim=1, keepdim=True)
        t = np.where(known.squeeze(1).cpu().numpy(), times.values[:, i], times.start)
        value = field(t, torch.where(known, z, start))  # type: ignore[arg-type]
        slopes[i] = torch.where(known, value, 0.0).reshape(-1)
    return slopes


def output_time_gradient(field: FlatField, problem: ODEProblem, zs: Tensor, grad: Tensor) -> Tensor:
    """dL/dt, in the shape of t, from dL/dzs (T, N)."""
    times = problem.times
    products = torch.nan_to_num(grad) * output_slopes(field, problem, zs)
    if not times.per_sample:
        return products.sum(dim=1).to(times.t)
    per_sample = products.reshape(len(zs), len(times.values), -1).sum(dim=2)
    return per_sample.t().to(times.t)


def initial_time_gradient(
    field: FlatField, problem: ODEProblem, z0: Tensor, grad_z0: Tensor
) -> Tensor:
    """dL/dt0 from dL/dz0 (N,): 0-d, or (B,) where each sample has its own t0."""
    t0 = problem.times.t0
    product = -grad_z0 * field(problem.times.start, z0)
    if not t0.ndim:
        return product.sum().to(t0)
    return product.reshape(len(t0), -1).sum(dim=1).to(t0)


def shift_outputs(field: FlatField, problem: ODEProblem, zs: Tensor) -> Tensor:
    """zs (T, N) as a differentiable function of the times at which it was read off."""
    times = problem.times
    s = zero_shift(times.t)
    if not times.per_sample:
        moved = [
            carry(field, t, z, s_i, None) for t, z, s_i in zip(times.values, zs, s, strict=True)
        ]
        return torch.stack(moved)
    with torch.no_grad():
        slopes = output_slopes(field, problem, zs).reshape(len(zs), len(times.values), -1)
    return zs + (torch.nan_to_num(s).t().unsqueeze(2).to(zs) * slopes).reshape(len(zs), -1)
