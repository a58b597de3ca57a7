"""What a solution shows of itself: in words and as a figure."""

import pytest
import torch

from pynode import NeuralODE, solve
from pynode.errors import InputError
from pynode.solution import Statistics


def pendulum(t, z):
    q, p = z
    return p, -torch.sin(q)


def test_words():
    stats = Statistics(nfe=7, accepted=2, rejected=1)
    assert str(stats) == "nfe 7; 2 steps accepted, 1 rejected"
    stats.jacobians, stats.nfe_backward, stats.vjp = 3, 5, 4
    assert str(stats).endswith("3 Jacobians; backward: nfe 5, vjp 4")
    stats.accepted_backward = 6
    assert str(stats).endswith("vjp 4, 6 steps accepted, 0 rejected")
    z0 = {"q": torch.ones(3), "p": torch.ones(3)}
    sol = solve(lambda t, z: {"q": z["p"], "p": -z["q"]}, z0, [0.0, 1.0])
    assert repr(sol) == f"Solution(success, zs['q'] (2, 3), zs['p'] (2, 3); {sol.stats})"


def test_stats_tell_of_the_backward_pass_once_it_ran():
    node = NeuralODE(torch.nn.Linear(2, 2))
    loss = node(torch.ones(2), [0.0, 1.0]).sum()
    assert "backward" not in str(node.stats)
    loss.backward()
    assert f"vjp {node.stats.vjp}" in str(node.stats)


def test_figure_with_dense_output():
    times = torch.linspace(2, 0, 5)
    sol = solve(pendulum, (torch.randn(2, 2), torch.randn(2, 2)), times)
    figure = sol.plot(entries=3)
    upper, lower = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["z[0]", "z[1]"]
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["[0, 0]", "[0, 1]", "[1, 0]", "1 more"]
    dots, curve = lower.get_lines()[:2]
    assert torch.allclose(torch.tensor(dots.get_ydata()), sol.zs[1][:, 0, 0])
    assert len(curve.get_xdata()) >= 400 and curve.get_xdata()[0] == 2.0
    steps = lower.get_lines()[-1]
    assert list(steps.get_xdata()) == sol.dense.steps and len(sol.dense.steps) > 3
    assert "nfe" in upper.get_title(loc="left") and lower.get_xlabel() == "t"


def test_figure_of_each_samples_own_times_without_dense_output():
    rows = [torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 0.5])]
    sol = solve(lambda t, z: -z, torch.ones(2, 1), rows, dense=False)
    (axes,) = sol.plot().axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata())]
    assert list(lines[0].get_xdata()) == [0.0, 1.0, 4.0]
    assert axes.get_legend().get_texts()[1].get_text() == "z[1, 0]"


def test_figures_of_odd_solutions(tmp_path):
    """Complex numbers, a single number as the state, a solve that failed."""
    turning = solve(lambda t, z: 1j * z, torch.ones(2, dtype=torch.complex64), [0.0, 1.0])
    dashes = {line.get_linestyle() for line in turning.plot().axes[0].get_lines()}
    assert {"-", "--"} <= dashes
    number = solve(lambda t, z: -z, torch.tensor(1.0), [0.0, 1.0]).plot()
    assert number.axes[0].get_legend().get_texts()[0].get_text() == "z"
    broken = solve(lambda t, z: z * z, torch.ones(1), [0.0, 0.5, 2.0], throw=False).plot()
    assert "dt_underflow" in broken.axes[0].get_title(loc="left")
    broken.savefig(tmp_path / "broken.png")
    with pytest.raises(InputError, match="entries"):
        turning.plot(entries=0)
