"""compile=True against the engine's own code: the same steps, counts, values and gradients."""

import gc
import os
import signal
import threading
import weakref

import pytest
import torch
from compiled_cases import OPTIONS, TIMES, Swirl, state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pynode import Event, NeuralODE, solve
from pynode.engines.torch.compiled import build, units
from pynode.errors import (
    CompileError,
    GradientError,
    InputError,
    LoweringError,
    SolveError,
)

SENSITIVITIES = ("discrete", "gauss", "interpolating", "backsolve")


def both(t=None, field=None, z0=None, **options):
    field, z0 = field or Swirl(), state() if z0 is None else z0
    t = TIMES if t is None else t
    return [solve(field, z0, t, **{"dense": False, **options}, compile=on) for on in (False, True)]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_steps(name):
    """One compilation serves all of these."""
    eager, compiled = both(**OPTIONS[name], solver="tsit5")
    assert compiled.stats == eager.stats
    assert torch.equal(compiled.zs.isnan(), eager.zs.isnan())
    torch.testing.assert_close(compiled.zs, eager.zs, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_dense_output():
    eager, compiled = both(dense=True)
    s = torch.linspace(0, 2, 23, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(s), eager(s), rtol=1e-11, atol=1e-12)
    with pytest.raises(GradientError, match="no gradient"):
        compiled(s)


def gradients(on: bool, field, t, z0, **options):
    node = NeuralODE(field, compile=on, **options)
    zs = node(z0, t)
    weights = torch.linspace(-1, 1, zs.numel(), dtype=zs.dtype).reshape(zs.shape)
    wanted = [z0, *(p for p in field.parameters() if p.requires_grad)]
    wanted += [t] if isinstance(t, Tensor) and t.requires_grad else []
    return torch.autograd.grad((zs.nan_to_num() * weights).sum(), wanted), node.stats


def compare_gradients(t=None, field=None, z0=None, **options):
    field, t = field or Swirl(), TIMES if t is None else t
    z0 = state(grad=True) if z0 is None else z0
    (eager, eager_stats), (compiled, stats) = (
        gradients(on, field, t, z0, **options) for on in (False, True)
    )
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert stats.accepted == eager_stats.accepted
    if options["sensitivity"] != "discrete":
        assert stats == eager_stats
    return stats


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_the_same_gradients(sensitivity):
    own = [torch.tensor([0.0, 0.4, 2.0]), torch.tensor([0.0, 0.4]), torch.tensor([0.0, 1.5])]
    times = torch.tensor(TIMES[1:], dtype=torch.float64, requires_grad=True)
    frozen = Swirl()
    frozen.outer.requires_grad_(False)
    for options in (
        {},
        {"tstops": [0.5, 1.0], "controller": "i"},
        {"t": own, "rtol": 1e-8},
        {"t": times},
        {"t": [2.0, 0.1]},
        {"adaptive": False, "dt": 0.1},
        {"field": frozen},
    ):
        compare_gradients(sensitivity=sensitivity, **options)
    if sensitivity in ("interpolating", "backsolve"):
        compare_gradients(sensitivity=sensitivity, adjoint_seminorm=True)


def test_a_method_with_stages_for_dense_output_alone():
    stats = compare_gradients(solver="vern7", sensitivity="discrete")
    assert stats.vjp > 0


@pytest.mark.slow
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("solver", ["euler", "rk4", "bs3", "dp5", "vern7", "dop853", "heun"])
def test_every_method(solver, sensitivity):
    fixed = {"dt": 0.05} if solver in ("euler", "rk4") else {}
    compare_gradients(solver=solver, sensitivity=sensitivity, **fixed)
    compare_gradients(solver=solver, sensitivity=sensitivity, t=[0.0, 1.0], **fixed)


@pytest.mark.slow
def test_another_method_backwards():
    compare_gradients(sensitivity="gauss", solver="vern7", adjoint_solver="bs3", rtol=1e-4)


class WithArgs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, t, z, args):
        return {"x": args["k"] * z["y"] * self.a[0], "y": -z["x"] + self.a[1] * args["k"] * z["y"]}


