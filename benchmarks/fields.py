"""The cases' vector fields, each written once for numpy, torch and jax.

A field is ``f(m, t, z, p)``: m an :class:`Ops`, t a number, (B,) or 0-d, z (B, D), p a list of
arrays. The same formula, in the library's own functions, runs for every contender.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Field = Callable[["Ops", Any, Any, Sequence[Any]], Any]


class Ops(NamedTuple):
    """What a field needs of an array library; ``linear(x, W, b)`` is x Wᵀ + b."""

    linear: Callable[[Any, Any, Any], Any]
    tanh: Callable[[Any], Any]
    sigmoid: Callable[[Any], Any]
    stack: Callable[[list[Any]], Any]
    cat: Callable[[list[Any]], Any]
    column: Callable[[Any, Any], Any]


def numpy_ops() -> Ops:
    import numpy as np

    return Ops(
        linear=lambda x, w, b: x @ w.T + b,
        tanh=np.tanh,
        sigmoid=lambda x: 1 / (1 + np.exp(-x)),
        stack=lambda xs: np.stack(xs, -1),
        cat=lambda xs: np.concatenate(xs, -1),
        column=lambda t, z: np.asarray(t).reshape(-1, 1),
    )


def torch_ops() -> Ops:
    import torch
    from torch.nn.functional import linear

    return Ops(
        linear=linear,
        tanh=torch.tanh,
        sigmoid=torch.sigmoid,
        stack=lambda xs: torch.stack(xs, -1),
        cat=lambda xs: torch.cat(xs, -1),
        column=lambda t, z: t.to(z.dtype).reshape(-1, 1),
    )


def jax_ops() -> Ops:
    import jax
    import jax.numpy as jnp

    return Ops(
        linear=lambda x, w, b: x @ w.T + b,
        tanh=jnp.tanh,
        sigmoid=jax.nn.sigmoid,
        stack=lambda xs: jnp.stack(xs, -1),
        cat=lambda xs: jnp.concatenate(xs, -1),
        column=lambda t, z: jnp.reshape(jnp.asarray(t, z.dtype), (-1, 1)),
    )


def mlp(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    """tanh between the layers; p holds W, b of each."""
    for i in range(0, len(p) - 2, 2):
        z = m.tanh(m.linear(z, p[i], p[i + 1]))
    return m.linear(z, p[-2], p[-1])


def van_der_pol(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    x, v = z[..., 0], z[..., 1]
    return m.stack([v, p[0] * (1 - x * x) * v - x])


def robertson(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    """Robertson 1966; p holds the three rates in units of (0.04, 3e7, 1e4)."""
    a, b, c = z[..., 0], z[..., 1], z[..., 2]
    k1, k2, k3 = 0.04 * p[0][0], 3e7 * p[0][1], 1e4 * p[0][2]
    decay, back, loss = k1 * a, k3 * b * c, k2 * b * b
    return m.stack([back - decay, decay - back - loss, loss])


def hires(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    """HIRES, Hairer & Wanner, Solving ODEs II, section IV.10; p scales two of its rates."""
    y = [z[..., i] for i in range(8)]
    k = 280.0 * p[0][1]
    pair = k * y[5] * y[7]
    return m.stack(
        [
            -1.71 * p[0][0] * y[0] + 0.43 * y[1] + 8.32 * y[2] + 0.0007,
            1.71 * p[0][0] * y[0] - 8.75 * y[1],
            -10.03 * y[2] + 0.43 * y[3] + 0.035 * y[4],
            8.32 * y[1] + 1.71 * y[2] - 1.12 * y[3],
            -1.745 * y[4] + 0.43 * y[5] + 0.43 * y[6],
            -pair + 0.69 * y[3] + 1.71 * y[4] - 0.43 * y[5] + 0.69 * y[6],
            pair - 1.81 * y[6],
            -pair + 1.81 * y[6],
        ]
    )


def _concatsquash(m: Ops, t: Any, x: Any, tangents: list[Any], p: Sequence[Any]) -> Any:
    """The layer (Wx + b) σ(g t + h) + k t of FFJORD, of a point and of tangents at it."""
    w, b, g, h, k = p
    gate = m.sigmoid(t * g + h)
    zero = b * 0
    return m.linear(x, w, b) * gate + t * k, [m.linear(v, w, zero) * gate for v in tangents]


def _flow(m: Ops, t: Any, z: Any, p: Sequence[Any], tangents: list[Any]) -> Any:
    t = m.column(t, z)
    x = z[..., :2]
    for i in range(0, len(p), 5):
        x, tangents = _concatsquash(m, t, x, tangents, p[i : i + 5])
        if i + 5 < len(p):
            x = m.tanh(x)
            tangents = [(1 - x * x) * v for v in tangents]
    return x, tangents


def cnf_exact(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    """(x, log p) of a 2-D CNF, ∂f/∂x along both axes carried through the layers by hand."""
    one = z[..., :1] * 0 + 1
    axes = [m.cat([one, one * 0]), m.cat([one * 0, one])]
    x, (along_x, along_y) = _flow(m, t, z, p, axes)
    return m.cat([x, -(along_x[..., :1] + along_y[..., 1:2])])


def cnf_hutchinson(m: Ops, t: Any, z: Any, p: Sequence[Any]) -> Any:
    """(x, log p, ε) with Hutchinson's estimate of the trace, ε fixed: a part of the state."""
    noise = z[..., 3:5]
    x, (jet,) = _flow(m, t, z, p, [noise])
    product = jet * noise
    return m.cat([x, -(product[..., :1] + product[..., 1:2]), noise * 0])


FIELDS: dict[str, Field] = {
    "mlp": mlp,
    "van_der_pol": van_der_pol,
    "robertson": robertson,
    "hires": hires,
    "cnf_exact": cnf_exact,
    "cnf_hutchinson": cnf_hutchinson,
}
