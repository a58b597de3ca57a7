"""examples/compare_solvers.py writes its figures and table, with scipy and without."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pynode import solvers
from pynode.solution import Statistics

SCRIPT = Path(__file__).parent.parent / "examples" / "compare_solvers.py"
HIDDEN = """
import runpy, sys
if {hide!r}:
    sys.modules["scipy"] = sys.modules["scipy.integrate"] = None
sys.argv = [{script!r}, *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
TORCH = ("--engines", "torch")  # Julia compiles each solver, which takes minutes


def run(out: Path, *arguments: str, hide: str = "") -> str:
    code = HIDDEN.format(hide=hide, script=str(SCRIPT), arguments=[*arguments, "--out", str(out)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Puts back what a script sets for its own process."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def test_every_suitable_solver_is_drawn(tmp_path):
    printed = run(tmp_path, "--problems", "kepler", "robertson", "--patience", "0.01", *TORCH)
    assert "scipy is not installed" not in printed
    runs = json.loads((tmp_path / "runs.json").read_text())

    def drawn(problem: str) -> set[str]:
        return {r["solver"] for r in runs if r["problem"] == problem}

    assert drawn("kepler") == {s.name for s in solvers() if not s.stiff}
    assert drawn("robertson") == {s.name for s in solvers() if s.stiff and s.adaptive}
    assert min(r["error"] for r in runs) < 1e-4 and all(r["nfe"] > 0 for r in runs)
    assert "## Robertson" in (tmp_path / "table.md").read_text()
    for name in ("error_nfe.png", "error_seconds.png"):
        assert (tmp_path / name).stat().st_size > 20_000


def test_without_scipy_it_says_so(tmp_path):
    printed = run(tmp_path, "--problems", "network", "--patience", "0.01", *TORCH, hide="scipy")
    assert "scipy is not installed" in printed and "dop853" in printed


def test_what_julia_takes_to_compile_a_solver_is_not_measured():
    with torch_defaults():
        example = runpy.run_path(str(SCRIPT))
    solved, truth = [], torch.ones(2, dtype=torch.float64)

    def first_solve_is_slow(problem, solver, engine, steps):
        solved.append(steps)
        return truth + steps["rtol"], Statistics(), 0.001 if len(solved) > 1 else 20.0

    example["curve"].__globals__["run_once"] = first_solve_is_slow
    info = next(s for s in solvers() if s.name == "tsit5")
    problem = example["problems"]()["network"]
    runs = example["curve"]("network", problem, info, "julia", truth, 0.5)
    assert len(runs) == 9
    assert max(r.seconds for r in runs) < 0.01
