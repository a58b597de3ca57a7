"""Evaluation times: what is refused, and how Julia sees them."""

import math

import numpy as np
import pytest
import torch

from pynode.engines.julia.reads import Reads
from pynode.errors import InputError
from pynode.problem import ODEProblem
from pynode.state import StateLayout
from pynode.times import Times


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_times_that_are_not_finite_are_refused(bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        Times([0.0, bad, 1.0])


def test_times_whose_sum_overflows_are_finite():
    assert Times([0.0, 1.2e308, 1.5e308]).end == 1.5e308


SHARED = [
    ([0.0, 0.5, 2.0], None),
    ([2.0, 0.5, 0.0], None),
    ([0.0, 0.5, 0.5, 2.0], None),
    ([1.0, 0.5, 0.5], 3.0),
]
PER_SAMPLE = [
    ([[0.0, 1.0, math.nan], [0.0, 0.3, 2.0]], None),
    ([[0.0, 1.0, 2.0], [0.0, 0.3, math.nan]], None),
    ([[2.0, 1.0], [0.5, 0.5]], 3.0),
]


@pytest.mark.parametrize(("t", "t0"), SHARED + PER_SAMPLE)
def test_julia_reads_in_order_and_each_its_own(t, t0):
    layout = StateLayout(torch.zeros(2, 3))
    times = Times(torch.tensor(t, dtype=torch.float64), t0)
    reads = Reads(times, layout)
    assert list(reads.times) == sorted(reads.times, reverse=times.direction < 0)
    # The state is its time plus 100 for the second sample, so that a mistaken one is seen.
    state = torch.tensor(reads.times, dtype=torch.float64)[:, None].repeat(1, 6)
    state[:, 3:] += 100
    if times.per_sample:
        places = torch.tensor(reads.after)[:, None] + torch.arange(reads.width)
        state = state.gather(1, places)
    assert state.shape == (len(reads.times), reads.width)
    asked = times.t.t()[..., None] if times.per_sample else times.t[:, None, None]
    wanted = asked.expand(len(asked), 2, 3) + torch.tensor([0.0, 100.0])[:, None]
    torch.testing.assert_close(
        reads.outputs(state, 6), wanted.reshape(-1, 6).double(), equal_nan=True
    )


@pytest.mark.parametrize(("t", "t0"), SHARED + PER_SAMPLE)
def test_cotangents_go_where_the_outputs_came_from(t, t0):
    times = Times(torch.tensor(t, dtype=torch.float64), t0)
    reads = Reads(times, StateLayout(torch.zeros(2, 3)))
    found = torch.randn(len(reads.times), reads.width, requires_grad=True)
    zs = reads.outputs(found, 6)
    grad = torch.randn_like(zs)
    (wanted,) = torch.autograd.grad(zs, found, grad)
    assert torch.equal(reads.cotangents(grad), wanted)


def test_times_that_changed_in_place_are_looked_at_again():
    """Also where torch cannot know: in memory that numpy shares."""
    memory = np.array([0.0, 1.0, 2.0])
    t = torch.from_numpy(memory)
    assert Times(t).values == [0.0, 1.0, 2.0]
    memory[1:] = [3.0, 4.0]
    again = Times(t)
    assert again.values == [0.0, 3.0, 4.0] and again.end == 4.0
    memory[1] = 5.0
    with pytest.raises(InputError, match="sort them"):
        Times(t)
    assert Times(torch.tensor([0.0, 3.0, 4.0]), t0=-1.0).start == -1.0


def test_samples_of_single_numbers_do_not_change_what_others_share():
    def field(t, z):
        return -z

    z0, own = torch.ones(2), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    shapes = [ODEProblem(field, z0, t).layout.rows for t in ([0.0, 1.0], own, [0.0, 1.0])]
    assert shapes == [None, 2, None]
