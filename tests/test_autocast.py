"""torch.autocast: the field in bfloat16, everything else in the state's dtype."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pynode import NeuralODE, sensitivities, solve, solvers
from pynode.errors import FieldError

SENSITIVITIES = [info.name for info in sensitivities()]
TIMES = torch.linspace(0.0, 1.0, 5)
every_sensitivity = pytest.mark.parametrize("sensitivity", SENSITIVITIES)


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.seen: set[tuple] = set()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out = self.net(z)
        self.seen.add((t.dtype, z.dtype, out.dtype))
        return out * torch.cos(t).to(out)


class Halves(TorchDispatchMode):
    """Operations that return bfloat16, outside of the field."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.inside, self.found = 0, []
        field.register_forward_pre_hook(lambda *_: self._step(1))
        field.register_forward_hook(lambda *_: self._step(-1))

    def _step(self, by: int) -> None:
        self.inside += by

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.inside and isinstance(out, Tensor) and out.dtype == torch.bfloat16:
            self.found.append(func)
        return out


def test_a_field_in_lower_precision_is_an_error_without_autocast():
    with pytest.raises(FieldError, match="dtype"):
        solve(lambda t, z: z.bfloat16(), torch.ones(2), TIMES)


def test_a_field_in_higher_precision_is_an_error_under_autocast_too():
    with bfloat16(), pytest.raises(FieldError, match="dtype"):
        solve(lambda t, z: z.double(), torch.ones(2), TIMES)


@pytest.mark.parametrize(
    "info", [s for s in solvers() if not s.separable], ids=lambda info: info.name
)
def test_only_the_field_runs_in_lower_precision(info):
    """The states differ from full precision by bfloat16's rounding, and are float32."""
    field = Field()
    node = NeuralODE(field, solver=info.name, adaptive=False, dt=0.1)
    z0 = torch.randn(3, 2)
    with torch.no_grad():
        full = node(z0, TIMES)
        field.seen.clear()
        halves = Halves(field)
        with bfloat16(), halves:
            zs = node(z0, TIMES)
    assert zs.dtype == torch.float32
    assert info.stiff or not halves.found  # the field's Jacobian is made outside of its hooks
    assert field.seen == {(torch.float32, torch.float32, torch.bfloat16)}
    assert 0 < float((zs - full).abs().max()) < 2e-2


@every_sensitivity
def test_gradients(sensitivity):
    """Near those in float32, whether backward runs inside the block or after it."""
    field, z0 = Field(), torch.randn(8, 2, requires_grad=True)
    options = {"rtol": 1e-2, "atol": 1e-2, "adaptive": False, "dt": 0.1}
    node = NeuralODE(field, sensitivity=sensitivity, **options)
    inputs = [z0, *field.parameters()]
    want = torch.autograd.grad(node(z0, TIMES).square().sum(), inputs)
    field.seen.clear()
    with bfloat16():
        zs = node(z0, TIMES)
        inside = torch.autograd.grad(node(z0, TIMES).square().sum(), inputs)
    outside = torch.autograd.grad(zs.square().sum(), inputs)
    assert {out for *_, out in field.seen} == {torch.bfloat16}
    for a, b, c in zip(inside, outside, want, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 1e-2  # weights are cast once, or each time
        assert 0 < float((a - c).norm() / c.norm()) < 3e-2


@every_sensitivity
def test_trains(sensitivity):
    """Adaptive steps at a tolerance that bfloat16 can meet."""
    node = NeuralODE(Field(), sensitivity=sensitivity, rtol=1e-2, atol=1e-2)
    z0 = torch.randn(16, 2)
    target = torch.stack([z0 * torch.exp(-t) for t in TIMES])
    optimiser = torch.optim.Adam(node.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        with bfloat16():
            loss = (node(z0, TIMES) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_time_keeps_its_precision():
    """Steps of 1e-4 from t = 1e4 on: float32 spaces numbers by 1e-3 there, the loop does not."""
    times = torch.tensor([1e4, 1e4 + 0.01], dtype=torch.float64)
    with bfloat16():
        sol = solve(
            lambda t, z: -z.bfloat16(), torch.ones(2), times, solver="rk4", dt=1e-4, dense=False
        )
    assert sol.stats.accepted == 100
    torch.testing.assert_close(sol.zs[-1], torch.exp(torch.tensor([-0.01] * 2)), rtol=1e-4, atol=0)


def test_structures_and_dense_output():
    def field(t, z):
        a, b = z
        return (b @ torch.eye(2), -a)  # the product in bfloat16, the rest in float32

    with bfloat16():
        z0 = (torch.ones(1, 2), torch.zeros(1, 2))
        sol = solve(field, z0, TIMES, rtol=1e-3, atol=1e-3)
        between = sol(torch.tensor([0.3, 0.6]))
    assert {x.dtype for x in (*sol.zs, *between)} == {torch.float32}
    exact = torch.tensor([0.3, 0.6]).cos()
    torch.testing.assert_close(between[0][:, 0, 0], exact, rtol=0, atol=1e-2)


def test_float64_state_with_a_field_that_casts():
    net, z0 = nn.Linear(2, 2), torch.ones(2).double()
    with bfloat16():
        sol = solve(lambda t, z: net(z.float()), z0, TIMES, solver="rk4", dt=0.1)
    assert sol.zs.dtype == torch.float64
