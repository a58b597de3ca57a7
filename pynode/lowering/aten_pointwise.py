"""Elementwise ATen operations."""

from __future__ import annotations

from typing import Any

import torch

from pynode.lowering.aten import Translation, operation, packet_name
from pynode.lowering.views import View

# fmt: off
_SAME_NAME = (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp",
    "exp2", "expm1", "floor", "isnan", "log", "log10", "log1p", "log2", "neg", "reciprocal",
    "relu", "round", "rsqrt", "sigmoid", "sign", "silu", "sin", "sinh", "sqrt", "square", "tan",
    "tanh", "trunc",
)
# fmt: on


@operation(*(f"aten.{name}" for name in _SAME_NAME))
def _unary(tr: Translation, x: Any, **kwargs: Any) -> View:
    if kwargs:
        raise tr.refuse(f"with {', '.join(kwargs)}")
    return tr.pointwise(packet_name(tr.node.target).removeprefix("aten."), x)


@operation("aten.sgn")
def _sgn(tr: Translation, x: Any) -> View:
    return tr.pointwise("sign", x)


@operation("aten.logical_not", "aten.bitwise_not")
def _not(tr: Translation, x: Any) -> View:
    _boolean(tr)
    return tr.pointwise("not", x)


@operation("aten.gelu")
def _gelu(tr: Translation, x: Any, approximate: str = "none") -> View:
    return tr.pointwise("gelu" if approximate == "none" else "gelu_tanh", x)


@operation("aten.gelu_backward")
def _gelu_backward(tr: Translation, g: Any, x: Any, approximate: str = "none") -> View:
    return tr.pointwise("gelu_grad" if approximate == "none" else "gelu_tanh_grad", g, x)


@operation("aten.softplus")
def _softplus(tr: Translation, x: Any, beta: float = 1, threshold: float = 20) -> View:
    if (beta, threshold) == (1, 20):
        return tr.pointwise("softplus", x)
    scaled = tr.pointwise("mul", x, beta)
    soft = tr.pointwise("div", tr.pointwise("log1p", tr.pointwise("exp", scaled)), beta)
    return tr.pointwise("where", tr.pointwise("gt", scaled, threshold), x, soft)


@operation("aten.softplus_backward")
def _softplus_backward(tr: Translation, g: Any, x: Any, beta: float, threshold: float) -> View:
    if (beta, threshold) == (1, 20):
        return tr.pointwise("softplus_grad", g, x)
    scaled = tr.pointwise("mul", x, beta)
    soft = tr.pointwise("mul", g, tr.pointwise("sigmoid", scaled))
    return tr.pointwise("where", tr.pointwise("gt", scaled, threshold), g, soft)


@operation("aten.leaky_relu")
def _leaky_relu(tr: Translation, x: Any, slope: float = 0.01) -> View:
    return tr.pointwise("leaky_relu", x, slope)


@operation("aten.leaky_relu_backward")
def _leaky_relu_backward(tr: Translation, g: Any, x: Any, slope: float, is_result: bool) -> View:
    if is_result and slope < 0:
        raise tr.refuse("with a negative slope, in place")
    return tr.pointwise("leaky_relu_grad", g, x, slope)


