import pytest

from pynode.errors import InputError
from pynode.train import TrainConfig


def test_rubanovas_learning_rates():
    config = TrainConfig()
    assert config.lr_at(0) == 0.01
    assert config.lr_at(1) == pytest.approx(0.00999)
    assert config.lr_at(2000) == pytest.approx(0.01 * 0.999**2000)
    assert config.lr_at(3000) == 0.001


def test_kl_annealing():
    config = TrainConfig(kl_start=10)
    assert [config.kl_weight_at(e) for e in (0, 9, 10)] == [0, 0, 0]
    assert config.kl_weight_at(11) == pytest.approx(0.01)
    assert config.kl_weight_at(110) == pytest.approx(1 - 0.99**100)
    assert [TrainConfig(kl_decay=0).kl_weight_at(e) for e in (0, 10, 11)] == [1, 1, 1]


@pytest.mark.parametrize(
    "option, rule",
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"optimizer": "sgd"}, "one of adamax, adam"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"lr_decay": 1.1}, r"\(0, 1\]"),
        ({"lr_min": 0.1}, r"lr=0.01"),
        ({"clip_norm": 0.0}, "above 0, or None"),
        ({"kl_decay": 1.0}, r"\[0, 1\)"),
        ({"patience": 0}, "patience=0"),
        ({"max_seconds": -1.0}, "max_seconds=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_options(option, rule):
    with pytest.raises(InputError, match=rule):
        TrainConfig(**option)
