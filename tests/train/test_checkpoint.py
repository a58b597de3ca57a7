"""Checkpoints: readable without running code, whole or absent, and only for their own run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pynode.errors import InputError
from pynode.train import CheckpointError, TrainConfig, fit, load_best
from pynode.train.checkpoint import FILE, load
from pynode.train.files import write_atomically, write_text

CONFIG = TrainConfig(epochs=2, batch_size=10, checkpoint_every=1)


@pytest.fixture
def trained(stub, train_series, valid_series, tmp_path):
    model = stub()
    fit(model, train_series, valid_series, CONFIG, out=tmp_path)
    return model, tmp_path


def test_contents(trained):
    _, folder = trained
    state = torch.load(folder / FILE, weights_only=True)
    assert state["epoch"] == 2
    assert len(state["history"]) == 2
    assert state["config"] == CONFIG.as_dict()
    assert set(state["rng"]) == {"torch", "batch_order", "noise"}
    assert {"model", "optimizer", "best", "best_epoch"} <= set(state)
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_load_best(trained, stub):
    model, folder = trained
    other = stub()
    epoch = load_best(folder, other)
    assert epoch in (1, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_existing_checkpoint_is_not_overwritten(trained, stub, train_series, valid_series):
    _, folder = trained
    before = (folder / FILE).read_bytes()
    with pytest.raises(InputError, match="pass resume=True"):
        fit(stub(), train_series, valid_series, CONFIG, out=folder)
    assert (folder / FILE).read_bytes() == before


def test_resume_needs_a_folder(stub, train_series, valid_series):
    with pytest.raises(InputError, match="resume=True needs out"):
        fit(stub(), train_series, valid_series, CONFIG, resume=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 0.02}, "lr was 0.01, is 0.02"),
        ({"batch_size": 5, "seed": 3}, "batch_size was 10, is 5; seed was 0, is 3"),
        ({"epochs": 1}, "already at epoch 2, beyond epochs=1"),
    ],
)
def test_other_config(trained, stub, train_series, valid_series, change, message):
    _, folder = trained
    config = TrainConfig(**(CONFIG.as_dict() | change))
    with pytest.raises(CheckpointError, match=message):
        fit(stub(), train_series, valid_series, config, out=folder, resume=True)


def test_other_sizes(trained, stub, train_series, valid_series):
    _, folder = trained
    with pytest.raises(CheckpointError, match=r"first.weight is \(8, 1\) there and \(9, 1\) here"):
        fit(stub(width=9), train_series, valid_series, CONFIG, out=folder, resume=True)


def test_other_class(trained, stub, train_series, valid_series):
    model, folder = trained
    other = type("OtherModel", (type(model),), {})()
    with pytest.raises(CheckpointError, match="belongs to a StubModel, not to a OtherModel"):
        fit(other, train_series, valid_series, CONFIG, out=folder, resume=True)
    with pytest.raises(CheckpointError, match="belongs to a StubModel"):
        load_best(folder, other)


def test_same_shapes_but_another_network(trained, stub, train_series, valid_series):
    _, folder = trained
    other = stub()
    other.dropout = torch.nn.Dropout(0.2)
    message = r"Dropout\(p=0.1, .*\) there, .*Dropout\(p=0.2, .*\) here"
    with pytest.raises(CheckpointError, match=message):
        fit(other, train_series, valid_series, CONFIG, out=folder, resume=True)
    with pytest.raises(CheckpointError, match=message):
        load_best(folder, other)


def test_other_data(trained, stub, train_series, valid_series):
    _, folder = trained
    with pytest.raises(CheckpointError, match="other data"):
        fit(stub(), train_series[1:], valid_series, CONFIG, out=folder, resume=True)


def test_damaged_file(trained, stub, train_series, valid_series):
    _, folder = trained
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="remove it to train from the beginning"):
        fit(stub(), train_series, valid_series, CONFIG, out=folder, resume=True)


def test_missing_or_foreign_file(tmp_path, stub):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_best(tmp_path, stub())
    torch.save({"weights": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path / FILE)


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["write", "replace"])
def test_crash_leaves_the_old_file(tmp_path, monkeypatch, moment, failure):
    path = tmp_path / "state"
    write_text(path, "old")

    def crash(*_):
        raise failure

    def write(file):
        file.write(b"new, and only half of it")
        if moment == "write":
            crash()

    if moment == "replace":
        monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(type(failure)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_killed_between_write_and_replace(tmp_path):
    """A process that dies without a chance to clean up leaves the old file whole."""
    path = tmp_path / "state"
    write_text(path, "old")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pynode.train.files import write_text\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_text(Path(sys.argv[1]), 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    assert path.read_text() == "old"


def test_file_has_the_usual_rights(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


SIGINT_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from conftest import make_series
from stub_model import StubModel
from pynode.train import TrainConfig, TrainingInterrupted, fit

torch.set_num_threads(1)
torch.manual_seed(3)
announce = lambda row: print("epoch", row["epoch"], flush=True)
try:
    fit(StubModel(), make_series(20, 1), make_series(6, 2), TrainConfig(epochs=10**6),
        out=Path(sys.argv[1]), on_epoch=announce)
except TrainingInterrupted as interrupt:
    print(interrupt, flush=True)
    sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is POSIX only")
def test_real_sigint(tmp_path, stub, train_series, valid_series):
    process = subprocess.Popen(
        [sys.executable, "-c", SIGINT_SCRIPT, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "training interrupted" in printed.splitlines()[-1]

    state = load(tmp_path / FILE)
    epochs = state["epoch"]
    assert f"{epochs} whole epochs" in printed
    config = TrainConfig(epochs=epochs + 1)
    resumed, whole = stub(), stub()
    fit(resumed, train_series, valid_series, config, out=tmp_path, resume=True)
    fit(whole, train_series, valid_series, config)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True)
    )
