"""The latent ODE: recognition backwards in time, one flow, and the bound."""

import math

import pytest
import torch
from test_ode_rnn import Drift, Keep
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models import build
from pynode.models.recognition import ODERNNEncoder, _backwards

ENCODERS = pytest.mark.parametrize("encoder", ["rnn", "ode_rnn"])


@pytest.fixture
def series() -> IrregularSeries:
    return IrregularSeries.from_ragged(
        [torch.tensor([1.0, 1.5, 4.0]), torch.tensor([0.5])],
        [torch.tensor([[1.0], [math.nan], [3.0]]), torch.tensor([[7.0]])],
    )


def test_reading_goes_backwards_to_t0(series: IrregularSeries) -> None:
    x, gaps = _backwards(series, 0.25)
    assert x[0].tolist() == [[3, 1], [0, 0], [1, 1]]
    assert x[1, 0].tolist() == [7, 1]
    assert gaps.tolist() == [[2.5, 0.5, 0.75], [0.25, 0, 0]]


def test_gru_reads_from_last_to_first(ragged_series: IrregularSeries) -> None:
    """Against a GRU cell run over each series by itself."""
    model = build("latent_ode", 2, time_scale=0.5)
    gru = model.encoder.gru
    cell = nn.GRUCell(5, 25)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in gru.state_dict().items()})
    mean, log_std = model.encoder(ragged_series, 0.0, [])
    for b, (t, x) in enumerate(zip(*ragged_series.ragged(), strict=True)):
        h = torch.zeros(1, 25)
        for i in reversed(range(len(t))):
            gap = (t[i] - (t[i - 1] if i else 0.0)) / 0.5
            seen = (~x[i].isnan()).float()
            h = cell(torch.cat([x[i].nan_to_num(), seen, gap.reshape(1)]).unsqueeze(0), h)
        expected = model.encoder.out(h)[0]
        assert torch.allclose(torch.cat([mean[b], log_std[b]]), expected, atol=1e-6)


def test_ode_rnn_encoder_flows_back_exactly_to_t0(ragged_series: IrregularSeries) -> None:
    """With a clock for a field and observations that change nothing, it ends at t0 - t_last."""
    s = ragged_series
    encoder = ODERNNEncoder(2, 3, 2, 1.0, 5, solver="bs3", rtol=1e-6, atol=1e-6)
    encoder.flow.node.field.field = Drift()
    encoder.cell = Keep()
    seen: list[Tensor] = []
    encoder.out.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    for t0 in (0.0, -1.5):
        encoder(s, t0, [])
        last = s.times.nan_to_num(-1).amax(dim=1)
        assert torch.allclose(seen[-1], (t0 - last).unsqueeze(-1).expand(-1, 3), atol=1e-5)


@ENCODERS
def test_decodes_each_series_at_its_own_times(
    encoder: str, ragged_series: IrregularSeries, float64: None
) -> None:
    """One joint solve gives what a solve for each series and time alone gives."""
    s = ragged_series.to(dtype=torch.float64)
    model = build("latent_ode", 2, encoder=encoder, rtol=1e-9, atol=1e-10)
    mean, _ = model._recognise(s)
    together = model._decode(mean, s.times)
    for b in range(len(s)):
        for i in range(int(s.lengths[b])):
            z = model.node(mean[b : b + 1], torch.stack([torch.tensor(0.0), s.times[b, i]]))[-1]
            assert torch.allclose(together[b, i], model.decoder(z)[0], atol=1e-6)


def test_time_scale_and_t0(series: IrregularSeries, float64: None) -> None:
    """With dz/dt = 1 and a linear decoder, the prediction tells the time since t0."""
    model = build("latent_ode", 1, latent=1, t0=0.5, time_scale=2.0)
    model.node.field = Drift()
    model.decoder = nn.Identity()
    z0 = model._recognise(series.to(dtype=torch.float64))[0]
    at = torch.tensor([0.5, 1.0, 8.5])
    mean = model.predict(series.to(dtype=torch.float64), at).mean
    expected = z0 + (at - 0.5) / 2.0
    assert torch.allclose(mean.squeeze(-1), expected, atol=1e-9)


