"""The recurrent models do what they say, step by step."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models import build
from pynode.models.timeline import of_observations

NAMES = pytest.mark.parametrize("name", ["rnn", "rnn_t", "rnn_dt", "rnn_decay"])


def make(name: str):  # type: ignore[no-untyped-def]
    model = build(name, 2, **({} if name == "rnn" else {"time_scale": 0.5}))
    torch.nn.init.normal_(model.first)
    return model


def step(model, name: str, h: Tensor, x: Tensor, seen: Tensor, t: float, t_next: float) -> Tensor:  # type: ignore[no-untyped-def]
    """One reading of one series, written out; the state at t_next."""
    told = {"rnn_t": [t_next / 0.5], "rnn_dt": [(t_next - t) / 0.5]}.get(name, [])
    h = model.cell(torch.cat([x, seen, torch.tensor(told)]).unsqueeze(0), h)
    if name == "rnn_decay":
        h = h * torch.exp(-softplus(model.rate) * (t_next - t) / 0.5)
    return h


@NAMES
def test_walk_written_out_for_one_series(name: str, float64: None) -> None:
    """Observations, a missing coordinate, queries between, at and beyond observations."""
    model = make(name)
    series = IrregularSeries.from_ragged(
        [torch.tensor([1.0, 2.0, 2.5])],
        [torch.tensor([[0.5, -1.0], [math.nan, 0.3], [0.1, 0.2]])],
    )
    at = torch.tensor([0.5, 1.0, 1.3, 2.0, 3.0, 3.7])
    both = torch.ones(2)
    points = [1.0, 1.3, 2.0, 2.5, 3.0, 3.7]
    given = {
        1.0: (series.values[0, 0], both),
        2.0: (series.values[0, 1], torch.tensor([0.0, 1.0])),
        2.5: (series.values[0, 2], both),
    }
    h, mean = torch.zeros(1, 25), model.first
    predicted = {0.5: mean}
    for t, t_next in zip(points, [*points[1:], 9.9], strict=True):
        predicted[t] = mean
        x, seen = given.get(t, (mean, both))
        x = torch.where(seen.bool(), x, mean)
        h = step(model, name, h, x, seen, t, t_next)
        mean = model.readout(h)[0]
    expected = torch.stack([predicted[t] for t in at.tolist()])
    assert torch.allclose(model.predict(series, at).mean[0], expected, atol=1e-12)


@NAMES
def test_loss_is_one_step_ahead(name: str, ragged_series: IrregularSeries) -> None:
    """The loss is that of predict at the observed times: each made before it is read."""
    model = make(name)
    means = model.predict(ragged_series, ragged_series.times).mean.nan_to_num()
    first = torch.arange(means.shape[1]) == 0  # has a standard deviation of its own
    sigma = model.likelihood.sigma_at(first.expand(len(means), -1))
    assert torch.unique(sigma).numel() == 2
    density = torch.distributions.Normal(means, sigma).log_prob(ragged_series.values)
    expected = -density[ragged_series.mask].mean()
    assert torch.allclose(model.loss(ragged_series).total, expected, atol=1e-5)


@NAMES
def test_no_prediction_knows_its_own_observation(name: str, ragged_series: IrregularSeries) -> None:
    model = make(name)
    x = ragged_series[1].values.clone().requires_grad_()
    s = IrregularSeries(ragged_series[1].times, x, torch.ones_like(x, dtype=torch.bool))
    means = model.predict(s, s.times).mean
    for i in range(x.shape[1]):
        (g,) = torch.autograd.grad(means[0, i].sum(), x, retain_graph=True, allow_unused=True)
        g = torch.zeros_like(x) if g is None else g
        assert not g[0, i:].any()
        assert (g[0, :i] != 0).all()


@NAMES
def test_a_query_before_the_first_observation_changes_nothing(name: str) -> None:
    model = make(name)
    s = IrregularSeries.from_ragged([torch.tensor([1.0, 2.0])], [torch.ones(2, 2)])
    with_early = model.predict(s, torch.tensor([0.1, 0.9, 3.0])).mean
    assert torch.equal(with_early[0, 0], model.first) and torch.equal(with_early[0, 1], model.first)
    assert torch.equal(with_early[0, 2], model.predict(s, torch.tensor([3.0])).mean[0, 0])


def test_rates_of_decay_stay_nonnegative_and_decay(float64: None) -> None:
    """After a long gap the decaying network has forgotten; with a rate of 0 nothing decays."""
    model = make("rnn_decay")
    s = IrregularSeries.from_ragged([torch.tensor([0.0])], [torch.ones(1, 2)])
    far = model.predict(s, torch.tensor([1e4])).mean
    assert torch.allclose(far[0, 0], model.readout.bias)
    with torch.no_grad():
        model.rate.fill_(-100.0)
    assert (softplus(model.rate) >= 0).all()
    near, later = (model.predict(s, torch.tensor([t])).mean for t in (1.0, 50.0))
    assert torch.allclose(near, later)
    assert not torch.allclose(later, far)


def test_the_plain_rnn_knows_no_time(ragged_series: IrregularSeries) -> None:
    model = make("rnn")
    s = ragged_series
    stretched = IrregularSeries(s.times * 7 + 3, s.values, s.mask)
    at = torch.tensor([2.0, 5.0, 6.0])
    assert torch.equal(model.predict(s, at).mean, model.predict(stretched, at * 7 + 3).mean)


def test_rnn_dt_knows_gaps_but_not_the_origin_of_time(
    ragged_series: IrregularSeries, float64: None
) -> None:
    s = ragged_series.to(dtype=torch.float64)
    shifted = IrregularSeries(s.times + 3, s.values, s.mask)
    at = torch.tensor([2.0, 5.0, 6.0])
    for name in ("rnn_dt", "rnn_decay"):
        model = make(name)
        assert torch.allclose(
            model.predict(s, at).mean, model.predict(shifted, at + 3).mean, atol=1e-10
        )
    model = make("rnn_t")
    assert not torch.allclose(
        model.predict(s, at).mean, model.predict(shifted, at + 3).mean, atol=1e-3
    )


@pytest.mark.parametrize("name", ["rnn", "rnn_dt", "ode_rnn"])
def test_what_comes_first_has_its_own_standard_deviation(name: str) -> None:
    model = build(name, 2, sigma=0.25)
    s = IrregularSeries.from_ragged([torch.tensor([1.0, 2.0])], [torch.ones(2, 2)])
    std = model.predict(s, torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])).std[0, :, 0]
    assert std.tolist() == pytest.approx([1.1, 1.1, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("name", ["rnn_impute", "gru_d"])
def test_a_missing_coordinate_fades_from_its_last_value_to_the_mean(name):
    model = build(name, 2)
    with torch.no_grad():
        model.impute.centre.copy_(torch.tensor([5.0, -5.0]))
        model.impute.slope.fill_(0.5)
    held, since = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    share = math.exp(-1.0)
    expected = torch.tensor([[1.0, share - 5.0 * (1 - share)]])
    assert torch.allclose(model.impute(held, since), expected)


def test_imputation_goes_by_the_time_since_each_coordinate_was_seen():
    """The walk hands over the last value of a coordinate and the time since, not the gap."""
    model, calls = build("rnn_impute", 2), []
    model.impute.register_forward_hook(lambda _, given, out: calls.append(given))
    values = torch.tensor([[1.0, 2.0], [3.0, math.nan], [4.0, 5.0]])
    series = IrregularSeries.from_ragged([torch.tensor([0.0, 1.0, 4.0])], [values])
    model.loss(series)
    held, since = calls[2]
    assert held.tolist() == [[3.0, held[0, 1].item()]]
    assert since[0].tolist() == [3.0, 4.0] and held[0, 1] == 2.0


def test_gru_d_forgets_with_time():
    model = build("gru_d", 1)
    with torch.no_grad():
        model.decay.weight.fill_(1.0)
        model.decay.bias.zero_()
    h, gap = torch.ones(1, 25), torch.tensor([[2.0]])
    assert torch.allclose(model._decayed(h, gap, gap), h * math.exp(-2.0))


def test_time2vec_is_told_of_the_next_point():
    model = build("rnn_time2vec", 1, embedding=3)
    line = of_observations(
        IrregularSeries.from_ragged([torch.tensor([1.0, 1.5, 4.0])], [torch.ones(3, 1)])
    )
    told = torch.cat(model._told(line), dim=-1)
    angle = torch.tensor([1.5, 4.0, 4.0])[:, None] * model.frequency + model.phase
    assert torch.allclose(told[0, :, 0], angle[:, 0])
    assert torch.allclose(told[0, :, 1:], angle[:, 1:].sin())
    with pytest.raises(InputError, match="embedding"):
        build("rnn_time2vec", 1, embedding=1)


def test_both_times_are_told():
    line = of_observations(
        IrregularSeries.from_ragged([torch.tensor([1.0, 1.5])], [torch.ones(2, 1)])
    )
    time, gap = build("rnn_t_dt", 1, time_scale=0.5)._told(line)
    assert time[0, :, 0].tolist() == [3.0, 3.0] and gap[0, :, 0].tolist() == [1.0, 0.0]
