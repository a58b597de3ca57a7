"""Constant memory where it is promised, and the case in which backsolve is wrong."""

import tiny_runs

from pynode.experiments.memory import Scale
from pynode.experiments.memory_table import growth, points, typical


def test_claims(monkeypatch, tmp_path):
    scale = Scale(seeds=1, lengths=(0.5, 4.0), decays=(5.0, 40.0), batch=4, hidden=8)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "memory", scale)
    assert growth(rows, "discrete") > 4 and growth(rows, "interpolating") > 2
    for method in ("backsolve", "reversible", "discrete, 8 checkpoints"):
        assert growth(rows, method) < 1.25

    def error(method, decay):
        return typical(points(rows, "decay", method, decay), "error")

    assert error("backsolve", 5.0) < 1e-5 and error("backsolve", 40.0) > 0.01
    for method in ("discrete", "discrete, 8 checkpoints", "interpolating", "gauss"):
        assert error(method, 40.0) < 1e-5
    assert "From λ = 40 on it is more than 1% off" in text
    assert "grows for `discrete`" in text
