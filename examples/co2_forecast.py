"""Two years of CO2 in the air, forecast from an irregular record, and its missing weeks filled in.

    python examples/co2_forecast.py [--seeds 3] [--out DIR]       # some minutes

Of statsmodels' weekly record (Mauna Loa, 1958-2001; needs statsmodels) a random 60 % of the weeks
up to the end of 1999 is shown to the model; it is asked for the 40 % that were left out, and for
every week of the two years after. It writes a table, co2.md, and draws the first seed, co2.png.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pynode import fit, plots

SHARE, YEARS = 0.6, pd.Timedelta(days=731)


def record() -> pd.DataFrame:
    """The weeks that were measured."""
    import statsmodels.api as sm

    return sm.datasets.co2.load_pandas().data.dropna().reset_index(names="date")


def shown(weeks: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What the model may see."""
    past = weeks[weeks["date"] <= weeks["date"].max() - YEARS]
    rng = np.random.default_rng(seed)
    return past.iloc[np.sort(rng.choice(len(past), int(SHARE * len(past)), replace=False))]


def straight_line(past: pd.DataFrame, dates: pd.Series) -> np.ndarray:
    """The least-squares line through all that was shown."""
    day = (past["date"] - past["date"].iloc[0]) / pd.Timedelta(days=1)
    ahead = (dates - past["date"].iloc[0]) / pd.Timedelta(days=1)
    return np.polyval(np.polyfit(day, past["co2"], 1), ahead)


def run(seed: int, model: str = "latent_ode", **options: object) -> tuple[dict[str, float], object]:
    """Fit, forecast, fill in, and compare with what was measured."""
    weeks = record()
    past = shown(weeks, seed)
    hidden = weeks[~weeks["date"].isin(past["date"]) & (weeks["date"] > past["date"].iloc[0])]
    # Nothing of the table is held out for scoring: the two years after it are.
    fitted = fit(past, time="date", values="co2", model=model, horizon="104w", test=0.0,
                 seed=seed, **options)  # fmt: skip
    found = fitted.predict(past, at=hidden["date"]).merge(hidden, on="date")
    future = found[found["date"] > past["date"].iloc[-1]]
    filled = found[found["date"] <= past["date"].iloc[-1]]
    lines = fit(past, time="date", values="co2", model="linear", horizon="104w", test=0.0,
                verbose=False).predict(past, at=future["date"])  # fmt: skip

    def rmse(error: pd.Series | np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(error))))

    def held(part: pd.DataFrame) -> float:
        return float(part["co2"].between(part["co2_q0.1"], part["co2_q0.9"]).mean())

    return {
        "seed": seed,
        "forecast_rmse": rmse(future["co2"] - future["co2_mean"]),
        "last_value_rmse": rmse(future["co2"] - past["co2"].iloc[-1]),
        "line_through_last_two_rmse": rmse(future["co2"].to_numpy() - lines["co2_mean"].to_numpy()),
        "straight_line_rmse": rmse(future["co2"] - straight_line(past, future["date"])),
        "filled_rmse": rmse(filled["co2"] - filled["co2_mean"]),
        "held_all": held(found),
        "held_filled": held(filled),
        "held_forecast": held(future),
        "n_filled": len(filled),
        "n_forecast": len(future),
    }, (fitted, past, weeks)


def draw(fitted: object, past: pd.DataFrame, weeks: pd.DataFrame) -> object:
    """The forecast with what was measured afterwards on top."""
    figure = fitted.plot(past)
    after = weeks[weeks["date"] > past["date"].iloc[-1]]
    figure.axes[0].plot(after["date"], after["co2"], "o", color=plots.GREEN, ms=2.6, mfc="none",
                        mew=0.7)  # fmt: skip
    figure.axes[0].set_ylabel("CO2, ppm (hollow: not shown)")
    return figure


def markdown(model: str, rows: pd.DataFrame) -> str:
    """The table of the docs: means over seeds."""
    mean = rows.mean(numeric_only=True)
    lines = [
        f"# CO2 by {model}",
        "",
        f"| mean of {len(rows)} seed(s) | RMSE, ppm | share inside 80 % intervals |",
        "| --- | ---: | ---: |",
        f"| two years ahead, `{model}` | {mean.forecast_rmse:.2f} | {mean.held_forecast:.2f} |",
        f"| – last value held | {mean.last_value_rmse:.2f} | |",
        f"| – line through the last two values | {mean.line_through_last_two_rmse:.2f} | |",
        f"| – line through all values | {mean.straight_line_rmse:.2f} | |",
        f"| missing weeks filled in, `{model}` | {mean.filled_rmse:.2f} | {mean.held_filled:.2f} |",
        f"| all weeks that were not shown | | {mean.held_all:.2f} |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", default="latent_ode")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        row, drawn = run(seed, options.model, epochs=options.epochs, minutes=options.minutes)
        rows.append(row)
        print(pd.DataFrame([row]).to_string(index=False, float_format="{:.3f}".format))
        if seed == 0:
            options.out.mkdir(parents=True, exist_ok=True)
            plots.save(draw(*drawn), options.out / "co2.png")
    (options.out / "co2.md").write_text(markdown(options.model, pd.DataFrame(rows)))
