"""Which gradient is right, at which cost."""

import tiny_runs

from pynode.experiments import gradients
from pynode.experiments.gradients import Scale
from pynode.experiments.gradients_table import TARGET, cheapest, groups, reached


def test_claims(monkeypatch, tmp_path):
    solvers = {"network": ("tsit5",), "forgetful": ("tsit5",), "stiff": ("rodas5p",)}
    monkeypatch.setattr(gradients, "SOLVERS", solvers)
    scale = Scale(1, 0.5, 40.0, 5.0, (1e-2, 1e-5), 1)
    rows, text = tiny_runs.run(monkeypatch, tmp_path, "gradients", scale, "--engines", "torch")
    network = groups(rows, "network")
    for sensitivity in ("discrete", "backsolve", "interpolating", "gauss", "quadrature"):
        loose, tight = network["tsit5", sensitivity, "torch"].values()
        assert tight[0]["error"] < 0.01 * loose[0]["error"] or tight[0]["error"] < 1e-8
        assert "vjp" in tight[0] and tight[0]["nfe"] > loose[0]["nfe"]
    # far more evaluations than any gradient, and yet right
    (_, best), (_, plain) = (
        cheapest(network["tsit5", name, "torch"]) for name in ("discrete", "differences")
    )
    assert plain[0]["nfe"] > 20 * best[0]["nfe"]
    assert cheapest(groups(rows, "forgetful")["tsit5", "backsolve", "torch"]) is None
    everywhere = [name for name, problems in reached(rows).items() if len(problems) == 3]
    assert {"discrete", "gauss", "interpolating"} <= set(everywhere)
    assert "backsolve" not in everywhere
    assert f"reach an error of {TARGET:g}" in text
    assert "`backsolve` does not on: a state that forgets" in text
