"""Evaluation times of each sample's own: one joint solve, each sample read off at its times."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode import NeuralODE, sensitivities, solve, solvers
from pynode.errors import InputError

SOLVERS = [
    (s.name, adaptive)
    for s in solvers()
    for adaptive in (True, False)
    if not (s.stiff or s.separable) and (s.adaptive or not adaptive)
]
SENSITIVITIES = [s.name for s in sensitivities()]
CHECKPOINTED = [
    (name, k)
    for name in SENSITIVITIES
    for k in (None, 3)
    if name not in ("backsolve", "reversible") or k is None
]
pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan
FORWARDS = [[0.0, 0.4, 1.0, 2.0], [0.0, 0.7, NAN, NAN], [0.0, 0.4, 1.3, NAN]]
BACKWARDS = [[2.0, 0.4, 0.1, -1.0], [2.0, 1.7, NAN, NAN], [2.0, 0.4, -0.3, NAN]]


def swirl(t: Tensor, z: Tensor) -> Tensor:
    return torch.cos(z + torch.sin(t)) - 0.1 * z


def union(t: Tensor) -> tuple[list[float], list[list[int]]]:
    """All times in order, and for each sample the places of its own among them."""
    rows = [[x for x in row if x == x] for row in t.tolist()]
    times = sorted({x for row in rows for x in row}, reverse=rows[0][0] > rows[0][-1])
    return times, [[times.index(x) for x in row] for row in rows]


def assert_same_as_union(got, shared, t: Tensor, **tolerances) -> None:
    """``got`` (T, B, ...) holds what ``shared`` does at each sample's times, and NaN elsewhere."""
    _, places = union(t)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(shared), strict=True):
        assert a.shape == (t.shape[1], *b.shape[1:]) and a.dtype == b.dtype
        for sample, place in enumerate(places):
            n = len(place)
            torch.testing.assert_close(a[:n, sample], b[place, sample], **tolerances)
            assert a[n:, sample].isnan().all()


def padded(t: Tensor) -> list[Tensor]:
    return [row[row.isfinite()] for row in t]


