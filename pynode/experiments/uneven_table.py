"""The uneven experiment's results in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynode.experiments.study import Row, Summary, markdown_table

LABELS = {
    "rnn": "nothing",
    "rnn_t": "t",
    "rnn_dt": "Δt",
    "rnn_t_dt": "t and Δt",
    "rnn_time2vec": "embedding of t",
    "rnn_decay": "decay over Δt",
    "last_value": "(last value)",
    "line": "(line through two)",
}
TOLD = ("rnn_t", "rnn_dt", "rnn_t_dt", "rnn_time2vec", "rnn_decay")


def render(rows: Sequence[Row], config: Row) -> str:
    """The whole of ``table.md``."""
    parts = ["# What should an RNN be told of uneven times?", _heading(config)]
    parts += ["## Growing unevenness", table(rows, unevenness(rows), "unevenness")]
    parts += ["## Growing missing rate", table(rows, missing(rows), "missing")]
    parts += ["## Two worlds", table(rows, worlds(rows), "world"), _NOTE]
    parts += ["## What came out", *findings(rows)]
    return "\n\n".join(parts) + "\n"


def _heading(config: Row) -> str:
    return (
        f"`--scale {config['scale']}`: {config['series']} series of {config['observations']} "
        "observations of two coordinates with noise 0.05 to learn from, a quarter as many to "
        f"choose the best epoch by, 200 to test on. The same GRU of {config['hidden']} units, told "
        f"different things of time; {config['epochs']} epochs of Adam, learning rate from "
        f"{config['lr']:g} down to a tenth of it, for all. Errors are RMSE of each observation as "
        "predicted from those before it, against the noise-free truth of both coordinates, after "
        f"five observations. Mean ± standard deviation over {config['seeds']} seeds."
    )


_NOTE = (
    "Unevenness is the standard deviation of the gaps over their mean of 0.4: 0 is a regular grid, "
    "1 a Poisson process. In the autonomous world each series turns on a circle with a frequency, "
    "phase and radius of its own; in the driven one all follow the same season of the date, each "
    "by a factor of its own. The last two lines need no training: a coordinate's last value, and "
    "the line through its last two, no further than they are apart."
)


def settings(rows: Sequence[Row], regular: bool = True) -> dict[str, list[Row]]:
    """The rows of every setting, named as in a sentence."""
    groups = {f"unevenness {k}": v for k, v in unevenness(rows).items() if regular or k != "0"}
    groups |= {f"{k} missing": v for k, v in missing(rows).items() if k != "0%"}
    if "driven" in worlds(rows):
        groups["the driven world"] = worlds(rows)["driven"]
    return groups


def by(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def unevenness(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Complete series of the autonomous world, by unevenness."""
    return _grouped(by(rows, world="autonomous", missing=0.0), "unevenness", ":g")


