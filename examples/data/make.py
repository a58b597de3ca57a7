"""Write the tables of this folder.

    python examples/data/make.py        # needs statsmodels, for the CO2 record

* ``co2.csv``: weekly CO2 in the air at Mauna Loa, 1958-2001, of which 60 % of the weeks are kept,
  drawn at random, and the rest left out (C. D. Keeling and T. P. Whorf, Carbon Dioxide Information
  Analysis Center; public domain, as shipped with statsmodels).
* ``wells.csv``: made-up levels of 60 wells, each read at its own uneven times, with holes.
* ``gaits.csv``: made-up steps of 60 walkers of two kinds, to be told apart.
"""

from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent


def co2(share: float = 0.6) -> pd.DataFrame:
    """The weekly record with random weeks left out."""
    import statsmodels.api as sm

    record = sm.datasets.co2.load_pandas().data.dropna().reset_index(names="date")
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(len(record), int(share * len(record)), replace=False))
    return record.iloc[kept].assign(co2=lambda d: d["co2"].round(2))


def wells(count: int = 60) -> pd.DataFrame:
    """Two coupled, damped levels in each well, of its own size and phase."""
    rng = np.random.default_rng(1)
    rows = []
    for well in range(count):
        depth = rng.uniform(5, 40)
        t = np.sort(rng.uniform(0, 12, size=rng.integers(20, 32)))
        amplitude, phase = rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi)
        rate, turn = 0.08 + depth / 400, 1.6 - depth / 80
        level = amplitude * np.exp(-rate * t) * np.cos(turn * t + phase)
        flow = amplitude * np.exp(-rate * t) * np.sin(turn * t + phase)
        noise = 0.03 * rng.standard_normal((2, len(t)))
        for i, time in enumerate(t):
            seen = rng.random(2) < 0.85
            rows.append(
                {
                    "well": f"W{well:02d}",
                    "day": round(time, 3),
                    "level": round(level[i] + noise[0, i], 3) if seen[0] else None,
                    "flow": round(flow[i] + noise[1, i], 3) if seen[1] else None,
                    "depth": round(depth, 1),
                    "rock": "sand" if depth < 20 else "lime",
                }
            )
    return pd.DataFrame(rows)


def gaits(count: int = 60) -> pd.DataFrame:
    """Walkers whose steps come evenly, or limp."""
    rng = np.random.default_rng(2)
    rows = []
    for walker in range(count):
        limps = walker % 2 == 1
        t = np.sort(rng.uniform(0, 5, size=rng.integers(20, 35)))
        phase, pace = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 3.5)
        x = np.sin(pace * t + phase) + (0.6 * np.sin(2 * pace * t + 2 * phase) if limps else 0)
        x = x + 0.1 * rng.standard_normal(len(t))
        for time, value in zip(t, x, strict=True):
            rows.append(
                {
                    "walker": walker,
                    "t": round(time, 3),
                    "force": round(value, 3),
                    "gait": "limping" if limps else "even",
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    for make in (co2, wells, gaits):
        make().to_csv(HERE / f"{make.__name__}.csv", index=False)
