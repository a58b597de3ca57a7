"""Programs against torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pynode.errors import LoweringError
from pynode.field import FlatField
from pynode.lowering.instructions import Array
from pynode.lowering.lowered import LoweredField, as_array
from pynode.lowering.trace import PROGRAMS, derivative, plain_kernels

TOLERANCE = {"float32": 1e-3, "float64": 1e-6}
"""Of the largest entry. It is to find another function, not to measure rounding."""

FLOOR = {"float32": 1e-3, "float64": 1e-8}
"""What counts as the largest entry at least, for parameters of order one: terms may cancel."""


def verify(
    lowered: LoweredField, field: FlatField, tensors: Sequence[Tensor], z0: Tensor, t0: float
) -> None:
    """Compare every program with torch at a point beside (t0, z0).

    Raises:
        LoweringError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, z0.numel(), dtype=torch.float64, generator=generator).to(z0)
    z, lam, t = z0.detach() + 0.1 * noise[0] * (1 + z0.detach().abs()), noise[1], t0 + 0.0625
    wanted = {name: reference(name, field, tensors, z, t, lam) for name in lowered.programs}
    flat = np.concatenate([as_array(x) for x in tensors]) if tensors else np.zeros(0)
    floor = FLOOR[lowered.dtype] * max(1.0, float(np.abs(flat).max(initial=0)))
    for name, values in wanted.items():
        got = lowered.run(name, as_array(z), t, flat, as_array(lam))
        for out, value in values.items():
            error = difference(got[out], as_array(value), floor)
            if error > TOLERANCE[lowered.dtype]:
                raise LoweringError(
                    f"the program {name} does not compute what the field does at t={t:.6g}: "
                    f"{_described(got[out], as_array(value), error)}. Does the field keep a "
                    "memory between calls, or change with something other than t, z and its "
                    "tensors? "
                    'Otherwise lowering="callback" helps, and a report to the authors'
                )


def reference(
    name: str, field: FlatField, tensors: Sequence[Tensor], z: Tensor, t: float, lam: Tensor
) -> dict[str, Tensor]:
    """What torch computes for a program's outputs, flat."""
    z = z.detach().clone().requires_grad_()
    time = torch.tensor(t, dtype=z.dtype, device=z.device, requires_grad=True)
    with plain_kernels(), torch.enable_grad():
        results = derivative(name, field, tensors)(z, time, lam)
    shapes = {
        "dz": [z], "gz": [z], "gp": list(tensors), "gt": [time], "ft": [z],
        "jac": [z.new_zeros(z.numel() * (z.numel() // (field.layout.rows or 1)))],
    }  # fmt: skip
    waiting = iter(results)
    values = {}
    for out in PROGRAMS[name]:
        parts = [(next(waiting), like) for like in shapes[out]]
        flat = [
            (torch.zeros_like(like) if x is None else x).detach().reshape(-1) for x, like in parts
        ]
        values[out] = torch.cat(flat) if flat else z.new_zeros(0)
    return values


def _described(program: Array, by_torch: Array, error: float) -> str:
    """The difference in words; of numbers that are none, whose they are."""
    if np.isfinite(error):
        return f"relative difference {error:.1e}"
    counts = [int((~np.isfinite(x)).sum()) for x in (program, by_torch)]
    return (
        f"of {program.size} entries {counts[0]} are NaN or infinite by the program, {counts[1]} by "
        "torch"
    )


def difference(a: Array, b: Array, floor: float = 1e-30) -> float:
    """Largest difference relative to the largest entry (or the floor); NaN and infinities must
    agree."""
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return float("inf")
    a, b = a[~odd], b[~odd]
    if not a.size:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(b).max(), floor))
