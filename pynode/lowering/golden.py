"""Files to test an interpreter by: ``python -m pynode.lowering.golden OUT``.

Each file is a lowered field with inputs and, computed by torch in the field's own dtype, what its
programs must return. ``operations`` is different: one program that uses every operation and kind,
with what the numpy interpreter returned.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.field import FlatField
from pynode.lowering.check import reference
from pynode.lowering.emit import emit
from pynode.lowering.fuse import alive
from pynode.lowering.graph import Graph
from pynode.lowering.instructions import BINARY, OUT, REDUCE, TERNARY, UNARY, Array, P, Z
from pynode.lowering.lowered import LoweredField, Parameter, as_array
from pynode.lowering.pipeline import lower
from pynode.lowering.trace import PROGRAMS
from pynode.lowering.views import Node, Value, View
from pynode.solution import Statistics
from pynode.state import State, StateLayout

Case = tuple[Callable[..., State], State]

WHICH = tuple(PROGRAMS)


class _WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, torch.sin(t).expand(len(z), 1)], dim=1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(z).chunk(3, dim=-1)
        return self.out(torch.softmax(q @ k.mT / 2, dim=-1) @ v)


class _Flow(nn.Module):
    """A continuous normalizing flow with the exact trace."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
        self.gate = nn.Linear(1, 2)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def velocity(x: Tensor) -> Tensor:
            return self.net(x) * torch.sigmoid(self.gate(t.view(1, 1)))

        z, _ = state
        units = torch.eye(2, dtype=z.dtype).unsqueeze(1).expand(-1, len(z), -1)
        columns = [torch.func.jvp(velocity, (z,), (unit,))[1] for unit in units]
        trace = sum(column[:, i] for i, column in enumerate(columns))
        assert isinstance(trace, Tensor)
        return velocity(z), -trace.unsqueeze(1)


class _LotkaVolterra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = self.rates
        x, y = z[..., 0], z[..., 1]
        return torch.stack([a * x - b * x * y, d * x * y - c * y + 0.1 * torch.sin(t)], -1)


class _Robertson(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.04, 3.0e7, 1.0e4]))

    def forward(self, z: Tensor) -> Tensor:
        y1, y2, y3 = z.unbind(-1)
        one, two, three = self.k[0] * y1, self.k[1] * y2**2, self.k[2] * y2 * y3
        return torch.stack([-one + three, one - two - three, two], -1)


