"""examples/compare_solvers.py writes its figures and table, with scipy and without."""

import json
import subprocess
import sys
from pathlib import Path

from pynode import solvers

SCRIPT = Path(__file__).parent.parent / "examples" / "compare_solvers.py"
HIDDEN = """
import runpy, sys
if {hide!r}:
    sys.modules["scipy"] = sys.modules["scipy.integrate"] = None
sys.argv = [{script!r}, *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def run(out: Path, *arguments: str, hide: str = "") -> str:
    code = HIDDEN.format(hide=hide, script=str(SCRIPT), arguments=[*arguments, "--out", str(out)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_suitable_solver_is_drawn(tmp_path):
    printed = run(tmp_path, "--problems", "kepler", "robertson", "--patience", "0.01")
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
    printed = run(tmp_path, "--problems", "network", "--patience", "0.01", hide="scipy")
    assert "scipy is not installed" in printed and "dop853" in printed
