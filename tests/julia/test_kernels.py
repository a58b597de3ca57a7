"""Ensembles in one kernel (DiffEqGPU, on KernelAbstractions' CPU backend) against torch."""

import pytest
import torch
from julia_cases import mlp
from torch import Tensor

from pynode import ensemble, julia
from pynode.errors import GradientError, InputError, JuliaError, SolveError

pytestmark = [pytest.mark.usefixtures("float64")]
TIMES = [0.0, 0.5, 2.0]


@pytest.fixture(scope="module")
def kernels():
    """Skips where Julia or DiffEqGPU is not there."""
    from pynode.engines.julia import runtime

    try:
        runtime.load("DiffEqGPU")
    except JuliaError as error:
        pytest.skip(str(error).split(". ")[0])


def lotka(t: Tensor, z: Tensor, p: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    a, b, c, d = p.unbind(-1)
    return torch.stack([a * x - b * x * y, d * x * y - c * y], dim=-1)


def members(count: int = 9) -> tuple[Tensor, Tensor]:
    z0s = torch.ones(count, 2) * torch.linspace(0.8, 1.2, count)[:, None]
    params = torch.tensor([1.5, 1.0, 3.0, 1.0]) * torch.linspace(0.9, 1.1, count)[:, None]
    return z0s, params


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
def test_each_with_its_own_parameters(kernels, solver):
    z0s, params = members()
    options = {"rtol": 1e-8, "atol": 1e-10}
    want = ensemble(lotka, z0s, TIMES, params, **options).zs
    got = ensemble(
        lotka, z0s, TIMES, params, engine="julia", backend="cpu", solver=solver, **options
    )
    torch.testing.assert_close(got.zs, want, rtol=1e-5, atol=1e-6)
    assert got.success
    assert got.retcodes == ["success"] * len(z0s)


@pytest.mark.julia
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_all_share(kernels, dtype):
    field = mlp(2, 8).to(dtype)
    z0s = members()[0].to(dtype)
    with torch.no_grad():
        want = ensemble(field, z0s, TIMES, rtol=1e-5, atol=1e-6).zs
        found = ensemble(field, z0s, TIMES, engine="julia", backend="cpu", rtol=1e-5, atol=1e-6)
    assert found.zs.dtype == dtype
    torch.testing.assert_close(found.zs, want, rtol=1e-3, atol=1e-4)


@pytest.mark.julia
def test_backwards_from_a_time_before_the_first(kernels):
    z0s, params = members(3)
    times = [1.0, 0.2]
    want = ensemble(lotka, z0s, times, params, t0=1.5, rtol=1e-8, atol=1e-10).zs
    got = ensemble(
        lotka, z0s, times, params, t0=1.5, engine="julia", backend="cpu", rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(got.zs, want, rtol=1e-5, atol=1e-6)


@pytest.mark.julia
def test_the_trajectory_that_fails_is_named(kernels):
    z0s, params = members()
    params[4] = torch.nan
    options = {"engine": "julia", "backend": "cpu"}
    with pytest.raises(SolveError, match="trajectory 4") as caught:
        ensemble(lotka, z0s, TIMES, params, **options)
    assert caught.value.sample == 4
    found = ensemble(lotka, z0s, TIMES, params, throw=False, **options)
    assert found.samples.failed == [4]
    assert found.zs[:, :4].isfinite().all()


@pytest.mark.julia
def test_no_gradients_and_no_such_solver(kernels):
    z0s, _ = members()
    with pytest.raises(GradientError, match="no_grad"):
        ensemble(mlp(2, 8), z0s, TIMES, engine="julia", backend="cpu")
    with torch.no_grad(), pytest.raises(JuliaError, match="no kernel"):
        ensemble(mlp(2, 8), z0s, TIMES, engine="julia", backend="cpu", solver="dop853")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"engine": "torch"}, "engine='julia'"),
        ({"backend": "tpu"}, "cpu, cuda"),
        ({"tstops": (0.3,)}, "no option tstops"),
        ({"rtol": torch.ones(2)}, "one number for rtol"),
    ],
    ids=["engine", "backend", "option", "tolerance"],
)
def test_what_a_kernel_has_no_use_for(change, match):
    z0s, params = members()
    with pytest.raises(InputError, match=match):
        ensemble(lotka, z0s, TIMES, params, **{"engine": "julia", "backend": "cpu", **change})


def test_it_is_said_where_there_is_no_julia():
    if julia.status().ready:
        pytest.skip("there is one")
    z0s, params = members()
    with pytest.raises(JuliaError, match="pynode julia install"):
        ensemble(lotka, z0s, TIMES, params, engine="julia", backend="cpu")
