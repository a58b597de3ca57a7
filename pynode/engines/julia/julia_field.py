"""Fields written in Julia source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError


class JuliaField(nn.Module):
    """A field written in Julia, for physics known in closed form.

    Its derivatives are taken in Julia by forward-mode automatic differentiation, so the function
    must accept any number type. It runs with ``engine="julia"`` only.

    Args:
        source: Julia code that ends in a function ``f!(du, u, p, t)``, which writes du/dt into
            ``du``; u and du are flat, in the order of the state's entries, p the parameters. Of a
            state with a batch dimension it is the field of one sample. It is run as code, so
            never take it from a file that is not yours.
        n_params: number of parameters.
        values: to start from, (n_params,); default: standard normal.

    Raises:
        InputError: ``n_params`` and ``values`` do not fit.

    Example:
        >>> lorenz = JuliaField('''function f!(du, u, p, t)
        ...     du[1] = p[1] * (u[2] - u[1])
        ...     du[2] = u[1] * (p[2] - u[3]) - u[2]
        ...     du[3] = u[1] * u[2] - p[3] * u[3]
        ... end''', 3, values=[10.0, 28.0, 8 / 3])
    """

    def __init__(self, source: str, n_params: int, values: Any = None) -> None:
        super().__init__()
        if n_params < 0:
            raise InputError(f"n_params={n_params}: 0 or more")
        start = torch.randn(n_params) if values is None else torch.as_tensor(values)
        if start.shape != (n_params,):
            raise InputError(f"values have shape {tuple(start.shape)}, not ({n_params},)")
        self.source = source
        self.p = nn.Parameter(start.to(torch.get_default_dtype()).clone())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        raise InputError("this field is written in Julia: solve with engine='julia'")
