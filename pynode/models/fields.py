"""Vector fields and the small networks that they are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pynode.errors import InputError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
}


def mlp(
    inputs: int, hidden: int, outputs: int, *, layers: int = 1, activation: str = "tanh"
) -> nn.Sequential:
    """A network with ``layers`` hidden layers of ``hidden`` units.

    Raises:
        InputError: a size is not positive, or the activation is unknown.
    """
    if min(inputs, hidden, outputs, layers) < 1:
        raise InputError(
            f"a network of {inputs} inputs, {layers} hidden layers of {hidden} and {outputs} "
            "outputs: all sizes must be at least 1"
        )
    if activation not in ACTIVATIONS:
        raise InputError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(inputs if i == 0 else hidden, hidden), ACTIVATIONS[activation]()]
    return nn.Sequential(*modules, nn.Linear(hidden, outputs))


class MLPField(nn.Module):
    """dz/dt = net(z), the same at all times.

    Args:
        width: D, of the state (B, D).
        hidden, layers, activation: of the network, see :func:`mlp`.
    """

    def __init__(
        self, width: int, hidden: int, *, layers: int = 1, activation: str = "tanh"
    ) -> None:
        super().__init__()
        self.net = mlp(width, hidden, width, layers=layers, activation=activation)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)
