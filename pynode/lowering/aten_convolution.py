"""Convolutions, as one strided copy for each kernel position and one matrix product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from pynode.lowering.aten import Translation, operation
from pynode.lowering.views import Shape, Value, View


@operation("aten.convolution")
def _convolution(
    tr: Translation,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> View:
    if transposed:
        raise tr.refuse("transposed convolution")
    x, weight = tr.view(x), tr.view(weight)
    padded = _padded(tr, x, padding, [1] * len(stride))
    out = _grouped(tr, padded, weight, stride, dilation, groups)
    if bias is None:
        return out
    ones = (1,) * (len(x.shape) - 2)
    return tr.pointwise("add", out, tr.graph.reshape(tr.view(bias), (1, weight.shape[0], *ones)))


@operation("aten.convolution_backward")
def _convolution_backward(
    tr: Translation,
    g: Any,
    x: Any,
    weight: Any,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[View | None, ...]:
    if transposed:
        raise tr.refuse("transposed convolution")
    g, x, weight = tr.view(g), tr.view(x), tr.view(weight)
    grads: list[View | None] = [None, None, None]
    if wanted[0]:
        grads[0] = _by_input(tr, g, x.shape, weight, stride, padding, dilation, groups)
    if wanted[1]:
        padded = _padded(tr, x, padding, [1] * len(stride))
        grads[1] = _by_weight(tr, g, padded, weight.shape, stride, dilation, groups)
    if wanted[2]:
        grads[2] = tr.graph.reduce("sum", g, [0, *range(2, len(g.shape))], keepdim=False)
    return tuple(grads)


def _padded(tr: Translation, x: View, padding: Sequence[int], spread: Sequence[int]) -> View:
    """Zeros around x (on both sides alike), and between its entries, which lie ``spread`` apart."""
    if not any(padding) and all(s == 1 for s in spread):
        return x
    sizes = [(n - 1) * s + 1 + 2 * p for n, p, s in zip(x.shape[2:], padding, spread, strict=True)]
    shape = (*x.shape[:2], *sizes)
    whole = Value(shape).view()
    place = whole
    for axis, (p, s) in enumerate(zip(padding, spread, strict=True), start=2):
        place = place.slice(axis, p, x.shape[axis], s)
    zeros = tr.graph.constant(0).expand(shape)
    return tr.graph.assemble(shape, [(zeros, whole), (x, place)])


def _windows(
    tr: Translation, x: View, kernel: Shape, out: Shape, stride: Sequence[int], dil: Sequence[int]
) -> View:
    """(N·out, kernel·C): what each output sees, a row each."""
    n, c = x.shape[:2]
    shape = (n, *out, *kernel, c)
    canvas = Value(shape).view()
    order = [0, *range(2, len(x.shape)), 1]
    pieces = []
    for position in itertools.product(*(range(k) for k in kernel)):
        seen, place = x, canvas
        for axis, (at, size, s, d) in enumerate(zip(position, out, stride, dil, strict=True)):
            seen = seen.slice(axis + 2, at * d, size, s)
            place = place.select(1 + len(out), at)
        pieces.append((seen.permute(order), place))
    rows = tr.graph.assemble(shape, pieces)
    return tr.graph.reshape(rows, (n * math.prod(out), math.prod(kernel) * c))


def _grouped(
    tr: Translation,
    x: View,
    weight: View,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> View:
    """The convolution of a padded x."""
    outputs, per = weight.shape[0] // groups, x.shape[1] // groups
    parts = [
        _single(
            tr, x.slice(1, i * per, per), weight.slice(0, i * outputs, outputs), stride, dilation
        )
        for i in range(groups)
    ]
    if groups == 1:
        return parts[0]
    shape = (x.shape[0], weight.shape[0], *parts[0].shape[2:])
    canvas = Value(shape).view()
    places = [canvas.slice(1, i * outputs, outputs) for i in range(groups)]
    return tr.graph.assemble(shape, list(zip(parts, places, strict=True)))


def _single(
    tr: Translation, x: View, weight: View, stride: Sequence[int], dilation: Sequence[int]
) -> View:
    kernel = weight.shape[2:]
    out = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    )
    rows = _windows(tr, x, kernel, out, stride, dilation)
    columns = tr.graph.reshape(
        weight.permute([*range(2, len(weight.shape)), 1, 0]), (rows.shape[1], weight.shape[0])
    )
    made = tr.graph.reshape(tr.graph.mm(rows, columns), (x.shape[0], *out, weight.shape[0]))
    return made.permute([0, len(made.shape) - 1, *range(1, len(made.shape) - 1)])


def _by_input(
    tr: Translation,
    g: View,
    shape: Shape,
    weight: View,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> View:
    """The convolution of g, spread by the stride, with the kernel turned around."""
    kernel, per = weight.shape[2:], weight.shape[1]
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    spread = _padded(tr, g, reach, stride)
    outputs = weight.shape[0] // groups
    turned = weight
    for axis in range(2, len(weight.shape)):
        turned = turned.flip(axis)
    ones = [1] * len(stride)
    canvas = Value(shape).view()
    pieces: list[tuple[View, View]] = [(tr.graph.constant(0).expand(shape), canvas)]
    for i in range(groups):
        back = _single(
            tr,
            spread.slice(1, i * outputs, outputs),
            turned.slice(0, i * outputs, outputs).transpose(0, 1),
            ones,
            dilation,
        )
        place = canvas.slice(1, i * per, per)
        for axis, (p, n) in enumerate(zip(padding, shape[2:], strict=True), start=2):
            length = min(n, back.shape[axis] - p)  # the last entries may be seen by no window
            back, place = back.slice(axis, p, length), place.slice(axis, 0, length)
        pieces.append((back, place))
    return tr.graph.assemble(shape, pieces)


def _by_weight(
    tr: Translation,
    g: View,
    x: View,
    shape: Shape,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> View:
    kernel, per, outputs = shape[2:], shape[1], shape[0] // groups
    canvas, pieces = Value(shape).view(), []
    order = [1, 0, *range(2, len(g.shape))]
    for i in range(groups):
        rows = _windows(tr, x.slice(1, i * per, per), kernel, g.shape[2:], stride, dilation)
        ours = g.slice(1, i * outputs, outputs).permute(order)
        product = tr.graph.mm(tr.graph.reshape(ours, (outputs, rows.shape[0])), rows)
        block = tr.graph.reshape(product, (outputs, *kernel, per))
        last = len(block.shape) - 1
        place = canvas.slice(0, i * outputs, outputs)
        pieces.append((block.permute([0, last, *range(1, last)]), place))
    return tr.graph.assemble(shape, pieces)
