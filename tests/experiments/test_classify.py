"""The classify experiment's claims at a size that takes seconds."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from pynode.cli import main
from pynode.data.images import LabelledImages, digits, mnist
from pynode.errors import InputError
from pynode.experiments import classify, classify_table
from pynode.models.classifiers import Convolutional, ODENet, ResNet

pytest.importorskip("sklearn")

SMALL = classify.ClassifyRun(
    model="odenet", depth=0, seed=0, data="digits", folder="", epochs=3, batch_size=128, lr=0.01
)


def test_an_ode_net_learns_the_digits(tmp_path):
    train, test = classify.load(SMALL)
    model = classify.MODELS["odenet"](SMALL)
    nfes = classify.fit(model, train, SMALL)
    assert classify.accuracy(model, test) > 0.8
    assert all(there > 5 and back > 5 for there, back in nfes) and len(nfes) == 3


def test_a_tied_resnet_is_eulers_method_and_nears_the_ode_with_order_one():
    _, test = classify.load(SMALL)
    some = test[:50]
    model = classify.tied_resnet("digits", 5)
    h = some.x
    for k in range(5):
        h = h + model.node.field(torch.tensor(k / 5), h) / 5
    assert torch.allclose(model(some.x), model.head(h), atol=1e-5)
    points = [classify.compare(model, some, test[:50], depth) for depth in (32, 64)]
    for column in ("state_error", "gradient_error"):
        assert points[0][column] / points[1][column] == pytest.approx(2.0, abs=0.15)


def test_memory_grows_with_layers_and_not_with_the_adjoints_steps():
    train, _ = classify.load(SMALL)
    found = classify.memory(classify.MODELS["odenet"](SMALL), train[:64], depths=(1, 33))
    ode, tied = found["ode"], found["tied_resnet"]
    assert ode[-1]["nfe"] > 1.5 * ode[0]["nfe"]
    assert ode[-1]["bytes"] < 1.1 * ode[0]["bytes"]
    assert tied[-1]["bytes"] > tied[0]["bytes"] + 32 * 2 * 64 * 64 * 4  # h and tanh, 32 times


def test_parameters_are_as_in_the_table():
    def size(model):
        return sum(p.numel() for p in classify.MODELS[model](SMALL).parameters())

    assert size("odenet") == size("rknet") == 9034 and size("resnet6") == 50570
    assert abs(size("mlp") - size("odenet")) < 100
    chen = replace(SMALL, data="mnist")
    ode = sum(p.numel() for p in classify.MODELS["odenet"](chen).parameters())
    deep = sum(p.numel() for p in classify.MODELS["resnet6"](chen).parameters())
    assert round(ode / 1e6, 2) == 0.21 and round(deep / 1e6, 2) == 0.58  # 0.22 and 0.60 there


def test_convolutional_models_run():
    parts = Convolutional(4, 10)
    x = torch.rand(2, 1, 28, 28)
    assert ResNet(parts, 2)(x).shape == (2, 10)
    assert ODENet(parts, rtol=1e-2, atol=1e-2)(x).shape == (2, 10)


def test_baselines():
    train = LabelledImages(torch.tensor([[0.0], [1.0], [1.2]]), torch.tensor([3, 4, 4]))
    assert classify._nearest(train, torch.tensor([[0.4], [0.9]])).tolist() == [3, 4]
    assert classify._commonest(train, torch.zeros(2, 1)).tolist() == [4, 4]


def test_splits_are_disjoint_and_of_their_seed():
    train, test = digits(1)
    assert len(train) + len(test) == 1797 and train.classes == 10
    assert torch.equal(train.x, digits(1)[0].x) and not torch.equal(train.x, digits(2)[0].x)


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match="torchvision"):
        mnist(tmp_path)
    out = ["--out", str(tmp_path / "out")]
    assert main(["experiment", "classify", "--data", "mnist", *out]) == 2
    assert "torchvision" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pynode-ode\[experiments\]"):
        digits()


@pytest.mark.slow
def test_the_whole_experiment(tmp_path):
    size = ["--epochs", "2", "--seeds", "2", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["experiment", "classify", *size]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {r["model"] for r in rows} == {*classify_table.LABELS, "tied_resnet"}
    assert classify_table.orders(rows)[0] == pytest.approx(1.0, abs=0.1)
    assert "**Limit.**" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 50_000
