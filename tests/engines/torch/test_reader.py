"""Outputs of small steps are read off many steps at a time: the values that each step gives."""

from __future__ import annotations

import math

import pytest
import torch

from pynode import solve
from pynode.engines.torch import reader
from pynode.engines.torch.outputs import Outputs

Z0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
TS = torch.linspace(0, 10, 101, dtype=torch.float64)


def field(t, z):
    return torch.stack([z[1] + 0.1 * t.sin(), -4 * z[0]])


@pytest.fixture
def at_once(monkeypatch):
    """How many outputs each step that was read by itself gave."""
    counts = []
    values = Outputs.values

    def counted(self, piece, lo, hi, rhs):
        counts.append(hi - lo)
        return values(self, piece, lo, hi, rhs)

    monkeypatch.setattr(Outputs, "values", counted)
    return counts


def each_by_itself(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(reader, "SMALL", 0)
        return solve(*args, **options)


@pytest.mark.parametrize("few", [1 << 14, 1])
@pytest.mark.parametrize(
    "solver", ["dp5", "tsit5", "vern7", "dp8", "bs3", "rk4", "rodas5p", "kvaerno5", "fbdf"]
)
def test_values_and_counts_are_those_of_each_step(monkeypatch, at_once, solver, few):
    monkeypatch.setattr(reader, "AT_ONCE", few)
    options = {"solver": solver, "rtol": 1e-6, "atol": 1e-6, "tstops": [3.3]}
    if solver == "rk4":
        options = {"solver": solver, "dt": 0.07}
    alone = each_by_itself(monkeypatch, field, Z0, TS, **options)
    steps = len(at_once)
    at_once.clear()
    with torch.no_grad():
        together = solve(field, Z0, TS, **options)
    if solver != "fbdf":  # each of whose steps has coefficients of its own
        assert len(at_once) <= 10 < steps / 2  # the first step, and those that end on an output
    assert together.stats == alone.stats
    # By powers, not Horner's rule: of interpolants of high degree that leaves fewer digits.
    torch.testing.assert_close(together.zs, alone.zs, rtol=1e-12, atol=1e-12)


def test_backwards_and_in_single_precision(monkeypatch):
    for ts, z0 in ((TS.flip(0), Z0), (TS.float(), Z0.float())):
        alone = each_by_itself(monkeypatch, field, z0, ts)
        together = solve(field, z0, ts)
        eps = torch.finfo(z0.dtype).eps
        torch.testing.assert_close(together.zs, alone.zs, rtol=8 * eps, atol=8 * eps)


def test_steps_with_many_outputs_keep_their_place(monkeypatch, at_once):
    ts = torch.cat([TS[:40], torch.linspace(4, 5, 200, dtype=torch.float64), TS[51:]])
    alone = each_by_itself(monkeypatch, field, Z0, ts)
    at_once.clear()
    together = solve(field, Z0, ts)
    assert max(at_once) > reader.FEW
    torch.testing.assert_close(together.zs, alone.zs, rtol=1e-14, atol=1e-14)


def test_ends_of_steps_are_their_states(at_once):
    solution = solve(field, Z0, TS, tstops=[TS[50].item()], dense=True)
    assert torch.equal(solution.zs[0], Z0)
    assert torch.equal(solution.zs[-1], solution(TS[-1]))
    assert torch.equal(solution.zs[50], solution(TS[50]))


def test_what_a_failed_solve_did_not_reach_is_nan():
    ts = torch.linspace(0, 2, 41, dtype=torch.float64)
    solution = solve(lambda z: z * z, torch.ones(1, dtype=torch.float64), ts, throw=False)
    reached = int(solution.zs.isfinite().sum())
    assert 15 <= reached <= 21
    torch.testing.assert_close(solution.zs[:15, 0], 1 / (1 - ts[:15]), rtol=1e-4, atol=0)
    assert all(math.isnan(x) for x in solution.zs[reached:, 0].tolist())


def test_large_states_do_not_wait(at_once):
    solve(lambda z: -z, torch.ones(reader.SMALL, dtype=torch.float64), TS)
    assert sum(at_once) == len(TS) - 1
