"""``torchrun -m pynode …``: two processes, one result."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import waves


def torchrun(*command):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*run, "-m", "pynode", *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_fit(tmp_path):
    waves(22).to_csv(tmp_path / "t.csv", index=False)
    command = ["fit", tmp_path / "t.csv", "--id", "who", "--model", "rnn_dt", "--epochs", "2"]
    command += ["--windows", "30", "--forecast", "1"]
    done = torchrun(*command, "--out", tmp_path / "two")
    assert done.stdout.count("forecast.csv") == 1  # one process speaks
    one = [sys.executable, "-m", "pynode", *map(str, command), "--out", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True)
    left, right = (pd.read_csv(tmp_path / name / "forecast.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_experiment(tmp_path):
    torchrun(
        "experiment", "spiral", "--models", "rnn", "last_value", "--series", "20", "--epochs", "2",
        "--observed", "10", "--seeds", "1", "--out", tmp_path / "out",
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"rnn", "last_value"}
