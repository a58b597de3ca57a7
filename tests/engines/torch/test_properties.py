"""Properties that hold for every shape, dtype, time grid and solver, with drawn examples."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import solve, solvers

SOLVERS = {s.name: s for s in solvers() if not (s.stiff or s.separable)}
ADAPTIVE = [s.name for s in SOLVERS.values() if s.adaptive and s.order > 2]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
EXAMPLES = 30


def rounding(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-11


def field(t: Tensor, z: Any) -> Any:
    """Entry by entry, nonlinear and time-dependent, for states of any form."""

    def one(x: Tensor) -> Tensor:
        if x.is_complex():  # not cos(x), which grows with the imaginary part
            return torch.complex(torch.cos(x.real + t), torch.sin(x.imag - x.real)) - 1j * x
        return torch.cos(x + t) - 0.5 * x

    return pytree.tree_map(one, z)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES, ndim: tuple = (0, 3)) -> Tensor:
    shape = draw(st.lists(st.integers(1, 3), min_size=ndim[0], max_size=ndim[1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, dtype=draw(st.sampled_from(dtypes)), generator=generator)


@st.composite
def time_grids(draw: st.DrawFn) -> Tensor:
    """(T,), randomly spaced, up or down, off zero or not."""
    gaps = draw(st.lists(st.floats(1e-3, 0.7), min_size=1, max_size=5))
    first = draw(st.sampled_from([0.0, -1.3, 2.5]))
    sign = draw(st.sampled_from([1.0, -1.0]))
    steps = torch.tensor([0.0, *gaps], dtype=torch.float64)
    return first + sign * steps.cumsum(0)


@st.composite
def fixed_steps(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "solver": draw(st.sampled_from(sorted(SOLVERS))),
        "adaptive": False,
        "dt": draw(st.floats(0.05, 0.8)),
    }


@st.composite
def structures(draw: st.DrawFn) -> Any:
    """A tuple, dict or nest of tensors of one precision."""
    precision = draw(st.sampled_from([DTYPES[::2], DTYPES[1::2]]))
    parts = draw(st.lists(tensors(precision), min_size=1, max_size=3))
    form = draw(st.sampled_from(["tuple", "dict", "nest"]))
    if form == "tuple":
        return tuple(parts)
    named = {f"part{i}": part for i, part in enumerate(parts)}
    return named if form == "dict" else {"outer": (named, parts[0].clone())}


@settings(max_examples=EXAMPLES)
@given(z0=tensors(), t=time_grids(), options=fixed_steps())
def test_shapes_and_dtypes(z0, t, options):
    sol = solve(field, z0, t, **options)
    assert sol.zs.shape == (len(t), *z0.shape) and sol.zs.dtype == z0.dtype
    torch.testing.assert_close(sol.zs[0], z0, rtol=0, atol=0)
    assert sol.zs.isfinite().all() and sol.success
    assert sol(t).shape == sol.zs.shape and sol(t).dtype == z0.dtype
    torch.testing.assert_close(sol(t), sol.zs, rtol=rounding(z0.dtype), atol=rounding(z0.dtype))


@settings(max_examples=EXAMPLES)
@given(z0=tensors(ndim=(1, 3)), t=time_grids(), options=fixed_steps())
def test_a_batch_equals_one_element_at_a_time(z0, t, options):
    """With fixed steps up to rounding."""
    batched = solve(field, z0, t, **options).zs
    alone = torch.stack([solve(field, z, t, **options).zs for z in z0], dim=1)
    tol = rounding(z0.dtype)
    torch.testing.assert_close(batched, alone, rtol=tol, atol=tol)


@settings(max_examples=EXAMPLES)
@given(
    z0=tensors([torch.float64, torch.complex128], ndim=(1, 3)),
    t=time_grids(),
    solver=st.sampled_from(ADAPTIVE),
)
def test_a_batch_equals_one_element_at_a_time_to_tolerance(z0, t, solver):
    options = {"solver": solver, "rtol": 1e-7, "atol": 1e-9, "norm": "max"}
    batched = solve(field, z0, t, **options).zs
    alone = torch.stack([solve(field, z, t, **options).zs for z in z0], dim=1)
    torch.testing.assert_close(batched, alone, rtol=2e-5, atol=2e-5)


@settings(max_examples=EXAMPLES)
@given(z0=tensors(ndim=(1, 3)), t=time_grids(), options=fixed_steps())
def test_a_batch_equals_vmap_with_fixed_steps(z0, t, options):
    def one(z: Tensor) -> Tensor:
        return solve(field, z, t, sensitivity="discrete", dense=False, **options).zs

    tol = rounding(z0.dtype)
    mapped = torch.func.vmap(one, out_dims=1)(z0)
    torch.testing.assert_close(mapped, solve(field, z0, t, **options).zs, rtol=tol, atol=tol)


@settings(max_examples=EXAMPLES)
@given(
    z0=tensors([torch.float64, torch.complex128], ndim=(1, 2)),
    t=time_grids(),
    solver=st.sampled_from(ADAPTIVE),
)
def test_a_batch_equals_vmap_to_tolerance(z0, t, solver):
    options = {"solver": solver, "rtol": 1e-7, "atol": 1e-9, "sensitivity": "discrete"}

    def one(z: Tensor) -> Tensor:
        return solve(field, z, t, dense=False, **options).zs

    mapped = torch.func.vmap(one, out_dims=1)(z0)
    torch.testing.assert_close(mapped, solve(field, z0, t, **options).zs, rtol=2e-5, atol=2e-5)


@settings(max_examples=EXAMPLES)
@given(z0=structures(), t=time_grids(), options=fixed_steps())
def test_a_structure_equals_its_parts(z0, t, options):
    """The parts do not see each other in this field, so each may be solved alone."""
    sol = solve(field, z0, t, **options)
    leaves = pytree.tree_leaves(z0)
    tol = rounding(leaves[0].dtype)
    for got, part in zip(pytree.tree_leaves(sol.zs), leaves, strict=True):
        want = solve(field, part, t, **options).zs
        assert got.dtype == part.dtype
        torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    assert pytree.tree_structure(sol.zs) == pytree.tree_structure(z0)
    assert pytree.tree_structure(sol(t[0])) == pytree.tree_structure(z0)


@settings(max_examples=EXAMPLES)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    batch=st.sampled_from([None, 1, 4]),
    t=time_grids(),
    solver=st.sampled_from(ADAPTIVE),
)
def test_a_coupled_tuple_equals_the_concatenated_state(sizes, batch, t, solver):
    """Adaptive steps too: the error norm does not know how the state is cut up."""
    torch.manual_seed(sum(sizes))
    lead = () if batch is None else (batch,)
    parts = tuple(torch.randn(*lead, n, dtype=torch.float64) for n in sizes)
    matrix = torch.randn(sum(sizes), sum(sizes), dtype=torch.float64)

    def whole(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ matrix.T) * torch.cos(t)

    def cut(t: Tensor, z: tuple) -> tuple:
        return whole(t, torch.cat(z, dim=-1)).split(sizes, dim=-1)

    options = {"solver": solver, "rtol": 1e-5, "atol": 1e-7}
    joined = solve(whole, torch.cat(parts, dim=-1), t, **options)
    split = solve(cut, parts, t, **options)
    torch.testing.assert_close(torch.cat(split.zs, dim=-1), joined.zs, rtol=1e-7, atol=1e-9)
    assert split.stats == joined.stats


@settings(max_examples=EXAMPLES)
@given(
    z0=tensors([torch.float64, torch.complex128]), t=time_grids(), solver=st.sampled_from(ADAPTIVE)
)
def test_there_and_back_again(z0, t, solver):
    options = {"solver": solver, "rtol": 1e-7, "atol": 1e-9, "norm": "max"}
    there = solve(field, z0, t, **options).zs
    back = solve(field, there[-1], t.flip(0), **options).zs
    torch.testing.assert_close(back.flip(0), there, rtol=1e-4, atol=1e-4)


@settings(max_examples=EXAMPLES)
@given(z0=tensors(), t=time_grids(), options=fixed_steps())
def test_time_mirrored(z0, t, options):
    """z'(t) = f(t, z) backwards is w'(s) = -f(-s, w) forwards, step for step."""
    want = solve(field, z0, t, **options).zs
    mirrored = solve(lambda s, w: -field(-s, w), z0, -t, **options).zs
    torch.testing.assert_close(mirrored, want, rtol=0, atol=0)


@settings(max_examples=EXAMPLES)
@given(z0=tensors(), t=time_grids(), options=fixed_steps(), shift=st.sampled_from([0.25, -8.0]))
def test_time_shifted(z0, t, options, shift):
    """Only the clock's rounding may differ."""
    want = solve(field, z0, t, **options).zs
    shifted = solve(lambda s, w: field(s - shift, w), z0, t + shift, **options).zs
    tol = max(rounding(z0.dtype), 1e-10)
    torch.testing.assert_close(shifted, want, rtol=tol, atol=tol)


