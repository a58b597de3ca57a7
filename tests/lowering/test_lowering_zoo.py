"""Programs of every field of the zoo against torch: all derivatives, dtypes, batch sizes."""

from __future__ import annotations

import math

import pytest
import torch
from field_zoo import ZOO

from pynode.field import FlatField
from pynode.lowering import PROGRAMS, LoweredField, lower
from pynode.lowering.check import difference, reference
from pynode.lowering.instructions import LAM, OUT
from pynode.lowering.pipeline import with_own_args
from pynode.solution import Statistics
from pynode.state import StateLayout

# torch's own kernel for the derivative has 1/6 in float32 (Activation.cpp), whatever the dtype
ROUGH = {"mlp_hardsigmoid": 1e-7}


def flat(name: str, batch: int, dtype: torch.dtype) -> tuple[FlatField, torch.Tensor]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fn, z0, args = ZOO[name](batch)
    finally:
        torch.set_default_dtype(before)
    layout = StateLayout(z0)
    return FlatField(fn, layout, args, Statistics()), layout.flatten(z0).detach()


def compare(name: str, batch: int, dtype: torch.dtype, which: tuple[str, ...]) -> LoweredField:
    field, z = flat(name, batch, dtype)
    lowered = lower(field, z, 0.4, which, check=False)
    field, tensors = with_own_args(field, lowered.tensors)
    torch.manual_seed(1)
    z = z + 0.05 * torch.randn_like(z) * z.abs()
    lam = torch.randn_like(z)
    for program in which:
        wanted = reference(program, field, tensors, z, 0.7, lam)
        got = lowered.run(program, z.numpy(), 0.7, lam=lam.numpy())
        assert set(got) == set(PROGRAMS[program])
        for out, value in wanted.items():
            tol = 2e-4 if dtype == torch.float32 else ROUGH.get(name, 1e-10)
            assert difference(got[out], value.numpy()) < tol, (program, out)
    return lowered


NETWORKS = [name for name in ZOO if name.startswith("mlp")]
FIELDS = [name for name in ZOO if name not in NETWORKS]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_activation(name: str) -> None:
    compare(name, 3, torch.float64, ("f", "vjp", "jac"))


@pytest.mark.parametrize("name", FIELDS)
def test_every_program(name: str) -> None:
    compare(name, 3, torch.float64, tuple(PROGRAMS))


@pytest.mark.parametrize("name", ZOO)
def test_a_pullback_is_the_value_and_then_the_products(name: str) -> None:
    field, z = flat(name, 3, torch.float64)
    steps = lower(field, z, 0.4, ("pullback",), check=False).programs["pullback"].steps
    reading = [i for i, (_, x) in enumerate(steps) if any(r.slot == LAM for r in x.reads)]
    first = min(reading, default=len(steps))
    written = sum(math.prod(x.write.shape) for _, x in steps[:first] if x.write.slot == OUT)
    assert written >= z.numel()
    assert not any(x.write.slot == OUT for _, x in steps[first:])


@pytest.mark.parametrize(
    "name", ["mlp_gelu", "layer_norm", "attention", "lotka_unbatched", "second_order", "gru_cell"]
)
def test_one_sample_in_float32(name: str) -> None:
    compare(name, 1, torch.float32, ("f", "vjp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_float32(name: str) -> None:
    compare(name, 1, torch.float32, tuple(PROGRAMS))


@pytest.mark.parametrize("name", ["mlp_tanh", "attention", "lotka_volterra"])
@pytest.mark.parametrize("batch", [1, 17])
def test_other_batch_sizes(name: str, batch: int) -> None:
    compare(name, batch, torch.float64, ("f", "vjp_z", "vjp_p", "jac"))