def _mlp(*hidden: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in zip((2, *hidden), (*hidden, 2), strict=True):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


CASES: dict[str, tuple[torch.dtype, Callable[[], Case]]] = {
    "mlp": (torch.float64, lambda: (_mlp(50), torch.randn(1, 2))),
    "mlp_batch": (torch.float64, lambda: (_mlp(8, 5), torch.randn(4, 2))),
    "mlp_float32": (torch.float32, lambda: (_mlp(16), torch.randn(3, 2))),
    "time_concatenated": (torch.float64, lambda: (_WithTime(), torch.randn(3, 2))),
    "layer_norm": (
        torch.float64,
        lambda: (
            nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
            torch.randn(2, 3),
        ),
    ),
    "attention": (torch.float64, lambda: (_Attention(), torch.randn(2, 3, 4))),
    "cnf": (torch.float64, lambda: (_Flow(), (torch.randn(3, 2), torch.zeros(3, 1)))),
    "lotka": (torch.float64, lambda: (_LotkaVolterra(), torch.rand(2) + 0.5)),
    "robertson": (torch.float64, lambda: (_Robertson(), torch.tensor([[1.0, 3e-5, 0.1]]))),
}
"""Fields by name: dtype, and what makes the field and a state."""


def golden(name: str) -> dict[str, Any]:
    """The contents of one file."""
    if name == "operations":
        return _operations()
    dtype, make = CASES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(sum(map(ord, name)))
    try:
        fn, state = make()
        layout = StateLayout(state)
        z = layout.flatten(state)
        field = FlatField(fn, layout, None, Statistics())
        lowered = lower(field, z, 0.0, WHICH)
        points = [(z * 1.1, 0.25, torch.randn_like(z)), (z * 0.8, -1.5, torch.randn_like(z))]
        cases = [_case(lowered, field, *point) for point in points]
    finally:
        torch.set_default_dtype(before)
    return {**lowered.to_json(), "cases": cases}


def _case(
    lowered: LoweredField, field: FlatField, z: Tensor, t: float, lam: Tensor
) -> dict[str, Any]:
    expected = {
        name: {
            out: _numbers(as_array(value))
            for out, value in reference(name, field, lowered.tensors, z, t, lam).items()
        }
        for name in lowered.programs
    }
    inputs = {"z": z, "p": lowered.flat_parameters(), "lam": lam}
    return {**{k: _numbers(as_array(v)) for k, v in inputs.items()}, "t": t, "expected": expected}


def _numbers(array: Array) -> list[float | str]:
    return [x if math.isfinite(x) else str(x) for x in array.tolist()]


# Every operation --------------------------------------------------------------------------------


def _operations() -> dict[str, Any]:
    graph = Graph("float64")
    size = 400
    z, p = Value((size,), slot=Z).view(), Value((6,), slot=P).view()
    pieces = [graph.reshape(x, (x.size,)) for x in _every_operation(graph, z, p)]
    used = sum(x.size for x in pieces)
    assert used <= size
    pieces.append(z.slice(0, 0, size - used) if used < size else z.slice(0, 0, 0))
    starts = np.cumsum([0, *(x.size for x in pieces)]).tolist()
    value = Value((size,), slot=OUT)
    value.node = Node(
        "assemble", None, tuple(pieces), value, where=tuple((at, (1,)) for at in starts[:-1])
    )
    inputs = {"z": size, "t": 1, "p": 6, "lam": 0}
    kept = alive(graph.nodes, [value.node])
    program = emit(kept, "float64", inputs, [("dz", size)])
    field = LoweredField(
        "float64", 1, size, (Parameter("p", (2, 3), 0),), {"f": program}, autonomous=True
    )
    rng = np.random.default_rng(0)
    cases = []
    for scale in (0.9, 30.0):
        values, parameters = rng.uniform(-scale, scale, size), rng.uniform(0.5, 1.5, 6)
        out = field.run("f", values, 0.0, parameters)
        cases.append(
            {
                "z": _numbers(values), "t": 0.0, "p": _numbers(parameters), "lam": [],
                "expected": {"f": {k: _numbers(v) for k, v in out.items()}},
            }
        )  # fmt: skip
    return {**field.to_json(), "cases": cases}


def _every_operation(graph: Graph, z: View, p: View) -> list[View]:
    """Each operation and kind, flat and strided."""
    a, b, c = (_as(z, (2,), (1,), k) for k in (0, 2, 4))
    nd = [
        _as(z, (2, 2), (9, 2), 7),
        _as(z, (2, 2), (0, -3), 30),
        _as(p, (2, 2), (1, 0), 2),
    ]
    made = [graph.pointwise(kind, a) for kind in list(UNARY)[1:]]
    made += [graph.pointwise(kind, a, b) for kind in BINARY]
    made += [graph.pointwise(kind, a, b, c) for kind in TERNARY]
    made += [graph.pointwise(kind, a, _as(p, (2,), (0,), 1)) for kind in ("pow", "div", "sub")]
    made += [graph.pointwise("neg", nd[0]), graph.pointwise("mul", *nd[:2])]
    made += [graph.pointwise("fma", *nd), graph.dense(_as(z, (2, 3, 2), (1, 4, 30), 3))]
    block = _as(z, (2, 3, 2), (30, 4, 1), 40)
    made += [graph.reduce(kind, block, [1], False) for kind in REDUCE]
    made += [graph.scan(_as(z, (2, 3, 2), (6, 2, 1), 12), 1)]
    made += [graph.gather(_as(z, (9,), (1,), 20), np.array([8, 0, 0, 3]))]
    base, index = _as(z, (4,), (1,), 60), np.array([1, 3, 1])
    made += [graph.scatter_add(base, _as(z, (3,), (1,), 70), index)]
    left, right = _as(z, (2, 3), (3, 1), 0), _as(p, (3, 2), (1, 3), 0)
    made += [graph.mm(left, right), graph.mm(left, right, _as(z, (2, 2), (0, 1), 9))]
    made += [graph.mm(_as(z, (2, 3), (1, 2), 5), _as(z, (3, 2), (5, 1), 11), made[-1])]
    made += [graph.bmm(_as(z, (2, 2, 3), (7, 3, 1), 0), _as(p, (2, 3, 2), (0, 1, 3), 0))]
    return made


def _as(view: View, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> View:
    return View(view.value, shape, strides, offset)


def main(folder: str) -> None:
    """Write all files to a folder, which is made if need be."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*CASES, "operations"):
        path = out / f"{name}.json"
        path.write_text(json.dumps(golden(name), separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pynode.lowering.golden OUT")
    main(sys.argv[1])
