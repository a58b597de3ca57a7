"""The julia engine on CUDA tensors, against the torch engine on the same device."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, ensemble, julia
from pynode.errors import InputError, JuliaError

TIMES = [0.0, 0.4, 0.9, 1.5]
GPU = torch.device("cuda")


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips where there is no GPU, no Julia, or none with CUDA.jl."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if not julia.status().ready:
        pytest.skip(f"no Julia here: {julia.status().problem.split('. ')[0]}")
    from pynode.engines.julia import runtime

    try:
        runtime.load("CUDA")
    except JuliaError as error:
        pytest.skip(str(error).split(". ")[0])


class WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 8))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = torch.sin(2 * t).expand(*z.shape[:-1], 1)
        return self.net(torch.cat([z, time], dim=-1)) - 0.3 * z


def layer_norm() -> nn.Module:
    net = [nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*net, nn.Linear(64, 8))


FIELDS = {
    "mlp": lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)),
    "time": WithTime,
    "layer_norm": layer_norm,
}


def start(dtype: torch.dtype, batch: int = 64) -> Tensor:
    return torch.linspace(-1, 1, batch * 8, dtype=dtype, device=GPU).reshape(batch, 8)


def found(field: nn.Module, z0: Tensor, times=TIMES, args=None, **options) -> list[Tensor]:
    """States, and gradients for the start, the times and the parameters."""
    z0 = z0.clone().requires_grad_()
    t = torch.tensor(times, dtype=z0.dtype, device=GPU, requires_grad=True)
    zs = NeuralODE(field, **options)(z0, t, args)
    parameters = list(field.parameters()) if isinstance(field, nn.Module) else []
    grads = torch.autograd.grad(zs.sin().sum(), [z0, t, *parameters])
    return [zs.detach(), *grads]


def relative(got: Tensor, want: Tensor) -> float:
    assert got.device == want.device
    assert got.dtype == want.dtype
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def agree(got: list[Tensor], want: list[Tensor], limit: float) -> None:
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < limit


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_states_and_gradients(name, dtype, sensitivity):
    field = FIELDS[name]().to(GPU, dtype)
    tol, limit = (1e-8, 1e-5) if dtype is torch.float64 else (1e-5, 2e-3)
    options = {"rtol": tol, "atol": tol * 1e-1, "sensitivity": sensitivity}
    want = found(field, start(dtype), **options)
    agree(found(field, start(dtype), engine="julia", **options), want, limit)


@pytest.mark.parametrize("sensitivity", ["interpolating", "quadrature", "backsolve"])
@pytest.mark.parametrize("solver", ["dp5", "vern7"])
def test_other_solvers_and_sensitivities(solver, sensitivity):
    field = FIELDS["mlp"]().to(GPU, torch.float64)
    options = {"rtol": 1e-8, "atol": 1e-10, "solver": solver, "sensitivity": sensitivity}
    want = found(field, start(torch.float64), **options)
    agree(found(field, start(torch.float64), engine="julia", **options), want, 1e-5)


@pytest.mark.parametrize("batch", [1, 600, 5000])
def test_batches(batch):
    """Of one sample, and of more than a reduction does in one part."""
    field = FIELDS["layer_norm"]().to(GPU, torch.float64)
    options = {"rtol": 1e-8, "atol": 1e-10, "sensitivity": "discrete"}
    want = found(field, start(torch.float64, batch), **options)
    agree(found(field, start(torch.float64, batch), engine="julia", **options), want, 1e-6)


def test_work_of_another_stream_is_waited_for():
    """The state is made, slowly, in a stream of its own just before the solve."""
    field = FIELDS["mlp"]().to(GPU, torch.float64)
    node = NeuralODE(field, engine="julia", sensitivity="discrete")
    z0 = start(torch.float64)
    want = node(z0, TIMES).detach()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            slow = torch.randn(4000, 4000, device=GPU)
            for _ in range(10):
                slow = (slow @ slow).clamp(-1, 1)
            late = z0 + 0 * slow.sum().double()
            torch.testing.assert_close(node(late, TIMES).detach(), want)


def test_parameters_change_between_calls_and_training_goes_down():
    field = FIELDS["mlp"]().to(GPU)
    node = NeuralODE(field, engine="julia", sensitivity="discrete", rtol=1e-4, atol=1e-5)
    twin = NeuralODE(field, rtol=1e-4, atol=1e-5)
    z0, target = start(torch.float32), torch.randn(64, 8, device=GPU)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (node(z0, [0.0, 1.0])[-1] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert relative(node(z0, TIMES).detach(), twin(z0, TIMES).detach()) < 1e-2


def test_a_field_that_moves_from_the_cpu_and_back():
    field = FIELDS["time"]().double()
    node = NeuralODE(field, engine="julia", rtol=1e-8, atol=1e-10)
    z0 = start(torch.float64)
    want = node(z0.cpu(), TIMES).detach()
    field.to(GPU)
    assert relative(node(z0, TIMES).detach().cpu(), want) < 1e-9
    with pytest.raises((InputError, RuntimeError)):
        node(z0.cpu(), TIMES)
    field.cpu()
    assert relative(node(z0.cpu(), TIMES).detach(), want) < 1e-12


def driven(t: Tensor, z: Tensor, args: dict) -> Tensor:
    return args["gain"] * torch.tanh(z) * torch.cos(t) - args["leak"] * z


def test_args_times_of_each_sample_and_dense_output():
    args = {"gain": torch.tensor(1.3, device=GPU), "leak": torch.tensor(0.2, device=GPU)}
    z0 = start(torch.float32, 3)
    options = {"rtol": 1e-5, "atol": 1e-6}
    agree(
        found(driven, z0, args=args, engine="julia", **options),
        found(driven, z0, args=args, **options),
        1e-3,
    )
    own = [torch.tensor([0.2, 0.5, 1.1]), torch.tensor([0.3]), torch.tensor([0.1, 1.4])]
    here, there = (
        NeuralODE(lambda t, z: torch.cos(t) * z, engine=e, **options) for e in ("torch", "julia")
    )
    torch.testing.assert_close(
        there(z0, own, t0=0.0), here(z0, own, t0=0.0), rtol=1e-3, atol=1e-4, equal_nan=True
    )
    with torch.no_grad():
        s = torch.tensor([0.05, 0.77, 1.5])
        a, b = (node.solve(z0, TIMES)(s) for node in (here, there))
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_refusals():
    field = FIELDS["mlp"]().to(GPU)
    z0 = start(torch.float32)
    for options in ({"solver": "rodas5p"}, {"step_control": "per_sample"}):
        with pytest.raises(InputError, match=r"on a GPU.*backend"):
            NeuralODE(field, engine="julia", **options)(z0, TIMES)
    args = {"gain": torch.tensor(1.3, device=GPU), "leak": torch.tensor(0.2)}
    with pytest.raises(InputError, match=r"lies on cuda:0.*on cpu"):
        NeuralODE(driven, engine="julia")(z0, TIMES, args)


def lotka(t: Tensor, z: Tensor, p: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    a, b, c, d = p.unbind(-1)
    return torch.stack([a * x - b * x * y, d * x * y - c * y], dim=-1)


@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_ensemble_in_one_kernel(solver, device):
    from pynode.engines.julia import runtime

    try:
        runtime.load("DiffEqGPU")
    except JuliaError as error:
        pytest.skip(str(error).split(". ")[0])
    scale = torch.linspace(0.8, 1.2, 1000, dtype=torch.float64, device=device)[:, None]
    z0s = torch.ones(1000, 2, dtype=torch.float64, device=device) * scale
    params = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64, device=device) * scale
    options = {"rtol": 1e-8, "atol": 1e-10}
    want = ensemble(lotka, z0s, TIMES, params, **options).zs
    got = ensemble(
        lotka, z0s, TIMES, params, engine="julia", backend="cuda", solver=solver, **options
    )
    assert got.success
    assert got.zs.device == z0s.device
    torch.testing.assert_close(got.zs, want, rtol=1e-5, atol=1e-6)