@pytest.mark.parametrize("solver, adaptive", SOLVERS)
@pytest.mark.parametrize("rows", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
def test_equals_the_union_of_times(solver, rows, adaptive):
    options = {"rtol": 1e-4, "atol": 1e-6} if adaptive else {"adaptive": False, "dt": 0.3}
    t = torch.tensor(rows)
    z0 = torch.randn(3, 2)
    sol = solve(swirl, z0, t, solver=solver, **options)
    shared = solve(swirl, z0, union(t)[0], solver=solver, **options)
    assert (sol.stats.accepted, sol.stats.rejected) == (
        shared.stats.accepted,
        shared.stats.rejected,
    )
    assert_same_as_union(sol.zs, shared.zs, t, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sol.ts, t, equal_nan=True)
    as_list = solve(swirl, z0, padded(t), solver=solver, **options)
    torch.testing.assert_close(as_list.zs, sol.zs, rtol=0, atol=0, equal_nan=True)


def test_equals_each_sample_alone():
    t = torch.tensor(FORWARDS)
    z0 = torch.randn(3, 2)
    options = {"rtol": 1e-10, "atol": 1e-12, "solver": "vern7"}
    zs = solve(swirl, z0, t, **options).zs
    for b, own in enumerate(padded(t)):
        alone = solve(swirl, z0[b], own, **options).zs
        torch.testing.assert_close(zs[: len(own), b], alone, rtol=1e-8, atol=1e-9)


def states() -> dict[str, object]:
    torch.manual_seed(5)
    return {
        "numbers": torch.randn(3, dtype=torch.float64),
        "vectors": torch.randn(3, 2, dtype=torch.float64),
        "matrices": torch.randn(3, 2, 4, dtype=torch.float64),
        "single_precision": torch.randn(3, 2),
        "complex_numbers": torch.randn(3, dtype=torch.complex128),
        "complex_vectors": torch.randn(3, 2, dtype=torch.complex128),
        "tuple": (
            torch.randn(3, dtype=torch.float64),
            torch.randn(3, 2, dtype=torch.complex128),
            torch.randn(3, 1, 2, dtype=torch.float64),
        ),
        "numbers_in_a_tuple": (
            torch.randn(3, dtype=torch.float64),
            torch.randn(3, dtype=torch.float64),
        ),
        "dict": {
            "a": torch.randn(3, 2, dtype=torch.float64),
            "b": (torch.randn(3, dtype=torch.float64),),
        },
        "tuple_of_one": (torch.randn(3, 2, dtype=torch.float64),),
    }


@pytest.mark.parametrize("name", states())
def test_states_of_every_form(name):
    def field(t: Tensor, z: object) -> object:
        return pytree.tree_map(lambda x: swirl(t, x) if not x.is_complex() else 1j * x * t, z)

    z0, t = states()[name], torch.tensor(FORWARDS)
    options = {"adaptive": False, "dt": 0.3, "solver": "dp5"}
    got = solve(field, z0, t, **options).zs
    shared = solve(field, z0, union(t)[0], **options).zs
    loose = {"rtol": 1e-5, "atol": 1e-6} if name == "single_precision" else {}
    assert_same_as_union(got, shared, t, **loose)
    assert pytree.tree_structure(got) == pytree.tree_structure(z0)


def test_coupled_samples_are_solved_jointly():
    """Samples that look at each other: the last time is everybody's."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z.mean(dim=0, keepdim=True) - 2 * z + torch.sin(t)

    t, z0 = torch.tensor(FORWARDS), torch.randn(3, 2)
    options = {"adaptive": False, "dt": 0.1}
    got = solve(field, z0, t, **options).zs
    assert_same_as_union(got, solve(field, z0, union(t)[0], **options).zs, t)


def test_first_times_that_differ_need_t0():
    t = torch.tensor([[0.5, 1.0], [0.2, NAN]])
    z0 = torch.randn(2, 3)
    with pytest.raises(InputError, match=r"first times differ.*give t0="):
        solve(swirl, z0, t)
    sol = solve(swirl, z0, t, t0=0.0, rtol=1e-9, atol=1e-11)
    shared = solve(swirl, z0, [0.2, 0.5, 1.0], t0=0.0, rtol=1e-9, atol=1e-11).zs
    torch.testing.assert_close(sol.zs[:, 0], shared[1:, 0])
    torch.testing.assert_close(sol.zs[0, 1], shared[0, 1])
    assert sol.zs[1, 1].isnan().all()


def test_a_sample_whose_only_time_is_the_first():
    t, z0 = torch.tensor([[0.0, 1.0], [0.0, NAN]]), torch.randn(2, 3)
    zs = solve(swirl, z0, t).zs
    torch.testing.assert_close(zs[0], z0, rtol=0, atol=0)
    assert zs[1, 0].isfinite().all() and zs[1, 1].isnan().all()


def test_times_twice_in_a_row():
    t, z0 = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), torch.randn(2, 3)
    zs = solve(swirl, z0, t, adaptive=False, dt=0.3).zs
    torch.testing.assert_close(zs[1, 0], zs[2, 0], rtol=0, atol=0)
    torch.testing.assert_close(zs[0, 1], zs[1, 1], rtol=0, atol=0)


def test_one_row_for_one_sample():
    zs = solve(swirl, torch.ones(1, 2), [[0.0, 0.5, 1.0]]).zs
    torch.testing.assert_close(zs, solve(swirl, torch.ones(1, 2), [0.0, 0.5, 1.0]).zs)


# --- gradients ---------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, t: Tensor, z: Tensor, args: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(z) + torch.sin(t))) - args * z


def weighted(zs: Tensor, t: Tensor) -> Tensor:
    """A different loss for every output; padding has no part in it."""
    weights = torch.sin(torch.arange(zs.numel(), dtype=zs.dtype)).reshape(zs.shape)
    there = t.isfinite().t().unsqueeze(-1)
    return (torch.where(there, zs, 0.0).sin() * weights).sum()


def picked(shared: Tensor, t: Tensor) -> Tensor:
    """The outputs of a union solve arranged as those of a per-sample one."""
    _, places = union(t)
    columns = [
        torch.cat([shared[place, b], shared.new_full((t.shape[1] - len(place), 2), NAN)])
        for b, place in enumerate(places)
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("rows", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
@pytest.mark.parametrize("sensitivity, checkpoints", CHECKPOINTED)
def test_gradients_equal_those_of_the_union(sensitivity, checkpoints, rows):
    torch.manual_seed(2)
    t = torch.tensor(rows)
    field = Net()
    options = {"rtol": 1e-8, "atol": 1e-10, "solver": "vern7"}
    node = NeuralODE(field, sensitivity=sensitivity, checkpoints=checkpoints, **options)
    grads = []
    for times in (t, union(t)[0]):
        z0 = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
        leak = torch.tensor(0.3, requires_grad=True)
        zs = node(z0, times, leak)
        loss = weighted(zs if times is t else picked(zs, t), t)
        grads.append(torch.autograd.grad(loss, [z0, leak, *field.parameters()]))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_padding_takes_no_gradient_whatever_comes_back(sensitivity):
    """Losses like nansum send zeros to padded entries, careless ones send NaN."""
    t, z0 = torch.tensor(FORWARDS), torch.ones(3, 2, requires_grad=True)
    field = Net()
    node = NeuralODE(field, sensitivity=sensitivity, rtol=1e-8, atol=1e-10)
    inputs = [z0, *field.parameters()]
    leak = torch.tensor(0.1)
    clean = torch.autograd.grad(weighted(node(z0, t, leak), t), inputs)
    zs = node(z0, t, leak)
    weights = torch.sin(torch.arange(zs.numel(), dtype=zs.dtype)).reshape(zs.shape)
    summed = torch.autograd.grad((zs.sin() * weights).nansum(), inputs)
    for got, want in zip(summed, clean, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def finite_differences(f: Callable[[Tensor], Tensor], t: Tensor, eps: float = 1e-4) -> Tensor:
    found = torch.zeros_like(t)
    for place in t.isfinite().nonzero().tolist():
        unit = torch.zeros_like(t)
        unit[tuple(place)] = eps
        found[tuple(place)] = (f(t + unit) - f(t - unit)) / (2 * eps)
    return found


@pytest.mark.parametrize("rows", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_gradients_of_the_times(sensitivity, rows):
    """Each sample's own times, t0 given apart, against central differences."""
    torch.manual_seed(2)
    field, leak, z0 = Net(), torch.tensor(0.3), torch.linspace(-1, 1, 6).reshape(3, 2)
    start = rows[0][0] - 0.25 * (1 if rows is FORWARDS else -1)
    options = {"sensitivity": sensitivity, "rtol": 1e-8, "atol": 1e-10, "solver": "vern7"}

    def loss(t: Tensor, t0: Tensor) -> Tensor:
        return weighted(solve(field, z0, t, leak, t0=t0, **options).zs, t.detach())

    t = torch.tensor(rows, requires_grad=True)
    t0 = torch.tensor(start, requires_grad=True)
    got, got_t0 = torch.autograd.grad(loss(t, t0), [t, t0])
    with torch.no_grad():
        want = finite_differences(lambda x: loss(x, t0), t.detach())
        want_t0 = finite_differences(lambda x: loss(t, x), t0.detach())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_t0, want_t0, rtol=1e-5, atol=1e-6)
    assert want.abs().max() > 0.01 and want_t0.abs() > 1e-3


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_gradients_of_first_times_that_are_the_start(sensitivity):
    """Without t0 each row's first time is its start: moving it moves that sample's z0.

    Sample by sample: a joint solve has one start, so the sum over a row is what moving the
    whole row of an autonomous field would do, nothing.
    """
    z0 = torch.linspace(-1, 1, 6).reshape(3, 2)
    t = torch.tensor(FORWARDS, requires_grad=True)
    sol = solve(lambda z: torch.cos(z), z0, t, sensitivity=sensitivity, rtol=1e-10, atol=1e-12)
    there = t.detach().isfinite().t().unsqueeze(-1)
    later = torch.where(there, sol.zs, 0.0)[1:]
    (grad,) = torch.autograd.grad((later.sin() * torch.rand(later.shape)).sum(), t)
    torch.testing.assert_close(grad.sum(dim=1), torch.zeros(3), rtol=0, atol=1e-7)
    assert grad[:, 0].abs().min() > 1e-3
    assert not grad[~t.detach().isfinite()].any()


def test_gradients_reach_times_in_a_list():
    rows = [torch.tensor([0.0, 1.0], requires_grad=True), torch.tensor([0.0, 0.5, 2.0])]
    zs = solve(lambda z: z, torch.ones(2, 1), rows, rtol=1e-9, atol=1e-11).zs
    (grad,) = torch.autograd.grad(zs[1, 0], rows[0])
    torch.testing.assert_close(grad, math.e * torch.tensor([-1.0, 1.0]), rtol=1e-7, atol=0)
