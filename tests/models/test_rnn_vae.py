"""RNN-VAE beyond what tests/models/test_all_models.py asks of every model."""

import torch

from pynode.data.series import IrregularSeries
from pynode.models import build


def test_decoder_is_told_the_gaps_and_nothing_else(ragged_series: IrregularSeries) -> None:
    model = build("rnn_vae", 2, time_scale=2.0)
    given = []
    model.gru.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.predict(ragged_series, torch.tensor([1.0, 1.5, 4.0]))
    assert torch.allclose(given[0][0, :, 0], torch.tensor([0.5, 0.25, 1.25]))
    assert given[0].shape == (6, 3, 1)


def test_it_learns_a_mean(ragged_series: IrregularSeries) -> None:
    torch.manual_seed(0)
    model = build("rnn_vae", 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        terms = model.loss(ragged_series, kl_weight=0.1, generator=generator)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        losses.append(terms.parts["nll"])
    assert losses[-1] < losses[0] - 0.5 and terms.parts["kl"] >= 0
