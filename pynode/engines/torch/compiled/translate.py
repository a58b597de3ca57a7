"""Programs as C++ functions: sizes and strides are constants, elementwise instructions fused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pynode.lowering.instructions import CONST, LAM, OUT, TIME, WORK, Access, P, Touched, Z
from pynode.lowering.program import Program

SLOT_NAMES = {
    CONST: "constants", WORK: "work", Z: "z", TIME: "time", P: "p", LAM: "lam",
    OUT: "out0", OUT + 1: "out1", OUT + 2: "out2",
}  # fmt: skip

LARGE = 1 << 21
"""Multiply-adds from which on a product may go to the BLAS: for its threads, since on one thread
vector loops of known sizes are faster, or where no such loop suits."""

VECTOR_BYTES = 64
"""Of the widest vectors: products are arranged to suit them, the compiler uses what there is."""


@dataclass
class Packed:
    """Matrices of parameters, copied at the start of a solve to rows that vectors suit.

    Attributes:
        lines: statements that make the copies.
        size: entries of all, as a C++ constant.
    """

    lines: list[str] = field(default_factory=list)
    size: str = "0"
    _places: dict[Any, tuple[str, str]] = field(default_factory=dict)

    def place(self, rows: int, columns: int, offset: int, si: int, sj: int) -> tuple[str, str]:
        """Where entry [i, j] = p[offset + i·si + j·sj] is copied to, and the rows' length."""
        key = rows, columns, offset, si, sj
        if key not in self._places:
            ld = f"padded<T>({columns})"
            self._places[key] = self.size, ld
            where = f"p + {offset}, {si}, {sj}, to + {self.size}"
            self.lines.append(f"pack<T>({rows}, {columns}, {where}, {ld});")
            self.size += f" + {rows} * {ld}"
        at, ld = self._places[key]
        return f"packed + {at}", ld


