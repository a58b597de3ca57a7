"""The container: what goes in comes out, and what does not fit is refused."""

import math

import pytest
import torch
from torch import Tensor

from pynode.data import IrregularSeries
from pynode.errors import InputError

NAN = math.nan


def ragged(n: int = 7, coordinates: int = 3, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """n series of 1 to 6 observations; a third of the values missing, the first one never."""
    g = torch.Generator().manual_seed(seed)
    times, values = [], []
    for _ in range(n):
        length = int(torch.randint(1, 7, (), generator=g))
        times.append(torch.rand(length, generator=g).cumsum(0) + 0.01 * torch.arange(length))
        x = torch.randn(length, coordinates, generator=g)
        x[torch.rand(x.shape, generator=g) < 0.3] = NAN
        x[0, 0] = 1.0
        values.append(x)
    return times, values


@pytest.fixture
def series() -> IrregularSeries:
    return IrregularSeries.from_ragged(*ragged())


def same(a: IrregularSeries, b: IrregularSeries) -> bool:
    return (
        torch.equal(a.times.nan_to_num(-1), b.times.nan_to_num(-1))
        and torch.equal(a.values, b.values)
        and torch.equal(a.mask, b.mask)
        and a.times.shape == b.times.shape
    )


def test_ragged_round_trip() -> None:
    times, values = ragged()
    back_t, back_x = IrregularSeries.from_ragged(times, values).ragged()
    for t, x, bt, bx in zip(times, values, back_t, back_x, strict=True):
        assert torch.equal(t, bt)
        assert torch.equal(x.nan_to_num(99.0), bx.nan_to_num(99.0))


def test_padding(series: IrregularSeries) -> None:
    times, values = ragged()
    assert len(series) == 7 and series.coordinates == 3
    assert series.lengths.tolist() == [len(t) for t in times]
    assert series.times.shape[1] == max(len(t) for t in times)
    position = torch.arange(series.times.shape[1])
    assert torch.equal(series.valid, position < series.lengths.unsqueeze(1))
    assert not series.mask[~series.valid].any()
    assert (series.values[~series.mask] == 0).all()
    assert series.n_observed == sum(int((~x.isnan()).sum()) for x in values)


def test_values_that_are_not_observed_become_zero() -> None:
    x = torch.tensor([[[NAN, 5.0], [math.inf, 6.0]]])
    mask = torch.tensor([[[False, True], [False, False]]])
    s = IrregularSeries(torch.tensor([[0.0, 1.0]]), x, mask)
    assert s.values.tolist() == [[[0.0, 5.0], [0.0, 0.0]]]


@pytest.mark.parametrize("index", [2, -1, slice(1, 6, 2), [4, 0], torch.tensor([3, 3, 5])])
def test_indexing_takes_rows_and_trims(series: IrregularSeries, index: object) -> None:
    rows = torch.arange(7)[index].reshape(-1).tolist()
    part = series[index]
    t, x = series.ragged()
    assert same(part, IrregularSeries.from_ragged([t[i] for i in rows], [x[i] for i in rows]))
    assert part.times.shape[1] == part.lengths.max()


def test_indexing_by_bool(series: IrregularSeries) -> None:
    long = series.lengths > 2
    assert 0 < long.sum() < 7
    assert same(series[long], series[long.nonzero().squeeze(1)])


def test_indexing_to_nothing_and_beyond(series: IrregularSeries) -> None:
    assert len(series[:0]) == 0 and len(series[[]]) == 0
    with pytest.raises(IndexError):
        series[7]
    assert len(list(series)) == 7  # iteration ends


def test_splits_are_disjoint_complete_and_seeded(series: IrregularSeries) -> None:
    marked = IrregularSeries.from_ragged(
        [torch.zeros(1)] * 23, [torch.full((1, 1), float(i)) for i in range(23)]
    )

    def ids(seed: int) -> list[list[float]]:
        return [p.values.flatten().tolist() for p in marked.split((0.6, 0.1, 0.3), seed)]

    parts = ids(0)
    assert sorted(i for part in parts for i in part) == list(range(23))
    assert [len(p) for p in parts] == [14, 2, 7]
    assert ids(0) == parts
    assert ids(1) != parts
    assert parts[0] != sorted(parts[0])


@pytest.mark.parametrize("fractions", [(), (0.5, 0.4), (1.2, -0.2), (0.5, 0.5, 0.0), (2.0,)])
def test_bad_fractions(series: IrregularSeries, fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="fractions"):
        series.split(fractions, 0)


def test_union_of_times() -> None:
    s = IrregularSeries.from_ragged(
        [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0, 5.0])],
        [torch.tensor([[1.0], [NAN]]), torch.tensor([[3.0], [4.0], [5.0]])],
    )
    grid, values, mask = s.union()
    assert grid.tolist() == [0, 1, 2, 5]
    assert values.squeeze(-1).tolist() == [[1, 0, 0, 0], [0, 3, 4, 5]]
    assert mask.squeeze(-1).tolist() == [[True, False, False, False], [False, True, True, True]]


