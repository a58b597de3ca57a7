"""check_gradients finds good gradients good and bad ones bad."""

import pytest
import torch
from torch import nn

import pynode
from pynode import NeuralODE, check_gradients
from pynode.errors import InputError


def test_good_gradients_pass_and_read_well():
    field = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    node = NeuralODE(field, rtol=1e-5, atol=1e-7)
    before = {k: v.clone() for k, v in node.state_dict().items()}
    report = check_gradients(node, torch.randn(3, 2), torch.linspace(0, 1, 4))
    assert report.worst < 1e-3
    assert [row.name for row in report.rows] == [
        "z0",
        "t",
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    assert "interpolating, tsit5" in str(report) and "0.weight" in str(report)
    assert all(torch.equal(v, before[k]) for k, v in node.state_dict().items())
    assert all(p.grad is None for p in node.parameters())


def test_backsolve_is_caught():
    def field(t, y, theta):
        y1, _y2 = y
        return torch.stack([-40.0 * (y1 - torch.cos(theta[0] * t)), theta[1] * torch.tanh(y1)])

    y0, theta = torch.tensor([2.0, 0.0]).double(), torch.tensor([3.0, 1.0]).double()
    options = {"rtol": 1e-6, "atol": 1e-8}
    bad = check_gradients(
        NeuralODE(field, sensitivity="backsolve", **options), y0, [0.0, 1.0], theta
    )
    good = check_gradients(NeuralODE(field, sensitivity="gauss", **options), y0, [0.0, 1.0], theta)
    assert bad.worst > 0.1 and good.worst < 1e-4
    assert {row.name for row in bad.rows} == {"z0", "args"}


def test_stiff_and_complex():
    matrix = torch.tensor([[-1.0, 1j], [1j, -200.0]])
    node = NeuralODE(lambda t, z, m: z @ m, solver="rodas5p", rtol=1e-7, atol=1e-9)
    report = check_gradients(
        node, torch.ones(2, dtype=torch.complex128), [0.0, 1.0], matrix.to(torch.complex128)
    )
    assert report.worst < 1e-4


def test_nothing_to_differentiate():
    with pytest.raises(InputError):
        check_gradients(NeuralODE(lambda t, z: z), (), [0.0, 1.0])
    assert pynode.check_gradients is check_gradients