class Translator:
    """Writes the functions of programs that share parameters.

    Args:
        dtype: "float32" or "float64".
    """

    def __init__(self, dtype: str) -> None:
        self.type = {"float32": "float", "float64": "double"}[dtype]
        self.width = VECTOR_BYTES // (4 if dtype == "float32" else 8)
        self.packed = Packed()
        self.work = 0

    def function(self, name: str, program: Program) -> list[str]:
        """A static function that runs the program on memory ``m``."""
        self.work = max(self.work, program.work)
        lines = [
            f"static void {name}(Workspace<T, Programs>& m, const T* z, T t, const T* lam, T* out0,"
            " T* out1, T* out2) {",
            "  [[maybe_unused]] const T* p = m.p;",
            "  [[maybe_unused]] T *work = m.work, *packed = m.packed;",
            "  [[maybe_unused]] const T time[1 + Vector<T>::width] = {t};",
        ]
        if len(program.constants):
            values = ", ".join(self._number(float(x)) for x in program.constants)
            count = len(program.constants)
            lines.append(f"  static const T constants[{count} + Vector<T>::width] = {{{values}}};")
        for start, stop in self._groups(program):
            if stop - start > 1 or program.code[start].op in _ELEMENTWISE:
                lines += self._loop(program, start, stop)
            else:
                lines += self._single(program, start)
        return [*lines, "}"]

    # Elementwise -------------------------------------------------------------------------------

    def _groups(self, program: Program) -> list[tuple[int, int]]:
        """Runs of instructions that one loop can make."""
        groups: list[tuple[int, int]] = []
        start = 0
        for i in range(1, len(program.code) + 1):
            if i == len(program.code) or not self._joins(program, start, i):
                groups.append((start, i))
                start = i
        return groups

    def _joins(self, program: Program, start: int, new: int) -> bool:
        code, steps = program.code, program.steps
        if code[start].op not in _ELEMENTWISE or code[new].op not in _ELEMENTWISE:
            return False
        if new - start >= 12:
            return False
        later = steps[new][1]
        if _dimensions(later.write.shape) != _dimensions(steps[start][1].write.shape):
            return False
        return all(_independent(steps[i][1], later) for i in range(start, new))

    def _loop(self, program: Program, start: int, stop: int) -> list[str]:
        shape = _dimensions(program.steps[start][1].write.shape)
        known: dict[Any, str] = {}
        body: list[str] = []
        for i in range(start, stop):
            touched = program.steps[i][1]
            operands = []
            for read in touched.reads:
                key = _key(read)
                operands.append(known.get(key) or self._entry(program, read))
            value = f"v{i - start}"
            body.append(f"const T {value} = {self._call(program, i, touched, operands)};")
            key = _key(touched.write)
            known[key] = value
            if not self._is_dead(program, i, stop):
                body.append(f"{self._entry(program, touched.write)} = {value};")
        lines, indent = [], "  "
        for depth, n in enumerate(shape):
            if depth == len(shape) - 1:
                lines.append(f"{indent}SIMD")
            lines.append(f"{indent}for (long i{depth} = 0; i{depth} < {n}; ++i{depth}) {{")
            indent += "  "
        lines += [indent + line for line in body]
        for _ in shape:
            indent = indent[2:]
            lines.append(indent + "}")
        return lines if shape else ["  {", *("    " + line for line in body), "  }"]

    def _call(self, program: Program, i: int, touched: Touched, operands: list[str]) -> str:
        kind = program.code[i].kind
        if kind == "pow":
            exponent = touched.reads[1]
            if exponent.slot == CONST and not any(_strides(exponent)):
                value = float(program.constants[exponent.offset])
                if value in (2.0, 3.0):
                    return " * ".join([operands[0]] * int(value))
        return f"k_{kind}<T>({', '.join(operands)})"

    def _is_dead(self, program: Program, writer: int, stop: int) -> bool:
        """Whether what an instruction writes is read by its own loop only."""
        write = program.steps[writer][1].write
        if write.slot != WORK:
            return False
        for j in range(writer + 1, len(program.code)):
            later = program.steps[j][1]
            reads = later.reads
            if program.code[j].op == "scatter_add":  # it adds to what is there
                reads = (*reads, later.write)
            if j >= stop and any(_overlap(write, read) for read in reads):
                return False
            if later.write.slot == WORK and _covers(later.write, write):
                return True
        return True

    def _entry(self, program: Program, access: Access) -> str:
        if access.slot == TIME:
            return "t"
        strides = _strides(access)
        if access.slot == CONST and not any(strides):
            return self._number(float(program.constants[access.offset]))
        terms = [str(access.offset)] if access.offset else []
        for depth, stride in enumerate(strides):
            if stride:
                terms.append(f"i{depth}" if stride == 1 else f"{stride} * i{depth}")
        return f"{SLOT_NAMES[access.slot]}[{' + '.join(terms) or '0'}]"

    def _number(self, x: float) -> str:
        if math.isnan(x):
            return "std::numeric_limits<T>::quiet_NaN()"
        if math.isinf(x):
            return ("-" if x < 0 else "") + "std::numeric_limits<T>::infinity()"
        return f"T({x!r})"

    # The others --------------------------------------------------------------------------------

    def _single(self, program: Program, i: int) -> list[str]:
        values, touched = program.steps[i]
        return getattr(self, f"_{program.code[i].op}")(program, i, values, touched)

    def _mm(self, program: Program, i: int, v: dict[str, Any], touched: Touched) -> list[str]:
        product = _Product(v["m"], v["n"], v["k"], touched.write, *touched.reads)
        text = self._vectors(product)
        if product.cost < (LARGE if text else LARGE >> 5) or min(product.m, product.n) < 16:
            return [f"  {text or product.plain()}"]
        call = (
            f"large_product<T>(m.gemm, {product.sizes}, "
            f"{_pointer(product.a)}, {_flag(v['ta'])}, {v['lda']}, "
            f"{_pointer(product.b)}, {_flag(v['tb'])}, {v['ldb']}, "
            f"{_pointer(product.out)}, {v['ldc']}, {product.addend});"
        )
        when = "m.gemm && m.threads > 1" if text else "m.gemm"
        return [f"  if ({when}) {call}", f"  else {text or product.plain()}"]

    def _bmm(self, program: Program, i: int, v: dict[str, Any], touched: Touched) -> list[str]:
        def of(r: int) -> _Product:
            matrices = (_matrix_of(x, r) for x in (touched.write, *touched.reads))
            return _Product(v["m"], v["n"], v["k"], *matrices)

        if v["batch"] <= 4:
            return [f"  {self._vectors(of(r)) or of(r).plain()}" for r in range(v["batch"])]
        steps = [x.strides[0] for x in (touched.write, *touched.reads)]
        return [f"  for (long r = 0; r < {v['batch']}; ++r) {of(0).plain(steps)}"]

    def _vectors(self, x: _Product) -> str | None:
        """Along the columns of b, along the rows of a, or along k; None where nothing suits."""
        few = self.width // 2
        rows = self._rows_of(x.b, x.k, x.n, x.bk, x.bj)
        columns = self._columns_of(x.b, x.k, x.n, x.bk, x.bj)
        if x.n < few and x.k >= self.width and x.ak == 1 and columns:
            return x.dots(*columns())
        by_rows = x.ai == 1 and x.m > 1
        if rows and (x.n >= few or not by_rows or x.n >= x.m):
            return x.along_columns(*rows())
        if by_rows:
            return x.along_rows()
        if x.n <= 8 and x.k >= self.width and x.ak == 1 and columns:
            return x.dots(*columns())
        return None

    def _rows_of(
        self, b: Access, k: int, n: int, bk: int, bj: int
    ) -> Callable[[], tuple[str, Any]] | None:
        """b with contiguous rows, copied if need and possibility be."""
        if bj == 1 or n == 1:
            return lambda: (_pointer(b), bk)
        return (lambda: self.packed.place(k, n, b.offset, bk, bj)) if b.slot == P else None

    def _columns_of(
        self, b: Access, k: int, n: int, bk: int, bj: int
    ) -> Callable[[], tuple[str, Any]] | None:
        """b with contiguous columns."""
        if bk == 1:
            return lambda: (_pointer(b), bj)
        return (lambda: self.packed.place(n, k, b.offset, bj, bk)) if b.slot == P else None

    def _reduce(self, program: Program, i: int, v: dict[str, Any], touched: Touched) -> list[str]:
        sizes = ", ".join(str(v[x]) for x in ("outer", "n", "inner"))
        kind = program.code[i].kind
        a, out = touched.reads[0], touched.write
        return [
            f"  reduce<T, {kind}>({sizes}, {_pointer(out)}, {v['oo']}, {v['oi']}, "
            f"{_pointer(a)}, {v['ao']}, {v['an']}, {v['ai']});"
        ]

    def _scan(self, program: Program, i: int, v: dict[str, Any], touched: Touched) -> list[str]:
        sizes = ", ".join(str(v[x]) for x in ("outer", "n", "inner"))
        out, a = _pointer(touched.write), _pointer(touched.reads[0])
        return [f"  running_sum<T>({sizes}, {out}, {a});"]

    def _gather(self, program: Program, i: int, v: dict[str, Any], touched: Touched) -> list[str]:
        out, a = _pointer(touched.write), _pointer(touched.reads[0])
        return self._indexed(v, f"({out})[i] = ({a})[at[i]];")

    def _scatter_add(
        self, program: Program, i: int, v: dict[str, Any], touched: Touched
    ) -> list[str]:
        out, a = _pointer(touched.write), _pointer(touched.reads[0])
        return self._indexed(v, f"({out})[at[i]] += ({a})[i];")

    def _indexed(self, v: dict[str, Any], body: str) -> list[str]:
        at = ", ".join(str(x) for x in v["indices"].tolist())
        return [
            f"  {{ static const int at[] = {{{at}}};",
            f"    for (long i = 0; i < {v['n']}; ++i) {body} }}",
        ]


