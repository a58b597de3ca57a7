"""Fields on which the two engines are compared."""

import itertools

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode import NeuralODE

TIMES = [0.0, 0.4, 0.9, 1.5]


def mlp(width: int, *more: int) -> nn.Sequential:
    sizes = [width, *more, width]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = torch.sin(2 * t).expand(*z.shape[:-1], 1)
        return self.net(torch.cat([z, time], dim=-1)) - 0.3 * z


class Augmented(nn.Module):
    """Two extra dimensions that start at zero are the caller's; here a second-order system."""

    def __init__(self) -> None:
        super().__init__()
        self.force = mlp(3, 12)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        return v, self.force(x) - 0.1 * v


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


class Flow(nn.Module):
    """A continuous normalizing flow: the state, and minus the trace of its Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 10)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, _ = state
        trace = z.new_zeros(len(z))
        for i in range(3):
            pick = torch.zeros_like(z)
            pick[:, i] = 1.0
            trace = trace + torch.func.jvp(self.net, (z,), (pick,))[1][:, i]
        return self.net(z), -trace


class Robertson(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_k = nn.Parameter(torch.tensor([0.04, 3e7, 1e4]).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        k1, k2, k3 = self.log_k.exp().unbind()
        y1, y2, y3 = y.unbind(-1)
        a, b, c = k1 * y1, k2 * y2 * y2, k3 * y2 * y3
        return torch.stack([c - a, a - b - c, b], dim=-1)


def plain(batch: int, width: int = 3) -> Tensor:
    return torch.linspace(-1.0, 1.0, batch * width).reshape(batch, width)


CASES = {
    "mlp": (lambda: mlp(3, 16), lambda: plain(4)),
    "time": (WithTime, lambda: plain(4)),
    "second_order": (Augmented, lambda: (plain(4), 0.5 * plain(4))),
    "layer_norm": (Normed, lambda: plain(4)),
    "cnf": (Flow, lambda: (plain(4), torch.zeros(4))),
}


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def gradients(node: NeuralODE, z0, times, args=None):
    """zs and the gradients for z0, times, args and parameters of a loss of all outputs."""
    leaves, spec = pytree.tree_flatten(z0)
    leaves = [x.clone().requires_grad_() for x in leaves]
    times = torch.tensor(times, dtype=leaves[0].dtype, requires_grad=True)
    args = None if args is None else pytree.tree_map(lambda x: x.clone().requires_grad_(), args)
    zs = node(pytree.tree_unflatten(leaves, spec), times, args)
    flat = torch.cat([x.reshape(-1) for x in pytree.tree_leaves(zs)])
    weights = torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype)
    loss = (weights * flat).sin().sum() + (flat**2).sum()
    tensors = [] if args is None else pytree.tree_leaves(args)
    inputs = [*leaves, times, *tensors, *node.parameters()]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return flat.detach(), [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)
    ]


def nodes(field, **options) -> tuple[NeuralODE, NeuralODE]:
    return tuple(NeuralODE(field, engine=engine, **options) for engine in ("torch", "julia"))
