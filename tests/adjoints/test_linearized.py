"""Discrete gradients of small states without a tape, against those on the tape."""

import math

import pytest
import torch
from torch import nn

from pynode import NeuralODE, solve
from pynode.engines.torch import linearized
from pynode.engines.torch.methods import TABLEAUS
from pynode.errors import GradientError

SOLVERS = [name for name, tableau in TABLEAUS.items() if not tableau.extra_a]


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def tape(monkeypatch):
    """Has everything go by the tape from then on."""
    return lambda: monkeypatch.setattr(linearized, "MOST", 0)


TAPED = {"sensitivity": "discrete", "tstops": [0.5]}
"""Options by which small states are taped, too."""


class Field(nn.Module):
    """Of time, state and args, with a parameter that it does not use and one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, t, z, args):
        rate, (shift,) = args
        inputs = torch.cat([z, t.expand(len(z), 1)], 1)
        return self.net(inputs) * rate + shift.sin()


def everything(field, times, t0=None, **options):
    """States, and gradients for all that a solve depends on; counts."""
    z0 = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    weight = torch.tensor(0.7, requires_grad=True)
    args = (torch.exp(weight), [torch.tensor([0.3, -0.2], requires_grad=True)])
    times = torch.tensor(times, requires_grad=True)
    begin = None if t0 is None else torch.tensor(t0, requires_grad=True)
    node = NeuralODE(field, sensitivity="discrete", **options)
    zs = node(z0, times, args, begin)
    loss = (zs * torch.arange(1.0, 1 + zs.numel()).reshape(zs.shape).sin()).sum() + zs.prod()
    inputs = [z0, times, weight, args[1][0], *([] if begin is None else [begin])]
    grads = torch.autograd.grad(loss, [*inputs, *field.parameters()], allow_unused=True)
    return zs.detach(), grads, node.stats


def assert_same(found, wanted, tolerance=1e-11):
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "times, t0",
    [([0.0, 0.3, 0.3, 1.1, 2.0], None), ([1.0, 0.9, -0.5], None), ([0.4, 0.5, 2.0], 0.1)],
    ids=["forwards", "backwards", "t0"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_those_of_the_tape(solver, times, t0, tape):
    adaptive = TABLEAUS[solver].error is not None
    options = {"rtol": 1e-4, "atol": 1e-4} if adaptive else {"dt": 0.13}
    field = Field()
    zs, grads, stats = everything(field, times, t0, solver=solver, **options)
    assert stats.nfe_backward == stats.accepted * TABLEAUS[solver].stages
    assert stats.vjp == 7 * stats.nfe_backward  # six entries, and the parameters
    tape()
    wanted, exact, on_tape = everything(field, times, t0, solver=solver, **options)
    torch.testing.assert_close(zs, wanted, rtol=1e-14, atol=1e-14)  # read off many steps at once
    assert (stats.nfe, stats.accepted, stats.rejected) == (
        on_tape.nfe, on_tape.accepted, on_tape.rejected
    )  # fmt: skip
    assert on_tape.nfe_backward == 0
    assert_same(grads, exact)


def test_it_takes_a_fraction_of_the_operations(tape):
    """What it is for: autograd's nodes do not grow with the steps."""

    def nodes(steps: int) -> int:
        field = nn.Linear(2, 2)
        node = NeuralODE(field, solver="rk4", dt=1.0 / steps, sensitivity="discrete")
        zs = node(torch.ones(1, 2), torch.tensor([0.0, 1.0]))
        seen, stack = set(), [zs.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(64) == nodes(4) < 30
    tape()
    assert nodes(64) > 1000


def test_single_precision(tape):
    field, z0 = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).float(), torch.ones(2)
    node = NeuralODE(field, sensitivity="discrete", rtol=1e-4, atol=1e-4)

    def grads():
        zs = node(z0.float(), torch.linspace(0, 3, 9))
        return torch.autograd.grad(zs.square().sum(), list(field.parameters()))

    found = grads()
    assert node.stats.nfe_backward > 0
    tape()
    assert_same(found, grads(), 2e-6)


def test_a_backward_pass_may_be_repeated():
    node = NeuralODE(nn.Linear(2, 2), sensitivity="discrete")
    loss = node(torch.ones(1, 2), torch.linspace(0, 1, 3)).square().sum()
    first = torch.autograd.grad(loss, list(node.parameters()), retain_graph=True)
    assert_same(torch.autograd.grad(loss, list(node.parameters())), first, 0.0)


