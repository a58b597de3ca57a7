"""Figures are drawn without a window and hold what they should."""

import pytest
import torch

from pynode import plots
from pynode.data.spirals import spirals
from pynode.errors import InputError


@pytest.fixture
def one():
    return spirals(n_series=4, observed=20, missing=0.2, seed=0)[1]


def lines_of(axes, color):
    return [line for line in axes.get_lines() if line.get_color() == color]


def test_forecast_figure(one):
    clean = one.clean.values[0]
    forecasts = {"rnn_dt": clean + 0.3, "latent_ode": clean + 0.1}
    figure = plots.forecast_figure(one, forecasts, caption="how it was chosen")
    planes = figure.axes[::3]
    assert [axes.get_title(loc="left") for axes in planes] == ["rnn_dt", "latent_ode"]
    assert [axes.get_title(loc="right") for axes in planes] == [
        "extrapolation RMSE 0.300",
        "extrapolation RMSE 0.100",
    ]
    times = one.clean.times[0]
    inside = int((times <= one.window).sum())
    # The fit is drawn from the first observation on: before it, an RNN has nothing to go by.
    unseen = int((times <= one.observed.times[0, 0]).sum())
    for axes, offset in zip(planes, (0.3, 0.1), strict=True):
        assert axes.get_aspect() == 1
        (fit,) = lines_of(axes, plots.BLUE)
        (prediction,) = lines_of(axes, plots.RED)
        true, observed = lines_of(axes, plots.GREEN)
        assert len(true.get_xdata()) == clean.shape[0]
        assert len(observed.get_xdata()) == int(one.observed.mask[0].all(-1).sum())
        assert len(fit.get_xdata()) == inside - unseen
        assert len(prediction.get_xdata()) == clean.shape[0] - inside + 1
        assert torch.allclose(torch.tensor(fit.get_ydata()), clean[unseen:inside, 1] + offset)
    assert len({axes.get_xlim() for axes in planes}) == 1
    seen = [len(lines_of(axes, plots.GREEN)[1].get_xdata()) for axes in figure.axes[1:3]]
    assert seen == one.observed.mask[0].sum(0).tolist()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["true series", "observed", "fit", "prediction"]


def test_save(one, tmp_path):
    figure = plots.forecast_figure(one, {"latent_ode": one.clean.values[0]})
    plots.save(figure, tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    plots.save(figure, tmp_path / "figure.svg")
    assert b"<svg" in (tmp_path / "figure.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]


def test_nothing_overlaps(one):
    """Panels, their titles and labels, the legend and the caption keep apart."""
    forecasts = {"a model": one.clean.values[0], "another": one.clean.values[0] * 1.5}
    figure = plots.forecast_figure(one, forecasts, caption="a long caption " * 12)
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [figure.legends[0].get_window_extent(), figure._supxlabel.get_window_extent()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        for other in boxes[i + 1 :]:
            overlap = box.intersection(box, other)
            assert overlap is None or min(overlap.width, overlap.height) < 1


def test_a_forecast_that_runs_away_leaves_the_others_to_be_seen(one):
    clean = one.clean.values[0]
    size = (clean.max(0).values - clean.min(0).values).tolist()
    away = clean * torch.linspace(1, 1e4, len(clean)).unsqueeze(1)
    figure = plots.forecast_figure(one, {"good": clean, "bad": away})
    for coordinate in range(2):
        for panel in figure.axes[1 + coordinate :: 3]:
            low, high = panel.get_ylim()
            assert size[coordinate] < high - low < 3.5 * size[coordinate]
            assert low < clean[:, coordinate].min() < clean[:, coordinate].max() < high


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda one: (one, {}), "forecasts is empty"),
        (lambda one: (one, {"m": one.clean.values[0, :5]}), r"'m' has shape \(5, 2\)"),
        (lambda _: (spirals(n_series=4, observed=5), {"m": torch.zeros(1)}), "one series"),
    ],
)
def test_bad_input(one, make, said):
    with pytest.raises(InputError, match=said):
        plots.forecast_figure(*make(one))


def test_learning_curves():
    rows = [{"epoch": e, "train_loss": 1 / e, "valid_loss": (e - 2) ** 2} for e in (1, 2, 3, 4)]
    figure = plots.learning_curves({"one": rows, "two": rows[:2]})
    first = figure.axes[0]
    assert first.get_title(loc="left") == "one"
    (train,) = lines_of(first, plots.GREY)
    (valid,) = lines_of(first, plots.BLUE)
    (best,) = lines_of(first, plots.RED)
    assert list(train.get_ydata()) == [1 / e for e in (1, 2, 3, 4)]
    assert list(valid.get_ydata()) == [1, 0, 1, 4]
    assert list(best.get_xdata()) == [2]
    with pytest.raises(InputError, match="no column 'nll'"):
        plots.learning_curves({"one": rows}, column="nll")
    with pytest.raises(InputError, match="empty"):
        plots.learning_curves({})
