import numpy as np
import pandas as pd
import pytest


def waves(count=24, rows=20, seed=0, noise=0.02):
    """Damped waves (x, y) of ``count`` series at uneven times in [0, 6], a tenth missing."""
    rng = np.random.default_rng(seed)
    parts = []
    for who in range(count):
        t = np.sort(rng.uniform(0, 6, rows)).round(3)
        phase = rng.uniform(0, 2 * np.pi)
        xy = np.stack([np.cos(t + phase), np.sin(t + phase)], 1) * np.exp(-0.1 * t)[:, None]
        xy = xy + noise * rng.standard_normal(xy.shape)
        xy[1:-1][rng.random((rows - 2, 2)) < 0.1] = np.nan
        parts.append(pd.DataFrame({"who": f"s{who}", "t": t, "x": xy[:, 0], "y": xy[:, 1]}))
    return pd.concat(parts, ignore_index=True)


def yearly(rows=240, seed=0, zone=None):
    """A trend, a year's season and a little noise, at random weeks of ten years."""
    rng = np.random.default_rng(seed)
    weeks = np.sort(rng.choice(520, rows, replace=False))
    date = pd.Timestamp("2000-01-02", tz=zone) + pd.to_timedelta(weeks, unit="W")
    x = 300 + 0.04 * weeks + 3 * np.sin(2 * np.pi * weeks * 7 / 365.2425)
    return pd.DataFrame({"date": date, "co": x + 0.2 * rng.standard_normal(rows)})


@pytest.fixture(scope="session")
def many():
    return waves()


@pytest.fixture(scope="session")
def single():
    return yearly()
