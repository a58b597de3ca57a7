"""From a table to a model and back to tables."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import waves, yearly

import pynode
from pynode.errors import InputError
from pynode.fitting.networks import FORECASTERS

QUICK = {"epochs": 1, "windows": 24, "verbose": False, "progress": False}
MANY = {"time": "t", "id": "who", "values": ["x", "y"]}


@pytest.mark.parametrize("model", FORECASTERS)
def test_every_model_fits_predicts_and_is_saved(model, many, tmp_path):
    fitted = pynode.fit(many, **MANY, model=model, horizon=1.5, **QUICK)
    at = [2.0, 4.5, 7.0]
    found = fitted.predict(many, at=at)
    assert list(found.columns) == [
        "who", "t", *(f"{v}_{k}" for v in "xy" for k in ("mean", "q0.1", "q0.5", "q0.9"))
    ]  # fmt: skip
    assert len(found) == 24 * 3 and found["t"].tolist() == at * 24
    assert np.isfinite(found.drop(columns="who").to_numpy()).all()
    assert (found["x_q0.1"] < found["x_mean"]).all() and (found["x_mean"] < found["x_q0.9"]).all()
    assert (found["x_q0.5"] == found["x_mean"]).all()
    assert fitted.scores.n_values > 50 and fitted.scores.by_value["x"]["rmse"] > 0
    fitted.save(tmp_path / "m.pt")
    again = pynode.load(tmp_path / "m.pt")
    pd.testing.assert_frame_equal(again.predict(many, at=at), found)
    assert again.scores.by_value == fitted.scores.by_value


@pytest.fixture(scope="module")
def fitted(many):
    return pynode.fit(many, **MANY, horizon=1.5, **QUICK)


def test_same_seed_same_model(many, fitted):
    again = pynode.fit(many, **MANY, horizon=1.5, **QUICK)
    pd.testing.assert_frame_equal(again.forecast(many), fitted.forecast(many))
    other = pynode.fit(many, **MANY, horizon=1.5, **QUICK, repeat=1)
    assert not other.forecast(many).equals(fitted.forecast(many))


def test_units_do_not_matter(many, fitted):
    scaled = many.assign(x=many["x"] * 1e4 - 7e5, t=many["t"] * 60)
    other = pynode.fit(scaled, **MANY, horizon=90.0, **QUICK)
    found, expected = other.predict(scaled, at=[300.0, 420.0]), fitted.predict(many, at=[5.0, 7.0])
    for column in ("x_mean", "x_q0.9"):
        back = (found[column] + 7e5) / 1e4
        np.testing.assert_allclose(back, expected[column], atol=6e-3)


def test_forecast_begins_after_the_last_row(many, fitted):
    found = fitted.forecast(many, horizon=2.0, every=0.5)
    last = many.groupby("who")["t"].max()
    for who, part in found.groupby("who"):
        np.testing.assert_allclose(part["t"] - last[who], [0.5, 1.0, 1.5, 2.0], rtol=1e-9)


def test_forecast_knows_nothing_of_the_future(many, fitted):
    at = {who: [5.0, 5.5] for who in many["who"].unique()}
    known = many[many["t"] <= 4.5]
    expected = fitted.predict(known, at=at)
    wild = many.assign(x=many["x"].where(many["t"] <= 4.5, 1e6))
    pd.testing.assert_frame_equal(fitted.predict(wild[wild["t"] <= 4.5], at=at), expected)


def test_a_new_series_can_be_forecast(fitted):
    other = waves(3, seed=9).assign(who=["new", "newer", "newest"] * 20)
    assert np.isfinite(fitted.forecast(other)["x_mean"]).all()


def test_impute_fills_holes_and_leaves_the_rest(many, fitted):
    filled = fitted.impute(many, quantiles=(0.1, 0.9))
    ordered = many.assign(n=many["who"].str[1:].astype(int)).sort_values(["n", "t"])
    known = ordered["x"].notna().to_numpy()
    assert not filled[["x", "y"]].isna().any(axis=None)
    np.testing.assert_array_equal(filled["x"][known], ordered["x"][known])
    assert filled["x_q0.1"].notna().tolist() == (~known).tolist()
    hole = ~known
    assert (filled["x_q0.1"][hole] < filled["x"][hole]).all()


def test_impute_on_a_grid(many, fitted):
    filled = fitted.impute(many, every=0.25)
    first = filled[filled["who"] == "s0"]["t"].to_numpy()
    rows = many[many["who"] == "s0"]["t"].to_numpy()
    grid = np.arange(rows[0], rows[-1], 0.25)
    assert np.isin(rows, first).all() and len(first) == len(rows) + len(grid) - 1
    assert not filled.isna().any(axis=None)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_timestamps_and_zones(zone):
    frame = yearly(zone=zone)
    fitted = pynode.fit(frame, model="seasonal", horizon="90d", verbose=False)
    found = fitted.forecast(frame, horizon="10d", every="2d")
    assert found["date"].dtype == frame["date"].dtype
    assert (found["date"].diff().dropna() == pd.Timedelta(days=2)).all()
    assert found["date"].iloc[0] - frame["date"].iloc[-1] == pd.Timedelta(days=2)
    at = pd.DatetimeIndex(["2005-06-01 12:00"], tz=zone)
    assert fitted.predict(frame, at=at)["date"][0] == at[0]


def test_season_and_trend_are_found(single):
    fitted = pynode.fit(single, model="seasonal", horizon="1y", verbose=False)
    assert fitted.scaling.shape.trend
    assert fitted.scaling.shape.periods == (365.2425,)
    past, after = single[:200], single["date"].iloc[199]
    score = fitted.score(single, after=after)["co"]
    assert len(past) == 200 and score["rmse"] < 0.4 < score["last_value_rmse"]


def test_no_season_where_there_is_none():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"t": np.arange(300.0), "x": rng.standard_normal(300).cumsum()})
    fitted = pynode.fit(frame, model="seasonal", verbose=False)
    assert fitted.scaling.shape.periods == ()


def test_plain_rules_are_what_they_say(single):
    fitted = pynode.fit(single, model="last_value", horizon="30d", verbose=False)
    found = fitted.forecast(single)
    np.testing.assert_allclose(found["co_mean"], single["co"].iloc[-1], rtol=1e-6)


def test_static_covariates_reach_the_network(many):
    frame = many.assign(size=many["who"].str[1:].astype(float), kind="u")
    frame.loc[frame["size"] > 12, "kind"] = "v"
    fitted = pynode.fit(frame, **MANY, static=["size", "kind"], horizon=1.5, **QUICK)
    base = fitted.forecast(frame)
    moved = fitted.forecast(frame.assign(size=frame["size"] + 30))
    assert not np.allclose(base["x_mean"], moved["x_mean"])
    with pytest.raises(InputError, match="'kind' is 'w', which the model has not seen"):
        fitted.forecast(frame.assign(kind="w"))


def test_long_layout_and_repeated_times(many):
    long = many.melt(["who", "t"], ["x", "y"], "what", "number").dropna()
    long = pd.concat([long, long.head(5)])
    fitted = pynode.fit(
        long, time="t", id="who", variable="what", values="number", model="last_value",
        horizon=1.5, verbose=False,
    )  # fmt: skip
    assert fitted.names == ("x", "y")
    assert "x_mean" in fitted.forecast(long)


def test_split_by_time_and_by_series(many):
    by_time = pynode.fit(many, **MANY, model="last_value", split="time", horizon=1, verbose=False)
    assert by_time.scores.n_values > 0
    none = pynode.fit(many, **MANY, model="last_value", test=0.0, verbose=False)
    assert none.scores is None


def test_learning_beats_the_rules():
    frame = waves(60, 25, noise=0.01)
    options = {**MANY, "horizon": 1.5, "verbose": False, "progress": False}
    learned = pynode.fit(frame, model="rnn_dt", epochs=25, windows=128, **options)
    held = pynode.fit(frame, model="last_value", **options)
    assert learned.scores.relative < 0.85 * held.scores.relative
    assert 0.6 < learned.scores.by_value["x"]["coverage_80"] < 0.95


def test_training_options_reach_the_loop(many, tmp_path):
    options = QUICK | {"windows": 40, "batch_size": 8, "model": "rnn"}
    plain = pynode.fit(many, **MANY, horizon=1.5, **options)
    parts = pynode.fit(many, **MANY, horizon=1.5, **options, accumulate=2)
    mixed = pynode.fit(many, **MANY, horizon=1.5, **options, precision="bfloat16")
    losses = [m.history[0]["train_loss"] for m in (plain, parts, mixed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != losses[0] and losses[2] == pytest.approx(losses[0], rel=0.05)


def test_an_interrupted_fit_goes_on(many, tmp_path):
    options = MANY | QUICK | {"model": "rnn", "horizon": 1.5}
    whole = pynode.fit(many, **options | {"epochs": 4})
    # The schedules depend on how many epochs there are to be, so time is what ends the first part.
    first = pynode.fit(many, **options | {"epochs": 4, "minutes": 1e-9}, out=tmp_path)
    assert len(first.history) == 1
    again = pynode.fit(many, **options | {"epochs": 4}, out=tmp_path, resume=True)
    assert len(again.history) == 4
    pd.testing.assert_frame_equal(again.forecast(many), whole.forecast(many))
    with pytest.raises(InputError, match="pass resume=True"):
        pynode.fit(many, **options, out=tmp_path)


WRONG = [
    ({"model": "lstm"}, "model='lstm' is not one of"),
    ({"horizon": "3d"}, "plain numbers"),
    ({"horizon": -1}, "positive length"),
    ({"horizon": 1000}, "more than ten times as long"),
    ({"season": ["0"]}, "positive length"),
    ({"trend": "cubic"}, "trend='cubic' is not one of linear, none"),
    ({"epoch": 3}, "there is no option 'epoch'"),
    ({"epochs": 0}, "epochs=0: at least 1"),
    ({"test": 0.6, "valid": 0.5}, "leave nothing to learn from"),
    ({"hyper": {"layers": 3}}, "unknown option layers"),
    ({"model": "neural_cde"}, "tells classes"),
]


@pytest.mark.parametrize("options, said", WRONG, ids=[s for _, s in WRONG])
def test_wrong_options(options, said, many):
    with pytest.raises(InputError, match=said):
        pynode.fit(many, **MANY, **QUICK | options)


def test_too_little_data():
    with pytest.raises(InputError, match="1 usable rows: at least 8"):
        pynode.fit(pd.DataFrame({"t": [1.0], "x": [2.0]}), verbose=False)
    one_moment = pd.DataFrame({"t": [1.0] * 9, "x": range(9), "id": range(9)})
    with pytest.raises(InputError, match="too few different times"):
        pynode.fit(one_moment, id="id", verbose=False)


def test_wrong_questions(many, fitted):
    with pytest.raises(InputError, match="lies before its first known value"):
        fitted.predict(many, at=[-5.0])
    with pytest.raises(InputError, match=r"quantile 1.0: must be in"):
        fitted.predict(many, at=[7.0], quantiles=[1.0])
    with pytest.raises(InputError, match="no column 'x'"):
        fitted.predict(many.rename(columns={"x": "z"}), at=[7.0])
    with pytest.raises(InputError, match="names the series 'nobody'"):
        fitted.predict(many, at={"nobody": [7.0]})
    with pytest.raises(InputError, match="no series 'nobody'"):
        fitted.plot(many, series="nobody")


def test_constant_huge_and_tiny_values():
    frame = pd.DataFrame({"t": np.arange(60.0), "x": 5.0, "y": 1e-12 * np.arange(60)})
    fitted = pynode.fit(frame, model="latent_ode", **QUICK)
    found = fitted.forecast(frame)
    assert found["x_mean"].between(3, 7).all()
    assert found["y_mean"].abs().max() < 1e-9
    with pytest.raises(InputError, match="too large"):
        pynode.fit(frame.assign(x=1e300 * (-1.0) ** np.arange(60)), **QUICK)


def test_a_hole_wider_than_a_window(single):
    holed = pd.concat([single[:100], single[200:]])
    fitted = pynode.fit(single, model="latent_ode", horizon="30d", context="60d", **QUICK)
    middle = single["date"].iloc[150]
    assert np.isfinite(fitted.predict(holed, at=[middle])["co_mean"][0])


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_are_data_and_never_code(tmp_path, capsys, fitted):
    path = tmp_path / "evil.pt"
    torch.save({"format": "pynode fitted model 1", "kind": Evil()}, path)
    with pytest.raises(InputError, match="not a fitted model, or is damaged"):
        pynode.load(path)
    assert "executed" not in capsys.readouterr().out
    torch.save({"format": "pynode fitted model 1", "kind": "forecaster"}, path)
    with pytest.raises(InputError, match="is damaged"):
        pynode.load(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a fitted model of this version"):
        pynode.load(path)
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged"):
        pynode.load(path)
    with pytest.raises(InputError, match="no file"):
        pynode.load(tmp_path / "nowhere.pt")


def test_importing_pynode_leaves_pandas_alone():
    code = "import sys, pynode, pynode.cli; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
