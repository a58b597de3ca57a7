"""The instruction set, in one table: names, kinds, fields, numpy meaning, memory that is touched.

``docs/program-format.md`` is the prose to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

SLOTS = ("const", "work", "z", "t", "p", "lam", "out0", "out1", "out2")
CONST, WORK, Z, TIME, P, LAM, OUT = range(7)
WRITABLE = frozenset((WORK, OUT, OUT + 1, OUT + 2))


# What the kinds mean ----------------------------------------------------------------------------

_erf_scalar = np.frompyfunc(lambda x: math.erf(x), 1, 1)


def erf(x: Array) -> Array:
    return _erf_scalar(x).astype(x.dtype)


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e / (1 + e), 1 / (1 + e))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_slope(x: Array) -> Array:
    bell = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * bell


def gelu_tanh_slope(x: Array) -> Array:
    c = math.sqrt(2 / math.pi)
    y = np.tanh(c * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + y) + 0.5 * x * (1 - y * y) * c * (1 + 3 * 0.044715 * x * x)


def silu_slope(x: Array) -> Array:
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def softplus(x: Array) -> Array:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def truncated_remainder(a: Array, b: Array) -> Array:
    return np.fmod(a, b)


def _elu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu_grad(g: Array, x: Array, alpha: Array) -> Array:
    return np.where(x > 0, g, g * alpha * np.exp(np.minimum(x, 0)))


UNARY: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "reciprocal": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "softplus": softplus,
    "erf": erf,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "not": lambda x: x == 0,
    "isnan": np.isnan,
    "square": np.square,
}

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "atan2": np.arctan2,
    "fmod": truncated_remainder,
    "remainder": np.mod,
    "tanh_grad": lambda g, y: g * (1 - y * y),
    "sigmoid_grad": lambda g, y: g * y * (1 - y),
    "relu_grad": lambda g, x: np.where(x > 0, g, 0),
    "silu_grad": lambda g, x: g * silu_slope(x),
    "gelu_grad": lambda g, x: g * gelu_slope(x),
    "gelu_tanh_grad": lambda g, x: g * gelu_tanh_slope(x),
    "softplus_grad": lambda g, x: np.where(x > 20, g, g * sigmoid(x)),
    "leaky_relu": lambda x, s: np.where(x > 0, x, s * x),
    "elu": _elu,
}

TERNARY: dict[str, Callable[[Array, Array, Array], Array]] = {
    "where": lambda c, a, b: np.where(c != 0, a, b),
    "fma": lambda a, b, c: a * b + c,
    "clamp": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "leaky_relu_grad": lambda g, x, s: np.where(x > 0, g, s * g),
    "elu_grad": _elu_grad,
}

REDUCE: dict[str, Callable[..., Array]] = {
    "sum": np.sum,
    "mean": np.mean,
    "amax": np.max,
    "amin": np.min,
    "prod": np.prod,
}

SCAN: dict[str, Callable[..., Array]] = {"sum": np.cumsum}


# What an instruction touches --------------------------------------------------------------------


class Access(NamedTuple):
    """The part of a slot that one operand is: entry [i, j, …] at offset + i·strides[0] + …"""

    slot: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def span(self) -> tuple[int, int]:
        """Smallest and largest address."""
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low = sum(r for r in reach if r < 0)
        return self.offset + low, self.offset + sum(reach) - low

    def is_injective(self) -> bool:
        """Whether no address comes twice, if each stride exceeds what the smaller ones span."""
        dims = sorted((abs(s), n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        reach = 0
        for stride, n in dims:
            if stride <= reach:
                return False
            reach += stride * (n - 1)
        return True


def _at(address: tuple[int, int], shape: tuple[int, ...], strides: tuple[int, ...]) -> Access:
    return Access(address[0], address[1], shape, strides)


class Touched(NamedTuple):
    """Operands of one instruction; ``inplace`` says which of ``reads`` may be ``write`` itself."""

    write: Access
    reads: tuple[Access, ...]
    inplace: tuple[bool, ...]


@dataclass(frozen=True)
class Operation:
    """One line of the instruction set.

    Attributes:
        name, number: in files, and in the packed form.
        fields: names of the integers that follow name and kind, in order. A name that starts
            with ``@`` is an address and takes two, one that ends in 4 takes four.
        kinds: the functions by kind, or None.
        touched: the memory that an instruction reads and writes, from its fields by name.
        run: fills the output view from the operand views (made from ``touched``).
    """

    name: str
    number: int
    fields: tuple[str, ...]
    kinds: dict[str, Callable[..., Array]] | None
    touched: Callable[[dict[str, Any]], Touched]
    run: Callable[[Callable[..., Array] | None, Array, list[Array], dict[str, Any]], None]

    @property
    def length(self) -> int:
        """Number of integers after name and kind."""
        return sum(2 if f[0] == "@" else 4 if f[-1] == "4" else 1 for f in self.fields)

    def decode(self, integers: list[int]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        at = 0
        for field in self.fields:
            size = 2 if field[0] == "@" else 4 if field[-1] == "4" else 1
            values[field.lstrip("@")] = (
                tuple(integers[at : at + size]) if size > 1 else integers[at]
            )
            at += size
        return values


# Elementwise ------------------------------------------------------------------------------------

_LETTERS = "abc"


def _flat(arity: int) -> Callable[[dict[str, Any]], Touched]:
    def touched(v: dict[str, Any]) -> Touched:
        n = v["n"]
        steps = [v.get(f"s{x}", 1) for x in _LETTERS[:arity]]
        reads = [_at(v[x], (n,), (s,)) for x, s in zip(_LETTERS[:arity], steps, strict=True)]
        return Touched(_at(v["out"], (n,), (1,)), tuple(reads), tuple(s == 1 for s in steps))

    return touched


def _nd(arity: int) -> Callable[[dict[str, Any]], Touched]:
    def touched(v: dict[str, Any]) -> Touched:
        shape = v["shape4"]
        reads = [_at(v[x], shape, v[f"{x}4"]) for x in _LETTERS[:arity]]
        return Touched(_at(v["out"], shape, v["out4"]), tuple(reads), (True,) * arity)

    return touched


def _apply(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    assert kind is not None
    out[...] = kind(*reads)


# Products ---------------------------------------------------------------------------------------


def _matrix(
    rows: int, cols: int, transposed: int, ld: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shape (rows, cols) and strides of a stored matrix, seen as its product uses it."""
    return ((rows, cols), (1, ld) if transposed else (ld, 1))


