"""Weekly CO2 at Mauna Loa, irregular and incomplete: forecast and filled in."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("statsmodels")
EXAMPLE = Path(__file__).parents[2] / "examples" / "co2_forecast.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("co2_forecast", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(row):
    assert row["n_filled"] > 800 and row["n_forecast"] >= 104
    rivals = ("last_value_rmse", "line_through_last_two_rmse", "straight_line_rmse")
    assert row["forecast_rmse"] < 0.5 * min(row[name] for name in rivals)
    assert 0.70 <= row["held_all"] <= 0.90
    assert row["filled_rmse"] < 0.8


def test_trend_and_season_alone(example):
    row, _ = example.run(0, model="seasonal", verbose=False)
    check(row)


@pytest.mark.slow
def test_latent_ode(example, tmp_path):
    row, drawn = example.run(0, epochs=60, minutes=20, progress=False)
    check(row)
    figure = example.draw(*drawn)
    assert len(figure.axes[0].lines) == 4
