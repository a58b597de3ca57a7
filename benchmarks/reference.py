"""What the contenders are compared with: scipy at tight tolerances, with a directional derivative.

The state (z, s) with ds/dt = ∂f/∂z s + ∂f/∂p v is solved as one system, its right-hand side being
one complex evaluation of the field (complex step, so exact to rounding); then the loss's derivative
in direction v is the weighted sum of s. Nothing of any contender is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.cases import Case
from benchmarks.fields import FIELDS, numpy_ops

TINY = 1e-30


def reference(case: Case, cache: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The checked rows' states (T, b, D), and dL along each of ``case.directions()``."""
    key = hashlib.sha256()
    for part in (case.z0, case.times, *case.params):
        key.update(np.ascontiguousarray(part).tobytes())
    key.update(f"{case.field} {case.checked} {case.wrt_params} {case.rtol} {case.stiff}".encode())
    file = cache / f"{case.name}-{key.hexdigest()[:16]}.npz" if cache else None
    if file is not None and file.exists():
        with np.load(file) as kept:
            return kept["zs"], kept["slopes"]
    zs, slopes = _solve(case)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, zs=zs, slopes=slopes)
    return zs, slopes


def _solve(case: Case) -> tuple[np.ndarray, np.ndarray]:
    z0, weights = case.z0[case.checked], case.weights()[:, case.checked]
    slopes, zs = [], np.empty(0)
    for v, dp in case.directions():
        if case.times.ndim == 1 and not case.stiff:
            both = _rows(case, z0, v[case.checked], dp, case.times)
        else:
            each = range(len(z0))
            times = np.broadcast_to(case.times, (len(case.z0), case.times.shape[-1]))
            times = times[case.checked]
            rows = [
                _rows(case, z0[i : i + 1], v[case.checked][i : i + 1], dp, times[i]) for i in each
            ]
            both = np.concatenate(rows, axis=2)
        zs = both[0]
        slopes.append(float((weights * both[1]).sum()))
    return zs, np.array(slopes)


def _rows(
    case: Case, z0: np.ndarray, v: np.ndarray, dp: list[np.ndarray], times: np.ndarray
) -> np.ndarray:
    """(2, T, b, D): states and their derivatives in direction (v, dp)."""
    m, field, shape = numpy_ops(), FIELDS[case.field], (2, *z0.shape)
    params = [x + 1j * TINY * d for x, d in zip(case.params, dp, strict=True)]

    def both(t: float, y: np.ndarray) -> np.ndarray:
        z, s = y.reshape(shape)
        f = field(m, t, z + 1j * TINY * s, params)
        return np.stack([f.real, f.imag / TINY]).reshape(-1)

    tight = min(1e-10, case.rtol * 1e-3) if case.rtol < 1e-4 else case.rtol * 1e-4
    method = "LSODA" if case.stiff else "DOP853"
    found = solve_ivp(
        both,
        (times[0], times[-1]),
        np.stack([z0, v]).reshape(-1),
        method,
        t_eval=times,
        rtol=tight,
        atol=min(tight, case.atol * 1e-4),
    )
    if not found.success:
        raise RuntimeError(f"{case.name}: no reference: {found.message}")
    return np.moveaxis(found.y.reshape(*shape, len(times)), -1, 1)


def state_error(zs: np.ndarray, true: np.ndarray) -> float:
    """RMS error over times and samples, each entry in units of its largest absolute value."""
    scale = np.abs(true).max(axis=(0, 1), keepdims=True) + 1e-300
    return float(np.sqrt(np.mean(((zs - true) / scale) ** 2)))


def slope_error(
    case: Case, of_z0: np.ndarray, of_params: list[np.ndarray], slopes: np.ndarray
) -> float:
    """Largest error of the loss's slope in the given directions, relative to the largest slope."""
    found = [
        float((of_z0 * v).sum() + sum((g * d).sum() for g, d in zip(of_params, dp, strict=True)))
        for v, dp in case.directions()
    ]
    return float(np.abs(np.array(found) - slopes).max() / np.abs(slopes).max())
