"""One model at many tolerances: cost grows, and the solver's error falls, with the tolerance."""

import pytest
import tiny_runs

from pynode.experiments.adaptive import Scale
from pynode.experiments.adaptive_table import close, of, of_task, points

pytest.importorskip("sklearn")


def test_claims(monkeypatch, tmp_path):
    scale = Scale(seeds=1, epochs=2, steps=15, horizon=4.0)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "adaptive", scale)
    for task in ("digits", "pendulum"):
        settings = points(rows, task, "tsit5")
        nfe = [of(same, "nfe").mean for same in settings]
        errors = [of(same, "error").mean for same in settings]
        assert nfe == sorted(nfe) and nfe[-1] > 3 * nfe[0]
        assert errors[-1] < 1e-3 * errors[0] and errors[-1] < 1e-6
        exact = of_task(rows, task)[0]["exact_score"]
        assert of(settings[-1], "score").mean == pytest.approx(exact, abs=1e-4)
    assert "evaluations instead of" in text


def test_as_good_as_the_finest():
    assert close("digits", 0.951, 0.955) and not close("digits", 0.94, 0.955)
    assert close("pendulum", 0.101, 0.1) and not close("pendulum", 0.11, 0.1)
