"""What programs look like: few instructions, little memory, no copies; their text and packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO

from pynode.field import FlatField
from pynode.lowering import PROGRAMS, LoweredField, Program, lower
from pynode.lowering.instructions import BINARY, OPERATIONS, REDUCE, SCAN, TERNARY, UNARY
from pynode.solution import Statistics
from pynode.state import StateLayout


def run(fn, z0, which=("f",), args=None) -> LoweredField:
    layout = StateLayout(z0)
    field = FlatField(fn, layout, args, Statistics())
    return lower(field, layout.flatten(z0).detach(), 0.0, which, check=False)


def ops(program: Program) -> list[str]:
    return [f"{i.op}.{i.kind}" if i.kind else i.op for i in program.code]


def spiral_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))


def test_the_spiral_network_for_one_sample() -> None:
    lowered = run(spiral_net(), torch.randn(1, 2), tuple(PROGRAMS))
    programs = lowered.programs
    assert ops(programs["f"]) == ["mm", "unary.tanh", "mm"]
    assert ops(programs["vjp_z"]) == ["mm", "unary.tanh", "mm", "binary.tanh_grad", "mm"]
    # two outer products, and both bias gradients: one made in place, one copied from λ
    assert sorted(ops(programs["vjp_p"])) == sorted(
        ["mm", "unary.tanh", "mm", "mm", "binary.tanh_grad", "mm", "unary.identity"]
    )
    assert len(programs["vjp"].code) == 9
    assert programs["f"].work == 50
    assert lowered.autonomous
    assert ops(programs["tgrad"]) == ["unary_nd.identity"]


@pytest.mark.parametrize("batch", [2, 256])
def test_the_spiral_network_for_a_batch(batch: int) -> None:
    programs = run(spiral_net(), torch.randn(batch, 2), ("f", "vjp_z", "vjp_p")).programs
    assert ops(programs["f"]) == ["mm", "unary.tanh", "mm"]
    assert ops(programs["vjp_z"]) == ["mm", "unary.tanh", "mm", "binary.tanh_grad", "mm"]
    assert ops(programs["vjp_p"]).count("reduce.sum") == 2
    assert len(programs["vjp_p"].code) == 8
    assert programs["vjp_p"].work <= 2 * (50 * batch + 8)


def test_a_deep_network_reuses_memory() -> None:
    layers = [m for _ in range(6) for m in (nn.Linear(32, 32), nn.Tanh())]
    program = run(nn.Sequential(*layers), torch.randn(4, 32)).programs["f"]
    assert len(program.code) == 12
    assert program.work <= 2 * 4 * 32


def test_lotka_volterra_needs_no_copies() -> None:
    fn, z, _ = ZOO["lotka_volterra"](3)
    for program in run(fn, z, ("f", "vjp_z", "vjp_p")).programs.values():
        assert not any("identity" in op for op in ops(program))


def test_views_cost_nothing() -> None:
    def field(z: Tensor) -> Tensor:
        x = z.t().reshape(2, 3, 1).squeeze(-1).t().contiguous()
        return torch.sin(x.unsqueeze(0).flatten(0, 1).detach().clone())

    assert ops(run(field, torch.randn(3, 2)).programs["f"]) == ["unary.sin"]
    flipped = run(lambda z: torch.sin(z.flip(0)[:, :1].expand(-1, 2)), torch.randn(3, 2))
    assert ops(flipped.programs["f"]) == ["unary_nd.sin", "unary_nd.identity"]


def test_equal_parts_are_computed_once() -> None:
    def field(z: Tensor) -> Tensor:
        return torch.sin(z) * torch.cos(z) + torch.sin(z) * torch.cos(z)

    assert ops(run(field, torch.randn(3, 2)).programs["f"]) == [
        "unary.sin", "unary.cos", "binary.mul", "binary.add",
    ]  # fmt: skip


def test_what_depends_on_no_input_is_computed_before() -> None:
    def field(z: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, 2).sin() + torch.arange(2).float().softmax(0)
        return z * grid

    program = run(field, torch.randn(3, 2)).programs["f"]
    assert ops(program) == ["binary_nd.mul"]
    assert program.sizes[0] == 2


def test_time_embedding_is_computed_once_for_the_batch() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return z * torch.sin(t.expand(256, 1) * 3)

    program = run(field, torch.randn(256, 2)).programs["f"]
    assert program.work == 1


def test_text_and_packed_form() -> None:
    program = run(spiral_net(), torch.randn(3, 2)).programs["f"]
    text = str(program)
    assert "z[6], t[1], p[252] -> dz[6]" in text
    assert "mm(z+0[3×2], p+0[2×50 by 1,2], p+100[3×50 by 0,1])" in text
    packed = program.pack()
    assert packed.dtype == np.int64
    at = 0
    for ins in program.code:
        operation = OPERATIONS[ins.op]
        number, kind, *integers = packed[at : at + 2 + operation.length].tolist()
        assert number == operation.number
        assert ins.kind is None or list(operation.kinds)[kind] == ins.kind
        assert tuple(integers) == ins.integers
        at += 2 + operation.length
    assert at == len(packed)


def test_the_table_and_its_description_agree() -> None:
    import re
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "program-format.md").read_text(encoding="utf-8")
    for operation in OPERATIONS.values():
        fields = ", ".join(f for f in operation.fields)
        kind = "kind, " if operation.kinds else ""
        assert f"| {operation.number} | `{operation.name}` | {kind}{fields} |" in text
    cells = [cell.strip() for line in text.splitlines() for cell in line.split("|")]
    numbered = set(itertools.pairwise(cells))
    for table in (UNARY, BINARY, TERNARY):
        for number, kind in enumerate(table):
            assert (str(number), kind) in numbered
    for table in (REDUCE, SCAN):
        for number, kind in enumerate(table):
            assert re.search(rf"\b{number} {kind}\b", text)