def test_nothing_may_be_earlier_than_t0(series: IrregularSeries) -> None:
    model = build("latent_ode", 1, t0=0.7)
    with pytest.raises(InputError, match=r"series 1: an observation, 0\.5, is earlier"):
        model.loss(series)
    with pytest.raises(InputError, match=r"asked for, 0\.6, is earlier"):
        model.predict(series[0], torch.tensor([0.6, 2.0]))
    build("latent_ode", 1, t0=0.5).predict(series, torch.tensor([0.5, 2.0]))


def fixed_posterior(model: nn.Module, mean: float, std: float) -> None:
    out = model.encoder.out
    latent = out.out_features // 2
    nn.init.zeros_(out.weight)
    with torch.no_grad():
        out.bias[:latent] = mean
        out.bias[latent:] = math.log(std)


@ENCODERS
def test_kl_divergence(encoder: str, ragged_series: IrregularSeries) -> None:
    model = build("latent_ode", 2, encoder=encoder, latent=3)
    fixed_posterior(model, 0.8, 0.3)
    q, p = torch.distributions.Normal(0.8, 0.3), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).item() * 3 * 6 / ragged_series.n_observed

    def terms(weight: float):  # type: ignore[no-untyped-def]
        g = torch.Generator().manual_seed(0)
        return model.loss(ragged_series, kl_weight=weight, generator=g)

    assert terms(1.0).parts["kl"] == pytest.approx(expected, rel=1e-5)
    for weight in (0.0, 0.5, 1.0):
        found = terms(weight)
        sum_ = found.parts["nll"] + weight * found.parts["kl"]
        assert found.total.item() == pytest.approx(sum_, rel=1e-5)
    fixed_posterior(model, 0.0, 1.0)
    assert terms(1.0).parts["kl"] == pytest.approx(0.0, abs=1e-6)


def test_loss_bounds_the_likelihood(float64: None) -> None:
    """With a constant path and linear decoding, x = z0 + noise: the evidence is known exactly.

    The mean loss is -log p(x) at the true posterior, and above it elsewhere.
    """
    model = build("latent_ode", 1, latent=1, sigma=0.5)

    class Still(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return 0 * z

    model.node.field, model.decoder = Still(), nn.Identity()
    x = 1.3
    s = IrregularSeries.from_ragged([torch.tensor([1.0])], [torch.tensor([[x]])])
    evidence = torch.distributions.Normal(0.0, math.sqrt(1 + 0.25)).log_prob(torch.tensor(x))

    def bound() -> float:
        """The mean over many draws: copies of the series, each of which draws its own z0."""
        g = torch.Generator().manual_seed(0)
        return model.loss(s[[0] * 5000], generator=g).total.item()

    fixed_posterior(model, x / 1.25, math.sqrt(0.25 / 1.25))
    assert bound() == pytest.approx(-evidence.item(), abs=0.02)
    fixed_posterior(model, x / 1.25 + 0.8, 0.4)
    assert bound() > -evidence.item() + 0.5


def test_predict_draws_with_a_generator(ragged_series: IrregularSeries) -> None:
    model = build("latent_ode", 2)
    fixed_posterior(model, 0.1, 0.5)
    at = torch.tensor([0.5, 2.0])

    def predict(seed: int | None) -> Tensor:
        g = None if seed is None else torch.Generator().manual_seed(seed)
        return model.predict(ragged_series, at, generator=g).mean

    assert torch.equal(predict(None), predict(None))
    assert torch.equal(predict(1), predict(1))
    assert not torch.allclose(predict(1), predict(2))
    mean = torch.stack([predict(i) for i in range(40)]).mean(dim=0)
    assert (mean - predict(None)).abs().max() < 0.2 * (predict(1) - predict(2)).abs().max() + 0.1


def test_nfe_counts_recognition_and_decoding(ragged_series: IrregularSeries) -> None:
    plain, flowing = build("latent_ode", 2), build("latent_ode", 2, encoder="ode_rnn")
    plain.loss(ragged_series)
    assert plain.nfe[0] == plain.node.stats.nfe > 0
    flowing.loss(ragged_series)
    assert flowing.nfe[0] > flowing.node.stats.nfe > 0
