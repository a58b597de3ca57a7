"""Gradients across events against finite differences."""

import pytest
import torch
from torch import Tensor, nn

from pynode import Event, NeuralODE, sensitivities, solve
from pynode.errors import GradientError

SENSITIVITIES = [(info.name, None) for info in sensitivities() if info.name != "reversible"]
SENSITIVITIES += [("discrete", 4), ("interpolating", 4), ("gauss", 1)]
pytestmark = pytest.mark.usefixtures("float64")

TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def driven_ball(x: Tensor, sign: float = 1.0, **options) -> Tensor:
    """Outputs, event times and states of a ball over a moving floor, for x of 6 numbers.

    Height, speed, gravity, restitution, initial time and last time all matter.
    """

    def field(t: Tensor, z: Tensor, args: tuple) -> Tensor:
        return sign * torch.stack([z[1], -args[0] - 0.3 * z[1] * torch.cos(t)])

    def jump(t: Tensor, z: Tensor, args: tuple) -> Tensor:
        return torch.stack([z[0], -args[1] * z[1] * (1 + 0.1 * t)])

    events = [
        Event(lambda t, z: z[0] - 0.05 * torch.sin(t), direction=-1, jump=jump),
        Event(lambda t, z: z[1], direction=-1, terminal=False),
    ]
    times = torch.cat([sign * torch.linspace(0.3, 1.5, 4), sign * x[5:]])
    sol = solve(
        field, x[:2], times, (x[2], x[3]), t0=sign * x[4], events=events, **{**TIGHT, **options}
    )
    assert len(sol.events[0]) >= 2 and len(sol.events[1]) >= 2
    parts = [sol.zs, sol.t_final, sol.z_final]
    for record in sol.events:
        parts += [record.times, record.states, record.states_after]
    return torch.cat([part.reshape(-1) for part in parts])


POINT = [1.0, 0.5, 9.0, 0.8, 0.1, 1.9]


@pytest.fixture(scope="module", params=[1.0, -1.0], ids=["forwards", "backwards"])
def by_differences(request):
    torch.set_default_dtype(torch.float64)
    point, h = torch.tensor(POINT), 1e-6
    with torch.no_grad():
        columns = [
            (driven_ball(point + h * e, request.param) - driven_ball(point - h * e, request.param))
            / (2 * h)
            for e in torch.eye(6)
        ]
    torch.set_default_dtype(torch.float32)
    return request.param, torch.stack(columns, dim=1)


