"""Fields of many kinds, each with a state to begin from: (field, z0, args)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ZOO: dict[str, Callable[[int], tuple]] = {}


def entry(make: Callable[[int], tuple]) -> Callable[[int], tuple]:
    ZOO[make.__name__] = make
    return make


ACTIVATIONS = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "elu": nn.ELU, "elu2": lambda: nn.ELU(0.5),
    "celu": nn.CELU, "selu": nn.SELU, "leaky_relu": nn.LeakyReLU, "softplus": nn.Softplus,
    "softplus2": lambda: nn.Softplus(2.0, 5.0), "mish": nn.Mish, "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink, "softshrink": nn.Softshrink,
    "prelu": nn.PReLU, "relu6": nn.ReLU6,
    "glu": lambda: nn.Sequential(nn.Linear(16, 32), nn.GLU()),
    "softmax": lambda: nn.Softmax(-1), "threshold": lambda: nn.Threshold(0.1, 0.2),
    "elu_inplace": lambda: nn.ELU(inplace=True), "relu_inplace": lambda: nn.ReLU(inplace=True),
}  # fmt: skip

for _name, _activation in ACTIVATIONS.items():

    def _mlp(batch: int, activation=_activation) -> tuple:
        net = nn.Sequential(nn.Linear(3, 16), activation(), nn.Linear(16, 3))
        return net, torch.randn(batch, 3), None

    ZOO[f"mlp_{_name}"] = _mlp


class WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(len(z), 1)], dim=1))


@entry
def time_concatenated(batch: int) -> tuple:
    return WithTime(), torch.randn(batch, 2), None


class ConcatSquash(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.layer, self.bias = nn.Linear(n, m), nn.Linear(1, m, bias=False)
        self.gate = nn.Linear(1, m)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.view(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.bias(t)


class Squash(nn.Module):
    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.first, self.second = ConcatSquash(n, 16), ConcatSquash(16, n)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.second(t, torch.tanh(self.first(t, z)))


@entry
def concatsquash(batch: int) -> tuple:
    return Squash(), torch.randn(batch, 2), None


@entry
def augmented(batch: int) -> tuple:
    z = torch.cat([torch.randn(batch, 2), torch.zeros(batch, 3)], 1)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 5)), z, None


class SecondOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.force = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        v = state[1]
        return v, self.force(torch.cat(state, -1)) - 0.1 * v


@entry
def second_order(batch: int) -> tuple:
    return SecondOrder(), (torch.randn(batch, 2), torch.randn(batch, 2)), None


class ExactTrace(nn.Module):
    """A continuous normalizing flow; the trace of the Jacobian by forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Squash()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, _ = state
        trace, dz = 0, None
        for i in range(z.shape[1]):
            unit = torch.zeros_like(z)
            unit[:, i] = 1
            dz, column = torch.func.jvp(lambda x: self.net(t, x), (z,), (unit,))
            trace = trace + column[:, i]
        return dz, -trace.unsqueeze(1)


@entry
def cnf_exact(batch: int) -> tuple:
    return ExactTrace(), (torch.randn(batch, 2), torch.zeros(batch, 1)), None


class Hutchinson(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Squash()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor], noise: Tensor) -> tuple:
        z, _ = state
        dz, pull = torch.func.vjp(lambda x: self.net(t, x), z)
        return dz, -(pull(noise)[0] * noise).sum(1, keepdim=True)


@entry
def cnf_hutchinson(batch: int) -> tuple:
    state = (torch.randn(batch, 2), torch.zeros(batch, 1))
    return Hutchinson(), state, torch.randn(batch, 2)


class Hamiltonian(nn.Module):
    """The field is a gradient taken by autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
        q, p = slope.chunk(2, dim=-1)
        return torch.cat([p, -q], dim=-1)


@entry
def hamiltonian(batch: int) -> tuple:
    return Hamiltonian(), torch.randn(batch, 4), None


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(z)) * torch.tanh(self.value(z)) - z


@entry
def gated(batch: int) -> tuple:
    return Gated(), torch.randn(batch, 4), None


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = z + F.relu(layer(z))
        return z


@entry
def residual(batch: int) -> tuple:
    return Residual(), torch.randn(batch, 4), None


@entry
def layer_norm(batch: int) -> tuple:
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    return net, torch.randn(batch, 3), None


@entry
def group_norm(batch: int) -> tuple:
    net = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    return net, torch.randn(batch, 3), None


@entry
def batch_norm_eval(batch: int) -> tuple:
    norm = nn.BatchNorm1d(8)
    norm.running_mean.normal_()
    net = nn.Sequential(nn.Linear(3, 8), norm, nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    return net, torch.randn(batch, 3), None


@entry
def rms_norm(batch: int) -> tuple:
    net = nn.Sequential(nn.Linear(3, 8), nn.RMSNorm(8), nn.Linear(8, 3))
    return net, torch.randn(batch, 3), None


class Attention(nn.Module):
    """Softmax attention over a small set of points, written out."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(z).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.out(weights @ v)


@entry
def attention(batch: int) -> tuple:
    return Attention(), torch.randn(batch, 3, 4), None