def _mm_touched(v: dict[str, Any]) -> Touched:
    m, n, k = v["m"], v["n"], v["k"]
    out = _at(v["out"], (m, n), (v["ldc"], 1))
    a = _at(v["a"], *_matrix(m, k, v["ta"], v["lda"]))
    b = _at(v["b"], *_matrix(k, n, v["tb"], v["ldb"]))
    if not v["add"]:
        return Touched(out, (a, b), (False, False))
    c = _at(v["c"], (m, n), (v["ci"], v["cj"]))
    return Touched(out, (a, b, c), (False, False, True))


def _mm(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    product = reads[0] @ reads[1]
    out[...] = product + reads[2] if v["add"] else product


def _bmm_touched(v: dict[str, Any]) -> Touched:
    r, m, n, k = v["batch"], v["m"], v["n"], v["k"]
    out = _at(v["out"], (r, m, n), (v["os"], v["ldc"], 1))
    reads = []
    for x, rows, cols in (("a", m, k), ("b", k, n)):
        shape, strides = _matrix(rows, cols, v[f"t{x}"], v[f"ld{x}"])
        reads.append(_at(v[x], (r, *shape), (v[f"{x}s"], *strides)))
    return Touched(out, tuple(reads), (False, False))


def _bmm(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    out[...] = reads[0] @ reads[1]


# Reductions and indices -------------------------------------------------------------------------


def _reduce_touched(v: dict[str, Any]) -> Touched:
    outer, n, inner = v["outer"], v["n"], v["inner"]
    out = _at(v["out"], (outer, inner), (v["oo"], v["oi"]))
    a = _at(v["a"], (outer, n, inner), (v["ao"], v["an"], v["ai"]))
    return Touched(out, (a,), (False,))


def _along_middle(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    assert kind is not None
    out[...] = kind(reads[0], axis=1)


def _scan_touched(v: dict[str, Any]) -> Touched:
    outer, n, inner = v["outer"], v["n"], v["inner"]
    shape, strides = (outer, n, inner), (n * inner, inner, 1)
    out, a = _at(v["out"], shape, strides), _at(v["a"], shape, strides)
    return Touched(out, (a,), (False,))


def _gather_touched(v: dict[str, Any]) -> Touched:
    low, high = v["range"]  # of the indices, put there by the program's check
    read = Access(v["a"][0], v["a"][1] + low, (high - low + 1,), (1,))
    return Touched(_at(v["out"], (v["n"],), (1,)), (read,), (False,))


def _gather(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    out[...] = reads[0][v["indices"]]


def _scatter_touched(v: dict[str, Any]) -> Touched:
    low, high = v["range"]
    out = Access(v["out"][0], v["out"][1] + low, (high - low + 1,), (1,))
    return Touched(out, (_at(v["a"], (v["n"],), (1,)),), (False,))


def _scatter_add(
    kind: Callable[..., Array] | None, out: Array, reads: list[Array], v: dict[str, Any]
) -> None:
    np.add.at(out, v["indices"], reads[0])


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TABLE: tuple[tuple[str, str, Any, Any, Any], ...] = (
    ("unary", "n @out @a", UNARY, _flat(1), _apply),
    ("unary_nd", "shape4 @out out4 @a a4", UNARY, _nd(1), _apply),
    ("binary", "n @out @a sa @b sb", BINARY, _flat(2), _apply),
    ("binary_nd", "shape4 @out out4 @a a4 @b b4", BINARY, _nd(2), _apply),
    ("ternary", "n @out @a sa @b sb @c sc", TERNARY, _flat(3), _apply),
    ("ternary_nd", "shape4 @out out4 @a a4 @b b4 @c c4", TERNARY, _nd(3), _apply),
    ("mm", "m n k @out ldc @a ta lda @b tb ldb add @c ci cj", None, _mm_touched, _mm),
    ("bmm", "batch m n k @out os ldc @a as ta lda @b bs tb ldb", None, _bmm_touched, _bmm),
    ("reduce", "outer n inner @out oo oi @a ao an ai", REDUCE, _reduce_touched, _along_middle),
    ("scan", "outer n inner @out @a", SCAN, _scan_touched, _along_middle),
    ("gather", "n @out @a first", None, _gather_touched, _gather),
    ("scatter_add", "n @out @a first", None, _scatter_touched, _scatter_add),
)

OPERATIONS: dict[str, Operation] = {
    name: Operation(name, number, _names(fields), kinds, touched, run)
    for number, (name, fields, kinds, touched, run) in enumerate(_TABLE, start=1)
}

COUNTS = frozenset(("n", "m", "k", "batch", "outer", "inner", "shape4"))
FLAGS = frozenset(("sa", "sb", "sc", "ta", "tb", "add"))