_ELEMENTWISE = {"unary", "unary_nd", "binary", "binary_nd", "ternary", "ternary_nd"}


@dataclass
class _Product:
    """out (m, n) = a (m, k) b (k, n) + c, and the ways to write it."""

    m: int
    n: int
    k: int
    out: Access
    a: Access
    b: Access
    c: Access | None = None

    def __post_init__(self) -> None:
        self.ai, self.ak = self.a.strides
        self.bk, self.bj = self.b.strides
        self.oi, self.oj = self.out.strides
        self.ci, self.cj = self.c.strides if self.c else (0, 0)
        self.add = _flag(self.c is not None)
        self.from_c = _pointer(self.c) if self.c else "nullptr"

    @property
    def cost(self) -> int:
        return self.m * self.n * self.k

    @property
    def sizes(self) -> str:
        return f"{self.m}, {self.n}, {self.k}"

    @property
    def addend(self) -> str:
        return f"{self.add}, {self.from_c}, {self.ci}, {self.cj}"

    def dots(self, columns: str, step: Any) -> str:
        strides = f"{self.ai}, {step}, {self.oi}, {self.oj}, {self.add}, {self.ci}, {self.cj}"
        where = f"{_pointer(self.a)}, {columns}, {_pointer(self.out)}, {self.from_c}"
        return f"dots<T, {self.sizes}, {strides}>({where});"

    def along_columns(self, rows: str, step: Any) -> str:
        strides = f"{self.ai}, {self.ak}, {step}, {self.oi}, {self.oj}"
        strides += f", {self.add}, {self.ci}, {self.cj}"
        where = f"{_pointer(self.a)}, {rows}, {_pointer(self.out)}, {self.from_c}"
        return f"product<T, Strides<{strides}>, {self.sizes}>({where});"

    def along_rows(self) -> str:
        """The transposed product."""
        strides = f"{self.bj}, {self.bk}, {self.ak}, {self.oj}, {self.oi}"
        strides += f", {self.add}, {self.cj}, {self.ci}"
        where = f"{_pointer(self.b)}, {_pointer(self.a)}, {_pointer(self.out)}, {self.from_c}"
        return f"product<T, Strides<{strides}>, {self.n}, {self.m}, {self.k}>({where});"

    def plain(self, steps: Sequence[int] = (0, 0, 0)) -> str:
        """By loops; ``steps`` are added to the places of out, a and b, times ``r``."""
        out, a, b = (
            _pointer(x) + (f" + {step} * r" if step else "")
            for x, step in zip((self.out, self.a, self.b), steps, strict=True)
        )
        return (
            f"plain_product<T>({self.sizes}, {a}, {self.ai}, {self.ak}, {b}, {self.bk}, "
            f"{self.bj}, {out}, {self.oi}, {self.oj}, {self.addend});"
        )


