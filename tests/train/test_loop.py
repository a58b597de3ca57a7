"""The loop: what it records, when it stops, and that an interruption leaves no trace."""

import re
import sys
from dataclasses import replace

import pytest
import torch

from pynode.errors import InputError, SolveError
from pynode.train import TrainConfig, TrainingError, TrainingInterrupted, fit
from pynode.train.checkpoint import FILE, load

CONFIG = TrainConfig(epochs=6, batch_size=6, kl_start=1, checkpoint_every=2)
BATCHES = 4  # of 20 series


def without_timings(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same(left, right):
    """Equal to the last bit, in nested dicts, lists and tensors; timings aside."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds"}:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def test_history_rows(stub, train_series, valid_series):
    history = fit(stub(), train_series, valid_series, CONFIG)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4, 5, 6]
    assert history.stopped == "epochs"
    for index, row in enumerate(history.rows):
        assert row["lr"] == CONFIG.lr_at(index)
        assert row["kl_weight"] == CONFIG.kl_weight_at(index)
        assert (row["nfe_forward"], row["nfe_backward"]) == (3, 4)
        assert row["grad_norm"] > 0
        assert row["seconds"] > 0
        assert row["train_loss"] == pytest.approx(
            row["train_nll"] + 1e-3 * row["kl_weight"] * row["train_kl"], rel=1e-5
        )
        assert row["valid_loss"] == pytest.approx(row["valid_nll"] + 1e-3 * row["valid_kl"])


def test_loss_falls(stub, train_series, valid_series):
    config = TrainConfig(epochs=60, batch_size=10)
    rows = fit(stub(), train_series, valid_series, config).rows
    assert rows[-1]["valid_loss"] < 0.7 * rows[0]["valid_loss"]


@pytest.fixture
def contrary_series(valid_series):
    """Validation series of the opposite sign: the better the fit, the worse their loss."""
    return replace(valid_series, values=-valid_series.values)


def test_best_weights_are_restored(stub, train_series, contrary_series, tmp_path):
    config = TrainConfig(epochs=15, batch_size=6)
    model = stub()
    history = fit(model, train_series, contrary_series, config, out=tmp_path)
    assert 0 < history.best_epoch < history.epochs
    best = load(tmp_path / FILE)["best"]
    assert_same(dict(model.state_dict()), dict(best))
    again = stub()
    fit(again, train_series, contrary_series, replace(config, epochs=history.best_epoch))
    assert_same(dict(model.state_dict()), dict(again.state_dict()))


def test_same_seed_same_weights_and_global_noise_untouched(stub, train_series, valid_series):
    one, other = stub(), stub()
    torch.manual_seed(11)
    fit(one, train_series, valid_series, CONFIG)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))
    torch.rand(100)  # the global state must not matter either
    fit(other, train_series, valid_series, CONFIG)
    assert_same(dict(one.state_dict()), dict(other.state_dict()))
    third = stub()
    fit(third, train_series, valid_series, replace(CONFIG, seed=1))
    assert not torch.equal(third.first.weight, one.first.weight)


def test_patience(stub, train_series, contrary_series):
    config = TrainConfig(epochs=500, batch_size=6, patience=3)
    history = fit(stub(), train_series, contrary_series, config)
    assert history.stopped == "patience"
    assert history.epochs == history.best_epoch + 3


def test_max_seconds(stub, train_series, valid_series):
    config = TrainConfig(epochs=10**6, max_seconds=0.2)
    history = fit(stub(), train_series, valid_series, config)
    assert history.stopped == "max_seconds"
    assert 0.2 <= history.seconds < 5


def test_clipping_bounds_the_step(stub, train_series, valid_series):
    config = TrainConfig(epochs=1, batch_size=20, clip_norm=1e-30, optimizer="adam")
    model = stub()
    before = model.first.weight.detach().clone()
    history = fit(model, train_series, valid_series, config)
    # Adam's step is lr·g/(|g| + 1e-8): with a gradient far below 1e-8 it all but vanishes
    assert (model.first.weight - before).abs().max() < 1e-10
    assert history.rows[0]["grad_norm"] > 1e-3  # as it was before clipping


def test_on_epoch_and_bar(stub, train_series, valid_series, capsys):
    seen = []
    fit(stub(), train_series, valid_series, CONFIG, on_epoch=seen.append, progress=True)
    assert [row["epoch"] for row in seen] == [1, 2, 3, 4, 5, 6]
    bar = capsys.readouterr().err
    assert f"{6 * BATCHES}/{6 * BATCHES}" in bar
    assert re.search(r"epoch 6, loss \S+, nfe 3\+4", bar)


def test_no_bar_without_a_terminal(stub, train_series, valid_series, capsys):
    fit(stub(), train_series, valid_series, CONFIG)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(stub, train_series, valid_series, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(stub(), train_series, valid_series, CONFIG)
    assert "nfe 3+4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call, whole_epochs",
    [
        # each epoch is 4 training calls of loss and 1 validation call
        pytest.param(1, 0, id="first-batch"),
        pytest.param(11, 2, id="epoch-boundary"),
        pytest.param(13, 2, id="middle-of-epoch"),
        pytest.param(20, 3, id="validation"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    stub, train_series, valid_series, tmp_path, call, whole_epochs
):
    whole = stub()
    history = fit(whole, train_series, valid_series, CONFIG, out=tmp_path / "whole")

    cut = stub(fail_at=call, failure=KeyboardInterrupt())
    with pytest.raises(TrainingInterrupted, match=rf"{whole_epochs} whole epochs .*resume"):
        fit(cut, train_series, valid_series, CONFIG, out=tmp_path / "cut")
    assert load(tmp_path / "cut" / FILE)["epoch"] == whole_epochs

    torch.rand(7)
    resumed = stub()
    later = fit(resumed, train_series, valid_series, CONFIG, out=tmp_path / "cut", resume=True)
    assert without_timings(later.rows) == without_timings(history.rows)
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_same(load(tmp_path / "whole" / FILE), load(tmp_path / "cut" / FILE))


def test_interrupt_in_the_middle_of_an_optimizer_step(
    stub, train_series, valid_series, tmp_path, monkeypatch
):
    whole = stub()
    fit(whole, train_series, valid_series, CONFIG)
    cut, steps = stub(), 0
    original = torch.optim.Adamax.step

    def half_a_step(self, *args):
        nonlocal steps
        steps += 1
        if steps == 2 * BATCHES + 2:
            with torch.no_grad():
                cut.first.weight += 1.0
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adamax, "step", half_a_step)
        with pytest.raises(TrainingInterrupted):
            fit(cut, train_series, valid_series, CONFIG, out=tmp_path)
    fit(cut, train_series, valid_series, CONFIG, out=tmp_path, resume=True)
    assert_same(dict(whole.state_dict()), dict(cut.state_dict()))


def test_longer_training_continues_a_finished_one(stub, train_series, valid_series, tmp_path):
    whole, parts = stub(), stub()
    fit(whole, train_series, valid_series, CONFIG)
    short = replace(CONFIG, epochs=3)
    fit(parts, train_series, valid_series, short, out=tmp_path)
    fit(parts, train_series, valid_series, CONFIG, out=tmp_path, resume=True)
    assert_same(dict(whole.state_dict()), dict(parts.state_dict()))


def test_resuming_a_finished_run_trains_no_more(stub, train_series, valid_series, tmp_path):
    done = stub()
    fit(done, train_series, valid_series, CONFIG, out=tmp_path)
    again = stub()
    history = fit(again, train_series, valid_series, CONFIG, out=tmp_path, resume=True)
    assert again.calls == 0
    assert history.stopped == "epochs"
    assert_same(dict(done.state_dict()), dict(again.state_dict()))


def test_interrupt_without_folder(stub, train_series, valid_series):
    model = stub(fail_at=3, failure=KeyboardInterrupt())
    with pytest.raises(TrainingInterrupted, match="no folder"):
        fit(model, train_series, valid_series, CONFIG)


def test_nan_loss(stub, train_series, valid_series, tmp_path):
    model = stub(fail_at=7, failure="nan loss")
    with pytest.raises(TrainingError) as caught:
        fit(model, train_series, valid_series, CONFIG, out=tmp_path)
    message = str(caught.value)
    assert (caught.value.epoch, caught.value.batch) == (2, 2)
    assert "epoch 2, batch 2: the loss is nan (nll=nan, kl=" in message
    assert "smaller lr (now 0.00999)" in message
    assert "first parameter with a non-finite gradient: second.bias" in message
    assert load(tmp_path / FILE)["epoch"] == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_nan_gradient(stub, train_series, valid_series):
    with pytest.raises(TrainingError, match=r"gradient: second\.bias") as caught:
        fit(stub(fail_at=3, failure="nan gradient"), train_series, valid_series, CONFIG)
    assert str(caught.value).startswith("epoch 1, batch 3: the gradient is not finite")


def test_nan_in_validation(stub, train_series, valid_series):
    with pytest.raises(TrainingError, match="validation after epoch 1: the loss is nan"):
        fit(stub(fail_at=5, failure="nan loss"), train_series, valid_series, CONFIG)


def test_nan_parameter(stub, train_series, valid_series):
    model = stub()
    with torch.no_grad():
        model.second.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"parameter second\.weight already holds non-finite"):
        fit(model, train_series, valid_series, CONFIG)


@pytest.mark.parametrize("call, where", [(3, "epoch 1, batch 3"), (5, "validation after epoch 1")])
def test_failed_solve_says_where(stub, train_series, valid_series, call, where):
    failure = SolveError("step underflow at t = 0.3", "dt_underflow", 0.3)
    with pytest.raises(TrainingError, match=f"{where}: step underflow") as caught:
        fit(stub(fail_at=call, failure=failure), train_series, valid_series, CONFIG)
    assert caught.value.__cause__ is failure


def test_untrainable_model(stub, train_series, valid_series, monkeypatch):
    model = stub()
    monkeypatch.setattr(type(model), "trainable", False)
    with pytest.raises(InputError, match="nothing to train"):
        fit(model, train_series, valid_series, CONFIG)


def test_empty_series(stub, train_series, valid_series):
    with pytest.raises(InputError, match="0 to validate"):
        fit(stub(), train_series, valid_series[:0], CONFIG)
