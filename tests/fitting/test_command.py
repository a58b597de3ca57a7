"""``pynode fit``: what it writes, what it says, and that mistakes leave nothing behind."""

import re

import pandas as pd
import pytest
from conftest import waves, yearly

import pynode
from pynode.cli import main
from pynode.data.frames import read_series
from pynode.data.tables import Columns
from pynode.errors import InputError
from pynode.fitting import compare, figures
from pynode.fitting.comparison import sweep
from pynode.fitting.settings import Settings


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "waves.csv"
    waves(22).to_csv(path, index=False)
    return path


def fit(csv, out, *options):
    return main(["fit", str(csv), "--id", "who", "--values", "x", "y", "--out", str(out), *options])


def test_a_run_writes_everything(csv, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--epochs", "2", "--windows", "30", "--forecast", "1.5", "--every", "0.5")
    assert fit(csv, out, *options) == 0
    printed = capsys.readouterr()
    assert "series: 22" in printed.err and "unevenness" in printed.err
    assert "held-out x: forecast RMSE" in printed.err
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "report.html", "model.pt", "forecast.csv", "filled.csv", "scores.json", "checkpoint.pt",
        "forecast.png", "examples.png", "calibration.png", "learning.png",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    for picture in re.findall(r'src="([^"]+)"', page):
        assert (out / picture).stat().st_size > 5000
    model = pynode.load(out / "model.pt")
    expected = model.forecast(csv, 1.5, 0.5)
    pd.testing.assert_frame_equal(pd.read_csv(out / "forecast.csv"), expected)
    assert not pd.read_csv(out / "filled.csv").isna().any(axis=None)
    # once more: refused, then allowed
    assert fit(csv, out, *options) == 2
    assert "holds a fitted model" in capsys.readouterr().err
    assert fit(csv, out, *options, "--overwrite") == 0


def test_compare_names_a_winner(csv, tmp_path, capsys):
    out = tmp_path / "out"
    assert fit(csv, out, "--compare", "rnn_dt", "--epochs", "2", "--jobs", "1") == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(out / "comparison.csv")
    assert set(table["model"]) == {"rnn_dt", "last_value", "linear", "seasonal"}
    assert table["relative_rmse"].is_monotonic_increasing
    assert f"{table['model'][0]} has the lowest held-out error" in printed
    assert "chance" in printed and "chance" in (out / "report.html").read_text()
    assert pynode.load(out / "model.pt").model.name == table["model"][0]


def test_variants_and_sweeps():
    table = read_series(waves(22), Columns(time="t", id="who", values=("x", "y")))
    settings = Settings(epochs=1, windows=24, horizon=1.0, model="rnn")
    variants = {"slow": {"lr": 0.001}, **sweep("rnn", {"hidden": [5, 9]})}
    found = compare(table, settings, ("last_value",), variants=variants)
    assert set(found.models) == {"last_value", "slow", "rnn hidden=5", "rnn hidden=9"}
    assert found.models["rnn hidden=9"][0].model.network.hidden == 9
    with pytest.raises(InputError, match="two entries 'rnn'"):
        compare(table, settings, ("rnn",), variants={"rnn": {}})


def test_options_of_the_network(csv, tmp_path, capsys):
    options = ["--model", "rnn", "--epochs", "1", "--windows", "24", "--hyper", "hidden=7"]
    assert fit(csv, tmp_path / "out", *options) == 0
    assert pynode.load(tmp_path / "out" / "model.pt").hyper == {"hidden": 7}
    assert fit(csv, tmp_path / "no", "--hyper", "hidden") == 2
    assert "--hyper hidden: must be as name=value" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_change_nothing():
    table = read_series(waves(22), Columns(time="t", id="who", values=("x", "y")))
    settings = Settings(epochs=1, windows=24, horizon=1.0)
    found = [
        compare(table, settings, ("rnn", "last_value"), trainings=2, jobs=jobs) for jobs in (1, 2)
    ]
    assert found[0].verdict == found[1].verdict
    without = [f.table().drop(columns="seconds") for f in found]
    pd.testing.assert_frame_equal(*without)
    assert without[0].set_index("model").loc["rnn", "trainings"] == 2
    with pytest.raises(InputError, match="nothing to compare"):
        compare(table, Settings(test=0.0))
    with pytest.raises(InputError, match="no model 'lstm'"):
        compare(table, settings, ("lstm",))


MISTAKES = [
    ("t,x\n1,2\n", ["--values", "z"], "no column 'z'"),
    ("t,x\n1,2\n2,two\n", ["--values", "x"], "row 2: 'x' is 'two'"),
    ("t,x\n1,2\n2,inf\n", [], "row 2: 'x' is infinite"),
    ("t,x\n1,2\n,3\n", [], "row 2: the time"),
    ("t,x\n1,\n2,\n", ["--values", "x"], "no value at all"),
    ("t,x\n1,2\n", [], "at least 8 are needed"),
    ("", [], "is empty"),
    ("t,x\n", [], "no rows"),
    ("t,x\n1,2\n", ["--encoding", "utf-16"], "utf-16"),
    ("GOOD", ["--horizon", "3d"], "plain numbers"),
    ("GOOD", ["--forecast", "soon"], "no length of time"),
    ("GOOD", ["--model", "lstm"], "'lstm' is not one of"),
    ("GOOD", ["--test", "2"], "test=2.0"),
    ("GOOD", ["--season", "-3"], "positive"),
    ("GOOD", ["--label", "x"], "which columns are the values"),
    ("GOOD", ["--compare", "lstm"], "no model 'lstm'"),
]


@pytest.mark.parametrize("text, options, said", MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes_leave_nothing_behind(text, options, said, tmp_path, capsys):
    table, out = tmp_path / "t.csv", tmp_path / "out"
    good = "t,x\n" + "".join(f"{i},{i % 5}\n" for i in range(40))
    table.write_text(good if text == "GOOD" else text)
    assert main(["fit", str(table), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not out.exists()


def test_names_in_the_data_are_only_names(tmp_path, monkeypatch, capsys):
    """Neither paths, nor markup, nor mathematics."""
    monkeypatch.chdir(tmp_path)
    frame = waves(22).rename(columns={"x": "<script>alert(1)</script>", "y": "../../$y^$_{"})
    frame["who"] = "../" + frame["who"] + "/<b>$x"
    frame.to_csv("evil.csv", index=False)
    options = ["--id", "who", "--model", "last_value", "--compare", "last_value"]
    assert main(["fit", "evil.csv", "--time", "t", "--out", "deep/er/out", *options]) == 0
    capsys.readouterr()
    page = (tmp_path / "deep/er/out/report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>" not in page
    outside = {p for p in tmp_path.rglob("*") if p.is_file() and "out" not in p.parts}
    assert outside == {tmp_path / "evil.csv"}


def test_plain_text_for_matplotlib():
    assert figures.plain("$x_1$\n\\frac") == r"\$x_1\$ /frac"


def test_a_plot_of_timestamps():
    frame = yearly(zone="UTC")
    fitted = pynode.fit(frame, model="seasonal", horizon="1y", verbose=False)
    figure = fitted.plot(frame)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "co"
    assert len(axes.lines) == 3  # fit, forecast, data
    low, high = axes.get_xlim()
    assert 4 * 365 * 0.9 < high - low < 4.2 * 365  # three horizons back, one ahead


@pytest.mark.slow
def test_the_examples_from_a_cold_start(tmp_path):
    """A new user's first command ends with a picture."""
    import subprocess
    import sys
    from pathlib import Path

    data = Path(__file__).parents[2] / "examples" / "data" / "wells.csv"
    command = [sys.executable, "-m", "pynode", "fit", str(data), "--time", "day", "--id", "well"]
    command += ["--static", "depth", "rock", "--forecast", "3", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "forecast.png").stat().st_size > 10_000
