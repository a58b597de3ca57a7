"""The C++ source of a solve: a method, the field's programs, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence

from pynode.engines.torch.compiled.translate import Translator
from pynode.engines.torch.tableau import Tableau
from pynode.lowering.lowered import LoweredField

KINDS = {
    "forward": ("f",),
    "discrete": ("f", "vjp"),
    "gauss": ("f", "vjp_z", "vjp_p"),
    "interpolating": ("f", "vjp"),
    "backsolve": ("f", "vjp"),
}
"""What can be compiled, and the programs that it needs."""


def source(
    kind: str,
    lowered: LoweredField,
    method: Tableau,
    backward: Tableau,
    rule: Sequence[tuple[float, float]],
) -> str:
    """One translation unit with the function ``int pynode_run(Call*)``.

    Args:
        kind: a name of ``KINDS``.
        method: of the forward solve.
        backward: of the adjoint's.
        rule: points in [0, 1] and weights of the quadrature of ``gauss``.
    """
    translator = Translator(lowered.dtype)
    functions: list[str] = []
    for name in KINDS[kind]:
        functions += [f"  {line}" for line in translator.function(name, lowered.programs[name])]
    packing = "".join(f"\n    {line}" for line in translator.packed.lines)
    header = "forward.h" if kind == "forward" else "adjoints.h"
    own = "Method" if backward is method else "Backward"
    run = {
        "forward": "solve<T, Method, Programs>(*call)",
        "discrete": "discrete<T, Method, Programs>(*call)",
        "gauss": f"gauss<T, Method, {own}, Rule, Programs>(*call)",
    }.get(kind, f"{kind}<T, Method, {own}, Programs>(*call)")
    lines = [
        f'#include "{header}"',
        "",
        # Without a name, so that no symbol is shared with other solves' code.
        "namespace pynode { namespace {",
        f"using T = {translator.type};",
        "",
        *method_struct("Method", method),
        *([] if backward is method else method_struct("Backward", backward)),
        *quadrature_struct(rule),
        "struct Programs {",
        f"  static constexpr long N = {lowered.rows * lowered.width}, P = {lowered.size};",
        f"  static constexpr long work = {translator.work}, packed = {translator.packed.size};",
        "  static void pack_parameters([[maybe_unused]] const T* p, [[maybe_unused]] T* to) {"
        + packing,
        "  }",
        *functions,
        "};",
        "}}  // namespace pynode",
        "",
        'extern "C" __attribute__((visibility("default"))) int pynode_run(pynode::Call* call) {',
        "  using namespace pynode;",
        f"  return {run};",
        "}",
        "",
    ]
    return "\n".join(lines)


def method_struct(name: str, tableau: Tableau) -> list[str]:
    """A tableau as a C++ type: numbers, and sums over the stages."""
    stages, extra = tableau.stages, len(tableau.extra_c)
    degree = max(len(row) for row in tableau.interpolant)
    rows = [[*row, *[0.0] * (degree - len(row))] for row in tableau.interpolant]
    a = [[*row, *[0.0] * (stages + extra - len(row))] for row in (*tableau.a, *tableau.extra_a)]
    lines = [
        f"struct {name} {{",
        f"  static constexpr int stages = {stages}, extra = {extra}, degree = {degree};",
        f"  static constexpr int error_order = {tableau.error_order};",
        f"  static constexpr bool fsal = {_bool(tableau.fsal)};",
        f"  static constexpr bool has_error = {_bool(tableau.error is not None)};",
        f"  static constexpr bool has_low = {_bool(tableau.error_low is not None)};",
        f"  static constexpr double c[] = {_row((*tableau.c, *tableau.extra_c))};",
        f"  static constexpr double b[] = {_row(tableau.b)};",
        f"  static constexpr double a[{stages + extra}][{stages + extra}] = {_table(a)};",
        f"  static constexpr double p[{stages + extra}][{degree}] = {_table(rows)};",
    ]
    for function, numbered in (("sum", tableau.a), ("extra_sum", tableau.extra_a)):
        lines += [
            "  template <int i, long N>",
            f"  static T {function}([[maybe_unused]] const T* k) {{",
            *(f"    if constexpr (i == {i}) return {_sum(row)};" for i, row in enumerate(numbered)),
            "    return T(0);",
            "  }",
        ]
    single = {"step": tableau.b, "error": tableau.error, "low": tableau.error_low}
    for function, weights in single.items():
        if weights is not None:
            lines += [
                "  template <long N>",
                f"  static T {function}([[maybe_unused]] const T* k) {{ return {_sum(weights)}; }}",
            ]
    return [*lines, "};", ""]


def quadrature_struct(rule: Sequence[tuple[float, float]]) -> list[str]:
    points, weights = [x for x, _ in rule], [w for _, w in rule]
    if not rule:
        return []
    return [
        "struct Rule {",
        f"  static constexpr int points = {len(rule)};",
        f"  static constexpr double x[] = {_row(points)};",
        f"  static constexpr double w[] = {_row(weights)};",
        "};",
        "",
    ]


def _sum(row: Sequence[float]) -> str:
    terms = [f"T({w!r}) * k[{j} * N]" for j, w in enumerate(row) if w]
    return " + ".join(terms) or "T(0)"


def _row(values: Sequence[float]) -> str:
    return "{" + ", ".join(repr(float(x)) for x in values) + "}"


def _table(rows: Sequence[Sequence[float]]) -> str:
    return "{" + ", ".join(_row(row) for row in rows) + "}"


def _bool(x: bool) -> str:
    return "true" if x else "false"
