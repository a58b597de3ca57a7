"""Fields that cannot be lowered say why, where, and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pynode.errors import InputError, LoweringError
from pynode.field import FlatField
from pynode.lowering import LoweredField, lower
from pynode.solution import Statistics
from pynode.state import StateLayout


def run(fn, z0, which=("f",), args=None) -> LoweredField:
    layout = StateLayout(z0)
    field = FlatField(fn, layout, args, Statistics())
    return lower(field, layout.flatten(z0).detach(), 0.0, which)


class Sorts(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.sort(z, dim=-1).values


def test_the_operation_and_its_module_are_named() -> None:
    field = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh(), Sorts()))
    with pytest.raises(LoweringError, match=r"aten\.sort.*Sorts, module '1\.1'.*callback"):
        run(field, torch.randn(3, 2))


def test_an_operation_outside_of_modules() -> None:
    with pytest.raises(LoweringError, match=r"aten\.\w*(solve|lu).*in the field itself"):
        run(lambda z: torch.linalg.solve(torch.eye(2) + z.T @ z, z.T).T, torch.randn(3, 2))


def test_dropout_while_training() -> None:
    field = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    with pytest.raises(LoweringError, match=r"random numbers.*Dropout, module '1'.*field\.eval"):
        run(field, torch.randn(3, 2))
    run(field.eval(), torch.randn(3, 2))


def test_noise_drawn_by_hand() -> None:
    with pytest.raises(LoweringError, match=r"random numbers.*args"):
        run(lambda z: z + torch.randn(2), torch.randn(3, 2))


@pytest.mark.parametrize(
    "field",
    [
        lambda t, z: z if t > 1 else -z,
        lambda t, z: z * float(z.sum()),
        lambda t, z: z[z > 0].sum() * z,
    ],
    ids=["if", "float", "mask"],
)
def test_control_flow_that_depends_on_data(field) -> None:
    with pytest.raises(LoweringError, match=r"depends on data.*torch\.where|aten\.index"):
        run(field, torch.randn(3, 2))


def test_complex_states() -> None:
    with pytest.raises(LoweringError, match=r"complex64.*float32 and float64"):
        run(lambda z: 1j * z, torch.randn(2, 2, dtype=torch.complex64))


def test_complex_numbers_within() -> None:
    with pytest.raises(LoweringError, match="complex numbers"):
        run(lambda z: torch.fft.fft(z).abs(), torch.randn(2, 4))


def test_half_precision() -> None:
    with pytest.raises(LoweringError, match="bfloat16"):
        run(lambda z: -z, torch.randn(2, 2, dtype=torch.bfloat16))


def test_mixed_precision_within() -> None:
    with pytest.raises(LoweringError, match=r"computes in torch\.float32, the state is torch\.f"):
        run(lambda z: (z.float() * 2).double(), torch.randn(2, 2, dtype=torch.float64))


def test_batch_norm_while_training() -> None:
    with pytest.raises(LoweringError, match=r"changes a tensor that it holds.*field\.eval"):
        run(nn.BatchNorm1d(2), torch.randn(3, 2))


def test_a_field_with_a_memory() -> None:
    class Counts(nn.Module):
        calls = 0

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            return z * self.calls

    with pytest.raises(LoweringError, match="keep a memory between calls"):
        run(Counts(), torch.randn(3, 2))


def test_numbers_that_are_none_are_told_apart() -> None:
    class Ends(nn.Module):
        def __init__(self, left: int) -> None:
            super().__init__()
            self.left = left

        def forward(self, z: Tensor) -> Tensor:
            self.left -= 1
            return z / (0.0 if self.left == 0 else 1.0)

    whole = Ends(1000)
    run(whole, torch.ones(2, 2))
    last = Ends(1000 - whole.left)  # the call that the program is compared with
    with pytest.raises(
        LoweringError, match=r"of 4 entries 0 are NaN .* by the program, 4 by torch"
    ):
        run(last, torch.ones(2, 2))


def test_an_index_that_depends_on_the_state() -> None:
    with pytest.raises(LoweringError, match=r"index depends on the state|aten\.argsort|aten\.sort"):
        run(lambda z: z.gather(1, z.argsort(1)), torch.randn(3, 2))


def test_maximum_with_indices() -> None:
    z = torch.randn(3, 2)
    run(lambda z: z.max(dim=1, keepdim=True).values * z, z)
    with pytest.raises(LoweringError, match=r"aten\.max: its indices are used.*torch\.amax"):
        run(lambda z: z.max(dim=1, keepdim=True).values * z, z, ("vjp_z",))
    run(lambda z: z.amax(dim=1, keepdim=True) * z, z, ("vjp_z",))


def test_parameters_of_another_dtype() -> None:
    k = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(LoweringError, match=r"float64, the state torch\.float32"):
        run(lambda z: (z * k).float(), torch.randn(3, 2))


def test_unknown_program() -> None:
    with pytest.raises(InputError, match="no program 'hessian'"):
        run(lambda z: z, torch.randn(3, 2), ("hessian",))


def test_wrong_sizes_at_run_time() -> None:
    lowered = run(lambda z: -z, torch.randn(3, 2))
    with pytest.raises(InputError, match=r"z has 4 entries, the program was made for 6"):
        lowered.run("f", torch.zeros(4))
    with pytest.raises(InputError, match="no program 'jac'"):
        lowered.run("jac", torch.zeros(6))
