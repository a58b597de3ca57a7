"""A learned energy is kept over a long time; a plain field loses it."""

import pytest
import tiny_runs
import torch

from pynode import NeuralODE
from pynode.experiments import physics
from pynode.experiments.physics import Scale, energy, pendulum, starts, truth
from pynode.experiments.physics_table import by_model
from pynode.models.hamiltonian import HamiltonianField, SeparableHamiltonianField


def test_claim(monkeypatch, tmp_path):
    monkeypatch.setattr(physics, "MODELS", ("plain", "hamiltonian", "still"))
    scale = Scale(seeds=1, stretches=20, steps=80, hidden=16, noise=0.02, horizon=30.0)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "physics", scale)
    models = {name: mine[0] for name, mine in by_model(rows).items()}
    assert models["hamiltonian"]["own_drift"] < 1e-4
    assert models["hamiltonian"]["drift_end"] < models["plain"]["drift_end"]
    assert models["hamiltonian"]["rmse_short"] < models["still"]["rmse_short"]
    assert "Hamiltonian field" in text


def test_starts_have_the_energies_asked_for():
    z = starts(200, torch.Generator().manual_seed(0))
    found = energy(z)
    assert found.min() > 0.2 - 1e-9 and found.max() < 1.5 + 1e-9 and found.std() > 0.3
    path = truth(z[:3], torch.linspace(0, 10, 5, dtype=torch.float64))
    torch.testing.assert_close(energy(path), energy(z[:3]).expand(5, 3), rtol=1e-6, atol=1e-6)
    assert torch.equal(pendulum(torch.zeros(()), torch.zeros(2)), torch.zeros(2))


@pytest.mark.usefixtures("float64")
def test_hamiltonian_field_is_the_rotated_gradient():
    field = HamiltonianField(2, 8)
    z = torch.randn(3, 4, requires_grad=True)
    slope = torch.autograd.grad(field.energy(z).sum(), z)[0]
    want = torch.cat([slope[:, 2:], -slope[:, :2]], 1)
    torch.testing.assert_close(field(torch.zeros(()), z), want)


@pytest.mark.usefixtures("float64")
def test_separable_field_keeps_its_energy_by_leapfrog():
    field = SeparableHamiltonianField(2, 8)
    z0 = (torch.randn(3, 2), torch.randn(3, 2))
    with torch.no_grad():
        drifts = []
        for dt in (0.1, 0.05):
            zs = NeuralODE(field, solver="leapfrog", dt=dt)(z0, torch.linspace(0, 10, 11))
            drifts.append((field.energy(zs) - field.energy(z0)).abs().max())
    assert drifts[1] < 0.35 * drifts[0] < 0.01
