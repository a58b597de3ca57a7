"""A neural ODE keeps the order of points on a line; an augmented or second-order one need not."""

import pytest
import tiny_runs
import torch

from pynode.errors import InputError
from pynode.experiments import augment
from pynode.experiments.augment import Scale, data
from pynode.experiments.augment_table import BOUND, by_model
from pynode.models.augmented import AugmentedODE, SecondOrderODE


def test_claims(monkeypatch, tmp_path):
    monkeypatch.setattr(
        augment,
        "MODELS",
        {
            "mirror": ("node", "anode1", "second_order", "linear", "mean"),
            "annuli": ("node", "anode5", "linear"),
        },
    )
    scale = Scale(seeds=1, points=64, steps=50, hidden=16)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "augment", scale)
    mirror = {name: mine[0]["test_mse"] for name, mine in by_model(rows, "mirror").items()}
    assert mirror["node"] > BOUND - 0.03
    assert mirror["anode1"] < 0.1 and mirror["second_order"] < 0.1
    annuli = {name: mine[0] for name, mine in by_model(rows, "annuli").items()}
    assert annuli["anode5"]["test_mse"] < annuli["node"]["test_mse"]
    assert annuli["linear"]["test_mse"] > 0.9
    assert "as it must" in text and "With room to go around the error is lower" in text


def test_ring_and_disc():
    x, y = data("annuli", 1000, torch.Generator().manual_seed(0))
    r = x.norm(dim=1)
    assert r[y[:, 0] < 0].max() <= 0.5
    assert r[y[:, 0] > 0].min() >= 1.0 and r.max() <= 1.5


def test_shapes_and_starts():
    x = torch.randn(4, 2)
    ode = AugmentedODE(2, 3)
    path = ode.path(x, torch.tensor([0.0, 1.0]))
    assert path.shape == (2, 4, 5)
    assert torch.equal(path[0, :, :2], x) and not path[0, :, 2:].any()
    torch.testing.assert_close(ode(x), path[1])
    second = SecondOrderODE(2)
    path = second.path(x, torch.tensor([0.0, 1e-3]))
    assert path.shape == (2, 4, 4)
    # positions begin to move by the first velocities
    torch.testing.assert_close((path[1] - path[0])[:, :2] / 1e-3, path[0, :, 2:], atol=2e-3, rtol=0)


def test_bad_size():
    with pytest.raises(InputError, match="extra=-1"):
        AugmentedODE(2, -1)
