"""The series experiment's claims at a size that takes seconds."""

import json
from dataclasses import replace

import pytest
import torch

from pynode.cli import main
from pynode.experiments import series, series_table

SMALL = series.SeriesRun(
    data="toy", model="latent_ode", seed=0, series=44, epochs=1, batch_size=40,
    lr=0.02, latent=4, hidden=12, field_hidden=16,
)  # fmt: skip


def test_linear_interpolation_fills_in_and_cannot_forecast(tmp_path):
    runs = {m: series.work(replace(SMALL, model=m), tmp_path) for m in series_table.TRIVIAL}
    rows = {m: run["errors"][1] for m, run in runs.items()}
    assert rows["mean"]["observed"] == 30
    assert rows["linear"]["interpolation"] < 0.2 * rows["mean"]["interpolation"]
    assert rows["linear"]["extrapolation"] > 5 * rows["mean"]["extrapolation"]
    assert rows["mean"]["extrapolation"] == pytest.approx(0.5, abs=0.1)  # a sine's variance


def test_every_number_of_observed_points_is_learned_from_and_tested():
    data = series.data_of(SMALL)
    assert data.train.lengths.bincount().nonzero()[:, 0].tolist() == [10, 30, 50]
    assert len(data.train) == 40 and len(data.valid) == 4
    assert {n: t.observed.times.shape for n, t in data.tests.items()} == {
        n: (40, n) for n in (10, 30, 50)
    }
    assert torch.equal(data.tests[10].clean.values, data.tests[50].clean.values)


def test_the_hopper_has_a_demo_of_its_own():
    assert series.scales("hopper")["demo"].series == 1000
    assert series.scales("toy") == series.SCALES
    assert series.scales("hopper")["paper"].series == 10_000


def test_a_latent_ode_learns_to_fill_in(tmp_path):
    """A little of it: the whole takes minutes."""
    spec = replace(SMALL, series=80, batch_size=72, lr=0.03)
    first, row = (series.work(replace(spec, epochs=e), tmp_path) for e in (1, 20))
    assert row["errors"][2]["interpolation"] < first["errors"][2]["interpolation"]
    assert row["nfe"] > 10
    saved = torch.load(tmp_path / series.FORECASTS, weights_only=True)
    assert saved[30].shape == (20, 200, 1)


@pytest.mark.parametrize("model", [m for m in series_table.LABELS if m != "latent_ode"])
def test_every_model_runs(tmp_path, model):
    row = series.work(replace(SMALL, model=model, series=22), tmp_path)
    assert all(e["interpolation"] > 0 and e["extrapolation"] > 0 for e in row["errors"])
    assert (row["parameters"] > 0) == (model not in series_table.TRIVIAL)


def test_euler_takes_one_evaluation_a_gap():
    model = series.make(replace(SMALL, model="ode_rnn"))
    model.loss(series.data_of(SMALL).tests[10].observed)
    assert model.nfe[0] == 9  # gaps between ten observations


def test_findings_say_where_a_claim_does_not_hold():
    def rows(**errors):
        return [
            {"model": m, "observed": 30, "seed": s, "parameters": 1, "interpolation": e + s / 1000,
             "extrapolation": e + s / 1000}
            for m, e in errors.items() for s in range(3)
        ]  # fmt: skip

    behind = series_table.forecasting(rows(latent_ode=0.5, gru_d=0.2, rnn_vae=0.4))
    assert "is behind GRU-D (20.10)" in behind
    ahead = series_table.forecasting(rows(latent_ode=0.1, latent_ode_ode=0.3, gru_d=0.2))
    assert "latent ODE, RNN encoder (10.10) is ahead of GRU-D (20.10)" in ahead
    rule = series_table.against_rules(rows(latent_ode=0.5, mean=0.4, linear=0.9))
    assert "(mean) with 40.10, beaten by no model" in rule
    worse = series_table.encoders(rows(latent_ode=0.2, latent_ode_ode=0.3))
    assert "worse at n = 30" in worse


@pytest.mark.slow
def test_the_whole_experiment(tmp_path):
    size = ["--epochs", "1", "--seeds", "2", "--series", "22", "--hidden", "8", "--latent", "3"]
    assert main(["experiment", "series", *size, "--jobs", "1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {r["model"] for r in rows} == set(series_table.LABELS)
    assert [e["observed"] for e in rows[0]["errors"]] == [10, 30, 50]
    assert "## What came out" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 50_000
