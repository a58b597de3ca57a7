"""The spiral experiment's results in words: a table, and what it says."""

from __future__ import annotations

from collections.abc import Sequence

from pynode.experiments.study import Row, Summary, markdown_table

# Chen et al. 2018, table 2: predictive RMSE by number of observations.
CHEN = {
    "rnn": {30: 0.3937, 50: 0.3202, 100: 0.1813},
    "latent_ode": {30: 0.1642, 50: 0.1502, 100: 0.1346},
}
RNNS = ("rnn", "rnn_t", "rnn_dt", "rnn_decay")

_CHEN_CAVEAT = (
    "The last column is what Chen et al. (2018) print in their table 2, RMSE on the 100 points "
    "beyond the window. Their absolute numbers cannot be matched: the scale of the spirals, the "
    "noise and the split were never published. Only the order of the models can be compared. "
    'Their table says just "RNN", which stands here beside `rnn`.'
)
_FIT_CAVEAT = (
    "Fit compares only among models of one kind: the RNNs and `ode_rnn` predict each point of the "
    "window from what was observed before it, `last_value` from what was observed up to it, while "
    "`latent_ode` and `linear` see the whole window. In extrapolation all have seen the same. "
    "The median series is the one whose extrapolation RMSE is the median of the held-out ones: "
    "where it is far below the RMSE over all, a few series went astray."
)
_METRICS = {"fit_rmse": "fit", "extrapolation_rmse": "extrapolation"}


def render(rows: Sequence[Row], heading: str, notes: Sequence[str]) -> str:
    """The whole of ``table.md``.

    Args:
        rows: of ``metrics.json``, models in the order to show them in.
        heading: what was run, a sentence or two.
        notes: paragraphs to put at the end.
    """
    parts = ["# Forecasting irregular, incomplete spirals", heading]
    for observed in sorted({row["observed"] for row in rows}):
        parts += [f"## {observed} of 100 points observed", table(rows, observed)]
    parts += [_FIT_CAVEAT, _CHEN_CAVEAT, "## What came out"]
    parts += contrast(rows)
    parts.append(time_or_gap(rows))
    parts += notes
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row], observed: int) -> str:
    """A Markdown table: a line for each model, mean ± standard deviation over seeds."""
    header = (
        "model", "fit RMSE", "extrapolation RMSE", "median series", "parameters", "epochs",
        "train s", "nfe forward", "nfe backward", "Chen et al.",
    )  # fmt: skip
    chosen = [row for row in rows if row["observed"] == observed]
    lines = []
    for model in dict.fromkeys(row["model"] for row in chosen):
        mine = [row for row in chosen if row["model"] == model]
        printed = CHEN.get(model, {}).get(observed)
        lines.append(
            (
                f"`{model}`",
                str(_summary(mine, "fit_rmse")),
                str(_summary(mine, "extrapolation_rmse")),
                str(_summary(mine, "extrapolation_median")),
                str(mine[0]["parameters"]),
                _whole(mine, "epochs"),
                _whole(mine, "train_seconds"),
                _whole(mine, "nfe_forward"),
                _whole(mine, "nfe_backward"),
                "–" if printed is None else f"{printed:.4f}",
            )
        )
    return markdown_table(header, lines)


def contrast(rows: Sequence[Row]) -> list[str]:
    """For each number of observations, a sentence on the latent ODE against the others."""
    sentences = []
    for observed in sorted({row["observed"] for row in rows}):
        means = {
            model: _summary(mine, "extrapolation_rmse")
            for model, mine in _by_model(rows, observed).items()
        }
        ranking = sorted(means, key=lambda model: means[model].mean)
        order = ", ".join(f"`{model}` {means[model].mean:.3f}" for model in ranking)
        verdict = _verdict(means, ranking)
        sentences.append(f"n = {observed}, extrapolation, best first: {order}.{verdict}")
    return sentences


def _verdict(means: dict[str, Summary], ranking: Sequence[str]) -> str:
    rivals = [model for model in ranking if model in RNNS or model == "last_value"]
    if "latent_ode" not in means or not rivals:
        return ""
    ahead = [m for m in rivals if means["latent_ode"].mean < means[m].mean]
    behind = [m for m in rivals if m not in ahead]
    if not behind:
        return " The latent ODE is ahead of every RNN and of the last value that are compared here."
    if not ahead:
        return f" The latent ODE is behind {_names(behind)}: the expected contrast does not show."
    return f" The latent ODE is ahead of {_names(ahead)}, but behind {_names(behind)}."


def time_or_gap(rows: Sequence[Row]) -> str:
    """Is feeding the absolute time (``rnn_t``) the same as feeding Δt (``rnn_dt``)?"""
    question = "Is feeding an RNN the absolute time the same as feeding it Δt?"
    lines, beyond_noise, seeds = [], [], []
    for observed in sorted({row["observed"] for row in rows}):
        models = _by_model(rows, observed)
        t = {row["seed"]: row for row in models.get("rnn_t", [])}
        dt = {row["seed"]: row for row in models.get("rnn_dt", [])}
        seeds = sorted(t.keys() & dt.keys())
        for metric, name in _METRICS.items() if seeds else ():
            difference = Summary.of([t[s][metric] - dt[s][metric] for s in seeds])
            level = Summary.of([dt[s][metric] for s in seeds]).mean
            lines.append(f"- n = {observed}, {name}: {_difference(difference, level)}")
            if abs(difference.mean) > difference.half_width:
                better = "absolute time" if difference.mean < 0 else "Δt"
                beyond_noise.append(f"{better} is better in {name} at n = {observed}")
    if not lines:
        return f"{question} Run both `rnn_t` and `rnn_dt` to find out."
    if len(seeds) == 1:
        answer = "One seed cannot tell: the differences below may be noise (try --seeds 3)."
    elif beyond_noise:
        answer = f"Not quite: {'; '.join(beyond_noise)}, beyond the noise of the seeds."
        if len(beyond_noise) < len(lines):
            answer += " The other differences are within the noise."
    else:
        answer = "These runs cannot tell the two apart: every difference is within the noise."
    intro = "RMSE of `rnn_t` minus RMSE of `rnn_dt`, paired by seed"
    return f"{question} {answer} {intro}:\n\n" + "\n".join(lines)


def _difference(difference: Summary, level: float) -> str:
    percent = 100 * difference.mean / level
    said = f"{difference.mean:+.4f} ({percent:+.1f} %)"
    if difference.n == 1:
        return said
    return f"{said}, 95 % interval ± {difference.half_width:.4f} over {difference.n} seeds"


def _by_model(rows: Sequence[Row], observed: int) -> dict[str, list[Row]]:
    models: dict[str, list[Row]] = {}
    for row in rows:
        if row["observed"] == observed:
            models.setdefault(row["model"], []).append(row)
    return models


def _summary(rows: Sequence[Row], column: str) -> Summary:
    return Summary.of([row[column] for row in rows])


def _whole(rows: Sequence[Row], column: str) -> str:
    return f"{_summary(rows, column).mean:.0f}"


def _names(models: Sequence[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)
