"""What a step costs beside the field: operations and host synchronisations, counted."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pynode import NeuralODE

SYNC = "aten._local_scalar_dense.default"


class Operations(TorchDispatchMode):
    """Counts the operations that are not the field's own."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._inside = 0
        field.register_forward_pre_hook(lambda *_: self._enter(1))
        field.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, by: int) -> None:
        self._inside += by

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._inside:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Spiral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z) + torch.cos(t)


def per_step(end: float, grad: bool, **options) -> tuple[Counter, int, int]:
    """Counts of a solve over [0, end] without outputs between, its steps and evaluations."""
    torch.manual_seed(0)
    field = Spiral()
    node = NeuralODE(field, **options)
    z0 = torch.tensor([[2.0, 0.0]], requires_grad=grad)
    with torch.set_grad_enabled(grad), Operations(field) as operations:
        node(z0, [0.0, end])
    return operations.counts, node.stats.accepted + node.stats.rejected, node.stats.nfe


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "adjoint"])
def test_operations_of_a_dp5_step(grad):
    """The difference of a longer and a shorter solve, so that start and end cancel out.

    Each of the six stages takes a view, a product and a copy, all their times two operations; the
    new state one more, for its rounding's sake; the last stage becomes the first by another copy;
    the error estimate takes seven operations and the synchronisation.
    (torchdiffeq 0.2.5 takes 194 and 18 synchronisations.)
    """
    options = {"solver": "dp5", "rtol": 1e-5, "atol": 1e-6, "sensitivity": "backsolve"}
    (short, n, _), (long, m, _) = (per_step(end, grad, **options) for end in (2.0, 12.0))
    assert m - n > 15
    assert (long.total() - short.total()) / (m - n) <= 31
    assert (long[SYNC] - short[SYNC]) / (m - n) <= 1


@pytest.mark.parametrize("solver", ["bs3", "tsit5", "vern7", "dop853"])
def test_one_synchronisation_a_step_at_most(solver):
    options = {"solver": solver, "rtol": 1e-4, "atol": 1e-5, "sensitivity": "discrete"}
    for grad in (False, True):
        (short, n, _), (long, m, _) = (per_step(end, grad, **options) for end in (2.0, 12.0))
        assert (long[SYNC] - short[SYNC]) / (m - n) <= 1
        # Five a stage and no more for the rest than dop853's two error norms.
        assert (long.total() - short.total()) / (m - n) < 8 * 13


def test_fixed_steps_synchronise_once():
    (short, n, _), (long, m, _) = (
        per_step(end, False, solver="rk4", dt=0.1) for end in (2.0, 12.0)
    )
    assert (long[SYNC] - short[SYNC]) / (m - n) <= 1
    assert (long.total() - short.total()) / (m - n) <= 25
