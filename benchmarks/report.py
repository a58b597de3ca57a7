"""Results as JSON, as Markdown tables of ratios, and as a plot.

``python -m benchmarks.report RESULT.json FOLDER NAME`` writes them again from the JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.measure import Row

BASE = "torchdiffeq"
BACKPROP, ADJOINT = "gradient/discrete", "gradient/backsolve"


@dataclass
class Result:
    """One run of the benchmarks.

    Attributes:
        load: the machine's load average before and after.
        titles: of the cases; growth: of the growth cases, (what grows, its value).
        missing: contenders that could not run, and why.
        runs: how many these results are from; a case is measured in one.
        device: ``cpu`` or ``cuda``.
    """

    machine: str
    versions: dict[str, str]
    load: tuple[float | None, float | None]
    seconds: float
    quick: bool
    rows: list[Row]
    missing: dict[str, str]
    titles: dict[str, str]
    growth: dict[str, tuple[str, int]] = field(default_factory=dict)
    runs: int = 1
    device: str = "cpu"

    def row(self, case: str, contender: str, mode: str, threads: int) -> Row | None:
        wanted = (case, contender, mode, threads)
        for row in self.rows:
            if (row.case, row.contender, row.mode, row.threads) == wanted:
                return row
        return None

    @classmethod
    def load_json(cls, path: Path) -> Result:
        data = json.loads(path.read_text())
        data["rows"] = [Row(**row) for row in data["rows"]]
        return cls(**data)

    def beside(self, earlier: Result) -> Result:
        """This run with the cases that only an earlier one, on the same machine, measured."""
        mine = {(row.case, row.threads) for row in self.rows}
        kept = [row for row in earlier.rows if (row.case, row.threads) not in mine]
        return replace(
            self,
            load=(earlier.load[0], self.load[1]),
            seconds=earlier.seconds + self.seconds,
            runs=earlier.runs + self.runs,
            rows=self.rows + kept,
            missing={k: v for k, v in earlier.missing.items() if k in self.missing},
            titles=earlier.titles | self.titles,
            growth=earlier.growth | self.growth,
        )


def write(result: Result, folder: Path, name: str) -> list[Path]:
    """NAME.json, NAME.md and NAME.png in a folder; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{end}" for end in ("json", "md", "png")]
    paths[0].write_text(json.dumps(asdict(result), indent=1) + "\n")
    paths[1].write_text(markdown(result, f"{name}.png"))
    from benchmarks.figure import draw

    draw(result, paths[2])
    return paths


def ratios(base: Row | None, row: Row) -> list[float]:
    """How many times faster than the base, by rounds: times of one round stand side by side."""
    if base is None or not base.times:
        return []
    return [b / t for b, t in zip(base.times, row.times, strict=False)]


def markdown(result: Result, picture: str) -> str:
    """The whole page."""
    kind = "BENCH=quick make bench" if result.quick else "make bench"
    title = "Performance"
    if result.device != "cpu":
        title, kind = "Performance on a GPU", f"python -m benchmarks.run --device {result.device}"
    lines = [f"# {title}", "", f"Written by `{kind}`; do not edit.", ""]
    lines += [*_setting(result), "", f"![Times against torchdiffeq's]({picture})", ""]
    lines += [HOW_TO_READ, ""]
    if result.device == "cpu":
        from benchmarks import aims

        lines += aims.section(result)
    for threads in sorted({row.threads for row in result.rows}):
        lines += _summary(result, threads)
    for case, title in result.titles.items():
        for threads in sorted({row.threads for row in result.rows if row.case == case}):
            rows = [r for r in result.rows if r.case == case and r.threads == threads]
            lines += ["", f"## {title} ({_threads(threads)})", *_details(result, rows)]
    return "\n".join(lines).rstrip() + "\n"


HOW_TO_READ = """All contenders run in one process, taking turns (A B A B …), warm, with a malloc
that keeps what is freed (by default glibc gives large blocks back or not, as it happens), on the
same arrays, by the method of Dormand and Prince with the same tolerances; for stiff cases each by
the stiff method it has. (pynode with `controller="i"`, which torchdiffeq's and diffrax's
controllers are; its own default takes smaller steps at loose tolerances.) *×* is how many times
faster than torchdiffeq, the median over the rounds, with the smallest and the largest in brackets
(no spread where slow calls left time for one round only): forward against its forward, gradients
(forward pass included) against its backpropagation through `odeint` and against `odeint_adjoint`.
*error* is that of the states (RMS) or, where it is larger, of the gradient in fixed directions, in
units of rtol, against scipy at far tighter tolerances; an error above 100 gets no time. *cold* is
the first call, compilation included. *MB* is the peak memory of a warm call above what was held
before it, taken in a process of each contender's own (Julia uses memory again that its collector
holds, which this does not see); – where it was not measured. On more threads, of each contender
that gradient alone is measured which was its fastest on one."""


