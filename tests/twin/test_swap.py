"""Code that was written for torchdiffeq runs unchanged; side by side with it, where installed."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from twin_problems import float64, forced

import pynode.torchdiffeq as tde
from pynode.torchdiffeq.methods import METHODS

SCRIPT = """
    import sys

    import pynode.torchdiffeq

    sys.modules["torchdiffeq"] = pynode.torchdiffeq

    import torch
    import torch.nn as nn
    import torchdiffeq
    from torchdiffeq import odeint_adjoint as odeint

    assert torchdiffeq.__version__ >= "0.2.0"
    torch.manual_seed(0)


    class ODEFunc(nn.Module):
        def __init__(self):
            super(ODEFunc, self).__init__()
            self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
            self.nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            return self.net(y**3)


    true_y0 = torch.tensor([[2.0, 0.0]])
    t = torch.linspace(0.0, 1.0, 5)
    true_A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    with torch.no_grad():
        true_y = torchdiffeq.odeint(lambda t, y: y**3 @ true_A, true_y0, t, method="dopri5")
    func = ODEFunc()
    optimizer = torch.optim.Adam(func.parameters(), lr=1e-2)
    losses = []
    for itr in range(10):
        optimizer.zero_grad()
        pred_y = odeint(func, true_y0, t, rtol=1e-4, atol=1e-5)
        loss = torch.mean(torch.abs(pred_y - true_y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert func.nfe > 0
    print("trained")
"""


def test_a_training_script_of_torchdiffeqs():
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "trained"


DIFFERENT = {"dopri8", "fehlberg2", "gl4", "tsit5", "explicit_adams", "bosh3", "adaptive_heun"}
"""What torchdiffeq's are less accurate in is said in docs/from-torchdiffeq.md."""


@pytest.mark.parametrize("method", sorted(set(METHODS) - DIFFERENT))
def test_against_torchdiffeq(method):
    """The same numbers where steps are fixed, and within tolerances where they are not."""
    reference = pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    y0 = torch.randn(2, dtype=torch.float64)
    t = torch.linspace(0.0, 2.0, 5, dtype=torch.float64)
    options = {"step_size": 0.05} if METHODS[method].on_grid else None
    results = []
    for library in (reference, tde):
        try:
            y = library.odeint(lambda t, y: net(y) - t, y0, t, method=method, options=options)
        except ValueError as error:
            if library is reference and "Invalid method" in str(error):
                pytest.skip(f"the installed torchdiffeq has no {method}")
            raise
        results.append(y)
    tol = 1e-9 if METHODS[method].kind == "fixed" else 1e-6
    torch.testing.assert_close(results[1], results[0], rtol=tol, atol=tol)


def test_events_against_torchdiffeq():
    reference = pytest.importorskip("torchdiffeq")
    found = []
    for library in (reference, tde):
        y0 = float64(1.0, grad=True)
        t, y = library.odeint_event(
            forced, y0, float64(0.0)[0], event_fn=lambda t, y: (y - 0.3).sum()
        )
        (t + y[-1].sum()).backward()
        found.append((float(t.detach()), float(y0.grad)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