def missing(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Series of the autonomous world at unevenness 1, by missing rate."""
    return _grouped(by(rows, world="autonomous", unevenness=1.0), "missing", ":.0%")


def worlds(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Complete series at unevenness 1, by world."""
    return _grouped(by(rows, unevenness=1.0, missing=0.0), "world", "")


def _grouped(rows: Sequence[Row], column: str, spec: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{{{spec}}}".format(row[column]), []).append(row)
    return found


def table(rows: Sequence[Row], groups: dict[str, list[Row]], name: str) -> str:
    header = ("told", "parameters", *(f"{name} {key}" for key in groups))
    lines = []
    for model, label in LABELS.items():
        if by(rows, model=model):
            cells = [_cell(by(group, model=model)) for group in groups.values()]
            lines.append((label, str(by(rows, model=model)[0]["parameters"]), *cells))
    return markdown_table(header, lines)


def _cell(rows: Sequence[Row]) -> str:
    return str(summary(rows)) if rows else "–"


def summary(rows: Sequence[Row]) -> Summary:
    """RMSE over seeds."""
    return Summary.of([row["rmse"] for row in rows])


# -- what came out --------------------------------------------------------------------------------


def findings(rows: Sequence[Row]) -> list[str]:
    """A paragraph for each question, made from the numbers."""
    return [text for text in (time_or_gap(rows), best(rows), regular(rows), trivial(rows)) if text]


def difference(rows: Sequence[Row], first: str, second: str) -> Summary | None:
    """RMSE of the first model minus that of the second, paired by seed; None without pairs."""
    one, two = ({row["seed"]: row["rmse"] for row in by(rows, model=m)} for m in (first, second))
    both = sorted(one.keys() & two.keys())
    return Summary.of([one[s] - two[s] for s in both]) if both else None


def verdict(gap: Summary) -> int:
    """−1 where the first is better, 1 where it is worse, 0 where the seeds cannot tell."""
    if gap.n < 2 or abs(gap.mean) <= gap.half_width:
        return 0
    return -1 if gap.mean < 0 else 1


def time_or_gap(rows: Sequence[Row]) -> str:
    """Is t the same as Δt?"""
    lines, verdicts = [], {}
    for name, group in settings(rows).items():
        gap = difference(group, "rnn_t", "rnn_dt")
        if gap is not None:
            verdicts[name] = verdict(gap)
            spread = f" ± {gap.half_width:.3f}" if gap.n > 1 else ", one seed"
            lines.append(f"- {name}: {gap.mean:+.3f}{spread}")
    if not lines:
        return ""
    return (
        "**Is feeding the absolute time t the same as feeding Δt?** "
        f"{_answer(verdicts)} One can be computed from the other, t as the sum of gaps and Δt as a "
        "difference of two times, but a network has to learn to, and the gap is what the step to "
        f"the next value depends on in a world without a clock.{_as_a_season(rows)} "
        "RMSE told t minus RMSE told Δt, paired by seed, with 95 % intervals:\n\n"
        + "\n".join(lines)
    )


def _as_a_season(rows: Sequence[Row]) -> str:
    """Whether the date helps in the driven world, bare and embedded."""
    driven = worlds(rows).get("driven", [])
    told = {m: difference(driven, m, "rnn_dt") for m in ("rnn_t", "rnn_time2vec")}
    bare, embedded = told.values()
    if bare is None or embedded is None:
        return ""
    words = {-1: "better than", 0: "not to be told from", 1: "worse than"}
    text = (
        " In the driven world, where the date decides, t as a bare number is "
        f"{words[verdict(bare)]} Δt, and the learned embedding of t {words[verdict(embedded)]} Δt"
    )
    if verdict(bare) >= 0 and verdict(embedded) < 0:
        return f"{text}: the date helps when it comes as phases of a season."
    return f"{text}."


def _answer(verdicts: dict[str, int]) -> str:
    gap = [name for name, v in verdicts.items() if v == 1]
    time = [name for name, v in verdicts.items() if v == -1]
    open_ = [name for name, v in verdicts.items() if v == 0]
    if not gap and not time:
        return "These runs cannot tell the two apart: every difference is within the noise."
    said = []
    if gap:
        said.append(f"Δt is better at {', '.join(gap)}")
    if time:
        said.append(f"t is better at {', '.join(time)}")
    if open_:
        said.append(f"no difference can be told at {', '.join(open_)}")
    return f"No: {'; '.join(said)}."


def best(rows: Sequence[Row]) -> str:
    """Which of all ways is best where, and what cannot be told from it."""
    said = []
    for where, group in settings(rows, regular=False).items():
        means = {m: summary(mine).mean for m in TOLD if (mine := by(group, model=m))}
        if not means:
            continue
        first = min(means, key=lambda m: means[m])
        gaps = {m: difference(group, first, m) for m in means if m != first}
        ties = [LABELS[m] for m, gap in gaps.items() if gap is not None and verdict(gap) == 0]
        tie = f", not to be told from {', '.join(ties)}" if ties else ""
        said.append(f"at {where}, {LABELS[first]} ({means[first]:.3f}{tie})")
    return f"**Best of all ways to tell an RNN:** {'; '.join(said)}." if said else ""


def regular(rows: Sequence[Row]) -> str:
    """On a regular grid there is nothing to tell."""
    groups = unevenness(rows)
    if "0" not in groups or len(groups) < 2:
        return ""
    last = list(groups)[-1]
    gains = {k: difference(groups[k], "rnn", "rnn_dt") for k in ("0", last)}
    if any(gap is None for gap in gains.values()):
        return ""
    told = {k: f"{gap.mean:+.3f} ± {gap.half_width:.3f}" for k, gap in gains.items() if gap}
    first, final = (verdict(gap) for gap in gains.values() if gap)
    sense = (
        "as it should be: the gap matters where gaps differ"
        if (first, final) == (0, 1)
        else "which is not the plain picture that one would expect"
    )
    return (
        "**What not knowing costs.** RMSE of an RNN that is told nothing minus that of one told "
        f"Δt: {told['0']} on a regular grid, {told[last]} at unevenness {last}; {sense}."
    )


def trivial(rows: Sequence[Row]) -> str:
    """Where an RNN loses to a rule without training."""
    lost = []
    for where, group in settings(rows).items():
        found = {m: by(group, model=m) for m in ("last_value", "line")}
        rules = {m: summary(mine).mean for m, mine in found.items() if mine}
        if not rules:
            continue
        rule = min(rules, key=lambda m: rules[m])
        behind = [
            LABELS[model]
            for model in ("rnn", *TOLD)
            if (mine := by(group, model=model)) and summary(mine).mean > rules[rule]
        ]
        if behind:
            lost.append(f"at {where} {LABELS[rule]} is ahead of RNNs told {', '.join(behind)}")
    if not lost:
        return "**Rules without training** lose to every RNN in every setting."
    return f"**Rules without training:** {'; '.join(lost)}."
