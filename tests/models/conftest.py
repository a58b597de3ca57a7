import math

import pytest
import torch

from pynode.data.series import IrregularSeries


def make_ragged(n: int = 6, seed: int = 0, coordinates: int = 2) -> IrregularSeries:
    """Short series of 1 to 7 observations from t = 0.05 on, a quarter of the values missing."""
    g = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    times, values = [], []
    for b in range(n):
        length = (1, 7, 3, 5, 2, 4)[b % 6]
        t = 0.05 + torch.rand(length, generator=g).cumsum(0) * 0.6
        phase = torch.rand((), generator=g)
        x = torch.stack([(t + phase + c).sin() for c in range(coordinates)], dim=-1)
        gone = torch.rand(x.shape, generator=g) < 0.25
        gone[torch.arange(length), torch.arange(length) % coordinates] = False
        x[gone] = math.nan
        times.append(t.to(dtype))
        values.append(x.to(dtype))
    return IrregularSeries.from_ragged(times, values)


@pytest.fixture
def ragged_series() -> IrregularSeries:
    return make_ragged()
