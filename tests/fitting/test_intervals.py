"""Calibration of intervals, windows, and what makes a difference more than chance."""

import numpy as np
import pytest
from conftest import waves

from pynode.data.frames import read_series
from pynode.data.tables import Columns
from pynode.fitting.calibration import Calibration, Residuals, calibrate
from pynode.fitting.scaling import Shape, find_period, learn_scaling
from pynode.fitting.scores import Scores, difference
from pynode.fitting.windows import Frame, Place, cut, pack, places


def errors(n, rng):
    """Heavy-tailed errors that grow with the horizon, under a network that always says 1."""
    ahead = np.where(rng.random(n) < 0.3, -rng.uniform(0, 0.1, n), rng.uniform(0, 4, n))
    spread = np.where(ahead > 0, 0.5 + ahead, 0.2)
    error = (spread * rng.standard_t(4, n))[:, None]
    return Residuals(ahead, error, np.ones((n, 1)), np.zeros(n))


def test_calibrated_intervals_hold_what_they_promise():
    rng = np.random.default_rng(0)
    calibration = calibrate(errors(4000, rng), horizon=4.0)
    fresh = errors(20_000, rng)
    std = calibration.std(fresh.ahead, fresh.std)
    for level in (0.5, 0.8, 0.95):
        held = np.abs(fresh.error) <= calibration.half_width(level) * std
        assert held.mean() == pytest.approx(level, abs=0.03)
        for part in (fresh.ahead <= 0, (fresh.ahead > 0) & (fresh.ahead < 1), fresh.ahead > 3):
            assert held[part].mean() == pytest.approx(level, abs=0.1)


def test_series_that_differ_count_as_one_error_each():
    """Nine series whose errors have a size of their own, and then others: as with nine errors."""
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        size = np.exp(0.7 * rng.standard_normal(18))
        series = np.repeat(np.arange(18), 40)
        error = (size[series] * rng.standard_normal(18 * 40))[:, None]
        ahead = rng.uniform(0.1, 4, 18 * 40)
        half = series < 9
        seen = Residuals(ahead[half], error[half], np.ones((half.sum(), 1)), series[half])
        calibration = calibrate(seen, horizon=4.0)
        std = calibration.std(ahead[~half], np.ones((half.sum(), 1)))
        held.append((np.abs(error[~half]) <= calibration.half_width(0.8) * std).mean())
    assert 0.8 <= np.mean(held) <= 0.88


def test_beyond_the_horizon_intervals_go_on_growing():
    calibration = calibrate(errors(2000, np.random.default_rng(0)), horizon=4.0)
    last = calibration.ahead[-1]
    near, far = calibration.std(np.array([last, 4 * last]), np.ones((2, 1)))[:, 0]
    assert far == pytest.approx(2 * near)


def test_calibration_with_next_to_no_errors_is_gaussian():
    few = Residuals(np.array([1.0, 2.0]), np.array([[0.1], [-0.2]]), np.ones((2, 1)), np.zeros(2))
    calibration = calibrate(few, horizon=2.0)
    assert calibration.half_width(0.8)[0] == pytest.approx(1.2816, abs=1e-3)
    saved = Calibration.from_dict(calibration.as_dict())
    np.testing.assert_array_equal(saved.std(np.ones(1), np.ones((1, 1))),
                                  calibration.std(np.ones(1), np.ones((1, 1))))  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return read_series(waves(6), Columns(time="t", id="who", values=("x", "y")))


def test_windows_keep_the_future_apart(table):
    scaling, frame = learn_scaling(table, Shape(), True), Frame.of(3.0, 1.0)
    rng = np.random.default_rng(0)
    found = places(table, frame, 40, rng, after=2.0, until=5.0)
    assert len(found) >= 40
    for place in found:
        w = cut(table, scaling, frame, place, 0.3, rng)
        if w is None:
            continue
        assert (w.known_times <= 0).all() and (w.known_times >= -3.0 / frame.unit).all()
        future = w.asked_times[w.asked_times > 0] * frame.unit + place.origin
        assert (future > 2.0 - 1e-9).all() and (future <= 5.0 + 1e-9).all()
        assert (future <= place.origin + 1.0 + 1e-9).all()
        series = pack([w])
        read = series.values[0, :, -1] > 0.5
        assert int(read.sum()) == len(w.known_times)
        assert bool((series.times[0][read] <= 0).all())


def test_the_level_of_a_window_is_that_of_what_is_known(table):
    scaling, frame = learn_scaling(table, Shape(), True), Frame.of(3.0, 1.0)
    w = cut(table, scaling, frame, Place(0, 4.0, 5.0))
    np.testing.assert_allclose(np.nanmean(w.known, axis=0), 0, atol=1e-12)
    back = scaling.restored(w.known_times * frame.unit + 4.0, w.known + w.level)
    rows = (table.times[0] <= 4.0) & (table.times[0] >= 1.0)
    rows &= np.isfinite(table.values[0]).any(axis=1)
    np.testing.assert_allclose(back, table.values[0][rows])


def test_trend_and_season_are_recovered():
    import pandas as pd

    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 100, 300))
    frames = [
        pd.DataFrame({"id": k, "t": t, "x": 50 * k + 0.3 * t + 2 * np.cos(2 * np.pi * t / 7.3)})
        for k in range(3)
    ]
    table = read_series(pd.concat(frames), Columns(time="t", id="id", values=("x",)))
    period = find_period(table, Shape(True))
    assert period == pytest.approx(7.3, rel=1e-3)
    scaling = learn_scaling(table, Shape(True, (period,), (1,)), True)
    rest = scaling.reduced(table.times[0], table.values[0]) * scaling.scale
    assert np.ptp(rest) < 0.2
    assert scaling.coefficients[0, 0] / scaling.span == pytest.approx(0.3, rel=1e-2)


def scores(squares, groups):
    squares = np.asarray(squares, dtype=float)
    return Scores({}, float(np.sqrt(squares.mean())), squares, np.asarray(groups), len(squares), 1)


def test_a_difference_is_told_from_chance():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    base = rng.chisquare(3, 120)
    better = difference(scores(0.5 * base, groups), scores(base, groups))
    assert better.beyond_chance is True and better.value < 0 and better.high < 0
    same = difference(scores(base, groups), scores(rng.permutation(base), groups))
    assert same.beyond_chance is False
    few = difference(scores(base[:8], groups[:8]), scores(2 * base[:8], groups[:8]))
    assert few.groups == 2 and few.beyond_chance is None