def test_union_of_random_series_holds_every_observation(series: IrregularSeries) -> None:
    grid, values, mask = series.union()
    assert (grid.diff() > 0).all()
    assert mask.sum() == series.n_observed
    for b, (t, x) in enumerate(zip(*series.ragged(), strict=True)):
        at = torch.searchsorted(grid, t)
        assert torch.equal(grid[at], t)
        assert torch.equal(values[b, at], x.nan_to_num(0.0))


def test_before() -> None:
    s = IrregularSeries.from_ragged(
        [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5])], [torch.ones(3, 2), torch.ones(1, 2)]
    )
    early = s.before(2.0)
    assert early.lengths.tolist() == [2, 1] and early.times.shape[1] == 2
    assert same(s.before(2.5), s)
    with pytest.raises(InputError, match=r"before\(t=0.5\): series 1"):
        s.before(0.5)


def test_concatenation(series: IrregularSeries) -> None:
    assert same(IrregularSeries.concatenate([series[:2], series[2:]]), series)
    assert same(IrregularSeries.concatenate(list(series)), series)
    with pytest.raises(InputError, match="different kinds"):
        IrregularSeries.concatenate([series, series.to(dtype=torch.float64)])
    with pytest.raises(InputError, match="nothing"):
        IrregularSeries.concatenate([])


def test_padding_more(series: IrregularSeries) -> None:
    wide = series.padded(11)
    assert wide.times.shape[1] == 11
    assert same(wide[:], series)
    with pytest.raises(InputError, match="too few"):
        series.padded(2)


def test_to(series: IrregularSeries) -> None:
    double = series.to(dtype=torch.float64)
    assert double.times.dtype == double.values.dtype == torch.float64
    assert double.mask.dtype == torch.bool
    assert same(double.to("cpu", torch.float32), series)


@pytest.mark.parametrize(
    "times, message",
    [
        ([0.0, 2.0, 1.0], "2 is followed by 1"),
        ([0.0, 1.0, 1.0], "1 is there twice"),
        ([0.0, NAN, 1.0], "NaN before the last"),
        ([0.0, 1.0, math.inf], "infinite"),
    ],
)
def test_bad_times(times: list[float], message: str) -> None:
    good = torch.tensor([0.0, 1.0, 2.0])
    both = torch.stack([good, torch.tensor(times)])
    x = torch.ones(2, 3, 1)
    x_mask = (~both.isnan()).unsqueeze(-1)
    with pytest.raises(InputError, match=f"series 1: .*{message}"):
        IrregularSeries(both, x, x_mask)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_ragged_times_must_be_finite(bad: float) -> None:
    # Also at the end, where NaN would otherwise pass for padding and the values be lost.
    with pytest.raises(InputError, match="series 0: a time is NaN or infinite"):
        IrregularSeries.from_ragged([torch.tensor([0.0, bad])], [torch.ones(2, 1)])


@pytest.mark.parametrize(
    "times, values, message",
    [
        ([[0.0]], [], "1 tensors of times but 0"),
        ([], [], "no series"),
        ([[0.0, 1.0]], [[[1.0]]], "2 times but 1 rows"),
        ([[0.0], []], [[[1.0]], torch.empty(0, 1)], "series 1 has no observation"),
        ([[0.0]], [[[NAN, NAN]]], "series 0 has no observation"),
        ([[0.0], [0.0]], [[[1.0]], [[1.0, 2.0]]], "series 1 has 2 coordinates"),
        ([[0.0]], [[1.0]], "unsqueeze"),
        ([[0.0]], [torch.ones(1, 1, dtype=torch.int64)], "floating"),
    ],
)
def test_bad_ragged_input(times: list, values: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        IrregularSeries.from_ragged(
            [torch.tensor(t) for t in times], [torch.as_tensor(x) for x in values]
        )


def test_bad_tensors() -> None:
    t, x, m = torch.tensor([[0.0, NAN]]), torch.ones(1, 2, 2), torch.ones(1, 2, 2).bool()
    with pytest.raises(InputError, match="marked as observed where there is no time"):
        IrregularSeries(t, x, m)
    t = torch.tensor([[0.0, 1.0]])
    with pytest.raises(InputError, match="an observed value is NaN"):
        IrregularSeries(t, x * NAN, m)
    with pytest.raises(InputError, match=r"\(B, T\), \(B, T, C\)"):
        IrregularSeries(t, x, m[..., 0])
    with pytest.raises(InputError, match=r"mask.bool\(\)"):
        IrregularSeries(t, x, m.float())
    with pytest.raises(InputError, match="one floating dtype"):
        IrregularSeries(t.double(), x, m)
