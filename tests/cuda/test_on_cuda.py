"""What runs on the CPU runs on a GPU, with the same results."""

import pytest
import torch
from torch import Tensor, nn

from pynode import Event, NeuralODE, ensemble, sensitivities, solve, solvers
from pynode.data import spirals
from pynode.models import CNF, MODELS, build
from pynode.train import TrainConfig, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

T = torch.linspace(0.0, 1.5, 7, dtype=torch.float64)


class Turning(nn.Module):
    """A turning, damped field with a network, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
        self.register_buffer("turn", turn)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.turn.T + 0.2 * torch.cos(t) * self.net(z)


class Spring(nn.Module):
    """q' = p, p' = -q - q^3."""

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = z
        return p, -q - q**3


def state(device: str) -> Tensor:
    z = torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(5, 2)
    return z.to(device).requires_grad_()


def on_both(field_class, run):
    """Results of ``run(field, z0)`` and their gradients, on the CPU and on the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        field, z0 = field_class().to(device), state(device)
        zs = run(field, z0)
        weights = torch.linspace(1, 2, zs.numel(), dtype=zs.dtype).reshape(zs.shape).to(device)
        loss = (torch.nan_to_num(zs) * weights).sum()
        grads = torch.autograd.grad(loss, [z0, *field.parameters()], allow_unused=True)
        assert zs.device.type == device
        found.append([x.detach().cpu() for x in (zs, *(g for g in grads if g is not None))])
    return found


def assert_same(found, rtol=1e-7, atol=1e-8):
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("info", solvers(), ids=lambda info: info.name)
def test_every_solver(info):
    steps = {"dt": 0.05}
    if info.adaptive:
        rtol = 1e-4 if info.order < 4 else 1e-6
        steps = {"rtol": rtol, "atol": 1e-2 * rtol}
    node = {"solver": info.name, **steps}

    def run(field, z0):
        if info.separable:
            return torch.cat(NeuralODE(field, **node)(z0.chunk(2, -1), T), -1)
        return NeuralODE(field, **node)(z0, T)

    assert_same(on_both(Spring if info.separable else Turning, run), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("info", sensitivities(), ids=lambda info: info.name)
def test_every_sensitivity(info):
    found = on_both(
        Turning, lambda field, z0: NeuralODE(field, sensitivity=info.name, rtol=1e-8)(z0, T)
    )
    assert_same(found)


@pytest.mark.parametrize("solver", ["tsit5", "vern7", "rodas5p"])
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_steps_per_sample(solver, sensitivity):
    own = [torch.linspace(0.1 * b, 1.0 + b, 3 + b, dtype=torch.float64) for b in range(5)]

    def run(field, z0):
        node = NeuralODE(
            field, solver=solver, sensitivity=sensitivity, step_control="per_sample", rtol=1e-7
        )
        return node(z0, own)

    assert_same(on_both(Turning, run), rtol=1e-6, atol=1e-7)


def test_an_ensemble():
    k = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        sol = ensemble(lambda t, z, k: -k.unsqueeze(-1) * z, state(device), T, k.to(device))
        found.append([sol.zs.detach().cpu()])
    assert_same(found)


@pytest.mark.parametrize("step_control", ["joint", "per_sample"])
def test_events(step_control):
    def run(field, z0):
        def crosses(t, z):
            return z[..., 0] if step_control == "per_sample" else z[0, 0]

        def jump(t, z):
            return 0.5 * z

        events = [Event(crosses, jump=jump)]
        return solve(field, z0, T, events=events, step_control=step_control, dense=False).zs

    assert_same(on_both(Turning, run), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compile", [False, True])
def test_mixed_precision(dtype, compile):
    """The field in half precision under autocast, all else in float32; a training step goes on."""
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)).cuda()
    z0, target = torch.randn(256, 2, device="cuda"), torch.randn(2, device="cuda")
    node = NeuralODE(field, rtol=1e-2, atol=1e-2, sensitivity="discrete", compile=compile)
    exact = NeuralODE(field, rtol=1e-6, atol=1e-6)(z0, [0.0, 1.0])[-1].detach()
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            z1 = node(z0, [0.0, 1.0])[-1]
        if not losses:
            torch.testing.assert_close(z1.detach(), exact, rtol=3e-2, atol=3e-2)
        assert z1.dtype == torch.float32
        loss = (z1 - target).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_torch_func_and_vmap():
    z0 = state("cuda").detach()
    field = Turning().cuda()
    jac = torch.func.jacrev(lambda z: solve(field, z, T, sensitivity="discrete").zs[-1])(z0)
    assert jac.shape == (5, 2, 5, 2) and jac.isfinite().all()


@pytest.mark.parametrize("name", list(MODELS))
def test_models_train(name):
    series = spirals(24, seed=0).observed.to("cuda")
    model = build(name, series.coordinates).cuda()
    if MODELS[name].trainable:
        fit(model, series[:16], series[16:], TrainConfig(epochs=1, batch_size=8), progress=False)
    mean = model.predict(series, torch.linspace(0, 5, 9, device="cuda")).mean
    assert mean.device.type == "cuda" and mean.isfinite().all()


def test_a_normalizing_flow():
    torch.manual_seed(0)
    flow = CNF(2).cuda()
    x = torch.randn(64, 2, device="cuda")
    loss = -flow.log_prob(x).mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    assert flow.sample((16,)).shape == (16, 2)
