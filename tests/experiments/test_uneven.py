"""The uneven experiment's claims at a size that takes seconds."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pynode.cli import main
from pynode.data.series import IrregularSeries
from pynode.data.turning import MEAN_GAP, TurningSeries, turning
from pynode.errors import InputError
from pynode.experiments import uneven, uneven_table

SMALL = uneven.UnevenRun(
    model="rnn_dt", world="autonomous", unevenness=1.0, missing=0.0, seed=0, series=150,
    observations=15, epochs=25, batch_size=75, lr=0.03, hidden=24,
)  # fmt: skip


def test_gaps_are_as_uneven_as_asked_for():
    for cv in (0.0, 0.5, 2.0):
        gaps = turning(200, 40, cv, seed=1).observed.times.diff(dim=1)
        assert gaps.mean().item() == pytest.approx(MEAN_GAP, rel=0.1)
        assert (gaps.std() / gaps.mean()).item() == pytest.approx(cv, rel=0.15, abs=1e-3)
    with pytest.raises(InputError, match="unevenness"):
        turning(1, 5, -1.0)


def test_missing_rate_and_worlds():
    series = turning(100, 30, missing=0.6, seed=0)
    assert series.observed.mask.any(-1).all()
    assert series.observed.mask.float().mean().item() == pytest.approx(1 - 0.6 + 0.18, abs=0.02)
    truth = turning(20, 30, world="driven", noise=0.0, seed=2)
    t = truth.observed.times
    ratio = truth.truth[..., 0] / (1.9 * t).sin()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-2)


def test_an_rnn_told_the_gap_beats_one_told_nothing_where_gaps_differ(tmp_path):
    told, untold = (uneven.work(replace(SMALL, model=m), tmp_path) for m in ("rnn_dt", "rnn"))
    assert told["rmse"] < 0.9 * untold["rmse"]


def test_rules_use_nothing_of_the_moment_itself():
    times = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    values = torch.tensor([[[1.0], [2.0], [9.0], [9.0]]])
    mask = torch.tensor([[[True], [True], [False], [True]]])
    test = TurningSeries(IrregularSeries(times, values, mask), values)
    assert uneven.untrained("last_value", test)[0, :, 0].tolist() == [0.0, 1.0, 2.0, 2.0]
    assert uneven.untrained("line", test)[0, :, 0].tolist() == [0.0, 1.0, 3.0, 3.0]


def test_errors_by_gap_make_up_the_whole():
    test = turning(300, 15, 1.0, seed=0)
    row = uneven.errors(test.truth + 0.3, test)
    assert row["rmse"] == pytest.approx(0.3, abs=1e-5)
    assert all(x == pytest.approx(0.3, abs=1e-5) for x in row["rmse_by_gap"])


def test_verdicts_need_more_than_noise():
    def rows(t, dt):
        common = {"world": "autonomous", "unevenness": 1.0, "missing": 0.0, "parameters": 1}
        return [
            {"model": m, "seed": s, "rmse": x, **common}
            for m, values in (("rnn_t", t), ("rnn_dt", dt))
            for s, x in enumerate(values)
        ]

    clear = uneven_table.time_or_gap(rows((0.5, 0.51, 0.49), (0.3, 0.31, 0.29)))
    assert "No: Δt is better at unevenness 1" in clear
    noise = uneven_table.time_or_gap(rows((0.5, 0.2, 0.4), (0.3, 0.4, 0.3)))
    assert "cannot tell the two apart" in noise
    assert math.isinf(uneven_table.difference(rows((1.0,), (2.0,)), "rnn_t", "rnn_dt").half_width)


@pytest.mark.slow
def test_the_whole_experiment(tmp_path):
    size = ["--epochs", "1", "--seeds", "2", "--series", "8", "--observations", "8"]
    assert main(["experiment", "uneven", *size, "--jobs", "1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {r["model"] for r in rows} == set(uneven_table.LABELS)
    assert len(rows) == len(uneven.settings()) * len(uneven_table.LABELS) * 2
    assert "same as feeding Δt?" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 50_000