class MultiHead(nn.Module):
    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        blocked = torch.full((3, 3), -math.inf).triu(1) if mask else None
        self.register_buffer("mask", blocked)

    def forward(self, z: Tensor) -> Tensor:
        return self.attend(z, z, z, attn_mask=self.mask, need_weights=False)[0]


@entry
def multi_head(batch: int) -> tuple:
    return MultiHead(), torch.randn(batch, 3, 4), None


@entry
def multi_head_masked(batch: int) -> tuple:
    return MultiHead(mask=True).eval(), torch.randn(batch, 3, 4), None


@entry
def transformer_layer(batch: int) -> tuple:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return (lambda z: layer(z)), torch.randn(batch, 3, 4), None


class RecurrentCell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.cell(torch.sin(t).expand(len(h), 1), h) - h


@entry
def gru_cell(batch: int) -> tuple:
    return RecurrentCell(nn.GRUCell(1, 4)), torch.randn(batch, 4), None


@entry
def rnn_cell(batch: int) -> tuple:
    return RecurrentCell(nn.RNNCell(1, 4)), torch.randn(batch, 4), None


@entry
def lstm_cell(batch: int) -> tuple:
    cell = nn.LSTMCell(2, 4)

    def field(state: dict[str, Tensor]) -> dict[str, Tensor]:
        h, c = cell(state["h"][:, :2], (state["h"], state["c"]))
        return {"h": h - state["h"], "c": c - state["c"]}

    return field, {"h": torch.randn(batch, 4), "c": torch.randn(batch, 4)}, None


class LotkaVolterra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z[..., 0], z[..., 1]
        a, b, c, d = self.rates
        return torch.stack([a * x - b * x * y, d * x * y - c * y + 0.1 * torch.sin(t)], dim=-1)


@entry
def lotka_volterra(batch: int) -> tuple:
    return LotkaVolterra(), torch.rand(batch, 2) + 0.5, None


@entry
def lotka_unbatched(batch: int) -> tuple:
    return LotkaVolterra(), torch.rand(2) + 0.5, None


@entry
def robertson(batch: int) -> tuple:
    k = torch.tensor([0.04, 3.0e7, 1.0e4], requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        y1, y2, y3 = z.unbind(-1)
        one, two, three = k[0] * y1, k[1] * y2**2, k[2] * y2 * y3
        return torch.stack([-one + three, one - two - three, two], -1)

    return field, torch.tensor([1.0, 3e-5, 0.1]).repeat(batch, 1), None


@entry
def written_in_place(batch: int) -> tuple:
    def field(t: Tensor, z: Tensor, args: dict[str, Tensor]) -> Tensor:
        out = torch.empty_like(z)
        out[:, 0] = z[:, 1] * t
        out[:, 1] = -args["k"] * z[:, 0]
        out[:, 2:] = z[:, 2:] ** 3
        out.mul_(0.5).add_(z, alpha=-0.1)
        return out

    return field, torch.randn(batch, 4), {"k": torch.tensor(2.0, requires_grad=True)}


@entry
def pendulum_polynomials(batch: int) -> tuple:
    w = torch.randn(4, 2, requires_grad=True)

    def field(z: Tensor) -> Tensor:
        q, p = z[:, :1], z[:, 1:]
        terms = torch.cat([q, p.pow(2), torch.sin(q), q * p.abs().sqrt()], 1)
        return terms @ w - z.clamp(-1, 1) + torch.where(z > 0, z.exp().log1p(), z / 3)

    return field, torch.randn(batch, 2), None


@entry
def frozen_layers(batch: int) -> tuple:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    return net, torch.randn(batch, 3), None


@entry
def graph_diffusion(batch: int) -> tuple:
    """A diffusion on a ring with learned weights, by indices."""
    weight = torch.rand(5, requires_grad=True)
    source, target = torch.arange(5), (torch.arange(5) + 1) % 5

    def field(z: Tensor) -> Tensor:
        flow = weight * (z[:, source] - z[:, target])
        return torch.zeros_like(z).index_add(1, target, flow).index_add(1, source, -flow)

    return field, torch.randn(batch, 5), None


@entry
def shapes_at_play(batch: int) -> tuple:
    w = torch.randn(3, 2, 4, requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        x = z.reshape(-1, 2, 4)
        y = torch.einsum("bij,kij->bk", x, w)
        y = F.pad(y, (1, 1)).roll(1, -1).flip(-1).repeat(1, 2)
        y = y[:, ::2].cumsum(-1)
        s = torch.stack([x.amax(1), x.mean(1), x.std(1), x.logsumexp(1)], 1).mean(1)
        return z * torch.cos(t) + torch.cat([s, y[:, :1].expand(-1, 4)], 1)

    return field, torch.randn(batch, 8), None


@entry
def reaction_diffusion(batch: int) -> tuple:
    """Second differences in space by rolling, as a method of lines does it."""
    d = torch.tensor([0.1, 0.05], requires_grad=True)

    def field(z: Tensor) -> Tensor:
        lap = z.roll(1, 2) + z.roll(-1, 2) - 2 * z
        u, v = z[:, 0], z[:, 1]
        react = torch.stack([u - u**3 - v, 0.1 * (u - v)], 1)
        return d.view(1, 2, 1) * lap + react

    return field, torch.randn(batch, 2, 6), None
