"""Which solver for which problem? Error against work, for all solvers there are.

    python examples/compare_solvers.py --out results/compare      # two or three minutes

Every solver meets every problem of its kind at tolerances (or step sizes) from loose to tight. What
comes out are two figures, error against evaluations of the field and against time, and a table.
The further to the left a line runs, the cheaper; the steeper, the higher the order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from torch import Tensor, nn

from pynode import solve, solvers
from pynode.catalogue import SolverInfo
from pynode.errors import PynodeError

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

# ---------------------------------------------------------------------------------------------
# The problems. First those that are not stiff. Hares and lynxes, three of their cycles:


def lotka_volterra(t: Tensor, z: Tensor) -> Tensor:
    hare, lynx = z
    return torch.stack([1.5 * hare - hare * lynx, hare * lynx - 3.0 * lynx])


# A satellite between earth and moon, on a closed orbit that passes the earth closely, where steps
# must be a thousand times shorter than elsewhere (Hairer, Norsett, Wanner, Solving ODEs I, II.0).


def arenstorf(t: Tensor, z: Tensor) -> Tensor:
    x, y, u, v = z
    moon = 0.012277471
    to_earth = ((x + moon) ** 2 + y**2) ** 1.5
    to_moon = ((x - (1 - moon)) ** 2 + y**2) ** 1.5
    pull, draw = (1 - moon) / to_earth, moon / to_moon
    return torch.stack(
        [
            u,
            v,
            x + 2 * v - pull * (x + moon) - draw * (x - (1 - moon)),
            y - 2 * u - pull * y - draw * y,
        ]
    )


# A planet of eccentricity 0.5, three times around. Its state is a pair (q, p), velocities do not
# depend on places nor forces on momenta, so symplectic methods can take part.


def kepler(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    q, p = z
    return p, -q / q.square().sum() ** 1.5


# What this package is for: a network as the field.


def network() -> Callable[[Tensor], Tensor]:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
    turn = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    return lambda z: 3.0 * net(z) + z @ turn


# Now the stiff ones. A relaxation oscillator that creeps for long and then jumps:


def van_der_pol(t: Tensor, z: Tensor) -> Tensor:
    x, v = z
    return torch.stack([v, 1e3 * (1 - x * x) * v - x])


# Three species whose rates differ by nine orders of magnitude:


def robertson(t: Tensor, z: Tensor) -> Tensor:
    a, b, c = z
    slow, fast, mixed = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([mixed - slow, slow - mixed - fast, fast])


# And eight reactants by which light tells a plant how to grow (Hairer, Wanner, Solving ODEs II,
# section IV.10; its name is High Irradiance RESponse):


def hires(t: Tensor, z: Tensor) -> Tensor:
    y1, y2, y3, y4, y5, y6, y7, y8 = z
    bound = 280.0 * y6 * y8
    return torch.stack(
        [
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
            -bound + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            bound - 1.81 * y7,
            -bound + 1.81 * y7,
        ]
    )


@dataclass(frozen=True)
class Problem:
    """A field, where it starts, and until when; ``typical``: the size of a small component."""

    title: str
    field: Callable[..., Any]
    z0: Any
    end: float
    stiff: bool = False
    typical: float = 1.0


def problems() -> dict[str, Problem]:
    orbit = torch.tensor([0.994, 0.0, 0.0, -2.00158510637908252240537862224])
    planet = (torch.tensor([0.5, 0.0]), torch.tensor([0.0, math.sqrt(3.0)]))
    leaf = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057])
    return {
        "lotka_volterra": Problem("Lotka–Volterra", lotka_volterra, torch.ones(2), 10.0),
        "arenstorf": Problem("Arenstorf orbit", arenstorf, orbit, 17.0652165601579625588917206249),
        "kepler": Problem("Kepler, e = 0.5, (q, p)", kepler, planet, 6 * math.pi),
        "network": Problem("neural field 2-50-2", network(), torch.tensor([1.0, -0.5]), 6.0),
        "van_der_pol": Problem(
            "Van der Pol, μ = 1000", van_der_pol, torch.tensor([2.0, 0.0]), 2000.0, True
        ),
        "robertson": Problem(
            "Robertson", robertson, torch.tensor([1.0, 0.0, 0.0]), 1e5, True, 1e-6
        ),
        "hires": Problem("HIRES", hires, leaf, 321.8122, True, 1e-3),
    }


# ---------------------------------------------------------------------------------------------
# The truth, as far as it can be had: from scipy where it is installed, so that no solver is its own
# judge; else from the most accurate solvers here.


def reference(problem: Problem) -> Tensor:
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        solver = "rodas5p" if problem.stiff else "dop853"
        print(
            f"{problem.title}: scipy is not installed (pip install 'pynode-ode[test]'), so the "
            f"reference is {solver} at 1e-12, and its own line means little below 1e-10"
        )
        return run_once(problem, solver, "torch", {"rtol": 1e-12, "atol": 1e-14})[0]
    pair = isinstance(problem.z0, tuple)
    one_argument = problem.field.__code__.co_argcount == 1

    def field(t: float, z: Any) -> Any:
        state = torch.as_tensor(z)
        given = tuple(state.chunk(2)) if pair else state
        with torch.no_grad():
            slope = problem.field(given) if one_argument else problem.field(torch.tensor(t), given)
        return flat(slope).numpy()

    method, rtol = ("Radau", 1e-12) if problem.stiff else ("DOP853", 1e-13)
    atol = 1e-15 if problem.stiff else 1e-14
    z0 = flat(problem.z0).numpy()
    found = solve_ivp(field, (0.0, problem.end), z0, method, rtol=rtol, atol=atol)
    return torch.as_tensor(found.y[:, -1])


def flat(state: Any) -> Tensor:
    return torch.cat(state) if isinstance(state, tuple) else state


# ---------------------------------------------------------------------------------------------
# One solver, one problem, from loose to tight, until a solve takes longer than our patience.


@dataclass(frozen=True)
class Run:
    problem: str
    solver: str
    engine: str
    order: int
    setting: str
    error: float
    nfe: int
    jacobians: int
    seconds: float


@torch.no_grad()
def run_once(problem: Problem, solver: str, engine: str, steps: dict[str, Any]) -> tuple:
    began = time.process_time()  # of this process alone, however busy the machine is
    sol = solve(
        problem.field,
        problem.z0,
        [0.0, problem.end],
        solver=solver,
        engine=engine,
        dense=False,
        max_steps=200_000,
        **steps,
    )
    seconds = time.process_time() - began
    last = tuple(x[-1] for x in sol.zs) if isinstance(sol.zs, tuple) else sol.zs[-1]
    return flat(last), sol.stats, seconds


def settings(problem: Problem, info: SolverInfo) -> list[tuple[str, dict[str, Any]]]:
    """Tolerances for solvers that choose their steps, step sizes for those that do not."""
    if not info.adaptive:
        counts = [round(50 * 2**i) for i in range(9)]
        return [(f"{n} steps", {"dt": problem.end / n}) for n in counts]
    return [
        (f"rtol 1e-{k}", {"rtol": 10.0**-k, "atol": problem.typical * 10.0**-k})
        for k in range(3, 12)
    ]


def curve(
    name: str, problem: Problem, info: SolverInfo, engine: str, truth: Tensor, patience: float
) -> list[Run]:
    runs: list[Run] = []
    if (
        engine == "julia"
    ):  # compiles a solver at its first solve, which takes longer than any patience
        with contextlib.suppress(PynodeError):
            run_once(problem, info.name, engine, settings(problem, info)[0][1])
    for setting, steps in settings(problem, info):
        try:
            z, stats, seconds = run_once(problem, info.name, engine, steps)
            if seconds < patience:  # the first run pays for warming up
                seconds = min(seconds, run_once(problem, info.name, engine, steps)[2])
        except PynodeError:  # too loose to get there, or too many steps
            if runs:
                break
            continue
        error = float(((z - truth) / truth.abs().clamp_min(problem.typical)).square().mean().sqrt())
        counts = (stats.nfe, stats.jacobians)
        runs.append(Run(name, info.name, engine, info.order, setting, error, *counts, seconds))
        # Stiff solvers spend longer on a step, and take fewer.
        if seconds > patience * (2 if problem.stiff else 1) or error < 1e-12:
            break
    return runs


def suits(info: SolverInfo, problem: Problem) -> bool:
    if info.separable:
        return isinstance(problem.z0, tuple)
    return info.stiff == problem.stiff and not (problem.stiff and not info.adaptive)


def engines_at_hand(names: list[str]) -> list[str]:
    """Those of the engines that can solve something on this machine."""
    found = []
    for engine in names:
        try:
            solve(lambda t, z: -z, torch.ones(1), [0.0, 1.0], engine=engine)
            found.append(engine)
        except PynodeError as error:
            print(f"engine {engine} is left out: {error}")
    return found


# ---------------------------------------------------------------------------------------------
# Figures. A colour is a family of solvers, a marker tells its members apart, and dashes are Julia.

FAMILIES = {
    "explicit, order 1–3": ("#9aa0a6", "#6d747c", "#454b52", "#23272c"),
    "explicit, order 4–5": ("#7fc4ee", "#0077bb", "#004a75", "#33d0e0"),
    "explicit, order ≥ 6": ("#b07cc6", "#6f2da8", "#3b0f63"),
    "symplectic": ("#7fd08a", "#2a9d5c", "#0d5c33"),
    "Rosenbrock": ("#f6a04d", "#e0640a", "#8f3a00"),
    "other implicit": ("#e58fa0", "#d1392b", "#8c1030", "#c26a00", "#5c2018"),
}
MARKERS = "os^Dvp<>"


def family(info: SolverInfo) -> str:
    if info.separable:
        return "symplectic"
    if info.stiff:
        return "Rosenbrock" if info.name.startswith(("ros", "rod")) else "other implicit"
    if info.order <= 3:
        return "explicit, order 1–3"
    return "explicit, order 4–5" if info.order <= 5 else "explicit, order ≥ 6"


def looks() -> dict[str, dict[str, Any]]:
    """Colour and marker of each solver: the same in every panel and figure."""
    members: dict[str, list[SolverInfo]] = {name: [] for name in FAMILIES}
    for info in sorted(solvers(), key=lambda info: info.order):
        members[family(info)].append(info)
    return {
        info.name: {
            "color": FAMILIES[name][i % len(FAMILIES[name])],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for name, infos in members.items()
        for i, info in enumerate(infos)
    }


def draw(runs: list[Run], chosen: dict[str, Problem], work: str, label: str) -> Figure:
    columns = min(4, len(chosen) + 1)
    rows = -(-(len(chosen) + 1) // columns)
    figure = Figure(figsize=(3.7 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    look, shown = looks(), set()
    for axes, (name, problem) in zip(grid, chosen.items(), strict=False):
        mine = [r for r in runs if r.problem == name]
        for solver, engine in dict.fromkeys((r.solver, r.engine) for r in mine):
            line = [r for r in mine if (r.solver, r.engine) == (solver, engine)]
            axes.loglog(
                [getattr(r, work) for r in line],
                [r.error for r in line],
                "-" if engine == "torch" else "--",
                lw=1.3,
                ms=4,
                **look[solver],
            )
            shown.add((solver, engine))
        axes.set_title(problem.title, fontsize=11, fontweight="bold")
        axes.set_ylim(3e-13, 30)
        axes.xaxis.set_minor_formatter("")
        low, high = axes.get_xlim()
        centre = math.sqrt(low * high)  # a decade and a half at least, so that slopes compare
        axes.set_xlim(min(low, centre / 6), max(high, centre * 6))
        axes.grid(True, which="major", color="#e4e4e4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(label)
        axes.set_ylabel("relative error at the end")
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    explicit = [name for name in FAMILIES if name.startswith("explicit")]
    others = [name for name in FAMILIES if name not in explicit]
    for names, place in ((explicit, (-0.02, 0.5)), (others, (0.52, 0.5))):
        grid[len(chosen)].add_artist(
            Legend(
                grid[len(chosen)],
                handles := _legend(names, shown, look),
                [handle.get_label() for handle in handles],
                loc="center left",
                bbox_to_anchor=place,
                fontsize=9,
                frameon=False,
            )
        )
    return figure


def _legend(
    names: list[str], shown: set[tuple[str, str]], look: dict[str, dict[str, Any]]
) -> list[Line2D]:
    handles = []
    for name in names:
        mine = [i for i in solvers() if family(i) == name and any(s == i.name for s, _ in shown)]
        if mine:
            handles.append(Line2D([], [], color="none", label=f"$\\bf{{{_tex(name)}}}$"))
        handles += [
            Line2D([], [], lw=1.3, ms=5, label=f"{i.name} ({i.order})", **look[i.name])
            for i in sorted(mine, key=lambda i: i.order)
        ]
    if "symplectic" in names and len({engine for _, engine in shown}) > 1:
        handles.append(Line2D([], [], color="#454b52", ls="--", label="Julia engine"))
    return handles


def _tex(text: str) -> str:
    return text.replace(" ", "\\ ").replace("–", "\\!-\\!")


# ---------------------------------------------------------------------------------------------
# The table: the cheapest run of every solver that reached a given error.


def table(runs: list[Run], chosen: dict[str, Problem], target: float) -> str:
    lines = [
        f"The fastest run of each solver with a relative error of at most {target:g} at the end.",
        "Each Jacobian counts as one evaluation more; times are processor time of one thread.",
    ]
    for name, problem in chosen.items():
        lines += [
            f"\n## {problem.title}\n",
            "| solver | engine | order | setting | error | nfe | Jacobians | ms |",
            "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
        ]
        best: dict[tuple[str, str], Run] = {}
        for r in sorted(runs, key=lambda r: -r.seconds):
            if r.problem == name and r.error <= target:
                best[r.solver, r.engine] = r
        missed = {(r.solver, r.engine) for r in runs if r.problem == name} - set(best)
        lines += [
            f"| `{r.solver}` | {r.engine} | {r.order} | {r.setting} | {r.error:.1e} | {r.nfe} "
            f"| {r.jacobians or '–'} | {1e3 * r.seconds:.1f} |"
            for r in sorted(best.values(), key=lambda r: r.seconds)
        ]
        if missed:
            names = ", ".join(f"`{solver}` ({engine})" for solver, engine in sorted(missed))
            lines.append(f"\nNot reached in the time given: {names}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/compare"))
    parser.add_argument("--problems", nargs="+", choices=list(problems()), metavar="NAME")
    engines = list(dict.fromkeys(engine for info in solvers() for engine in info.engines))
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--patience", type=float, default=0.6, help="longest solve, seconds")
    parser.add_argument("--target", type=float, default=1e-5, help="error for the table")
    arguments = parser.parse_args()
    chosen = {k: v for k, v in problems().items() if k in (arguments.problems or problems())}
    engines, runs = engines_at_hand(arguments.engines), []
    for name, problem in chosen.items():
        truth = reference(problem)
        for info in (info for info in solvers() if suits(info, problem)):
            for engine in (engine for engine in info.engines if engine in engines):
                runs += curve(name, problem, info, engine, truth, arguments.patience)
        print(f"{problem.title}: {sum(r.problem == name for r in runs)} solves")

    arguments.out.mkdir(parents=True, exist_ok=True)
    axes = {"nfe": "evaluations of the field", "seconds": "seconds of processor time"}
    for work, label in axes.items():
        draw(runs, chosen, work, label).savefig(arguments.out / f"error_{work}.png", dpi=140)
    (arguments.out / "table.md").write_text(table(runs, chosen, arguments.target))
    (arguments.out / "runs.json").write_text(json.dumps([asdict(r) for r in runs], indent=1))
    print(table(runs, chosen, arguments.target))
    print(f"see {arguments.out}/error_nfe.png, error_seconds.png, table.md and runs.json")


if __name__ == "__main__":
    main()
