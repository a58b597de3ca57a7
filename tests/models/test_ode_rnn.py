"""The state flows over exactly the gaps between observations."""

import math

import pytest
import torch
from torch import Tensor, nn

from pynode.data.series import IrregularSeries
from pynode.models import build
from pynode.models.gap_flow import GapFlow


class Drift(nn.Module):
    """dh/dt = 1: the state is a clock."""

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.ones_like(h)


class Rotation(nn.Module):
    """dh/dt = A h with a known solution: turns each pair of entries by one radian a unit of t."""

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        x, y = h.chunk(2, dim=-1)
        return torch.cat([-y, x], dim=-1)


class Clock(nn.Module):
    """dh/dt = 2t, t counted from the start of the gap: h grows by the square of the gap."""

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return 2 * t * torch.ones_like(h)


class Keep(nn.Module):
    """In place of the GRU cell: an observation leaves the state as it is."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h


class Reset(nn.Module):
    """In place of the GRU cell: an observation sets the clock to 0."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(h)


def turned(h: Tensor, angle: Tensor) -> Tensor:
    x, y = h.chunk(2, dim=-1)
    a = angle.unsqueeze(-1)
    return torch.cat([x * a.cos() - y * a.sin(), x * a.sin() + y * a.cos()], dim=-1)


GAPS = torch.tensor([0.0, 0.1, 3.0, -2.0, 7.5])


def test_every_sample_crosses_its_own_gap(float64: None) -> None:
    counts: list = []
    gaps = GAPS.double()
    h = torch.randn(5, 4)
    tight = {"solver": "tsit5", "rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(GapFlow(Drift(), **tight)(h, gaps, counts), h + gaps.unsqueeze(-1))
    assert torch.allclose(GapFlow(Rotation(), **tight)(h, gaps, counts), turned(h, gaps), atol=1e-8)
    squares = gaps.square().unsqueeze(-1)
    assert torch.allclose(GapFlow(Clock(), **tight)(h, gaps, counts), h + squares, atol=1e-8)
    assert len(counts) == 3 and all(c.nfe > 0 for c in counts)


def test_fixed_steps_are_a_share_of_the_gap(float64: None) -> None:
    h, gaps = torch.randn(5, 4), GAPS.double()
    errors = []
    for dt in (0.02, 0.01):
        counts: list = []
        end = GapFlow(Rotation(), solver="rk4", dt=dt)(h, gaps, counts)
        errors.append((end - turned(h, gaps)).abs().max().item())
        assert counts[0].nfe == 4 * round(1 / dt)
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_gradients_reach_state_gap_and_field(float64: None) -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7))

        def forward(self, t: Tensor, h: Tensor) -> Tensor:
            return -self.rate * h

    flow = GapFlow(Decay(), solver="tsit5", rtol=1e-9, atol=1e-10, sensitivity="discrete")
    h, gap = torch.ones(2, 1, requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    flow(h, gap, []).sum().backward()
    e = torch.exp(-0.7 * gap.detach())
    assert torch.allclose(h.grad.squeeze(1), e)
    assert torch.allclose(gap.grad, -0.7 * e)
    assert torch.allclose(flow.node.field.field.rate.grad, -(gap.detach() * e).sum())


def surgeon(field: nn.Module, cell: nn.Module, start: float, scale: float = 1.0):  # type: ignore[no-untyped-def]
    """An ODE-RNN whose output is its state, with a field and cell of known effect."""
    options = {"solver": "tsit5", "rtol": 1e-9, "atol": 1e-11}
    model = build("ode_rnn", 2, hidden=2, time_scale=scale, **options)
    model.flow.node.field.field = field
    model.cell = cell
    with torch.no_grad():
        model.readout.weight.copy_(torch.eye(2))
        model.readout.bias.zero_()
        model.first.fill_(start)
    return model


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_state_is_a_clock_since_the_first_observation(
    ragged_series: IrregularSeries, float64: None, scale: float
) -> None:
    """With dh/dt = 1 and observations that change nothing, the state tells the time elapsed.

    Summed over many gaps, of series with different gaps and lengths: any wrong interval shows.
    """
    s = ragged_series.to(dtype=torch.float64)
    model = surgeon(Drift(), Keep(), start=5.0, scale=scale)
    at = torch.linspace(0.0, 9.0, 31)
    mean = model.predict(s, at).mean
    elapsed = (at - s.times[:, :1]).clamp(min=0.0) / scale
    assert torch.allclose(mean, 5.0 + elapsed.unsqueeze(-1).expand_as(mean), atol=1e-9)
    at_observations = model.predict(s, s.times).mean
    elapsed = (s.times - s.times[:, :1]) / scale
    assert torch.allclose(at_observations[s.valid][:, 0], 5.0 + elapsed[s.valid], atol=1e-9)


def test_state_is_the_time_since_the_last_observation(
    ragged_series: IrregularSeries, float64: None
) -> None:
    """With observations that set the clock to 0, what is read in training is each gap itself."""
    s = ragged_series.to(dtype=torch.float64)
    model = surgeon(Drift(), Reset(), start=0.0)
    gaps = model.predict(s, s.times).mean[..., 0]
    expected = torch.cat([torch.zeros(6, 1), s.times.diff(dim=1)], dim=1)
    assert torch.allclose(gaps[s.valid], expected[s.valid], atol=1e-9)
    # the loss sees the same gaps
    sigma = model.likelihood.sigma_at((torch.arange(7) == 0).expand(6, -1))
    density = torch.distributions.Normal(expected.nan_to_num().unsqueeze(-1), sigma)
    nll = -density.log_prob(s.values)[s.mask].mean()
    assert torch.allclose(model.loss(s).total, nll, atol=1e-9)


def test_linear_field_turns_the_state_by_the_gaps(
    ragged_series: IrregularSeries, float64: None
) -> None:
    s = ragged_series.to(dtype=torch.float64)
    model = surgeon(Rotation(), Keep(), start=1.0)
    at = torch.linspace(0.5, 6.0, 12)
    elapsed = (at - s.times[:, :1]).clamp(min=0.0)
    expected = turned(torch.ones(6, 12, 2), elapsed)
    assert torch.allclose(model.predict(s, at).mean, expected, atol=1e-7)


def test_more_queries_do_not_change_the_answers(
    ragged_series: IrregularSeries, float64: None
) -> None:
    """Several queries in one gap are pieces of one flow, not readings."""
    s = ragged_series.to(dtype=torch.float64)
    model = build("ode_rnn", 2, solver="dp5", rtol=1e-8, atol=1e-9)
    fine = torch.linspace(0.0, 6.0, 61)
    mean = model.predict(s, fine).mean
    assert torch.allclose(mean[:, ::20], model.predict(s, fine[::20]).mean, atol=1e-7)


def test_missing_coordinates_are_filled_with_the_prediction(float64: None) -> None:
    model = build("ode_rnn", 2)
    read: list[Tensor] = []
    model.cell.register_forward_pre_hook(lambda cell, inputs: read.append(inputs[0]))
    s = IrregularSeries.from_ragged(
        [torch.tensor([0.0, 1.0])], [torch.tensor([[1.0, 2.0], [math.nan, 3.0]])]
    )
    predicted = model.predict(s, torch.tensor([1.0])).mean[0, 0]
    assert read[0][0].tolist() == [1, 2, 1, 1]
    assert torch.allclose(read[1][0], torch.stack([predicted[0], *torch.tensor([3.0, 0, 1])]))
