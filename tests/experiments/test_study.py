"""The part that all experiments share: scales, runs kept and taken over, results written."""

import argparse
import json
import math
from dataclasses import dataclass

import pytest

from pynode.errors import InputError, PynodeError
from pynode.experiments.study import Study, Summary, add_common_arguments, markdown_table, scale_of


@dataclass(frozen=True)
class Spec:
    base: int
    seeds: tuple[int, ...] = (0, 1)

    @property
    def name(self):
        return f"base{self.base}"


@dataclass(frozen=True)
class Scale:
    epochs: int
    noise: float
    sizes: tuple[int, ...] = (1, 2)


SCALES = {"demo": Scale(10, 0.1), "paper": Scale(100, 0.0)}


def work(spec, folder):
    if spec.base < 0:
        raise InputError("negative")
    (folder / "calls").open("a").write("x")
    return {"square": spec.base**2}


def figure(rows, out):
    from matplotlib.figure import Figure

    assert all((out / "runs" / f"base{row['base']}").is_dir() for row in rows)
    return Figure()


def study(*bases):
    def table(rows):
        lines = [(str(r["base"]), str(r["square"])) for r in rows]
        return "# Squares\n\n" + markdown_table(("base", "square"), lines)

    return Study("squares", [Spec(b) for b in bases], work, {"n": len(bases)}, table, figure)


def parse(*options):
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, SCALES)
    return parser.parse_args(options)


def test_results_are_written_in_the_order_of_the_specs(tmp_path, capsys):
    assert study(3, 2).run(parse("--out", str(tmp_path / "out"), "--jobs", "1")) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(r["base"], r["square"]) for r in metrics["rows"]] == [(3, 9), (2, 4)]
    assert metrics["config"] == {"n": 2} and metrics["meta"]["experiment"] == "squares"
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("# Squares\n\n![](figure.png)\n\n| base") and "Made by `pynode" in text
    assert (tmp_path / "out" / "figure.png").stat().st_size > 0


@pytest.mark.parametrize(("resume", "calls"), [(True, 1), (False, 2)])
def test_resume_keeps_what_is_finished(tmp_path, resume, calls):
    options = ["--out", str(tmp_path), "--jobs", "1"]
    study(3).run(parse(*options))
    study(3, 4).run(parse(*options, *["--resume"] * resume))
    assert (tmp_path / "runs" / "base3" / "calls").read_text() == "x" * calls
    assert len(json.loads((tmp_path / "metrics.json").read_text())["rows"]) == 2


def test_a_failed_run_is_named_and_the_others_are_kept(tmp_path):
    with pytest.raises(PynodeError, match=r"1 of 2 runs failed.*\n  base-1: negative"):
        study(-1, 2).run(parse("--out", str(tmp_path), "--jobs", "1"))
    assert [r["base"] for r in json.loads((tmp_path / "metrics.json").read_text())["rows"]] == [2]


def test_options_override_the_scale():
    assert scale_of(parse("--out", "x"), SCALES) == Scale(10, 0.1)
    given = parse("--out", "x", "--scale", "paper", "--epochs", "7", "--noise", "0.5")
    assert scale_of(given, SCALES) == Scale(7, 0.5)


@pytest.mark.parametrize("option", [("--epochs", "0"), ("--noise", "-1"), ("--noise", "nan")])
def test_numbers_out_of_range(option):
    with pytest.raises(InputError, match=option[0]):
        scale_of(parse("--out", "x", *option), SCALES)


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="is a file"):
        study(1).run(parse("--out", str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "kept"


def test_summary():
    summary = Summary.of([1.0, 2.0, 3.0])
    assert f"{summary:.1f}" == "2.0 ± 1.0" and str(Summary.of([2.0])) == "2.000"
    assert summary.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert Summary.of([2.0]).half_width == math.inf
