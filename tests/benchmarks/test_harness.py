"""The benchmarks' harness, with pynode alone and problems of toy size."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import aims  # noqa: E402
from benchmarks.cases import Case, all_cases  # noqa: E402
from benchmarks.contenders import Task, all_contenders  # noqa: E402
from benchmarks.measure import Row, clean, measure_case  # noqa: E402
from benchmarks.reference import reference  # noqa: E402
from benchmarks.report import Result, markdown, ratios, write  # noqa: E402
from benchmarks.run import (  # noqa: E402
    chosen,
    earlier_results,
    parse,
    slower_gradients,
    whole_lines,
)


@pytest.fixture
def toy() -> Case:
    spiral = next(case for case in all_cases() if case.name == "spiral-b1-1e-3")
    return replace(spiral, times=np.linspace(0, 1, 4), gradients=("discrete", "gauss"))


def contender(name: str):
    return next(c for c in all_contenders() if c.name == name)


def measured(case: Case, truth: tuple) -> list[Row]:
    pynode = contender("pynode torch")
    entries = [(pynode, mode) for mode in pynode.modes(case)]
    return measure_case(case, entries, truth, 1, "cpu", budget=0.001)


def result(case: Case, rows: list[Row]) -> Result:
    return Result(
        "a machine", {"torch": "2"}, (0.0, 0.0), 1.0, True, rows, {"diffrax": "not installed"},
        {case.name: case.title},
    )  # fmt: skip


def test_a_case_is_measured_and_reported(toy, tmp_path):
    rows = measured(toy, reference(toy))
    assert [row.mode for row in rows] == ["forward", "gradient/discrete", "gradient/gauss"]
    for row in rows:
        assert row.times and row.cold > 0 and not row.note
        assert row.error < 10 and row.counts["steps"] > 0
    assert all(row.gradient_error < 10 for row in rows[1:])
    paths = write(result(toy, rows), tmp_path, "toy")
    assert json.loads(paths[0].read_text())["rows"][0]["contender"] == "pynode torch"
    assert Result.load_json(paths[0]).rows == rows
    text = paths[1].read_text()
    assert "**diffrax**: missing: not installed" in text
    assert "| pynode torch `gauss` | dp5, joint |" in text
    assert paths[2].stat().st_size > 1000


def test_a_wrong_answer_gets_no_time(toy):
    zs, slopes = reference(toy)
    rows = measured(toy, (zs, slopes * 2))
    assert rows[0].times and not rows[0].note
    for row in rows[1:]:
        assert not row.times and "gradient wrong" in row.note
    assert "gradient wrong" in markdown(result(toy, rows), "toy.png")


def test_a_failure_is_a_row_that_says_so(toy):
    pynode = contender("pynode torch")
    entries = [(pynode, "gradient/none such"), (pynode, "forward")]
    rows = measure_case(toy, entries, reference(toy), 1, "cpu", budget=0.001)
    assert "none such" in rows[0].note and not rows[0].times
    assert rows[1].times


def test_what_takes_long_is_called_once_if_its_first_call_is_like_the_others(toy, monkeypatch):
    monkeypatch.setattr("benchmarks.measure.SLOW", 0.0)
    calls = []

    class Counting:
        name, compiles, eager = "counting", False, True

        def prepare(self, case, mode, device):
            task = contender("pynode torch").prepare(case, mode, device)
            run = task.run
            task.run = lambda: (calls.append(mode), run())[1]
            return task

    (row,) = measure_case(toy, [(Counting(), "forward")], reference(toy), 1, "cpu", budget=0.001)
    assert calls == ["forward"] and row.times == [row.cold] and not row.note
    Counting.eager = False
    (row,) = measure_case(toy, [(Counting(), "forward")], reference(toy), 1, "cpu", budget=0.001)
    assert len(calls) > 2 and row.cold not in row.times


def test_ratios_are_of_times_in_the_same_round():
    base = Row("c", "torchdiffeq", "forward", 1, times=[2.0, 3.0, 4.0])
    row = Row("c", "pynode torch", "forward", 1, times=[1.0, 1.0])
    assert ratios(base, row) == [2.0, 3.0]
    assert ratios(None, row) == []


def test_paths_are_left_out_of_messages():
    assert clean("no file /home/me/x.py here\nmore") == "no file … here"


def test_reference_slopes_are_derivatives(toy):
    """Against central differences of the loss along the same direction."""
    v, dp = toy.directions()[0]
    losses = []
    for h in (1e-5, -1e-5):
        params = [x + h * d for x, d in zip(toy.params, dp, strict=True)]
        moved = replace(toy, z0=toy.z0 + h * v, params=params, rtol=1e-7)
        losses.append((reference(moved)[0] * toy.weights()).sum())
    assert reference(toy)[1][0] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def test_cases_are_whole():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.times.shape[-1] == case.weights().shape[0]
        assert np.ptp(np.atleast_2d(case.times)[:, 0]) == 0
        assert not case.wrt_params or case.checked == slice(None)


def test_one_command_runs_it(tmp_path):
    """The worker process, the journal and the files, with two contenders, one of them missing."""
    command = [sys.executable, "-m", "benchmarks.run", "--cases", "growth-steps-20", "--threads"]
    command += ["1", "--minutes", "1", "--contenders", "pynode torch,pynode compiled"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = Result.load_json(tmp_path / "cpu-full.json")
    assert {row.contender for row in found.rows} | set(found.missing) == {
        "pynode torch",
        "pynode compiled",
    }
    assert all(row.times for row in found.rows if row.contender == "pynode torch")


def test_a_peer_that_hangs_costs_its_own_row_only(toy):
    class Hangs:
        name, compiles = "hangs", False

        def prepare(self, case, mode, device):
            def run():
                while True:
                    sum(range(1000))

            return Task(run, lambda raw: (None, None), lambda raw: {}, "none")

    entries = [(Hangs(), "forward"), (contender("pynode torch"), "forward")]
    rows = measure_case(toy, entries, reference(toy), 1, "cpu", budget=0.001, patience=2.0)
    assert rows[0].note == "TimeoutError: given up after 2 s" and not rows[0].times
    assert rows[1].times and not rows[1].note


def test_each_package_is_pinned_in_one_place():
    """Two pins of one package, and pip installs nothing."""
    pinned = [
        {line.split("==")[0].lower().replace("_", "-") for line in path.open() if "==" in line}
        for path in (ROOT / "constraints.txt", ROOT / "benchmarks" / "constraints.txt")
    ]
    assert not pinned[0] & pinned[1]


def test_a_run_may_be_added_to_an_earlier_one(toy):
    def run(case: str, time: float) -> Result:
        row = Row(case, "torchdiffeq", "forward", 1, times=[time], cold=1.0, error=1.0)
        return replace(result(toy, [row]), titles={case: case})

    both = run("b", 2.0).beside(run("a", 1.0))
    assert {row.case: row.times for row in both.rows} == {"a": [1.0], "b": [2.0]}
    assert list(both.titles) == ["a", "b"] and both.seconds == 2.0
    assert "in 2 runs" in markdown(both, "toy.png")
    assert run("a", 3.0).beside(run("a", 1.0)).rows[0].times == [3.0]


def test_nothing_is_added_to_what_is_not_there_or_of_another_machine(toy, tmp_path):
    plan = chosen(parse(["--quick"]))
    with pytest.raises(SystemExit, match="no results"):
        earlier_results(tmp_path / "toy.json", plan)
    path = write(result(toy, measured(toy, reference(toy))), tmp_path, "toy")[0]
    with pytest.raises(SystemExit, match="another machine"):
        earlier_results(path, plan)


def test_on_more_threads_each_contender_shows_its_fastest_gradient_only():
    def row(contender: str, kind: str, *times: float, note: str = "") -> Row:
        mode = f"gradient/{kind}" if kind else "forward"
        return Row("toy", contender, mode, 1, times=list(times), note=note)

    rows = [
        row("torchdiffeq", "", 3.0),
        row("torchdiffeq", "discrete", 5.0),
        row("torchdiffeq", "backsolve", 4.0),
        row("diffrax", "", 1.0),
        row("diffrax", "discrete", note="given up"),
        row("diffrax", "backsolve", 2.0),
        row("pynode torch", "discrete", 2.0),
        row("pynode torch", "gauss", 3.0),
    ]
    assert slower_gradients(rows) == [
        ("toy", "diffrax", "gradient/discrete"),
        ("toy", "pynode torch", "gradient/gauss"),
    ]


def test_aims_that_are_missed_are_bold():
    def row(contender, mode, ms):
        return Row("spiral-b1-1e-3", contender, mode, 1, times=[ms / 1e3])

    rows = [
        row("torchdiffeq", "forward", 40.0),
        row("diffrax", "forward", 0.3),
        row("diffrax vmap", "forward", 0.2),
        row("pynode torch", "forward", 8.0),
        row("pynode julia", "forward", 0.125),
        row("torchdiffeq", "gradient/discrete", 100.0),
        row("torchdiffeq", "gradient/backsolve", 300.0),
        row("pynode torch", "gradient/gauss", 50.0),
        row("pynode torch", "gradient/discrete", 40.0),
    ]
    result = Result("", {}, (None, None), 0, False, rows, {}, {"spiral-b1-1e-3": ""})
    lines = [line for line in aims.section(result) if line.startswith("| spiral")]
    assert lines == [
        "| spiral-b1-1e-3 | forward | torchdiffeq | 5.00 of 4 |  | 320 of 300 |",
        "| spiral-b1-1e-3 | forward | diffrax |  |  | **1.60 of 2** |",
        "| spiral-b1-1e-3 | gradient | torchdiffeq | **2.50 of 4** |  |  |",
    ]
    assert aims.section(Result("", {}, (None, None), 0, False, [], {}, {})) == []


def test_aims_are_for_cases_and_contenders_that_are_there():
    cases = {case.name for case in all_cases(False)}
    names = {contender.name for contender in all_contenders()}
    for aim in aims.AIMS:
        assert aim.case in cases
        assert {*aim.base, *aim.diffrax} <= names


def test_a_line_that_is_being_written_is_waited_for(tmp_path):
    with (tmp_path / "journal").open("w") as writer, (tmp_path / "journal").open() as reader:
        lines = whole_lines(reader)
        assert next(lines) == ""
        for part, whole in (('{"event": ', ""), ('"end"}\n{"ev', '{"event": "end"}\n'), ("", "")):
            writer.write(part)
            writer.flush()
            assert next(lines) == whole