def _setting(result: Result) -> Iterable[str]:
    load = ", then ".join("unknown" if x is None else f"{x:.1f}" for x in result.load)
    yield f"* Machine: {result.machine}. Load average before, and after: {load}."
    if result.load[0] is not None and result.load[0] > 1.5:
        yield "  **Others were using the machine: absolute times are too long, ratios noisier.**"
    runs = f" in {result.runs} runs, each case in one" if result.runs > 1 else ""
    yield f"* Took {result.seconds / 60:.1f} minutes{runs}."
    yield "* " + ", ".join(f"{name} {v}" for name, v in result.versions.items()) + "."
    measured = {row.contender for row in result.rows if row.times}
    for name, why in result.missing.items():
        if name in measured:  # its memory could not be taken
            continue
        yield f"* **{name}**: missing: {why}."


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _summary(result: Result, threads: int) -> list[str]:
    """Two tables of cases against contenders."""
    names = list(dict.fromkeys(r.contender for r in result.rows if r.contender not in ("all",)))
    names = [name for name in names if name != BASE]
    lines: list[str] = []
    for what in ("forward", "gradient"):
        heading = "Forward" if what == "forward" else "Forward and gradient, the fastest of each"
        lines += [f"## {heading}, × torchdiffeq ({_threads(threads)})", ""]
        lines += [
            f"| case | torchdiffeq ms | {' | '.join(names)} |",
            f"|---|---:{'|---:' * len(names)}|",
        ]
        for case in result.titles:
            rows = [r for r in result.rows if (r.case, r.threads) == (case, threads)]
            best = {name: fastest(rows, name, what) for name in (BASE, *names)}
            base = best[BASE]
            if not any(best.values()):
                continue
            cells = [_ratio(ratios(base, r)) if r else "–" for r in map(best.get, names)]
            lines.append(f"| {case} | {_ms(base)} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def fastest(rows: list[Row], contender: str, what: str) -> Row | None:
    """A contender's fastest row of this kind that has times."""
    found = [r for r in rows if r.contender == contender and r.mode.startswith(what) and r.times]
    return min(found, key=lambda r: statistics.median(r.times), default=None)


def _details(result: Result, rows: list[Row]) -> list[str]:
    lines: list[str] = []
    tables: list[tuple[str, list[str]]] = [("forward", ["forward"])]
    tables.append(("gradient", [BACKPROP, ADJOINT]))
    for what, bases in tables:
        here = [r for r in rows if r.mode.startswith(what) or r.mode == "all"]
        if not here:
            continue
        heads = {"forward": "×", BACKPROP: "× backprop", ADJOINT: "× adjoint"}
        columns = " | ".join(heads[b] for b in bases)
        lines += ["", f"| {what} by | method | ms | {columns} | error | cold s | MB |"]
        lines.append("|---|---|---:" + "|---:" * (len(bases) + 3) + "|")
        for row in here:
            name = row.contender
            if what == "gradient":
                name += f" `{row.mode.partition('/')[2]}`"
            if not row.times:
                lines.append(f"| {name} | {row.note} |" + " |" * (len(bases) + 4))
                continue
            cells = [
                _ratio(ratios(result.row(row.case, BASE, b, row.threads), row), spread=True)
                for b in bases
            ]
            lines.append(
                f"| {name} | {row.solver} | {_ms(row)} | {' | '.join(cells)} | {_error(row)} | "
                f"{row.cold:.2f} | {_mb(row.memory)} |"
            )
    return lines


def _ratio(values: list[float], spread: bool = False) -> str:
    if not values:
        return "–"
    text = figure(statistics.median(values))
    if spread:
        text += f" [{figure(min(values))}–{figure(max(values))}]"
    return text


def figure(x: float) -> str:
    """A ratio, to three digits."""
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:.0f}"


def _ms(row: Row | None) -> str:
    if row is None or row.median is None:
        return "–"
    ms = row.median * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"


def _mb(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"


def _error(row: Row) -> str:
    errors = [x for x in (row.error, row.gradient_error) if x is not None]
    return f"{max(errors):.2g}" if errors else "–"


def main(arguments: list[str]) -> int:
    source, folder, name = arguments
    for path in write(Result.load_json(Path(source)), Path(folder), name):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
