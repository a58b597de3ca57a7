import math
from collections.abc import Callable

import pytest
import torch
from stub_model import StubModel

from pynode.data.series import IrregularSeries


def make_series(n: int, seed: int) -> IrregularSeries:
    """n series of 3 to 6 observations of (sin t, cos t), a tenth of the coordinates missing."""
    generator = torch.Generator().manual_seed(seed)
    times, values = [], []
    for _ in range(n):
        length = int(torch.randint(3, 7, (), generator=generator))
        t = torch.rand(length, generator=generator).sort().values * 6
        x = torch.stack([t.sin(), t.cos()], dim=-1)
        x[1:, 0][torch.rand(length - 1, generator=generator) < 0.1] = math.nan
        times.append(t)
        values.append(x)
    return IrregularSeries.from_ragged(times, values)


@pytest.fixture
def train_series() -> IrregularSeries:
    return make_series(20, seed=1)


@pytest.fixture
def valid_series() -> IrregularSeries:
    return make_series(6, seed=2)


@pytest.fixture
def stub() -> Callable[..., StubModel]:
    """Makes stub models with the same initial weights each time."""

    def make(**options: object) -> StubModel:
        torch.manual_seed(3)
        return StubModel(**options)

    return make
