"""The spiral experiment from the command line, tiny."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pynode.cli import main
from pynode.experiments import spiral, spiral_run
from pynode.experiments.spiral_run import RunFolder, RunSpec
from pynode.train import TrainingError


def metrics(tmp_path):
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def results(tmp_path):
    return [
        {k: v for k, v in row.items() if k != "train_seconds"} for row in metrics(tmp_path)["rows"]
    ]


def test_everything_is_written(tiny, tmp_path, capsys):
    assert main(tiny("--seeds", "2", "--missing", "0.2")) == 0
    out = tmp_path / "out"
    data = metrics(tmp_path)
    assert [(row["model"], row["observed"], row["seed"]) for row in data["rows"]] == [
        ("rnn_t", 10, 0),
        ("rnn_t", 10, 1),
        ("last_value", 10, 0),
        ("last_value", 10, 1),
    ]
    for row in data["rows"]:
        assert 0 < row["fit_rmse"] < 5
        assert 0 < row["extrapolation_rmse"] < 10
        assert {"parameters", "nfe_forward", "nfe_backward", "best_epoch"} <= set(row)
    trained, trivial = data["rows"][0], data["rows"][2]
    assert trained["epochs"] == 1
    assert trained["train_seconds"] > 0
    assert trained["parameters"] > 0
    assert (trivial["epochs"], trivial["train_seconds"], trivial["parameters"]) == (0, 0, 0)
    assert data["config"]["missing"] == 0.2
    assert data["config"]["training"]["optimizer"] == "adamax"
    assert data["meta"]["torch"] == torch.__version__
    assert {"pynode", "python", "command", "threads_per_job", "jobs"} <= set(data["meta"])

    table = (out / "table.md").read_text()
    mean = sum(row["extrapolation_rmse"] for row in data["rows"][:2]) / 2
    assert f"{mean:.3f} ± " in table
    assert "absolute numbers cannot be matched" in table
    assert "Run both `rnn_t` and `rnn_dt`" in table
    assert "is the median of all held-out series" in table
    assert (out / "figure.png").stat().st_size > 20_000
    assert (out / "learning_curves.png").stat().st_size > 5_000
    assert (out / "runs" / "rnn_t-n10-seed0" / "checkpoint.pt").exists()
    assert table in capsys.readouterr().out


def test_errors_are_what_they_say(tiny, tmp_path):
    """The metrics, computed again the long way from the saved weights."""
    main(tiny())
    row = metrics(tmp_path)["rows"][0]
    config = json.loads((tmp_path / "out/runs/rnn_t-n10-seed0/config.json").read_text())
    del config["training"]
    folder = RunFolder(RunSpec(**config), tmp_path / "out/runs/rnn_t-n10-seed0")
    model, test = folder.model(), spiral_run.split_data(folder.spec)[2]
    squares = {"fit_rmse": [], "extrapolation_rmse": []}
    for i in range(len(test)):
        series = test[i]
        with torch.no_grad():
            mean = model.predict(series.observed, series.clean.times).mean
        for t, x, true in zip(series.clean.times[0], mean[0], series.clean.values[0], strict=True):
            name = "fit_rmse" if t <= series.window else "extrapolation_rmse"
            squares[name].append((x - true).square().mean().item())
    for name, values in squares.items():
        assert len(values) == 100 * len(test)
        assert row[name] == pytest.approx(math.sqrt(sum(values) / len(values)), rel=1e-4)


def test_rerun_skips_what_is_finished(tiny, tmp_path, monkeypatch, capsys):
    main(tiny())
    before = results(tmp_path)
    monkeypatch.setattr(spiral_run, "run", None)  # would fail if it were called
    assert main(tiny()) == 0
    assert results(tmp_path) == before
    assert "2 of them are finished already" in capsys.readouterr().err


def test_other_options_in_the_same_folder(tiny, capsys):
    main(tiny())
    assert main(tiny("--epochs", "2")) == 2
    printed = capsys.readouterr().err
    assert "holds a run with other options (epochs was 1, is 2)" in printed
    assert "Traceback" not in printed


def test_more_models_join_what_is_there(tiny, tmp_path):
    main(tiny(models=("last_value",)))
    assert main(tiny(models=("last_value", "rnn_t"))) == 0
    assert [row["model"] for row in results(tmp_path)] == ["last_value", "rnn_t"]


def test_jobs_do_not_change_results(tiny, tmp_path):
    main(tiny(models=("rnn_t", "rnn_dt")))
    alone = results(tmp_path)
    (tmp_path / "out").rename(tmp_path / "alone")
    assert main(tiny("--jobs", "2", models=("rnn_t", "rnn_dt"))) == 0
    assert results(tmp_path) == alone


def test_interrupted_and_resumed(tiny, tmp_path, monkeypatch, capsys):
    arguments = tiny("--epochs", "3")
    main(arguments)
    whole = results(tmp_path)
    (tmp_path / "out").rename(tmp_path / "whole")

    def interrupt(_, __, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spiral._Board, "progress", interrupt)
        assert main(arguments) == 130
    assert "--resume goes on from there" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert results(tmp_path) == whole


def test_a_failed_run_does_not_take_the_others_along(tiny, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise TrainingError("epoch 1, batch 2: the loss is nan", 1, 2)

    monkeypatch.setattr(spiral_run, "fit", fail)
    assert main(tiny()) == 2
    assert [row["model"] for row in results(tmp_path)] == ["last_value"]
    printed = capsys.readouterr().err
    assert "1 of 2 runs failed" in printed
    assert "rnn_t-n10-seed0: epoch 1, batch 2: the loss is nan" in printed
    assert "`last_value`" in (tmp_path / "out" / "table.md").read_text()


def test_every_model_has_the_same_data_and_budget():
    spec = RunSpec("rnn_t", 10, 0, 20, 0.03, 0.1, "torch", 1, 8)
    other = RunSpec("latent_ode", 10, 0, 20, 0.03, 0.1, "torch", 1, 8)
    assert spec.train_config() == other.train_config()
    assert spiral_run.split_data(spec) is spiral_run.split_data(other)


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is POSIX only")
def test_ctrl_c_ends_cleanly(tiny, tmp_path):
    """A real SIGINT to the whole process group, as a terminal sends it."""
    arguments = tiny("--epochs", "100000", "--jobs", "2", models=("rnn_t", "rnn_dt"))
    process = subprocess.Popen(
        [sys.executable, "-m", "pynode", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoints = [tmp_path / f"out/runs/{m}-n10-seed0/checkpoint.pt" for m in ("rnn_t", "rnn_dt")]
    try:
        for _ in range(2400):
            if all(path.exists() for path in checkpoints) or process.poll() is not None:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert "--resume goes on from there" in printed
    for path in checkpoints:
        assert torch.load(path, weights_only=True)["epoch"] >= 5