def test_structures_and_args():
    field, k = WithArgs(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z0 = {"x": torch.ones(2, 1, dtype=torch.float64), "y": torch.full((2, 1), 0.5).double()}
    found = []
    for on in (False, True):
        node = NeuralODE(field, compile=on, sensitivity="discrete")
        zs = node(z0, [0.0, 1.0, 2.0], args={"k": k})
        found.append(torch.autograd.grad(zs["x"].sum() + zs["y"].square().sum(), [k, field.a]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_large_products_on_two_threads():
    torch.manual_seed(0)
    w = torch.randn(160, 160, dtype=torch.float64) / 160**0.5
    field = lambda t, z: torch.tanh(z @ w) @ w.T  # noqa: E731
    z0 = torch.randn(96, 160, dtype=torch.float64)
    eager, compiled = both(t=[0.0, 0.3], field=field, z0=z0, rtol=1e-8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threaded = solve(field, z0, [0.0, 0.3], rtol=1e-8, dense=False, compile=True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(compiled.zs, eager.zs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(threaded.zs, eager.zs, rtol=1e-12, atol=1e-12)


# Counts ------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        assert "_local_scalar_dense" not in str(func)
        return func(*args, **(kwargs or {}))


def operations(end: float, sensitivity: str | None) -> tuple[int, int]:
    z0 = state(grad=sensitivity is not None)
    options = {} if sensitivity is None else {"sensitivity": sensitivity}
    node = NeuralODE(Swirl(), compile=True, rtol=1e-8, **options)
    t = torch.tensor([0.0, end], dtype=torch.float64)
    with torch.set_grad_enabled(sensitivity is not None):
        first = node(z0, t)  # which traces
        if sensitivity is not None:
            first.sum().backward()
        with Operations() as counted:
            zs = node(z0, t)
            if sensitivity is not None:
                zs.sum().backward()
    return counted.count, node.stats.accepted


@pytest.mark.parametrize("sensitivity", [None, "discrete", "interpolating"])
def test_operations_do_not_grow_with_steps(sensitivity):
    """A step makes no operation of torch's and no synchronisation; a solve some dozens in all."""
    (short, n), (long, m) = (operations(end, sensitivity) for end in (1.0, 9.0))
    assert m > n + 20
    assert long == short
    assert long <= (30 if sensitivity is None else 80)


def test_new_values_compile_nothing():
    node = NeuralODE(Swirl(), compile=True, solver="tsit5")
    node(state(), TIMES)
    before = build.counts.compiled
    with torch.no_grad():
        for p in node.field.parameters():
            p.mul_(0.5)
        node.field.shift.add_(1.0)
    eager = NeuralODE(node.field)(state(), [0.0, 5.0])
    torch.testing.assert_close(node(state(), [0.0, 5.0]), eager, rtol=1e-9, atol=1e-10)
    for options in ({"rtol": 1e-3}, {"dt": 0.1, "adaptive": False}, {"tstops": [1.0]}):
        NeuralODE(node.field, compile=True, **options)(state() + 1, [1.0, 3.0, 4.0])
    NeuralODE(Swirl(seed=1), compile=True)(state(), TIMES)  # another net of the same shape
    assert build.counts.compiled == before


class Switched(nn.Module):
    """A field whose code depends on more than its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.rates, self.table = 1.0, [1.0, 2.0], torch.tensor([1, 2])
        self.inner = nn.Sequential(nn.Dropout(0.5))

    def forward(self, z: Tensor) -> Tensor:
        return -self.rate * self.rates[1] * self.table[1] * self.inner(z)


def test_what_a_field_holds_is_seen_when_it_changes():
    field = Switched().eval()
    node, z0 = NeuralODE(field, compile=True), torch.ones(2, dtype=torch.float64)

    def solved() -> float:
        return float(node(z0, [0.0, 1.0])[-1, 0].log())

    assert solved() == pytest.approx(-4.0)
    field.rate = 0.5
    assert solved() == pytest.approx(-2.0)
    field.rates[1] = 1.0
    assert solved() == pytest.approx(-1.0)
    field.table.add_(1)
    assert solved() == pytest.approx(-1.5)
    field.inner[0] = nn.Identity()
    assert solved() == pytest.approx(-1.5)
    field.inner.train()
    field.inner[0] = nn.Dropout(0.5)
    with pytest.raises(LoweringError, match="random"):
        solved()


RATE = 1.0
NET = nn.Linear(2, 2, dtype=torch.float64)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_programs_are_compared_with_torch_at_a_state(sensitivity, monkeypatch):
    """Not at memory that nobody has written yet: some of what lies there is no number."""
    seen, new_empty, lower = [], torch.Tensor.new_empty, units.lower

    def looked_at(field, z0, *args, **options):
        seen.append(z0.clone())
        return lower(field, z0, *args, **options)

    def poisoned(self, *args, **options):
        x = new_empty(self, *args, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(units, "lower", looked_at)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
    node = NeuralODE(net, compile=True, sensitivity=sensitivity)
    node(torch.randn(3, 2, requires_grad=True), torch.linspace(0, 1, 3)).sum().backward()
    assert len(seen) == 2  # for the solve, then for its gradient
    assert all(x.isfinite().all() for x in seen)


def test_globals_that_a_field_names_are_seen_when_they_change(monkeypatch):
    """As when a cell of a notebook is run again."""
    z0 = torch.ones(2, dtype=torch.float64)
    decay, network = (lambda t, z: -RATE * z), (lambda t, z: NET(z))
    for rate in (1.0, 2.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        z1 = solve(decay, z0, [0.0, 1.0], compile=True).zs[-1]
        assert float(z1[0].log()) == pytest.approx(-rate)
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = nn.Linear(2, 2, dtype=torch.float64)
        monkeypatch.setitem(globals(), "NET", net)
        solve(network, z0, [0.0, 1.0], compile=True).zs.sum().backward()
        found = net.weight.grad.clone()
        net.zero_grad()
        solve(network, z0, [0.0, 1.0]).zs.sum().backward()
        torch.testing.assert_close(found, net.weight.grad, rtol=1e-6, atol=1e-9)


def moved(field, how):
    """Give the weights other values, by a way that leaves their shapes."""
    with torch.no_grad():
        for w in (field[0].weight, field[2].weight):
            if how == "in place":
                w.mul_(1.1)
            elif how == "behind autograd":
                w.data.mul_(0.9)
            elif how == "elsewhere":
                w.data = w.data * 0.8
            else:
                w.data = w.data.t()  # at the same address, of the same shape


@pytest.mark.parametrize("how", ["in place", "behind autograd", "elsewhere", "transposed"])
def test_what_calls_share_follows_the_parameters(how):
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    z0, t = torch.randn(2, 3, dtype=torch.float64), torch.linspace(0, 1, 4, dtype=torch.float64)
    fast, plain = (NeuralODE(field, solver="dp5", compile=on) for on in (True, False))
    for _ in range(2):
        for change in (False, True):
            if change:
                moved(field, how)
            results = []
            for node in (fast, plain):
                zs = node(z0, t)
                grads = torch.autograd.grad(zs[-1].square().sum(), list(field.parameters()))
                results.append((zs, *grads))
            torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_what_calls_share_follows_times_and_tolerances():
    field, z0 = Swirl(), state()
    t, rtol = torch.tensor(TIMES, dtype=torch.float64), torch.tensor(1e-9, dtype=torch.float64)
    nodes = [NeuralODE(field, rtol=rtol, atol=1e-11, compile=on) for on in (True, False)]
    for change in (lambda: None, lambda: t.mul_(1.5), lambda: rtol.fill_(1e-3), lambda: t.neg_()):
        change()
        fast, plain = (node(z0, t) for node in nodes)
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-12)
        assert nodes[0].stats == nodes[1].stats


def test_a_field_is_not_kept_alive():
    field = lambda t, z: -z  # noqa: E731
    solve(field, torch.ones(2, dtype=torch.float64), [0.0, 1.0], compile=True)
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None


def test_one_compilation_for_a_new_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("PYNODE_CACHE", str(tmp_path))
    node = NeuralODE(lambda t, z: -z, compile=True)
    before = build.counts.compiled
    for _ in range(3):
        node(torch.ones(1234, dtype=torch.float64), [0.0, 1.0])
    assert build.counts.compiled == before + 1
    build.load.cache_clear()  # as in another process
    NeuralODE(lambda t, z: -z, compile=True)(torch.ones(1234, dtype=torch.float64), [0.0, 1.0])
    assert build.counts.compiled == before + 1
    assert len(list(tmp_path.glob("*.so"))) == 1


# Failures and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 7}, {"dt": 0.5, "adaptive": False, "max_steps": 2}, {"t": [0.0, 30.0]}],
)
def test_failures_are_told_alike(options):
    field = lambda t, z: z * z  # noqa: E731  # which blows up at t = 1/2
    z0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    told = []
    for on in (False, True):
        with pytest.raises(SolveError) as caught:
            solve(field, z0, options.get("t", [0.0, 0.2, 2.0]), compile=on, dense=False,
                  **{k: v for k, v in options.items() if k != "t"})  # fmt: skip
        error = caught.value
        told.append((error.retcode, error.sample, error.solution.stats.nfe, str(error)[:60]))
        assert error.solution.zs[-1].isnan().all()
    assert told[0] == told[1]


def test_nan_is_told_alike():
    field = lambda t, z: torch.sqrt(1.0 - z)  # noqa: E731
    z0 = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    told = []
    for on in (False, True):
        with pytest.raises(SolveError) as caught:
            solve(field, z0, [0.0, 1.0], compile=on)
        told.append(str(caught.value))
    assert told[0] == told[1] and "sample 1" in told[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "kvaerno5"}, "explicit Runge-Kutta"),
        ({"solver": "leapfrog", "dt": 0.1}, "explicit Runge-Kutta"),
        ({"sensitivity": "quadrature"}, "it has discrete, gauss"),
        ({"sensitivity": "reversible"}, "it has discrete, gauss"),
        ({"step_control": "per_sample"}, "step_control"),
        ({"checkpoints": 3, "sensitivity": "gauss"}, "checkpoints"),
        ({"norm": lambda z: z.abs().max()}, "norm"),
        ({"sensitivity": "discrete", "through_steps": True}, "through_steps"),
        ({"engine": "julia"}, "no meaning for engine='julia'"),
    ],
)
def test_options_without_a_compiled_counterpart(options, message):
    with pytest.raises(InputError, match=message):
        NeuralODE(Swirl(), compile=True, **options)


def test_calls_without_a_compiled_counterpart():
    node = NeuralODE(Swirl(), compile=True)
    with pytest.raises(InputError, match="events"):
        node.solve(state(), TIMES, events=[Event(lambda t, z: z[..., 0].sum())])
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match="autocast"),
    ):
        node(state(), TIMES)
    with pytest.raises(GradientError, match=r"torch\.func"):
        torch.func.jacrev(lambda z: node(z, TIMES))(state())
    with pytest.raises(LoweringError, match=r"compile=True: .*compile=False"):
        solve(lambda t, z: z if float(z.sum()) > 0 else -z, state(), TIMES, compile=True)
    with pytest.raises(InputError, match="for the CPU and CUDA, but the state lies on meta"):
        solve(lambda t, z: -z, state().to("meta"), TIMES, compile=True)


def test_no_second_derivatives():
    z0 = state(grad=True)
    zs = NeuralODE(Swirl(), compile=True, sensitivity="discrete")(z0, TIMES)
    (grad,) = torch.autograd.grad(zs.square().sum(), z0, create_graph=True)
    with pytest.raises(GradientError, match="compile=False"):
        torch.autograd.grad(grad.sum(), z0)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PYNODE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        CompileError, match=r"(?s)C\+\+ compiler.*CXX=no-such-compiler.*compile=False"
    ):
        solve(lambda t, z: -3.21 * z, state(), TIMES, compile=True)


def test_ctrl_c_ends_a_long_solve():
    field = lambda t, z: torch.stack([z[1], -1e6 * z[0]])  # noqa: E731
    z0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    solve(field, z0, [0.0, 1e-3], compile=True, dense=False)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(field, z0, [0.0, 1e9], compile=True, dense=False, max_steps=10**9)
    finally:
        timer.cancel()


def test_memory_for_steps_grows():
    field = lambda t, z: torch.stack([z[1], -z[0]])  # noqa: E731
    z0 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    node = NeuralODE(field, compile=True, sensitivity="discrete", rtol=1e-11, atol=1e-11)
    zs = node(z0, [0.0, 200.0])
    assert node.stats.accepted > 2000
    (grad,) = torch.autograd.grad(zs[-1, 0], z0)
    exact = torch.tensor([200.0], dtype=torch.float64)
    torch.testing.assert_close(grad, torch.cat([exact.cos(), exact.sin()]), rtol=1e-6, atol=1e-7)
