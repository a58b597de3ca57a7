"""ATen products and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pynode.lowering.aten import Translation, operation, packet_name
from pynode.lowering.views import View


def _scaled(tr: Translation, x: View, factor: float) -> View:
    return tr.pointwise("mul", x, factor)


@operation("aten.mm")
def _mm(tr: Translation, a: Any, b: Any) -> View:
    return tr.graph.mm(tr.view(a), tr.view(b))


@operation("aten.addmm")
def _addmm(tr: Translation, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> View:
    first = _scaled(tr, tr.view(a), alpha)
    if beta == 0:
        return tr.graph.mm(first, tr.view(b))
    return tr.graph.mm(first, tr.view(b), _scaled(tr, tr.view(c), beta))


@operation("aten.mv")
def _mv(tr: Translation, a: Any, x: Any) -> View:
    column = tr.graph.reshape(tr.view(x), (tr.view(x).size, 1))
    return tr.graph.reshape(tr.graph.mm(tr.view(a), column), tr.shape)


@operation("aten.addmv")
def _addmv(tr: Translation, c: Any, a: Any, x: Any, beta: float = 1, alpha: float = 1) -> View:
    return tr.pointwise("add", _scaled(tr, _mv(tr, a, x), alpha), _scaled(tr, tr.view(c), beta))


@operation("aten.dot", "aten.vdot")
def _dot(tr: Translation, a: Any, b: Any) -> View:
    n = tr.view(a).size
    row, column = tr.graph.reshape(tr.view(a), (1, n)), tr.graph.reshape(tr.view(b), (n, 1))
    return tr.graph.reshape(tr.graph.mm(row, column), ())


@operation("aten.bmm")
def _bmm(tr: Translation, a: Any, b: Any) -> View:
    return tr.graph.bmm(tr.view(a), tr.view(b))


@operation("aten.baddbmm")
def _baddbmm(tr: Translation, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> View:
    product = _scaled(tr, tr.graph.bmm(tr.view(a), tr.view(b)), alpha)
    return product if beta == 0 else tr.pointwise("add", product, _scaled(tr, tr.view(c), beta))


# Reductions -------------------------------------------------------------------------------------


def _dims(x: View, dim: Any) -> Sequence[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return range(len(x.shape))
    return [dim] if isinstance(dim, int) else list(dim)


@operation("aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.prod")
def _reduce(
    tr: Translation, x: View, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> View:
    kind = packet_name(tr.node.target).removeprefix("aten.")
    if kind == "prod":
        x = tr.graph.dense(x)
    return tr.graph.reduce(kind, x, _dims(x, dim), keepdim)


@operation("aten.any", "aten.all")
def _any_all(tr: Translation, x: View, dim: Any = None, keepdim: bool = False) -> View:
    truth = tr.pointwise("ne", x, 0)
    kind = "amax" if packet_name(tr.node.target) == "aten.any" else "amin"
    return tr.graph.reduce(kind, truth, _dims(x, dim), keepdim)


@operation("aten.max", "aten.min")
def _extreme(tr: Translation, x: View, dim: Any = None, keepdim: bool = False) -> Any:
    kind = "a" + packet_name(tr.node.target).removeprefix("aten.")
    if isinstance(dim, View):
        return tr.pointwise(f"{kind[1:]}imum", x, dim)
    value = tr.graph.reduce(kind, x, _dims(x, dim), keepdim)
    if dim is None:
        return value
    if any(user.args[1:] == (1,) for user in tr.node.users):
        raise tr.refuse("its indices are used (for its gradient, too): use torch.amax, amin")
    return value, None


def _spread(
    tr: Translation, x: View, dim: Any, unbiased: bool, correction: float | None, keepdim: bool
) -> tuple[View, View]:
    """Variance and mean over dims, by deviations from the mean."""
    dims = _dims(x, dim)
    mean = tr.graph.reduce("mean", x, dims, keepdim=True)
    squares = tr.pointwise("square", tr.pointwise("sub", x, mean))
    n = math.prod(x.shape[d] for d in dims)
    free = max(n - (correction if correction is not None else float(unbiased)), 0)
    total = tr.graph.reduce("sum", squares, dims, keepdim)
    kept = mean if keepdim else tr.graph.reshape(mean, total.shape)
    return tr.pointwise("div", total, free), kept


@operation("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
def _var(
    tr: Translation,
    x: View,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    name = packet_name(tr.node.target).removeprefix("aten.")
    if isinstance(dim, bool):  # overload (x, unbiased)
        dim, unbiased = None, dim
    value, mean = _spread(tr, x, dim, unbiased, correction, keepdim)
    if name.startswith("std"):
        value = tr.pointwise("sqrt", value)
    return (value, mean) if name.endswith("mean") else value


@operation("aten.cumsum")
def _cumsum(tr: Translation, x: View, dim: int, dtype: torch.dtype | None = None) -> View:
    if not x.shape:
        return x
    return tr.graph.scan(x, dim % len(x.shape))
