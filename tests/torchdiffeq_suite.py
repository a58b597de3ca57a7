"""torchdiffeq's own tests, run against torchdiffeq and against pynode.torchdiffeq.

Not collected by pytest. It needs torchdiffeq's repository, which its wheel and sdist lack the
tests of: ``git clone https://github.com/rtqichen/torchdiffeq``, then

    python tests/torchdiffeq_suite.py path/to/torchdiffeq

writes the counts into the section "torchdiffeq's test-suite" of docs/verified.md. Each library runs
in a process of its own; pynode's takes torchdiffeq's name by ``sys.modules``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "verified.md"
HEADING = "torchdiffeq's test-suite"
KNOWN = {
    "test_min_max_step": "scipy's doing: its LSODA takes 191 evaluations (scipy 1.17.1) where the "
    "test allows 50 with min_step=2; the test's other half, dopri5, passes",
    "radauIIA5": "torchdiffeq in float32, an event of the sine problem: passes on some "
    "machines and misses the test's 1e-4 (4e-4) on others",
}
"""Why a test fails, where it was looked into."""
MODULES = ("api_tests", "event_tests", "gradient_tests", "norm_tests", "odeint_tests")


class Counting(unittest.TextTestResult):
    """Counts subtests as well as tests."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subtests = 0
        self.bad: list[str] = []
        self.bad_tests: set[str] = set()

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        self.subtests += 1
        if err is not None:
            self._note(test, subtest, err)

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, test, err)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, test, err)

    def _note(self, test: Any, part: Any, err: Any) -> None:
        self.bad.append(f"{part}: {err[0].__name__}: {str(err[1]).splitlines()[0]}")
        self.bad_tests.add(test.id())


def run_here(repository: Path, library: str, out: Path) -> None:
    """Run the suite in this process and write what came out as JSON."""
    import torch

    sys.path.insert(0, str(repository / "tests"))
    if library == "pynode":
        sys.path.insert(0, str(ROOT))
        import pynode.torchdiffeq as tested

        sys.modules["torchdiffeq"] = tested
    else:
        sys.path.insert(0, str(repository))
        import torchdiffeq as tested
    suite = unittest.defaultTestLoader.loadTestsFromNames(MODULES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = unittest.TextTestRunner(resultclass=Counting, verbosity=0, warnings="ignore")
        result = runner.run(suite)
    assert isinstance(result, Counting)
    found = {
        "library": tested.__name__,
        "torch": torch.__version__,
        "tests": result.testsRun,
        "failed": len(result.bad_tests),
        "subtests": result.subtests,
        "bad": result.bad,
    }
    out.write_text(json.dumps(found, indent=1))


def run_apart(repository: Path, library: str) -> dict[str, Any]:
    """The suite's result in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, __file__, str(repository), "--library", library]
        subprocess.run([*command, "--json", str(out)], check=True, env={**os.environ})
        return json.loads(out.read_text())


def commit_of(repository: Path) -> str:
    command = ["git", "-C", str(repository), "log", "-1", "--format=%h of %as"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def section(results: list[dict[str, Any]], commit: str) -> str:
    lines = [
        f"Repository at {commit}, torch {results[0]['torch']}. A test with one failed subtest "
        "counts as failed.",
        "",
        "| library | tests passed | tests failed | subtests | subtests failed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        passed = r["tests"] - r["failed"]
        lines.append(
            f"| `{r['library']}` | {passed} | {r['failed']} | {r['subtests']} | {len(r['bad'])} |"
        )
    for r in results:
        lines += ["", f"Failed with `{r['library']}`:"] + [f"* `{bad}`" for bad in r["bad"]]
    bad = {name for r in results for name in r["bad"]}
    why = [f"{test}: {reason}." for test, reason in KNOWN.items() if any(test in b for b in bad)]
    lines += ["", *why] if why else []
    lines += ["", "Made by `python tests/torchdiffeq_suite.py path/to/torchdiffeq`."]
    return "\n".join(lines)


def write(heading: str, text: str) -> None:
    """Put a section into docs/verified.md, in place of an older one."""
    page = PAGE.read_text() if PAGE.exists() else "# What was verified\n"
    block = f"## {heading}\n\n{text}\n"
    pattern = re.compile(rf"## {re.escape(heading)}\n.*?(?=\n## |\Z)", re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: block, page)
    else:
        page = f"{page.rstrip()}\n\n{block}"
    PAGE.write_text(page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--library", choices=("torchdiffeq", "pynode"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    if not (repository / "tests" / "api_tests.py").exists():
        raise SystemExit(f"{repository} has no tests/api_tests.py: give torchdiffeq's repository")
    if arguments.library:
        run_here(repository, arguments.library, arguments.json)
        return 0
    with ThreadPoolExecutor() as pool:
        results = list(
            pool.map(lambda name: run_apart(repository, name), ("torchdiffeq", "pynode"))
        )
    write(HEADING, section(results, commit_of(repository)))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    reference, mine = results
    return int(mine["failed"] > reference["failed"])


if __name__ == "__main__":
    sys.exit(main())
