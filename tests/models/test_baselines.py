"""Rules simple enough to write down their answers."""

import math

import pytest
import torch

from pynode.data.series import IrregularSeries
from pynode.models import build

NAN = math.nan


@pytest.fixture
def known() -> IrregularSeries:
    """Coordinate 0 at t = 1, 2, 4; coordinate 1 at t = 2 alone; a longer series beside it."""
    return IrregularSeries.from_ragged(
        [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])],
        [
            torch.tensor([[10.0, NAN], [20.0, 5.0], [0.0, NAN]]),
            torch.tensor([[NAN, 0.0], [1.0, NAN], [NAN, 2.0], [NAN, NAN]]),
        ],
    )


AT = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0])


def test_last_value(known: IrregularSeries) -> None:
    mean = build("last_value", 2).predict(known, AT).mean
    assert mean[0, :, 0].tolist() == [10, 10, 10, 20, 20, 0, 0]
    assert mean[0, :, 1].tolist() == [5] * 7
    assert mean[1, :, 0].tolist() == [1] * 7
    assert mean[1, :, 1].tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_linear(known: IrregularSeries) -> None:
    mean = build("linear", 2).predict(known, AT).mean
    # held before, interpolated inside, beyond along the line from (2, 20) to (4, 0)
    assert mean[0, :, 0].tolist() == [10, 10, 15, 20, 10, 0, -10]
    assert mean[0, :, 1].tolist() == [5] * 7  # seen once: held
    assert mean[1, :, 0].tolist() == [1] * 7
    assert mean[1, :, 1].tolist() == [0, 1, 1.5, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["last_value", "linear"])
def test_a_coordinate_never_seen_is_zero(name: str) -> None:
    series = IrregularSeries.from_ragged([torch.tensor([1.0])], [torch.tensor([[NAN, 3.0]])])
    mean = build(name, 2).predict(series, AT).mean
    assert mean[0].tolist() == [[0.0, 3.0]] * 7


def test_linear_is_exact_on_lines_with_missing_values(float64: None) -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.rand(5, 9, generator=g).cumsum(dim=1)
    slope, offset = torch.randn(2, 5, 1, 3, generator=g)
    mask = torch.rand(5, 9, 3, generator=g) < 0.6
    mask[:, [1, 5]] = True
    mask[:, 0] = False
    mask[:, 0, 0] = True
    series = IrregularSeries(t, offset + slope * t.unsqueeze(-1), mask)
    at = t[:, 5:6] + torch.linspace(-0.5, 10.0, 20)
    expected = offset + slope * at.unsqueeze(-1)
    mean = build("linear", 3).predict(series, at).mean
    late = at >= t[:, 1:2]  # from the first time at which all coordinates are seen
    assert late.any(dim=1).all()
    assert torch.allclose(mean[late], expected[late])
