"""Training in several processes, in parts, in mixed precision, and killed on the way."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train_in_process import main

from pynode.errors import InputError
from pynode.models.noise import part_of_batch, standard_normal
from pynode.train import TrainConfig, checkpoint
from pynode.train.distributed import Replicas
from pynode.train.tensorboard import epoch_logger

SCRIPT = Path(__file__).with_name("train_in_process.py")
TIGHT = {"model": "latent_ode", "hyper": {"rtol": 1e-7, "atol": 1e-9}}


def result(out):
    return json.loads((out / "result.json").read_text())


def losses(out):
    return [(r["train_loss"], r["valid_loss"]) for r in result(out)["rows"]]


def torchrun(processes, out, options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), json.dumps(options)],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    return [(p.communicate(timeout=300)[1], p.returncode) for p in started]


@pytest.mark.parametrize(
    "model", [{"model": "rnn_dt"}, pytest.param(TIGHT, marks=pytest.mark.slow)], ids=str
)
def test_two_processes_have_the_loss_curve_of_one(model, tmp_path):
    # 18 series in batches of 7: the parts are uneven, and the last batch has 4
    options = {"epochs": 3, "batch_size": 7, "kl_start": 0} | model
    main(tmp_path / "one", dict(options))
    for text, code in torchrun(2, tmp_path / "two", options):
        assert code == 0, text
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "two")),
        torch.tensor(losses(tmp_path / "one")),
        rtol=2e-5,
        atol=1e-6,
    )
    saved = checkpoint.load(tmp_path / "two" / checkpoint.FILE)
    assert saved["epoch"] == 3


@pytest.mark.slow
def test_a_failure_in_one_process_ends_all(tmp_path):
    done = torchrun(2, tmp_path, {"epochs": 2, "lr": 1e30, "lr_min": 0.0, "clip_norm": None})
    assert all(code != 0 for _, code in done)


@pytest.mark.parametrize("model", [{"model": "rnn_dt"}, TIGHT], ids=["rnn_dt", "latent_ode"])
def test_accumulation_changes_nothing_but_rounding(model, tmp_path):
    options = {"epochs": 2, "batch_size": 7, "kl_start": 0} | model
    main(tmp_path / "whole", dict(options))
    main(tmp_path / "parts", dict(options) | {"accumulate": 3})
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "parts")),
        torch.tensor(losses(tmp_path / "whole")),
        rtol=2e-5,
        atol=1e-6,
    )


def test_noise_of_parts_is_that_of_the_whole():
    def draw(rows):
        return standard_normal(torch.empty(rows, 3), torch.Generator().manual_seed(1))

    whole = draw(7)
    with part_of_batch(2, 7):
        part = draw(4)
    assert torch.equal(part, whole[2:6])


@pytest.mark.parametrize("rows, accumulate", [(7, 1), (7, 3), (2, 5)])
def test_parts_are_the_whole_batch(rows, accumulate):
    replicas = Replicas(torch.nn.Linear(1, 1))
    found = []
    replicas.size = 2
    for replicas.rank in range(2):
        found += [i for a, b in replicas.parts(rows, accumulate) for i in range(a, b)]
    assert found == list(range(rows))


@pytest.mark.parametrize("model", ["rnn_dt", "latent_ode"])
def test_mixed_precision_trains(model, tmp_path):
    options = {"epochs": 3, "batch_size": 6, "model": model}
    main(tmp_path / "mixed", dict(options) | {"precision": "bfloat16"})
    main(tmp_path / "full", dict(options))
    mixed, full = losses(tmp_path / "mixed"), losses(tmp_path / "full")
    assert mixed != full
    assert mixed[-1][0] == pytest.approx(full[-1][0], rel=0.1)


def test_config_is_checked():
    with pytest.raises(InputError, match="accumulate=0 must be at least 1"):
        TrainConfig(accumulate=0)
    with pytest.raises(InputError, match="precision='half' must be one of float32, bfloat16"):
        TrainConfig(precision="half")


def killed_runs(out, options, times, rng):
    """Start the run again and again, each time killing it at a random moment."""
    epochs = []
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), json.dumps(options | {"resume": True})]
        )
        deadline = time.monotonic() + 120
        before = epochs[-1] if epochs else 0
        # Not before it has made some progress, or the test would go on for ever.
        while process.poll() is None and time.monotonic() < deadline:
            path = out / checkpoint.FILE
            if path.exists() and checkpoint.load(path)["epoch"] > before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        epochs.append(checkpoint.load(out / checkpoint.FILE)["epoch"])  # whole and readable
    return epochs


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost(tmp_path):
    options = {"epochs": 60, "batch_size": 6, "checkpoint_every": 1, "model": "latent_ode"}
    main(tmp_path / "whole", dict(options))
    epochs = killed_runs(tmp_path / "killed", options, times=4, rng=random.Random(0))
    assert epochs == sorted(epochs) and 0 < epochs[0] < 60
    main(tmp_path / "killed", dict(options) | {"resume": True})
    assert result(tmp_path / "killed")["weights"] == result(tmp_path / "whole")["weights"]
    rows = [r for out in ("killed", "whole") for r in result(tmp_path / out)["rows"]]
    assert [r["train_loss"] for r in rows[:60]] == [r["train_loss"] for r in rows[60:]]
    leftovers = [p for p in (tmp_path / "killed").iterdir() if p.suffix == ".tmp"]
    assert len(leftovers) <= 4  # a kill in the middle of a write leaves its unfinished file


def test_killed_once_nothing_is_lost(tmp_path):
    options = {"epochs": 30, "batch_size": 6, "checkpoint_every": 1}
    main(tmp_path / "whole", dict(options))
    (epoch,) = killed_runs(tmp_path / "killed", options, times=1, rng=random.Random(1))
    assert epoch > 0
    main(tmp_path / "killed", dict(options) | {"resume": True})
    assert result(tmp_path / "killed")["weights"] == result(tmp_path / "whole")["weights"]


def test_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install 'pynode-ode\\[tensorboard\\]'"):
        epoch_logger(tmp_path)
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    epoch_logger(tmp_path)({"epoch": 1, "train_loss": 2.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (scalar,) = events.Scalars("train_loss")
    assert (scalar.step, scalar.value) == (1, 2.5)
