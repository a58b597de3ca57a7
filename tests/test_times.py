"""Evaluation times: what is refused, and how Julia sees them."""

import math

import pytest
import torch

from pynode.engines.julia.moments import Moments
from pynode.errors import InputError
from pynode.state import StateLayout
from pynode.times import Times


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_times_that_are_not_finite_are_refused(bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        Times([0.0, bad, 1.0])


def test_times_whose_sum_overflows_are_finite():
    assert Times([0.0, 1.2e308, 1.5e308]).end == 1.5e308


@pytest.mark.parametrize(
    ("t", "t0", "moments"),
    [
        ([0.0, 0.5, 2.0], None, [0.0, 0.5, 2.0]),
        ([2.0, 0.5, 0.0], None, [2.0, 0.5, 0.0]),
        ([0.0, 0.5, 0.5, 2.0], None, [0.0, 0.5, 2.0]),
        ([0.5, 2.0], 0.0, [0.0, 0.5, 2.0]),
        ([0.5, 0.5], 0.0, [0.0, 0.5]),
        ([1.0, 0.5, 0.5], 3.0, [3.0, 1.0, 0.5]),
        ([[0.0, 1.0, math.nan], [0.0, 0.3, 2.0]], None, [0.0, 0.3, 1.0, 2.0]),
        ([[0.0, 1.0, 2.0], [0.0, 0.3, math.nan]], None, [0.0, 0.3, 1.0, 2.0]),
    ],
)
def test_moments_are_all_times_once_and_in_order(t, t0, moments):
    z0 = torch.zeros(2, 3)
    times = Times(torch.tensor(t), t0)
    found = Moments(times, StateLayout(z0))
    assert list(found.values) == pytest.approx(moments)
    states = torch.tensor(found.values, dtype=torch.float64)[:, None].expand(
        -1, 6
    )  # the state is the time
    asked = times.t.t()[..., None] if times.per_sample else times.t[:, None, None]
    wanted = asked.expand(len(asked), 2, 3).reshape(-1, 6).double()
    torch.testing.assert_close(found.read(states), wanted, equal_nan=True)
