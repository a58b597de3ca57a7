"""The table's numbers and sentences follow from the rows."""

import math

import pytest
from scipy import stats

from pynode.experiments.spiral_table import Summary, contrast, render, table, time_or_gap


def rows_of(errors, observed=30):
    """Rows from ``{model: [extrapolation RMSE of seed 0, 1, ...]}``."""
    return [
        {
            "model": model,
            "observed": observed,
            "seed": seed,
            "fit_rmse": value / 2,
            "extrapolation_rmse": value,
            "extrapolation_median": 0.9 * value,
            "parameters": 123,
            "epochs": 7,
            "train_seconds": 4.4,
            "nfe_forward": 20.2,
            "nfe_backward": 30.9,
        }
        for model, values in errors.items()
        for seed, value in enumerate(values)
    ]


def test_summary():
    summary = Summary.of([1.0, 2.0, 4.0])
    assert summary.mean == pytest.approx(7 / 3)
    assert summary.sd == pytest.approx(math.sqrt(7 / 3))
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=math.sqrt(7 / 3 / 3))
    assert summary.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    assert str(summary) == "2.333 ± 1.528"
    assert str(Summary.of([0.5])) == "0.500"
    assert Summary.of([0.5]).half_width == math.inf


def test_table_lines():
    text = table(rows_of({"rnn": [0.4, 0.6], "last_value": [0.7, 0.7]}), 30)
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2] == (
        "| `rnn` | 0.250 ± 0.071 | 0.500 ± 0.141 | 0.450 ± 0.127 | 123 | 7 | 4 | 20 | 31 | 0.3937 |"
    )
    assert lines[3].endswith("| – |")


def test_chens_figures_stand_beside_the_right_rows():
    errors = {"rnn": [0.4], "rnn_dt": [0.4], "latent_ode": [0.2]}
    printed = {30: ("0.3937", "0.1642"), 50: ("0.3202", "0.1502"), 100: ("0.1813", "0.1346")}
    for observed, (rnn, latent_ode) in printed.items():
        lines = table(rows_of(errors, observed), observed).splitlines()[2:]
        assert [line.split("|")[-2].strip() for line in lines] == [rnn, "–", latent_ode]


@pytest.mark.parametrize(
    "latent_ode, said",
    [
        (0.1, "ahead of every RNN and of the last value"),
        (0.5, "ahead of `last_value`, but behind `rnn`"),
        (0.9, "behind `rnn`, `last_value`: the expected contrast does not show"),
    ],
)
def test_contrast_is_said_as_it_is(latent_ode, said):
    errors = {"rnn": [0.4], "last_value": [0.6], "latent_ode": [latent_ode]}
    (sentence,) = contrast(rows_of(errors))
    assert said in sentence
    order = sorted(errors, key=lambda model: errors[model])
    assert [sentence.index(f"`{model}` 0") for model in order] == sorted(
        sentence.index(f"`{model}` 0") for model in order
    )


@pytest.mark.parametrize(
    "t, dt, said",
    [
        ([0.4], [0.5], "One seed cannot tell"),
        ([0.40, 0.52, 0.47], [0.45, 0.45, 0.48], "every difference is within the noise"),
        ([0.40, 0.41, 0.39], [0.50, 0.52, 0.49], "Not quite: absolute time is better in fit"),
        ([0.50, 0.52, 0.49], [0.40, 0.41, 0.39], "Not quite: Δt is better in fit"),
    ],
)
def test_time_or_gap(t, dt, said):
    text = time_or_gap(rows_of({"rnn_t": t, "rnn_dt": dt}))
    assert said in text
    mean = sum(a - b for a, b in zip(t, dt, strict=True)) / len(t)
    assert f"n = 30, extrapolation: {mean:+.4f}" in text


def test_time_or_gap_pairs_by_seed():
    rows = rows_of({"rnn_t": [0.4, 0.6], "rnn_dt": [0.3, 0.5, 9.9]})
    assert "+0.1000" in time_or_gap(rows)
    assert "over 2 seeds" in time_or_gap(rows)


def test_time_or_gap_needs_both():
    assert "Run both" in time_or_gap(rows_of({"rnn_t": [0.4]}))


def test_render_says_what_cannot_be_compared():
    text = render(rows_of({"rnn": [0.4]}), "The heading.", ["A note."])
    assert "absolute numbers cannot be matched" in text
    assert "Fit compares only among models of one kind" in text
    assert text.index("The heading.") < text.index("| `rnn`") < text.index("A note.")