@settings(max_examples=EXAMPLES)
@given(
    z0=tensors([torch.complex128]),
    t=time_grids(),
    solver=st.sampled_from(ADAPTIVE),
    rate=st.complex_numbers(max_magnitude=2.0, allow_nan=False, allow_infinity=False),
)
def test_complex_states_against_the_exponential(z0, t, solver, rate):
    zs = solve(lambda z: rate * z, z0, t, solver=solver, rtol=1e-7, atol=1e-9).zs
    want = torch.stack([torch.exp(torch.tensor(rate) * (s - t[0])) * z0 for s in t])
    bound = 1e-4 * math.exp(2 * float((t[-1] - t[0]).abs()))
    torch.testing.assert_close(zs, want, rtol=0, atol=bound)


@settings(max_examples=EXAMPLES)
@given(z0=tensors(ndim=(1, 3)), t=time_grids(), options=fixed_steps())
def test_layout_in_memory_does_not_matter(z0, t, options):
    """Transposed, strided, expanded and conjugated views are states like any other."""
    views = [
        z0.movedim(0, -1),
        torch.stack([z0, z0], dim=-1)[..., 0],
        z0[:1].expand(2, *z0.shape[1:]),
        z0.conj(),
    ]
    for view in views:
        want = solve(field, view.clone().resolve_conj().contiguous(), t, **options).zs
        torch.testing.assert_close(solve(field, view, t, **options).zs, want, rtol=0, atol=0)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_results_are_reproducible_bit_for_bit(solver):
    z0 = torch.randn(5, 3)
    options = {"rtol": 1e-4} if SOLVERS[solver].adaptive else {"dt": 0.1}
    runs = [solve(field, z0, [0.0, 1.0, 3.0], solver=solver, **options).zs for _ in range(2)]
    torch.testing.assert_close(*runs, rtol=0, atol=0)
    with torch.no_grad():
        quiet = solve(field, z0, [0.0, 1.0, 3.0], solver=solver, **options).zs
    torch.testing.assert_close(quiet, runs[0], rtol=0, atol=0)
