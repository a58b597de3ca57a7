"""Models of time series whose ODE is solved and differentiated in Julia, against torch."""

import pytest
import torch

from pynode.data import spirals
from pynode.models import build

pytestmark = pytest.mark.julia


@pytest.mark.parametrize("name", ["ode_rnn", "latent_ode"])
def test_loss_and_gradient(name):
    series = spirals(n_series=3, observed=6, seed=0).observed.to(dtype=torch.float64)
    losses, gradients = [], []
    for engine in ("torch", "julia"):
        torch.manual_seed(0)
        model = build(name, 2, engine=engine, rtol=1e-8, atol=1e-10).double()
        loss = model.loss(series, generator=torch.Generator().manual_seed(1)).total
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        losses.append(loss.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in grads if g is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-8)
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert float(error) < 1e-5
