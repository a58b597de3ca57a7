"""Observations and queries on one time line, against a slow and obvious twin."""

import math

import torch

from pynode.data.series import IrregularSeries
from pynode.models.timeline import merged, of_observations


def test_merged_is_the_sorted_union_of_each_series(ragged_series: IrregularSeries) -> None:
    s = ragged_series
    g = torch.Generator().manual_seed(1)
    at = (torch.rand(6, 9, generator=g) * 3).sort(dim=1).values
    at[1, :7] = s.times[1]  # queries at the times of observations
    at[1] = at[1].sort().values
    at[2, 4:] = math.nan
    at[3] = math.nan
    at[4, 3] = at[4, 2]  # the same query twice
    line = merged(s, at)
    for b in range(6):
        seen = dict(zip(s.times[b].tolist(), range(s.times.shape[1]), strict=True))
        asked = [t for t in at[b].tolist() if not math.isnan(t)]
        union = sorted({t for t in [*seen, *asked] if not math.isnan(t)})
        n = len(union)
        assert line.times[b, :n].tolist() == union
        assert line.times[b, n:].isnan().all()
        for i, t in enumerate(union):
            assert line.observed[b, i].item() == (t in seen)
            if t in seen:
                assert torch.equal(line.values[b, i], s.values[b, seen[t]])
                assert torch.equal(line.mask[b, i], s.mask[b, seen[t]])
            else:
                assert not line.mask[b, i].any() and not line.values[b, i].any()
        assert not line.observed[b, n:].any() and not line.mask[b, n:].any()
        found = line.at_queries(line.times.unsqueeze(-1))[b, : len(asked), 0]
        assert found.tolist() == asked
        gaps = torch.tensor(union).diff()
        assert torch.allclose(line.gaps[b, : n - 1], gaps)
        assert not line.gaps[b, n - 1 :].any()


def test_no_slot_is_empty_in_every_series(ragged_series: IrregularSeries) -> None:
    at = ragged_series.times.clone()
    line = merged(ragged_series, at)
    assert line.times.shape[1] == 7  # nothing new: the longest series' own times
    assert torch.equal(line.times.nan_to_num(-1), ragged_series.times.nan_to_num(-1))


def test_started() -> None:
    series = IrregularSeries.from_ragged([torch.tensor([1.0, 2.0])], [torch.ones(2, 1)])
    line = merged(series, torch.tensor([[0.0, 0.5, 1.5, 3.0]]))
    assert line.started.tolist() == [[False, False, True, True, True, True]]
    assert line.first.tolist() == [[True, True, True, False, False, False]]
    assert of_observations(series).started.all()
    assert of_observations(series).first.tolist() == [[True, False]]
