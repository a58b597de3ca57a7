"""The series experiment's results in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynode.experiments.study import Row, Summary, markdown_table

LABELS = {
    "rnn": "RNN",
    "rnn_t": "RNN, t",
    "rnn_dt": "RNN, Δt",
    "rnn_decay": "RNN-Decay",
    "rnn_impute": "RNN-Impute",
    "gru_d": "GRU-D",
    "ode_rnn": "ODE-RNN",
    "rnn_vae": "RNN-VAE",
    "latent_ode": "latent ODE, RNN encoder",
    "latent_ode_ode": "latent ODE, ODE-RNN encoder",
    "last_value": "(last value)",
    "linear": "(linear)",
    "mean": "(mean)",
}
TRIVIAL = ("last_value", "linear", "mean")
READS_IN_ORDER = ("rnn", "rnn_t", "rnn_dt", "rnn_decay", "rnn_impute", "gru_d", "ode_rnn")
WHOLE = ("rnn_vae", "latent_ode", "latent_ode_ode")
LATENT = ("latent_ode", "latent_ode_ode")
PARTS = ("interpolation", "extrapolation")
# Rubanova et al. 2019, table 3: MSE × 10⁻² on the hopper, by percentage observed.
RUBANOVA = {
    ("rnn_dt", "interpolation"): {10: 2.454, 20: 1.714, 30: 1.250, 50: 0.785},
    ("ode_rnn", "interpolation"): {10: 1.647, 20: 1.209, 30: 0.986, 50: 0.665},
    ("latent_ode_ode", "interpolation"): {10: 0.360, 20: 0.295, 30: 0.300, 50: 0.285},
    ("rnn_dt", "extrapolation"): {10: 7.259, 20: 6.792, 30: 6.594, 50: 30.571},
    ("ode_rnn", "extrapolation"): {10: 13.508, 20: 31.950, 30: 15.465, 50: 26.463},
    ("latent_ode_ode", "extrapolation"): {10: 1.441, 20: 1.400, 30: 1.175, 50: 1.258},
}


def render(rows: Sequence[Row], config: Row) -> str:
    """The whole of ``table.md``."""
    rows = by_count(rows)
    parts = ["# Models of uneven time series", _heading(config)]
    for part in PARTS:
        parts += [f"## {part.capitalize()}, MSE × 10⁻²", table(rows, part)]
    parts.append(_WHO_SEES_WHAT)
    if config["data"] == "hopper":
        parts += ["## Beside the published table", printed(rows), _PRINTED_NOTE]
    parts += ["## What came out", *findings(rows)]
    return "\n\n".join(parts) + "\n"


def _heading(config: Row) -> str:
    data = {
        "toy": "Rubanova's periodic toy: offset + sin 2πft with a frequency and an offset of each "
        "series' own, on an irregular grid of 100 points on [0, 5], of which n are observed with "
        "noise 0.01, and of another 100 on [5, 10] to be forecast",
        "hopper": "MuJoCo's hopper by dm_control: 14 coordinates scaled to [0, 1], n of the first "
        "100 points observed, the other 100 to be forecast",
    }[config["data"]]
    return (
        f"`--scale {config['scale']}`: {data}. {config['series']} series, of which a tenth chooses "
        "the best epoch, and as many others, up to 1000, to test on, for each seed. The same "
        f"budget for all: {config['epochs']} epochs of Adamax in minibatches of "
        f"{config['batch_size']}, learning rate from {config['lr']:g} to a fifth of it; "
        f"{config['hidden']} recurrent units, latent states of {config['latent']}, fields of "
        f"{config['field_hidden']}. Each model is trained once a seed, on series with each n by "
        "turns, and tested at each n. No model is shown anything beyond the window, in training "
        "neither. Errors are against the noise-free series at all points, mean ± standard "
        f"deviation over {config['seeds']} seeds."
    )


_WHO_SEES_WHAT = (
    "Interpolation compares only among models of one kind: RNNs and the ODE-RNN predict each point "
    "of the window from what was observed before it, the last value from what was observed up to "
    "it; RNN-VAE, latent ODEs and linear interpolation have seen the whole window. In "
    "extrapolation all have seen the same, and linear goes on along its last piece. The mean is "
    "that of all values to train on. Where no coordinate is missing, as here, RNN-Impute has "
    "nothing to impute and is the RNN told Δt."
)
_PRINTED_NOTE = (
    "MSE × 10⁻², here / in table 3 of Rubanova et al. (2019). There the models were trained with "
    "the forecast part as a target, for each percentage by itself, and interpolation was over the "
    "whole of each series; here they learn from the first half alone. Only orders of magnitude "
    "compare. Linear interpolation, which that table lacks, is in the tables above."
)


def by_count(rows: Sequence[Row]) -> list[Row]:
    """A row for each run and number of observed points, from one for each run."""
    return [row | errors for row in rows for errors in row["errors"]]


def by(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def counts(rows: Sequence[Row]) -> list[int]:
    """Numbers of observed points."""
    return sorted({row["observed"] for row in rows})


def summary(rows: Sequence[Row], part: str) -> Summary:
    """MSE × 10⁻² over seeds."""
    return Summary.of([100 * row[part] for row in rows])


def table(rows: Sequence[Row], part: str) -> str:
    ns = counts(rows)
    header = ("model", *(f"n = {n}" for n in ns), "parameters", "train s", "nfe")
    lines = []
    for model, label in LABELS.items():
        mine = by(rows, model=model)
        if not mine:
            continue
        cells = [_cell(by(mine, observed=n), part) for n in ns]
        most = by(mine, observed=ns[-1])
        trained = bool(most) and "train_seconds" in most[0]
        seconds = f"{Summary.of([r['train_seconds'] for r in most]).mean:.0f}" if trained else "–"
        nfe = f"{Summary.of([r['nfe'] for r in most]).mean:.0f}" if trained else "–"
        lines.append((label, *cells, str(mine[0]["parameters"]), seconds, nfe))
    return markdown_table(header, lines)


def _cell(rows: Sequence[Row], part: str) -> str:
    return f"{summary(rows, part):.2f}" if rows else "–"


def printed(rows: Sequence[Row]) -> str:
    ns = counts(rows)
    lines = []
    for (model, part), figures in RUBANOVA.items():
        cells = []
        for n in ns:
            mine = by(rows, model=model, observed=n)
            here = f"{summary(mine, part).mean:.2f}" if mine else "–"
            cells.append(f"{here} / {figures[n]:.2f}" if n in figures else here)
        lines.append((f"{LABELS[model]}, {part}", *cells))
    return markdown_table(("model", *(f"{n} %" for n in ns)), lines)


# -- what came out --------------------------------------------------------------------------------


def findings(rows: Sequence[Row]) -> list[str]:
    """A paragraph for each question, made from the numbers."""
    found = [forecasting(rows), filling_in(rows), encoders(rows), against_rules(rows)]
    return [text for text in found if text]


def difference(rows: Sequence[Row], part: str, first: str, second: str) -> Summary | None:
    """MSE × 10⁻² of the first minus that of the second, paired by seed; None without pairs."""
    one, two = ({r["seed"]: 100 * r[part] for r in by(rows, model=m)} for m in (first, second))
    both = sorted(one.keys() & two.keys())
    return Summary.of([one[s] - two[s] for s in both]) if both else None


def is_sure(gap: Summary) -> bool:
    return gap.n > 1 and abs(gap.mean) > gap.half_width


def _best(rows: Sequence[Row], part: str, models: Sequence[str]) -> str | None:
    means = {m: summary(mine, part).mean for m in models if (mine := by(rows, model=m))}
    return min(means, key=lambda m: means[m]) if means else None


def _contest(rows: Sequence[Row], part: str, ours: Sequence[str], theirs: Sequence[str]) -> str:
    """How the best of ours does against the best of theirs, at each n."""
    said = []
    for n in counts(rows):
        group = by(rows, observed=n)
        one, two = _best(group, part, ours), _best(group, part, theirs)
        gap = difference(group, part, one, two) if one and two else None
        if gap is None or one is None or two is None:
            continue
        word = "ahead of" if gap.mean < 0 else "behind"
        doubt = "" if is_sure(gap) else ", within the noise"
        said.append(
            f"at n = {n} the {LABELS[one]} ({summary(by(group, model=one), part).mean:.2f}) is "
            f"{word} {LABELS[two]} ({summary(by(group, model=two), part).mean:.2f}{doubt})"
        )
    return "; ".join(said)


def forecasting(rows: Sequence[Row]) -> str:
    text = _contest(rows, "extrapolation", LATENT, (*READS_IN_ORDER, "rnn_vae"))
    return f"**Forecasting**, the better latent ODE against the best without one: {text}." * bool(
        text
    )


def filling_in(rows: Sequence[Row]) -> str:
    text = _contest(rows, "interpolation", LATENT, ("rnn_vae",))
    other = _contest(rows, "interpolation", ("ode_rnn",), READS_IN_ORDER[:-1])
    parts = [f"among models that see the whole window, {text}"] if text else []
    parts += [f"among those that read in order, {other}"] if other else []
    return f"**Filling in:** {'. Further, '.join(parts)}." if parts else ""


def encoders(rows: Sequence[Row]) -> str:
    said = []
    for part in PARTS:
        sure = []
        for n in counts(rows):
            gap = difference(by(rows, observed=n), part, "latent_ode_ode", "latent_ode")
            if gap is not None and is_sure(gap):
                sure.append(f"{'better' if gap.mean < 0 else 'worse'} at n = {n}")
        said.append(f"in {part} {', '.join(sure) if sure else 'never to be told apart'}")
    if not by(rows, model="latent_ode_ode") or not by(rows, model="latent_ode"):
        return ""
    return f"**ODE-RNN as encoder, against an RNN:** {'; '.join(said)}."


def against_rules(rows: Sequence[Row]) -> str:
    """Which models a rule without training beats."""
    said = []
    for part in PARTS:
        for n in counts(rows):
            group = by(rows, observed=n)
            rule = _best(group, part, TRIVIAL)
            if rule is None:
                continue
            level = summary(by(group, model=rule), part).mean
            ahead = [
                LABELS[m]
                for m in (*READS_IN_ORDER, *WHOLE)
                if (mine := by(group, model=m)) and summary(mine, part).mean < level
            ]
            said.append(
                f"{part} at n = {n}: {LABELS[rule]} with {level:.2f}, beaten by "
                f"{', '.join(ahead) if ahead else 'no model'}"
            )
    return f"**The best rule without training:** {'; '.join(said)}." if said else ""
