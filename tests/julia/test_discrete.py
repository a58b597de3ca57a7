"""Gradients of the julia engine through the solver's own steps, and how parameters cross."""

import pytest
import torch
from julia_cases import TIMES, gradients, mlp, nodes, plain, relative
from torch import Tensor

from pynode import NeuralODE
from pynode.errors import GradientError

pytestmark = [pytest.mark.julia, pytest.mark.usefixtures("float64")]


@pytest.mark.parametrize("solver", ["tsit5", "bs3", "dp5"])
def test_discrete_gradients_are_exact(solver):
    """By the same fixed steps both engines differentiate the same numbers, wherever outputs lie."""
    field = mlp(3, 8)
    options = {"solver": solver, "adaptive": False, "dt": 0.11, "sensitivity": "discrete"}
    here, there = nodes(field, **options)
    alone = NeuralODE(field, engine="julia", step_control="per_sample", **options)
    own = [torch.tensor([0.2, 0.5, 1.1]), torch.tensor([0.3]), torch.tensor([0.0, 1.21])]
    for times in (TIMES, TIMES[::-1], [0.0, 0.55, 0.55, 0.6], own):
        found = []
        for node in (here, there, alone):
            z0 = plain(3).requires_grad_()
            zs = node(z0, times, t0=0.0 if times is own else None)
            found.append(
                torch.autograd.grad(zs.nan_to_num().sin().sum(), [z0, *field.parameters()])
            )
        for wanted, *got in zip(*found, strict=True):
            assert max(relative(g, wanted) for g in got) < 1e-10
    assert there.stats.vjp > 0


class Untidy(torch.nn.Module):
    """Parameters that do not lie in a row, or lie in several layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(plain(4).repeat(1, 2)[:, ::2].t())
        self.b = torch.nn.Parameter(plain(4)[0, :3].expand(4, 3).t())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.a) @ self.b.t()


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_parameters_in_any_layout(sensitivity):
    here, there = nodes(Untidy(), rtol=1e-9, atol=1e-11, sensitivity=sensitivity)
    _, want = gradients(here, plain(2), TIMES)
    _, got = gradients(there, plain(2), TIMES)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert relative(g, w) < 1e-6


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_no_parameters(sensitivity):
    here, there = nodes(lambda t, z: torch.cos(t) * z, sensitivity=sensitivity, rtol=1e-9)
    _, want = gradients(here, plain(2), TIMES)
    _, got = gradients(there, plain(2), TIMES)
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < 1e-6


def test_stiff_gradients_at_each_samples_own_times():
    """The adjoint of each begins at the end of all, where some have no output."""
    field = mlp(3, 8)
    own = [torch.tensor([0.2, 0.5, 1.1]), torch.tensor([0.3]), torch.tensor([0.0, 1.21])]
    exact = NeuralODE(field, solver="vern7", sensitivity="discrete", rtol=1e-11, atol=1e-12)
    there = NeuralODE(field, engine="julia", solver="rodas5p", rtol=1e-8, atol=1e-10)
    found = []
    for node in (there, exact):
        z0 = plain(3).requires_grad_()
        loss = node(z0, own, t0=0.0).nan_to_num().sin().sum()
        found.append(torch.autograd.grad(loss, [z0, *field.parameters()]))
    for g, w in zip(*found, strict=True):
        assert relative(g, w) < 1e-4


def test_dense_output_beside_discrete_gradients():
    here, there = nodes(mlp(3, 8), sensitivity="discrete", rtol=1e-9, atol=1e-11)
    z0 = plain(2).requires_grad_()
    a, b = (node.solve(z0, TIMES) for node in (here, there))
    s = torch.tensor([0.05, 0.77])
    with pytest.raises(GradientError, match="engine='torch'"):
        b(s)
    with torch.no_grad():
        torch.testing.assert_close(b(s), a(s), rtol=1e-7, atol=1e-8)
    got, want = (torch.autograd.grad(x.zs.sin().sum(), z0)[0] for x in (b, a))
    assert relative(got, want) < 1e-6
