"""Fields of every kind in machine code against the reference interpreter, as one library."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pynode.engines.torch.compiled.build import load
from pynode.engines.torch.compiled.call import PADDING, Call, gemm
from pynode.engines.torch.compiled.translate import Translator
from pynode.field import FlatField
from pynode.lowering import lower
from pynode.solution import Statistics
from pynode.state import StateLayout

sys.path.insert(0, str(Path(__file__).parents[2] / "lowering"))
from field_zoo import ZOO

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}


def lowered_zoo(names, batch: int, dtype: torch.dtype) -> dict:
    found = {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    for name in names:
        field, z0, args = ZOO[name](batch)
        layout = StateLayout(z0)
        flat = FlatField(field, layout, args, Statistics())
        z = layout.flatten(z0).detach()
        found[name] = lower(flat, z, 0.3, ("f", "vjp"), check=False), z
    torch.set_default_dtype(before)
    return found


def one_library(fields: dict) -> str:
    lines = ['#include "forward.h"']
    for i, (lowered, _) in enumerate(fields.values()):
        translator = Translator(lowered.dtype)
        functions = [*translator.function("f", lowered.programs["f"]),
                     *translator.function("vjp", lowered.programs["vjp"])]  # fmt: skip
        lines += [
            f"namespace pynode {{ namespace zoo_{i} {{ using T = {translator.type};",
            "struct Programs {",
            f"static constexpr long N = {lowered.rows * lowered.width}, P = {lowered.size};",
            f"static constexpr long work = {translator.work}, packed = {translator.packed.size};",
            "static void pack_parameters(const T* p, T* to) {", *translator.packed.lines, "}",
            *functions,
            "};",
            "void run(Call& c) {",
            "  Workspace<T, Programs> m(c);",
            "  const T *z = (const T*)c.z0, *lam = (const T*)c.cotangents;",
            "  T t = T(c.t0), *out = (T*)c.outputs;",
            "  if (!lam) Programs::f(m, z, t, nullptr, out, nullptr, nullptr);",
            "  else Programs::vjp(m, z, t, lam, out, (T*)c.gradient, (T*)c.state_gradient);",
            "}}}",
        ]  # fmt: skip
    lines += ['extern "C" __attribute__((visibility("default"))) int pynode_run(pynode::Call* c) {']
    lines += [f"if (c->steps == {i}) pynode::zoo_{i}::run(*c);" for i in range(len(fields))]
    return "\n".join([*lines, "return 0; }"])


def check(fields: dict, dtype: torch.dtype) -> None:
    function = load(one_library(fields))
    wrong = []
    for i, (name, (lowered, z)) in enumerate(fields.items()):
        n = len(z)
        generator = torch.Generator().manual_seed(1)
        lam = torch.randn(n, generator=generator, dtype=dtype)
        room = lambda x: torch.cat([x, torch.full((PADDING,), float("nan"), dtype=dtype)])  # noqa: E731
        memory = [room(z), room(lowered.flat_parameters()), room(lam)]
        outs = [room(torch.zeros(k, dtype=dtype)) for k in (n, lowered.size, 1)]
        call = Call(steps=i, t0=0.3, gemm=gemm(dtype == torch.float32))
        call.z0, call.params = memory[0].data_ptr(), memory[1].data_ptr()
        call.outputs, call.gradient, call.state_gradient = (x.data_ptr() for x in outs)
        for program in ("f", "vjp"):
            call.cotangents = None if program == "f" else memory[2].data_ptr()
            function(ctypes.byref(call))
            cotangent = () if program == "f" else lam.numpy()
            wanted = lowered.run(program, z.numpy(), 0.3, None, cotangent)
            for (_, values), got in zip(wanted.items(), outs, strict=False):
                scale = max(1.0, float(np.abs(values).max(initial=0)))
                error = np.abs(got[: len(values)].numpy() - values).max(initial=0) / scale
                if not error <= TOLERANCE[dtype]:
                    wrong.append((name, program, float(error)))
                assert got[len(values) :].isnan().all(), f"{name} wrote beyond its end"
    assert not wrong


def test_some_fields():
    names = ["time_concatenated", "graph_diffusion", "attention", "products_of_entries"]
    fields = lowered_zoo(names, 3, torch.float64)
    assert len(fields) == 4
    check(fields, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_fields(batch, dtype):
    fields = lowered_zoo(ZOO, batch, dtype)
    assert len(fields) >= 50
    check(fields, dtype)