def test_second_derivatives():
    """By the tape, made when they are asked for."""
    field = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    times = torch.linspace(0, 1, 3)

    def outputs(z0, scale, *parameters):
        def f(t, z, args):
            named = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(field, named, z) * args

        return NeuralODE(f, sensitivity="discrete", rtol=1e-3, atol=1e-3)(z0, times, scale.exp())

    names = [name for name, _ in field.named_parameters()]
    parameters = [p.detach().requires_grad_() for p in field.parameters()]
    z0, scale = torch.randn(2, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    inputs = (z0, scale, *parameters)
    assert torch.autograd.gradgradcheck(outputs, inputs, atol=1e-5)


def test_second_derivatives_where_everything_depends_on_one_parameter(tape):
    """A solve that begins where another by the same field ended, args made of what it holds."""
    rate = nn.Parameter(torch.tensor(0.7))

    def field(t, z, args):
        return (rate * z + args[0] * z.sin()).flip(-1) + args[1] * args[0]

    node = NeuralODE(field, sensitivity="discrete", rtol=1e-3, atol=1e-3)

    def derivatives():
        z0, scale = torch.ones(1, 2) * rate.cos(), rate.exp()
        for _ in range(2):
            z0 = node(z0, torch.tensor([0.0, 0.4]), (scale, scale))[-1]
        (first,) = torch.autograd.grad(z0.square().sum(), rate, create_graph=True)
        (second,) = torch.autograd.grad(first, rate)
        return first.detach(), second

    found = derivatives()
    tape()
    assert_same(found, derivatives())


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter])
def test_swapped_parameters(kind):
    """Solves with tensors of functional_call's are taped; parameters are put back where second
    derivatives are asked for."""
    node = NeuralODE(nn.Linear(2, 2), sensitivity="discrete", rtol=1e-8, atol=1e-8)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in node.named_parameters()}
    if kind is nn.Parameter:
        given = {name: nn.Parameter(p.detach()) for name, p in given.items()}
    call = (torch.ones(1, 2), torch.linspace(0, 1, 3))
    weight, bias = given.values()
    loss = torch.func.functional_call(node, given, call).square().sum()
    plain = NeuralODE(lambda t, z: z @ weight.T + bias, rtol=1e-8, atol=1e-8, **TAPED)
    wanted = torch.autograd.grad(plain(*call).square().sum(), [weight, bias], create_graph=True)
    first = torch.autograd.grad(loss, [weight, bias], retain_graph=True)
    assert_same(first, wanted, 1e-6)  # other steps
    again = torch.autograd.grad(loss, [weight, bias], create_graph=True)
    second = [torch.autograd.grad(x[0].square().sum(), [weight, bias]) for x in (again, wanted)]
    assert_same(*second, 1e-6)


def test_a_function_cannot_put_parameters_back():
    linear = nn.Linear(2, 2)
    node = NeuralODE(lambda t, z: linear(z), sensitivity="discrete")
    first = linear.weight
    loss = node(torch.ones(1, 2), torch.linspace(0, 1, 3)).square().sum()
    linear.weight = nn.Parameter(torch.randn(2, 2))
    torch.autograd.grad(loss, first, retain_graph=True)
    with pytest.raises(GradientError, match="swapped"):
        torch.autograd.grad(loss, first, create_graph=True)


class Looks(nn.Module):
    """Looks at numbers, as no field under vmap can."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.calls = nn.Parameter(torch.tensor(-1.0)), 0

    def forward(self, t, z):
        self.calls += 1
        return self.rate * z if float(z.detach().sum()) < 100 else z


class Changes(Looks):
    """Gives other values each time."""

    def forward(self, t, z):
        self.calls += 1
        return self.rate * z * (1 + 0.01 * math.sin(self.calls))


@pytest.mark.parametrize("kind", [Looks, Changes])
def test_other_fields_go_by_the_tape(kind):
    field = kind()
    node = NeuralODE(field, sensitivity="discrete", solver="rk4", dt=0.1)
    times, z0 = torch.tensor([0.0, 1.0]), torch.ones(1, 2)
    node(z0, times).sum().backward()
    assert node.stats.nfe_backward == 0 < node.stats.vjp
    assert torch.isfinite(field.rate.grad) and field.rate.grad != 0
    if kind is Looks:
        torch.testing.assert_close(field.rate.grad, 2 * torch.exp(field.rate), rtol=1e-5, atol=0)
    # Next time it is known, and nothing is done twice.
    field.calls = 0
    node(z0, times).sum().backward()
    assert field.calls == node.stats.nfe


@pytest.mark.parametrize(
    "size, options",
    [(linearized.MOST + 1, {}), (2, {"solver": "vern7"}), (2, TAPED), (2, {"dense": True})],
    ids=["larger", "lazy stages", "tstops", "dense"],
)
def test_what_else_is_taped(size, options):
    node = NeuralODE(nn.Linear(size, size), **{"sensitivity": "discrete", **options})
    node(torch.ones(size), torch.tensor([0.0, 1.0])).sum().backward()
    assert node.stats.nfe_backward == 0 < node.stats.vjp


def test_a_failed_solve_is_counted_once():
    def field(t, z):
        return z * z * rate

    rate = torch.tensor(1.0, requires_grad=True)
    sol = solve(field, torch.ones(1), [0.0, 2.0], sensitivity="discrete", throw=False, max_steps=20)
    assert sol.retcode == "max_steps" and sol.stats.accepted + sol.stats.rejected == 20


def test_states_without_parameters_and_fields_without_states():
    z0 = torch.ones(2, requires_grad=True)
    for field, slope in ((lambda t, z: -z, math.exp(-1)), (lambda t, z: t.cos().expand(2), 1.0)):
        zs = NeuralODE(field, sensitivity="discrete", rtol=1e-9, atol=1e-9)(z0, [0.0, 1.0])
        (grad,) = torch.autograd.grad(zs[-1].sum(), z0)
        torch.testing.assert_close(grad, torch.full((2,), slope), rtol=1e-7, atol=0)
