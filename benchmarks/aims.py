"""What pynode aims at, beside what was measured: a section of the page of results."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benchmarks.report import BASE, Result, fastest, figure, ratios

DIFFRAX = ("diffrax", "diffrax vmap")
COLUMNS = ("pynode torch", "pynode compiled", "pynode julia")

HEAD = """## Aims

Times faster than torchdiffeq, or than the faster one of diffrax's, and, after *of*, at least how
many times faster it was meant to be (one thread; gradients: the fastest of each). What falls short
is **bold**: [How fast solves can be](floors.md) says what the field's evaluations alone, or their
matrix products alone, would allow there, and where the rest of the time goes.
"""


@dataclass(frozen=True)
class Aim:
    """At least how many times faster, by contender.

    Attributes:
        what: ``"forward"`` or ``"gradient"``.
        base, diffrax: than torchdiffeq and than diffrax.
    """

    case: str
    what: str
    base: dict[str, float]
    diffrax: dict[str, float] = field(default_factory=dict)


def _each(eager: float, compiled: float, julia: float | None = None) -> dict[str, float]:
    found = {"pynode torch": eager, "pynode compiled": compiled}
    return found if julia is None else found | {"pynode julia": julia}


_AHEAD = {"pynode compiled": 1.0, "pynode julia": 1.0}
_COMPILED_AHEAD = {"pynode compiled": 1.0}
AIMS = (
    *(
        aim
        for case in ("spiral-b1-1e-3", "spiral-b1-1e-7")
        for aim in (
            Aim(case, "forward", _each(4, 100, 300), _AHEAD | {"pynode julia": 2.0}),
            Aim(case, "gradient", _each(4, 40, 100), _AHEAD),
        )
    ),
    Aim("spiral-b256-1e-3", "forward", _each(2, 5.5, 20), _COMPILED_AHEAD),
    Aim("spiral-b256-1e-3", "gradient", _each(2, 5, 20), _COMPILED_AHEAD),
    Aim("spiral-b256-1e-7", "forward", _each(2, 5.5), _COMPILED_AHEAD),
    Aim("spiral-b256-1e-7", "gradient", _each(2, 5), _COMPILED_AHEAD),
    Aim("vdp-mu25", "forward", {"pynode torch per sample": 5}, _AHEAD),
    Aim("latent", "gradient", _each(2, 6, 10)),
    *(
        Aim(case, what, _each(1.3, 3, 4))
        for case in ("cnf-exact", "cnf-hutchinson")
        for what in ("forward", "gradient")
    ),
    Aim("large", "forward", _each(1, 1.1)),
    Aim("large", "gradient", _each(1, 1.1)),
)


def section(result: Result) -> list[str]:
    """The section's lines; none where nothing that is aimed at was measured."""
    lines = []
    for aim in AIMS:
        sides = ((BASE, aim.base, (BASE,)), ("diffrax", aim.diffrax, DIFFRAX))
        for name, wanted, than in sides:
            cells = [_cell(result, aim, column, wanted, than) for column in COLUMNS]
            if any(cells):
                lines.append(f"| {aim.case} | {aim.what} | {name} | {' | '.join(cells)} |")
    if not lines:
        return []
    table = [f"| case | | faster than | {' | '.join(COLUMNS)} |", "|---|---|---|---:|---:|---:|"]
    return [*HEAD.splitlines(), "", *table, *lines, ""]


def _cell(
    result: Result, aim: Aim, column: str, wanted: dict[str, float], than: tuple[str, ...]
) -> str:
    """What one contender reached; steps per sample stand in the column of the joint ones."""
    names = [name for name in wanted if name.removesuffix(" per sample") == column]
    rows = [row for row in result.rows if (row.case, row.threads) == (aim.case, 1)]
    if not names:
        return ""
    mine = fastest(rows, names[0], aim.what)
    others = [row for row in (fastest(rows, name, aim.what) for name in than) if row]
    if mine is None or not others:
        return ""
    reached = min(statistics.median(ratios(other, mine)) for other in others)
    short = reached < wanted[names[0]]
    text = f"{figure(reached)} of {wanted[names[0]]:g}"
    steps = " (per sample)" if names[0] != column else ""
    return f"**{text}**{steps}" if short else text + steps