@operation("aten.elu")
def _elu(
    tr: Translation, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> View:
    if input_scale == 1:
        return tr.pointwise("mul", tr.pointwise("elu", x, alpha), scale)
    low = tr.pointwise("mul", tr.pointwise("expm1", tr.pointwise("mul", x, input_scale)), alpha)
    chosen = tr.pointwise("where", tr.pointwise("gt", x, 0), x, low)
    return tr.pointwise("mul", chosen, scale)


@operation("aten.elu_backward")
def _elu_backward(
    tr: Translation,
    g: Any,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    x: Any,
) -> View:
    g = tr.pointwise("mul", g, scale)
    if is_result:  # x is scale·alpha·expm1(…) where it is negative
        slope = tr.pointwise("add", tr.pointwise("div", x, scale), alpha)
        low = tr.pointwise("mul", g, tr.pointwise("mul", slope, input_scale))
        return tr.pointwise("where", tr.pointwise("gt", x, 0), g, low)
    if input_scale == 1:
        return tr.pointwise("elu_grad", g, x, alpha)
    grown = tr.pointwise("exp", tr.pointwise("mul", x, input_scale))
    low = tr.pointwise("mul", tr.pointwise("mul", g, alpha * input_scale), grown)
    return tr.pointwise("where", tr.pointwise("gt", x, 0), g, low)


# Arithmetic -------------------------------------------------------------------------------------


def _boolean(tr: Translation) -> None:
    if tr.result_dtype is not torch.bool:
        raise tr.refuse("on integers")


@operation("aten.add")
def _add(tr: Translation, x: Any, y: Any, alpha: float = 1) -> View:
    if tr.result_dtype is torch.bool:
        return tr.pointwise("or", x, y)
    return tr.pointwise("add", x, y if alpha == 1 else tr.pointwise("mul", y, alpha))


@operation("aten.sub")
def _sub(tr: Translation, x: Any, y: Any, alpha: float = 1) -> View:
    return tr.pointwise("sub", x, y if alpha == 1 else tr.pointwise("mul", y, alpha))


@operation("aten.rsub")
def _rsub(tr: Translation, x: Any, y: Any, alpha: float = 1) -> View:
    return _sub(tr, y, x, alpha)


@operation("aten.mul")
def _mul(tr: Translation, x: Any, y: Any) -> View:
    return tr.pointwise("and" if tr.result_dtype is torch.bool else "mul", x, y)


@operation("aten.div")
def _div(tr: Translation, x: Any, y: Any, rounding_mode: str | None = None) -> View:
    ratio = tr.pointwise("div", x, y)
    return ratio if rounding_mode is None else tr.pointwise(rounding_mode, ratio)


@operation("aten.pow")
def _pow(tr: Translation, x: Any, y: Any) -> View:
    """Small whole powers by multiplication, as torch does it."""
    if isinstance(y, int | float) and isinstance(x, View):
        simple = {1: "identity", 2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
        if y in simple:
            return tr.pointwise(simple[y], x)
        if y == 0:
            return tr.graph.constant(1).expand(x.shape)
        if y == 3:
            return tr.pointwise("mul", tr.pointwise("square", x), x)
        if y == -2:
            return tr.pointwise("reciprocal", tr.pointwise("square", x))
    return tr.pointwise("pow", x, y)


_BINARY = {
    "minimum": "minimum",
    "maximum": "maximum",
    "lt": "lt",
    "le": "le",
    "gt": "gt",
    "ge": "ge",
    "eq": "eq",
    "ne": "ne",
    "logical_and": "and",
    "logical_or": "or",
    "logical_xor": "xor",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_xor": "xor",
    "atan2": "atan2",
    "fmod": "fmod",
    "remainder": "remainder",
    "tanh_backward": "tanh_grad",
    "sigmoid_backward": "sigmoid_grad",
    "silu_backward": "silu_grad",
}


@operation(*(f"aten.{name}" for name in _BINARY))
def _binary(tr: Translation, x: Any, y: Any) -> View:
    name = packet_name(tr.node.target).removeprefix("aten.")
    if name.startswith("bitwise"):
        _boolean(tr)
    return tr.pointwise(_BINARY[name], x, y)


@operation("aten.threshold_backward")
def _threshold_backward(tr: Translation, g: Any, x: Any, threshold: float) -> View:
    if threshold == 0:
        return tr.pointwise("relu_grad", g, x)
    return tr.pointwise("where", tr.pointwise("gt", x, threshold), g, 0)


@operation("aten.softshrink_backward", "aten.hardshrink_backward")
def _shrink_backward(tr: Translation, g: Any, x: Any, bound: float) -> View:
    inside = tr.pointwise("le", tr.pointwise("abs", x), bound)
    return tr.pointwise("where", inside, 0, g)


@operation("aten.clamp", "aten.clamp_min", "aten.clamp_max")
def _clamp(tr: Translation, x: Any, min: Any = None, max: Any = None) -> View:
    if packet_name(tr.node.target) == "aten.clamp_max":
        min, max = None, min if max is None else max
    if min is not None and max is not None:
        return tr.pointwise("clamp", x, min, max)
    if min is not None:
        return tr.pointwise("maximum", x, min)
    return tr.pointwise("minimum", x, max)


@operation("aten.where")
def _where(tr: Translation, condition: Any, x: Any, y: Any) -> View:
    return tr.pointwise("where", condition, x, y)


@operation("aten.addcmul")
def _addcmul(tr: Translation, x: Any, y: Any, z: Any, value: float = 1) -> View:
    return tr.pointwise("add", tr.pointwise("mul", tr.pointwise("mul", y, value), z), x)


@operation("aten._to_copy")
def _to_copy(tr: Translation, x: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """A change of dtype; to whole numbers it truncates, to bool it compares with 0."""
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta":
        raise tr.refuse("to the meta device")
    source = tr.node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    if dtype is torch.bool and source is not torch.bool:
        return tr.pointwise("ne", x, 0)
    if dtype is not None and not dtype.is_floating_point and source.is_floating_point:
        return tr.pointwise("trunc", x)
    return x