def _pointer(access: Access) -> str:
    name = SLOT_NAMES[access.slot]
    return f"{name} + {access.offset}" if access.offset else name


def _flag(x: Any) -> str:
    return "true" if x else "false"


def _matrix_of(access: Access, r: int) -> Access:
    return Access(
        access.slot, access.offset + r * access.strides[0], access.shape[1:], access.strides[1:]
    )


def _dimensions(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n > 1)


def _strides(access: Access) -> tuple[int, ...]:
    return tuple(s for n, s in zip(access.shape, access.strides, strict=True) if n > 1)


def _key(access: Access) -> Any:
    return access.slot, access.offset, _dimensions(access.shape), _strides(access)


def _overlap(a: Access, b: Access) -> bool:
    if a.slot != b.slot:
        return False
    (low, high), (other_low, other_high) = a.span(), b.span()
    return low <= other_high and other_low <= high


def _covers(a: Access, b: Access) -> bool:
    """Whether writing ``a`` leaves nothing of ``b``: sure for whole arrays alone."""
    if _key(a) == _key(b):
        return True
    (low, high), (other_low, other_high) = a.span(), b.span()
    whole = math.prod(a.shape) == high - low + 1
    return whole and low <= other_low and other_high <= high


def _independent(earlier: Touched, later: Touched) -> bool:
    """Whether a loop may do both for one index before the next: they meet at equal indices only."""
    pairs = itertools.chain(
        ((earlier.write, read) for read in later.reads),
        ((read, later.write) for read in earlier.reads),
        [(earlier.write, later.write)],
    )
    return all(_key(a) == _key(b) or not _overlap(a, b) for a, b in pairs)
