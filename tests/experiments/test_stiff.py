"""A half-known equation is recovered; and what scaling does for a stiff one."""

import math

import pytest
import tiny_runs
import torch

from pynode.experiments import stiff_lotka, stiff_robertson
from pynode.experiments.sparse_regression import in_words, monomials, sparse_fit
from pynode.experiments.stiff import Scale
from pynode.experiments.stiff_table import by_variant


def test_claims(monkeypatch, tmp_path):
    scale = Scale(seeds=1, evaluations=1500, steps=60, noise=0.0)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "stiff", scale)
    robertson = {name: mine[0] for name, mine in by_variant(rows, "robertson").items()}
    mean = robertson["scaled"]["baselines"]["mean of the observations"]
    assert robertson["unscaled"]["error"] > mean
    assert robertson["scaled_log_time"]["error"] < robertson["unscaled"]["error"]
    universal = by_variant(rows, "lotka")["universal"][0]
    assert universal["sparse_right_terms"]
    place = universal["sparse_terms"].index("uv")
    found = universal["sparse_coefficients"][place]
    assert found == pytest.approx([-stiff_lotka.BETA, stiff_lotka.GAMMA], abs=0.1)
    assert universal["sparse_rmse"] < universal["baselines"]["last value"]
    assert "From 1 of 1 seeds sparse regression" in text and "learns nothing" in text


def test_robertson_is_the_reaction():
    times, states = stiff_robertson.truth()
    assert len(times) == 197 and len(stiff_robertson.observed()[0]) == 50
    # mass is kept, and the end is known (Hairer, Wanner, Solving ODEs II, at t = 4e4 and beyond)
    torch.testing.assert_close(states.sum(1), torch.ones(197).double(), rtol=0, atol=1e-8)
    at_4e1 = states[(times.log10() - math.log10(40)).abs().argmin()]
    assert float(at_4e1[0]) == pytest.approx(0.7158, abs=0.02)


def test_fewest_terms():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 2, generator=generator, dtype=torch.float64)
    terms, labels = monomials(x, ("u", "v"), 2)
    assert labels == ["1", "u", "v", "uu", "uv", "vv"]
    u, v = x.unbind(1)
    values = torch.stack([1.3 * u - 0.9 * u * v, 0.5 + 0 * u], 1)
    found = sparse_fit(terms, values, 1e-6)
    assert in_words(found[:, 0], labels) == "1.30 u − 0.90 uv"
    assert in_words(found[:, 1], labels) == "0.50"
    # looser: one term less
    assert int((sparse_fit(terms, values, 0.3)[:, 0] != 0).sum()) == 1
    nothing = sparse_fit(terms, torch.rand(50, 1, generator=generator, dtype=torch.float64), 1e-6)
    assert bool((nothing != 0).all())
