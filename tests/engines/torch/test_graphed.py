"""compile=True for CUDA against the engine's own code.

Without a GPU the same functions run on the CPU, neither fused nor captured; with one they are
captured, and fused in slow tests alone, since kernels take seconds to make.
"""

import gc
import math
import weakref

import compiled_cases
import pytest
import torch
from compiled_cases import TIMES
from torch import Tensor, nn

from pynode import NeuralODE, autograd, solve
from pynode.engines.torch.graphed import graphs
from pynode.engines.torch.graphed.engine import GraphedEngine
from pynode.errors import InputError, LoweringError, SolveError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def graphed(monkeypatch):
    """compile=True takes the engine for CUDA, without fused kernels."""
    monkeypatch.setattr(graphs, "FUSED_ON", set())
    usual = autograd.engine_of
    monkeypatch.setattr(
        autograd,
        "engine_of",
        lambda options, device: GraphedEngine() if options.compile else usual(options, device),
    )


class Swirl(compiled_cases.Swirl):
    """On the device that is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.to(DEVICE)


def state(rows: int = 3, grad: bool = False) -> Tensor:
    return compiled_cases.state(rows).to(DEVICE).requires_grad_(grad)


def both(t=None, field=None, z0=None, **options):
    field, z0 = field or Swirl(), state() if z0 is None else z0
    t = TIMES if t is None else t
    return [solve(field, z0, t, **{"dense": False, **options}, compile=on) for on in (False, True)]


OPTIONS = {**compiled_cases.OPTIONS, "two": {"t": [0.0, 2.0]}}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_steps(name):
    eager, compiled = both(**OPTIONS[name], solver="tsit5")
    assert compiled.stats == eager.stats
    assert torch.equal(compiled.zs.isnan(), eager.zs.isnan())
    torch.testing.assert_close(compiled.zs, eager.zs, rtol=1e-11, atol=1e-12, equal_nan=True)


EXPLICIT = ("bs3", "dop853", "dp5", "euler", "fehlberg2", "heun", "midpoint", "rk4", "vern7")


@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("t", [TIMES, [0.0, 2.0]])
def test_every_method(solver, t):
    fixed = {"dt": 0.05} if solver in ("euler", "midpoint", "rk4") else {}
    z0 = state()
    results = []
    for on in (False, True):
        field, z = Swirl(), z0.clone().requires_grad_()
        node = NeuralODE(field, solver=solver, sensitivity="discrete", compile=on, **fixed)
        zs = node(z, t)
        grads = torch.autograd.grad(weighted(zs), [z, *field.parameters()])
        results.append((node.stats.accepted, node.stats.rejected, zs, *grads))
    assert results[0][:2] == results[1][:2]
    for eager, compiled in zip(results[0][2:], results[1][2:], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-11)


def weighted(zs: Tensor) -> Tensor:
    weights = torch.linspace(1, 2, zs.numel(), dtype=zs.dtype).reshape(zs.shape).to(zs)
    return (torch.nan_to_num(zs) * weights).sum()


@pytest.mark.parametrize("sensitivity", ["discrete", "gauss", "interpolating", "backsolve"])
@pytest.mark.parametrize("name", ["plain", "backwards", "stops", "fixed", "own times", "start"])
def test_the_same_gradients(sensitivity, name):
    options = {"rtol": 1e-7, **OPTIONS[name], "sensitivity": sensitivity}
    t = options.pop("t", TIMES)
    results = []
    for on in (False, True):
        field, z0 = Swirl(), state(grad=True)
        zs = solve(field, z0, t, dense=False, compile=on, **options).zs
        results.append(torch.autograd.grad(weighted(zs), [z0, *field.parameters()]))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-8, atol=1e-9)


def test_gradients_of_times_and_args():
    def field(t, z, args):
        return torch.sin(t + args["a"]) * z * args["scale"] + args["b"]

    results = []
    for on in (False, True):
        a = torch.tensor(0.3, dtype=torch.float64, device=DEVICE, requires_grad=True)
        b = torch.tensor([0.1, -0.2], dtype=torch.float64, device=DEVICE)
        args = {"a": a, "scale": 1.5, "b": b}
        t = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
        for shift in (0.0, 1.0):  # other values, the same graphs
            given = {**args, "a": args["a"] + shift, "b": args["b"] + shift}
            z0 = state(grad=True)
            sol = solve(field, z0, t, given, sensitivity="discrete", compile=on, dense=False)
            results.append(torch.autograd.grad(weighted(sol.zs), [z0, t, args["a"]]))
    for eager, compiled in ((0, 2), (1, 3)):
        for x, y in zip(results[eager], results[compiled], strict=True):
            torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-11)


def test_a_jump_is_evaluated_on_its_own_side():
    field = lambda t, z: torch.where(t < 1.0, z, -2.0 * z)  # noqa: E731
    eager, compiled = both(field=field, tstops=[1.0], rtol=1e-9)
    assert compiled.stats == eager.stats
    torch.testing.assert_close(compiled.zs, eager.zs, rtol=1e-11, atol=1e-12)
    exact = state() * math.exp(1.0 - 2.0)
    torch.testing.assert_close(compiled.zs[-1], exact, rtol=1e-8, atol=0)


def test_new_values_cost_no_new_graph():
    field = Swirl()
    node = NeuralODE(field, compile=True, sensitivity="discrete")
    node(state(grad=True), TIMES).sum().backward()
    made = graphs.counts.made
    with torch.no_grad():
        field.inner.mul_(0.5)
        field.shift.add_(1.0)
    for t, rtol in (([0.0, 1.0, 3.0], 1e-6), ([1.0, -1.0], 1e-4)):
        again = NeuralODE(field, compile=True, sensitivity="discrete", rtol=rtol)
        eager = NeuralODE(field, sensitivity="discrete", rtol=rtol)
        z0 = state(grad=True)
        zs = again(z0, t)
        zs.sum().backward()
        torch.testing.assert_close(zs, eager(state(), t), rtol=1e-11, atol=1e-12)
    assert graphs.counts.made == made


def test_a_changed_structure_is_noticed():
    class Scaled(nn.Module):
        factor = 1.0

        def forward(self, t, z):
            return self.factor * z

    field = Scaled()
    node = NeuralODE(field, compile=True)
    node(state(), [0.0, 1.0])
    field.factor = -1.0
    torch.testing.assert_close(
        node(state(), [0.0, 1.0])[-1], state() * math.exp(-1), rtol=1e-5, atol=0
    )


def test_what_is_kept_for_a_field_goes_with_it():
    field = Swirl()
    node = NeuralODE(field, compile=True, sensitivity="discrete")
    node(state(grad=True), TIMES).sum().backward()
    gone = weakref.ref(field)
    del field, node
    gc.collect()
    assert gone() is None


def test_args_that_cannot_be_compared_are_refused():
    class Gain:
        value = 2.0

    field = lambda t, z, args: args.value * z  # noqa: E731
    with pytest.raises(LoweringError, match="args hold a Gain"):
        solve(field, state(), TIMES, Gain(), compile=True)


def test_waits_for_the_device():
    """Once a solve, where it goes as the last one did, and once for 64 steps at most."""
    field, z0 = Swirl(), state()
    node = NeuralODE(field, compile=True, rtol=1e-9)
    node(z0, TIMES)
    before = graphs.counts.waits
    node(z0, TIMES)
    assert graphs.counts.waits == before + 1
    before = graphs.counts.waits
    solve(field, z0, [0.0, 2.0], compile=True, adaptive=False, dt=0.01, dense=False)
    assert graphs.counts.waits - before == math.ceil(200 / 64)


def test_dense_output():
    eager, compiled = both(dense=True, solver="vern7")
    s = torch.tensor([0.01, 0.77, 1.99], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(s), eager(s), rtol=1e-10, atol=1e-11)


FAILURES = {
    "blows up": (lambda t, z: z * z, {}, "spacing of floating-point numbers|NaN or infinity"),
    "too many steps": (lambda t, z: -z, {"max_steps": 5, "rtol": 1e-12}, "max_steps=5"),
    "NaN at once": (lambda t, z: z * math.nan, {}, "NaN or infinity"),
    "NaN later": (lambda t, z: torch.sqrt(0.5 - t) * z, {}, "NaN or infinity"),
    "fixed steps": (lambda t, z: 1e200 * z * z, {"adaptive": False, "dt": 0.1}, "lessen dt"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name):
    field, options, words = FAILURES[name]
    ends = []
    for on in (False, True):
        with pytest.raises(SolveError, match=words) as raised:
            solve(field, state() + 2, [0.0, 1.0, 3.0], dense=False, compile=on, **options)
        ends.append(
            (raised.value.retcode, raised.value.sample, raised.value.solution.stats.accepted)
        )
    assert ends[0][:2] == ends[1][:2]
    # Where the field ends, rounding decides how many more steps creep up to there.
    assert abs(ends[0][2] - ends[1][2]) <= (10 if name == "NaN later" else 0)


def test_what_it_refuses():
    with pytest.raises(LoweringError, match=r"compile=True: .*compile=False"):
        solve(lambda t, z: z if float(z.sum()) > 0 else -z, state(), TIMES, compile=True)
    with pytest.raises(LoweringError, match="complex"):
        solve(lambda t, z: 1j * z, state().to(torch.complex128), TIMES, compile=True)
    from pynode import Event

    with pytest.raises(InputError, match="events"):
        solve(lambda t, z: -z, state(), TIMES, compile=True, events=[Event(lambda t, z: z.sum())])


def test_autocast():
    field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).to(DEVICE)
    z0 = state().float()
    results = []
    for on in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16):
            node = NeuralODE(field, rtol=1e-2, atol=1e-2, sensitivity="discrete", compile=on)
            zs = node(z0, [0.0, 0.5, 1.0])
        results.append((zs.detach(), *torch.autograd.grad(zs.sum(), list(field.parameters()))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dp5", "dop853"])
def test_fused_by_inductor(monkeypatch, solver):
    """The same functions as kernels, on the CPU by a C++ compiler."""
    monkeypatch.setattr(graphs, "FUSED_ON", {DEVICE})
    results = []
    for on in (False, True):
        field, z0 = Swirl(), state(grad=True)
        node = NeuralODE(field, solver=solver, sensitivity="discrete", compile=on)
        zs = node(z0, TIMES)
        grads = torch.autograd.grad(weighted(zs), [z0, *field.parameters()])
        results.append((zs, *grads))
        stats = node.stats
    assert stats.accepted
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-11)
