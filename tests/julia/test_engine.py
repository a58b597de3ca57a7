"""The julia engine against the torch engine: states, gradients, failures."""

import threading
import warnings

import numpy as np
import pytest
import torch
from julia_cases import CASES, TIMES, Robertson, gradients, mlp, nodes, plain, relative
from torch import Tensor

from pynode import JuliaField, NeuralODE, neural_ode, sensitivities, solve, solvers
from pynode.engines.julia.engine import JuliaEngine
from pynode.errors import InputError, JuliaError, LoweringError, SolveError

pytestmark = [pytest.mark.julia, pytest.mark.usefixtures("float64")]

BOTH = {"torch", "julia"}
SOLVERS = {s.name: s for s in solvers() if set(s.engines) >= BOTH}
SENSITIVITIES = [s.name for s in sensitivities() if set(s.engines) >= BOTH]


@pytest.mark.parametrize("name", SOLVERS)
def test_states_of_every_solver(name):
    info = SOLVERS[name]
    options = {"rtol": 1e-6, "atol": 1e-8} if info.adaptive else {"dt": 0.01}
    field = mlp(3, 16)
    z0 = plain(1)
    here, there = (node(z0, TIMES) for node in nodes(field, solver=name, **options))
    exact = solve(field, z0, TIMES, solver="vern7", rtol=1e-11, atol=1e-12).zs
    assert relative(there, exact) < max(10 * relative(here, exact), 1e-5)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if not s.stiff])
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_gradients_of_every_explicit_solver(name, sensitivity):
    info = SOLVERS[name]
    fixed = not info.adaptive or info.order < 4
    tolerances = {"adaptive": False, "dt": 0.005} if fixed else {"rtol": 1e-9, "atol": 1e-11}
    here, there = nodes(mlp(3, 8), solver=name, sensitivity=sensitivity, **tolerances)
    _, want = gradients(here, plain(2), TIMES)
    _, got = gradients(there, plain(2), TIMES)
    limit = {1: 5e-2, 2: 1e-3, 3: 1e-5}.get(info.order, 1e-6)
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < limit


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.stiff])
@pytest.mark.parametrize("sensitivity", ["gauss", "quadrature"])
def test_gradients_of_every_stiff_solver(name, sensitivity):
    order = SOLVERS[name].order
    tol = 1e-6 if order < 4 else 1e-8
    field = mlp(3, 8)
    node = NeuralODE(
        field, solver=name, sensitivity=sensitivity, rtol=tol, atol=tol * 1e-2, engine="julia"
    )
    exact = NeuralODE(field, solver="vern7", sensitivity="discrete", rtol=1e-11, atol=1e-12)
    _, want = gradients(exact, plain(2), TIMES)
    _, got = gradients(node, plain(2), TIMES)
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < (3e-3 if order < 4 else 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_agreement_at_tight_tolerances(case):
    """zs within ten times the tolerance, gradients to 1e-6, with rtol 1e-10."""
    make, start = CASES[case]
    torch.manual_seed(2)
    here, there = nodes(make(), solver="vern7", sensitivity="gauss", rtol=1e-10, atol=1e-12)
    z_here, want = gradients(here, start(), TIMES)
    z_there, got = gradients(there, start(), TIMES)
    assert float((z_there - z_here).abs().max()) < 10 * 1e-10 * float(z_here.abs().max())
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < 1e-6


def test_the_elementary_controller():
    """It is used in both directions: other steps than the solver's own, the same results."""
    field, results, stats = mlp(3, 8), [], []
    for controller in ("pi", "i"):
        node = NeuralODE(
            field, solver="dp5", sensitivity="gauss", engine="julia", controller=controller,
            rtol=1e-9, atol=1e-11,
        )  # fmt: skip
        results.append(gradients(node, plain(2), TIMES))
        stats.append((node.stats.accepted, node.stats.nfe))
    assert stats[0] != stats[1]
    for g, w in zip(*(flat for _, flat in results), strict=True):
        assert relative(g, w) < 1e-6


def test_float32():
    torch.set_default_dtype(torch.float32)
    here, there = nodes(mlp(3, 8), rtol=1e-5, atol=1e-6)
    z0 = plain(4).float()
    z_here, want = gradients(here, z0, TIMES)
    z_there, got = gradients(there, z0, TIMES)
    assert z_there.dtype == torch.float32
    assert relative(z_there, z_here) < 1e-4
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        assert relative(g, w) < 1e-3


def driven(t: Tensor, z: Tensor, args: dict) -> Tensor:
    return args["gain"] * torch.tanh(z) * torch.cos(t) - args["leak"] * z


def test_args_and_their_gradients():
    args = {"gain": torch.tensor(1.3), "leak": torch.tensor([0.1, 0.2, 0.3])}
    here, there = nodes(driven, rtol=1e-9, atol=1e-11)
    _, want = gradients(here, plain(2), TIMES, args)
    _, got = gradients(there, plain(2), TIMES, args)
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < 1e-6
    # Other values of the same args need no second lowering and give other results.
    other = {"gain": torch.tensor(0.5), "leak": torch.zeros(3)}
    torch.testing.assert_close(
        there(plain(2), TIMES, other), here(plain(2), TIMES, other), rtol=1e-7, atol=1e-8
    )


def test_each_samples_own_times_backwards_and_a_time_before_the_first():
    field = mlp(3, 8)
    here, there = nodes(field, rtol=1e-9, atol=1e-11)
    times = [torch.tensor([0.2, 0.5, 1.1]), torch.tensor([0.3]), torch.tensor([0.1, 1.4])]
    z0 = plain(3)
    zs, want = here(z0, times, t0=0.0), there(z0, times, t0=0.0)
    torch.testing.assert_close(zs, want, rtol=1e-7, atol=1e-8, equal_nan=True)
    grads = [
        torch.autograd.grad(x.nan_to_num().sin().sum(), list(field.parameters()))
        for x in (zs, want)
    ]
    for g, w in zip(*grads, strict=True):
        assert relative(g, w) < 1e-6
    back = [1.0, 0.3, 0.3, -0.5]
    torch.testing.assert_close(there(z0, back), here(z0, back), rtol=1e-7, atol=1e-8)


def test_parameters_may_change_between_solves():
    field = mlp(3, 8)
    here, there = nodes(field)
    there(plain(2), TIMES)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(1.7)
    torch.testing.assert_close(there(plain(2), TIMES), here(plain(2), TIMES), rtol=1e-4, atol=1e-5)


def moved(field, how):
    """Give the weights other values, by a way that leaves their shapes."""
    with torch.no_grad():
        for w in (field[0].weight, field[2].weight):
            if how == "behind autograd":
                w.data.mul_(0.9)
            elif how == "elsewhere":
                w.data = w.data * 0.8
            else:
                w.data = w.data.t()  # at the same address, of the same shape


@pytest.mark.parametrize("how", ["behind autograd", "elsewhere", "transposed"])
def test_what_calls_share_follows_the_parameters(how):
    field, z0 = mlp(3, 3).double(), plain(2).double()
    options = {"rtol": 1e-10, "atol": 1e-12, "sensitivity": "discrete", "solver": "dp5"}
    for change in (False, True, True):
        if change:
            moved(field, how)
        results = []
        for node in nodes(field, **options):
            zs = node(z0, TIMES)
            grads = torch.autograd.grad(zs[-1].square().sum(), list(field.parameters()))
            results.append((zs, *grads))
        torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


def test_a_batch_of_one_among_others():
    """By a stiff solver the others are solved one by one, by the program that the one has too."""
    field, z0 = mlp(3, 8).double(), plain(4).double()
    here, there = nodes(field, solver="rodas5p", rtol=1e-8, atol=1e-10, sensitivity="gauss")
    for rows in (1, 4, 1):
        torch.testing.assert_close(
            there(z0[:rows], TIMES), here(z0[:rows], TIMES), rtol=1e-6, atol=1e-8
        )


class Switched(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.rate * z + self.offset


def test_a_changed_constant_is_noticed():
    """Numbers and buffers are built into a program: a change of either makes a new one."""
    field = Switched()
    here, there = nodes(field)
    for change in (lambda: None, lambda: setattr(field, "rate", 3.0), lambda: field.offset.add_(1)):
        change()
        torch.testing.assert_close(
            there(plain(2), TIMES), here(plain(2), TIMES), rtol=1e-4, atol=1e-5
        )


def test_dense_output():
    here, there = nodes(mlp(3, 8), rtol=1e-9, atol=1e-11)
    s = torch.tensor([0.05, 0.77, 1.5])
    with torch.no_grad():
        a, b = (node.solve(plain(2), TIMES) for node in (here, there))
        torch.testing.assert_close(b(s), a(s), rtol=1e-7, atol=1e-8)
    with pytest.raises(InputError, match="outside"):
        b(2.0)


def test_statistics():
    _, node = nodes(mlp(3, 8))
    zs = node(plain(2).requires_grad_(), TIMES)
    assert node.stats.nfe > 10
    assert node.stats.accepted > 1
    assert node.stats.vjp == 0
    zs.sum().backward()
    assert node.stats.vjp > 10


# Stiff -----------------------------------------------------------------------------------------

# Robertson at t = 0.4, 40, 4e3, 1e5: scipy's Radau at rtol 1e-12, atol 1e-16
ROBERTSON_TIMES = [0.0, 0.4, 40.0, 4e3, 1e5]


@pytest.fixture(scope="module")
def robertson():
    from scipy.integrate import solve_ivp

    def f(t, y):
        a, b, c = 0.04 * y[0], 3e7 * y[1] * y[1], 1e4 * y[1] * y[2]
        return [c - a, a - b - c, b]

    def jac(t, y):
        return [
            [-0.04, 1e4 * y[2], 1e4 * y[1]],
            [0.04, -6e7 * y[1] - 1e4 * y[2], -1e4 * y[1]],
            [0.0, 6e7 * y[1], 0.0],
        ]

    found = solve_ivp(
        f, (0, 1e5), [1.0, 0, 0], "Radau", ROBERTSON_TIMES, rtol=1e-12, atol=1e-16, jac=jac
    )
    return torch.tensor(found.y.T)


@pytest.mark.parametrize("solver", ["rodas5p", "fbdf", "kvaerno5", "auto"])
def test_robertson(robertson, solver):
    options = {"solver": solver, "rtol": 1e-8, "atol": 1e-12, "max_steps": 100_000}
    z0 = torch.tensor([1.0, 0.0, 0.0])
    zs = solve(Robertson(), z0, ROBERTSON_TIMES, engine="julia", **options).zs
    error = (zs[1:] - robertson[1:]).abs() / robertson[1:].abs()
    assert float(error.max()) < 1e-4


@pytest.mark.parametrize("solver", ["rodas5p", "fbdf", "kvaerno5", "auto"])
def test_robertson_gradient(solver):
    """d y1(40)/d log k against central differences of a tighter solve."""
    field = Robertson()
    z0 = torch.tensor([1.0, 0.0, 0.0])

    def y1(shift: Tensor) -> float:
        moved = Robertson()
        with torch.no_grad():
            moved.log_k.add_(shift)
            options = {"solver": "rodas5p", "rtol": 1e-11, "atol": 1e-15, "max_steps": 100_000}
            return float(solve(moved, z0, [0.0, 40.0], engine="julia", **options).zs[-1, 0])

    h = 1e-4
    wanted = torch.tensor([(y1(h * e) - y1(-h * e)) / (2 * h) for e in torch.eye(3)])
    options = {"solver": solver, "rtol": 1e-9, "atol": 1e-13, "max_steps": 100_000}
    node = NeuralODE(field, engine="julia", sensitivity="gauss", **options)
    (got,) = torch.autograd.grad(node(z0, [0.0, 40.0])[-1, 0], field.log_k)
    assert relative(got, wanted) < 1e-4


def test_a_stiff_batch_is_solved_sample_by_sample():
    """Nothing of the size of the whole batch squared, and the same results as one by one."""
    field = Robertson()
    z0 = torch.tensor([[1.0, 0, 0], [0.9, 0, 0.1], [0.5, 0, 0.5]])
    node = NeuralODE(field, engine="julia", solver="rodas5p", rtol=1e-8, atol=1e-12)
    zs = node(z0, [0.0, 1.0, 40.0])
    for b in range(3):
        torch.testing.assert_close(zs[:, b], node(z0[b], [0.0, 1.0, 40.0]), rtol=1e-9, atol=1e-13)
    whole = torch.autograd.grad(zs[-1, :, 0].sum(), field.log_k)[0]
    alone = sum(
        torch.autograd.grad(node(z0[b], [0.0, 40.0])[-1, 0], field.log_k)[0] for b in range(3)
    )
    assert relative(whole, alone) < 1e-6


def test_samples_that_depend_on_each_other_are_refused():
    node = NeuralODE(lambda t, z: z.mean(0) - z, engine="julia", solver="rodas5p")
    with pytest.raises(InputError, match="depend on each other"):
        node(plain(3), TIMES)


# Other ways in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", ["gauss", "discrete"])
def test_a_field_written_in_julia(sensitivity):
    lotka = JuliaField(
        """
        function f!(du, u, p, t)
            du[1] = p[1] * u[1] - p[2] * u[1] * u[2]
            du[2] = p[4] * u[1] * u[2] - p[3] * u[2]
        end
        """,
        4,
        values=[1.5, 1.0, 3.0, 1.0],
    )

    def twin(t: Tensor, z: Tensor, p: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([p[0] * x - p[1] * x * y, p[3] * x * y - p[2] * y])

    options = {"rtol": 1e-9, "atol": 1e-11, "sensitivity": sensitivity}
    z0 = torch.tensor([1.0, 1.0])
    zs = NeuralODE(lotka, engine="julia", **options)(z0, TIMES)
    p = lotka.p.detach().clone().requires_grad_()
    want = NeuralODE(twin, **options)(z0, TIMES, p)
    torch.testing.assert_close(zs, want, rtol=1e-7, atol=1e-8)
    got = torch.autograd.grad(zs.sin().sum(), lotka.p)[0]
    assert relative(got, torch.autograd.grad(want.sin().sum(), p)[0]) < 1e-6
    with pytest.raises(InputError, match="engine='julia'"):
        NeuralODE(lotka)(z0, TIMES)


def test_a_mistake_in_julia_source_is_quoted():
    node = NeuralODE(
        JuliaField("function f!(du, u, p, t) du[1] = nosuchname end", 0), engine="julia"
    )
    with pytest.raises(JuliaError, match="nosuchname"):
        node(torch.ones(1), TIMES)


class Unlowerable(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.3 * torch.eye(3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -z @ torch.linalg.matrix_exp(self.weight)


def test_what_cannot_be_lowered_is_named_and_can_be_called_back():
    field = Unlowerable()
    here, there = nodes(field, rtol=1e-8, atol=1e-10)
    with pytest.raises(LoweringError, match=r"matrix_exp.*callback"):
        there(plain(2), TIMES)
    z_here, want = gradients(here, plain(2), TIMES)
    for sensitivity in ("interpolating", "discrete"):
        back = NeuralODE(
            field, engine="julia", lowering="callback", rtol=1e-8, atol=1e-10,
            sensitivity=sensitivity,
        )  # fmt: skip
        with pytest.warns(UserWarning, match="100 µs"):
            z_there, got = gradients(back, plain(2), TIMES)
        assert relative(z_there, z_here) < 1e-7
        for g, w in zip(got, want, strict=True):
            assert relative(g, w) < 1e-6


def test_an_error_in_a_field_that_is_called_back_comes_up_as_itself():
    def field(t: Tensor, z: Tensor) -> Tensor:
        if t > 0.2:
            raise ZeroDivisionError("my own mistake")
        return -z

    node = NeuralODE(field, engine="julia", lowering="callback")
    warnings.simplefilter("ignore")  # pytest puts the filters back
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        node(torch.ones(2), TIMES)


# Failures and refusals -------------------------------------------------------------------------


def test_max_steps():
    with pytest.raises(SolveError, match="max_steps=5") as caught:
        solve(mlp(3, 8), plain(2), [0.0, 50.0], engine="julia", max_steps=5)
    assert caught.value.retcode == "max_steps"
    assert 0 < caught.value.t < 50
    sol = solve(mlp(3, 8), plain(2), [0.0, 0.001, 50.0], engine="julia", max_steps=5, throw=False)
    assert sol.retcode == "max_steps"
    assert sol.zs[0].isfinite().all()
    assert sol.zs[-1].isnan().all()


@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
def test_a_field_that_becomes_nan(solver):
    with pytest.raises(SolveError) as caught:
        solve(
            lambda t, z: torch.log(0.5 - t) * z, plain(1), [0.0, 1.0], engine="julia", solver=solver
        )
    assert caught.value.retcode in ("non_finite", "dt_underflow")


def test_a_solution_that_blows_up():
    with pytest.raises(SolveError) as caught:
        solve(lambda z: z * z, torch.ones(1), [0.0, 2.0], engine="julia")
    assert caught.value.t == pytest.approx(1.0, abs=0.05)


def test_the_failed_sample_is_named():
    field = Robertson()
    z0 = torch.tensor([[1.0, 0, 0], [0.9, torch.nan, 0.1]])
    with pytest.raises(SolveError, match="sample 1") as caught:
        solve(field, z0, [0.0, 1.0], engine="julia", solver="rodas5p")
    assert caught.value.sample == 1


@pytest.mark.parametrize(
    "options",
    [
        {"controller": "pid"},
        {"norm": "max"},
        {"adjoint_seminorm": True},
        {"checkpoints": 3},
        {"safety": 0.8},
        {"dt_min": 1e-3},
        {"grid": [0.0, 0.5, 1.5]},
        {"rtol": torch.full((3,), 1e-3)},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options_that_mean_nothing_are_errors(options):
    with pytest.raises(InputError, match="julia"):
        NeuralODE(mlp(3, 8), engine="julia", **options)(plain(2), TIMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex128])
def test_wrong_dtypes(dtype):
    with pytest.raises((InputError, LoweringError), match=r"float32 and float64|complex"):
        solve(lambda z: -z, torch.ones(2, dtype=dtype), TIMES, engine="julia")


def test_what_it_does_not_have():
    with pytest.raises(InputError, match="sensitivity='discrete' with the stiff solver rodas5p"):
        NeuralODE(mlp(3, 8), engine="julia", sensitivity="discrete", solver="rodas5p")
    with pytest.raises(InputError, match="'reversible'"):
        NeuralODE(mlp(3, 8), engine="julia", sensitivity="reversible")


def test_calls_from_several_threads():
    node = NeuralODE(mlp(3, 8), engine="julia")
    want = node(plain(2), TIMES)
    found: list[Tensor] = []

    def work() -> None:
        z0 = plain(2).requires_grad_()
        zs = node(z0, TIMES)
        zs.sum().backward()
        found.append(zs.detach())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for zs in found:
        np.testing.assert_array_equal(zs, want.detach())


def test_a_call_like_the_one_before(monkeypatch):
    """It is put together already, and sees other states and parameters."""
    field, z0, times = mlp(3, 8), plain(1), torch.linspace(0.0, 1.0, 5)
    node = NeuralODE(field, engine="julia")
    with torch.no_grad():
        node(z0, times)
        for change in (lambda: None, lambda: next(field.parameters()).mul_(1.5)):
            change()
            wanted = solve(field, 2 * z0, times, engine="julia").zs
            with monkeypatch.context() as patch:
                patch.setattr(neural_ode, "ODEProblem", None)
                patch.setattr(JuliaEngine, "solve", None)
                assert relative(node(2 * z0, times), wanted) < 1e-12


@torch.no_grad()
def test_a_call_like_the_one_before_looks_at_what_is_frozen(monkeypatch):
    """Values of frozen parameters are in the program; views and failures are as in other calls."""
    field, z0, times = mlp(3, 8).requires_grad_(False), plain(1), torch.linspace(0.0, 1.0, 5)
    node = NeuralODE(field, engine="julia")
    node(z0, times)
    columns = torch.cat([z0, z0], dim=1)[:, ::2]
    with monkeypatch.context() as patch:
        patch.setattr(neural_ode, "ODEProblem", None)
        patch.setattr(JuliaEngine, "solve", None)
        assert torch.equal(node(columns, times), node(columns.clone(), times))
    before = node(z0, times)
    next(field.parameters()).data.mul_(1.5)
    after = node(z0, times)
    assert relative(after, before) > 1e-3
    assert relative(after, solve(field, z0, times, engine="julia").zs) < 1e-12
    with pytest.raises(SolveError, match="NaN or infinite"):
        node(torch.nan * z0, times)