@pytest.mark.parametrize("sensitivity, checkpoints", SENSITIVITIES)
def test_every_sensitivity(by_differences, sensitivity, checkpoints):
    sign, jacobian = by_differences
    x = torch.tensor(POINT, requires_grad=True)
    y = driven_ball(x, sign, sensitivity=sensitivity, checkpoints=checkpoints)
    weights = torch.linspace(0.5, 1.5, len(y))
    (grad,) = torch.autograd.grad((weights * y).sum(), x)
    torch.testing.assert_close(grad, weights @ jacobian, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("solver", ["rodas5p", "kvaerno5", "fbdf"])
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_stiff_solvers(by_differences, solver, sensitivity):
    sign, jacobian = by_differences
    x = torch.tensor(POINT, requires_grad=True)
    options = {"rtol": 1e-6, "atol": 1e-8, "solver": solver}
    y = driven_ball(x, sign, sensitivity=sensitivity, **options)
    weights = torch.linspace(0.5, 1.5, len(y))
    (grad,) = torch.autograd.grad((weights * y).sum(), x)
    torch.testing.assert_close(grad, weights @ jacobian, rtol=1e-3, atol=1e-2)


def test_second_derivatives():
    """Of event times and of all that follows: discrete only, others say so."""
    x = torch.tensor(POINT, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x: driven_ball(x, sensitivity="discrete", solver="dop853", rtol=1e-9)[-7::3],
        x,
        eps=1e-5,
        atol=1e-3,
        rtol=1e-3,
        fast_mode=True,
    )
    for sensitivity in ("interpolating", "backsolve"):
        y = driven_ball(x, sensitivity=sensitivity)[-1]
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        with pytest.raises(GradientError, match="first derivatives only"):
            torch.autograd.grad(first.sum(), x)


def test_first_derivatives_only_where_nothing_but_the_condition_is_differentiable():
    level = torch.tensor(0.3, requires_grad=True)
    event = Event(lambda t, z, level: z[0] ** 2 - level)

    def end(**options) -> Tensor:
        field = lambda t, z, args: torch.ones_like(z)  # noqa: E731
        return solve(field, torch.zeros(1), [0.0, 1.0], level, events=[event], **options).t_final

    for options in ({}, {"sensitivity": "discrete"}):
        (grad,) = torch.autograd.grad(end(**options), level, create_graph=True)
        assert grad.item() == pytest.approx(0.5 / 0.3**0.5, rel=1e-8)
        if options:
            (second,) = torch.autograd.grad(grad, level)
            assert second.item() == pytest.approx(-0.25 / 0.3**1.5, rel=1e-8)
        else:
            with pytest.raises(GradientError):
                torch.autograd.grad(grad, level)


def test_parameters_of_field_condition_and_jump():
    """Modules, and tensors that they only close over."""
    torch.manual_seed(0)
    field, gain = nn.Linear(2, 2), torch.tensor([0.5, 1.5], requires_grad=True)
    level = nn.Parameter(torch.tensor(0.6))
    event = Event(lambda t, z: z[0] - level, jump=lambda t, z: gain * z - 1.0)
    tensors = [level, gain, *field.parameters()]

    def loss(sensitivity: str) -> Tensor:
        node = NeuralODE(lambda t, z: field(z) + 1.0, sensitivity=sensitivity, **TIGHT)
        sol = node.solve(torch.zeros(2), [0.0, 1.0, 2.0], events=[event])
        assert len(sol.events[0]) >= 1
        return sol.zs.square().sum() + sol.events[0].times.sin().sum()

    differences = []
    with torch.no_grad():
        for entry in (entry for x in tensors for entry in x.view(-1).split(1)):
            entry += 1e-6
            high = loss("discrete")
            entry -= 2e-6
            differences.append((high - loss("discrete")) / 2e-6)
            entry += 1e-6
    for sensitivity in ("discrete", "interpolating", "gauss"):
        grads = torch.autograd.grad(loss(sensitivity), tensors)
        got = torch.cat([grad.reshape(-1) for grad in grads])
        torch.testing.assert_close(got, torch.stack(differences), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating"])
def test_samples_that_cross_at_the_same_time(sensitivity):
    """Times that agree in value need not agree in derivative: each sample keeps its own."""
    heights = torch.tensor([2.0, 2.0, 1.0], requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], torch.full_like(z[:, 1], -9.81)], dim=1)

    def jump(t: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(1), z * torch.tensor([1.0, -0.8]), z)

    event = Event(lambda t, z: z[:, 0], direction=-1, jump=jump)
    z0 = torch.stack([heights, torch.zeros(3)], dim=1)
    sol = solve(field, z0, [0.0, 0.9], events=[event], sensitivity=sensitivity, **TIGHT)
    jacobian = [
        torch.autograd.grad(sol.zs[-1, b, 0], heights, retain_graph=True)[0] for b in range(3)
    ]
    h = heights.detach()
    fall = (2 * h / 9.81).sqrt()
    # After one bounce z = 0.8·g·t*·s − g·s²/2 with s = 0.9 − t*; dt*/dh = 1 / (g·t*).
    s = 0.9 - fall
    slope = (0.8 * 9.81 * (s - fall) + 9.81 * s) / (9.81 * fall)
    torch.testing.assert_close(torch.stack(jacobian), torch.diag(slope), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating"])
def test_a_touch_has_no_derivative(sensitivity):
    """(t - 1)³ crosses zero with no slope."""
    z0 = torch.zeros(1, requires_grad=True)
    event = Event(lambda t, z: (t - 1.0) ** 3 + 0.0 * z[0])
    sol = solve(
        lambda t, z: torch.ones_like(z),
        z0,
        [0.0, 2.0],
        events=[event],
        sensitivity=sensitivity,
        tstops=[1.0],
    )
    assert sol.t_final.item() == 1.0
    with pytest.raises(GradientError, match="no slope"):
        sol.t_final.backward()
