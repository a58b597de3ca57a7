"""The flow experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pynode.experiments.study import Row, Summary, markdown_table

PLAIN = "none"
_FAR = 0.25  # nats
LABELS = {
    "cnf": "CNF",
    "coupling": "affine coupling",
    "planar": "planar",
    "kde": "kernel density estimate",
    "gaussian": "one Gaussian",
}
VARIANTS = {PLAIN: "none", "rnode": "RNODE", "steer": "STEER", "taynode": "TayNODE"}


def render(rows: Sequence[Row], config: Row) -> str:
    """The whole of ``table.md``."""
    parts = ["# Continuous normalizing flows", _heading(config)]
    parts += ["## Test negative log-likelihood", likelihoods(rows), _LIKELIHOOD_NOTE]
    parts += ["## Regularisers at equal likelihood", regularisers(rows), _EQUAL_NOTE]
    parts += ["## Inversion", inversions(rows)]
    parts += ["## Cost of the trace", traces(rows)]
    parts += ["## What came out", *findings(rows)]
    return "\n\n".join(parts) + "\n"


def _heading(config: Row) -> str:
    return (
        f"`--scale {config['scale']}`: 5000 points to learn from and 5000 others to test on for "
        f"each seed; {config['steps']} steps of Adam on {config['batch_size']} points, one-cycle "
        f"learning rate up to {config['lr']:g} for the CNF and a quarter of it for the flows of "
        f"layers, which diverge with more. The CNF's field has {config['layers']} concatsquash "
        f"layers of {config['hidden']}; it is trained by tsit5 with tolerances of 1e-2 and the "
        "exact trace, and tested at 1e-5. Nats, mean ± standard deviation over "
        f"{config['seeds']} seeds where there are several. Seconds are of one thread."
    )


_LIKELIHOOD_NOTE = (
    "Lower is better; the entropy, where it is known, is the least that anything can reach. The "
    "two estimates at the end need no training: one Gaussian has the training points' mean and "
    "covariance; the kernel density estimate puts a Gaussian about each training point, as wide as "
    "predicts a held-out fifth of them best."
)
_EQUAL_NOTE = (
    "Equal likelihood: in each seed the level is the worst final test likelihood among the four "
    "variants, and nfe is read where each variant's training curve first reaches that level, "
    "between the ten looks at it linearly. So a regulariser gains nothing by learning less."
)


def by(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def compared(rows: Sequence[Row]) -> list[str]:
    """The densities on which several models ran."""
    return list(dict.fromkeys(row["density"] for row in by(rows, model="coupling")))


def likelihoods(rows: Sequence[Row]) -> str:
    header = ("density", "model", "−log p", "entropy", "parameters", "train s", "nfe")
    lines = []
    plain = [row for row in rows if row["model"] in LABELS and row["regularised"] == PLAIN]
    for where in dict.fromkeys(row["density"] for row in plain):
        for model in LABELS:
            mine = by(plain, density=where, model=model)
            if not mine:
                continue
            floor = mine[0]["entropy"]
            trained = "train_seconds" in mine[0]
            lines.append(
                (
                    where,
                    LABELS[model],
                    str(_summary(mine, "nll")),
                    "–" if floor is None else f"{floor:.3f}",
                    str(mine[0]["parameters"]) if trained else "–",
                    f"{_summary(mine, 'train_seconds').mean:.0f}" if trained else "0",
                    f"{_summary(mine, 'nfe').mean:.0f}" if model == "cnf" else "–",
                )
            )
    return markdown_table(header, lines)


def equal_likelihood(rows: Sequence[Row]) -> dict[str, list[float]]:
    """For each variant the nfe at equal likelihood, one number a seed; NaN where never reached."""
    found: dict[str, list[float]] = {}
    for runs in _variants_by_seed(rows):
        level = max(run["curve"][-1]["nll"] for run in runs.values())
        for variant, run in runs.items():
            found.setdefault(variant, []).append(_nfe_at(run["curve"], level))
    return found


def _variants_by_seed(rows: Sequence[Row]) -> list[dict[str, Row]]:
    others = [row for row in by(rows, model="cnf") if row["regularised"] != PLAIN]
    where = {row["density"] for row in others}
    seeds: dict[int, dict[str, Row]] = {}
    for row in by(rows, model="cnf"):
        if row["density"] in where:
            seeds.setdefault(row["seed"], {})[row["regularised"]] = row
    return [
        {v: runs[v] for v in VARIANTS} for runs in seeds.values() if runs.keys() >= VARIANTS.keys()
    ]


def _nfe_at(curve: Sequence[Row], level: float) -> float:
    """nfe where the curve first comes down to the level, between its points linearly."""
    before = None
    for point in curve:
        if point["nll"] <= level + 1e-9:
            if before is None:
                return float(point["nfe"])
            share = (before["nll"] - level) / (before["nll"] - point["nll"])
            return before["nfe"] + share * (point["nfe"] - before["nfe"])
        before = point
    return math.nan


def regularisers(rows: Sequence[Row]) -> str:
    header = ("regulariser", "−log p", "nfe at the end", "nfe at equal −log p", "train s")
    equal = equal_likelihood(rows)
    lines = []
    for variant, label in VARIANTS.items():
        runs = [seed[variant] for seed in _variants_by_seed(rows)]
        if runs:
            lines.append(
                (
                    label,
                    str(_summary(runs, "nll")),
                    f"{_summary(runs, 'nfe'):.0f}",
                    f"{Summary.of(equal[variant]):.0f}",
                    f"{_summary(runs, 'train_seconds').mean:.0f}",
                )
            )
    return markdown_table(header, lines)


def inversions(rows: Sequence[Row]) -> str:
    header = ("tolerance", "largest round-trip error", "nfe one way")
    lines = [
        (f"{tolerance:.0e}", f"{error:.1e}", f"{nfe:.0f}")
        for tolerance, error, nfe in round_trips(rows)
    ]
    return markdown_table(header, lines)


def round_trips(rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """(tolerance, the largest error of all runs, mean nfe)."""
    points: dict[float, list[Row]] = {}
    for row in rows:
        for point in row.get("round_trip", ()):
            points.setdefault(point["tolerance"], []).append(point)
    return [
        (tolerance, max(p["error"] for p in found), Summary.of([p["nfe"] for p in found]).mean)
        for tolerance, found in points.items()
    ]


def costs(rows: Sequence[Row]) -> list[Row]:
    """What the traces cost, by dimension."""
    return [cost for row in by(rows, model="cost") for cost in row["costs"]]


def traces(rows: Sequence[Row]) -> str:
    header = (
        "D", "exact: passes", "Hutchinson: passes", "exact: ms", "Hutchinson: ms",
        "sd of Hutchinson's log p",
    )  # fmt: skip
    lines = [
        (
            str(c["features"]),
            f"{c['exact_vjp']:.0f}",
            f"{c['hutchinson_vjp']:.0f}",
            f"{1e3 * c['exact_seconds']:.0f}",
            f"{1e3 * c['hutchinson_seconds']:.0f}",
            f"{c['hutchinson_sd']:.3f}",
        )
        for c in costs(rows)
    ]
    return markdown_table(header, lines)


# -- what came out --------------------------------------------------------------------------------


def findings(rows: Sequence[Row]) -> list[str]:
    """A paragraph for each question, made from the numbers."""
    parts = [_against(rows, where) for where in compared(rows)]
    parts.append(_gallery(rows))
    parts += [_inverse(rows), _regularisers_say(rows), _trace_says(rows)]
    return [part for part in parts if part]


def _against(rows: Sequence[Row], where: str) -> str:
    cnf = {row["seed"]: row["nll"] for row in by(rows, model="cnf", density=where)
           if row["regularised"] == PLAIN}  # fmt: skip
    said = []
    for model in ("coupling", "planar", "kde", "gaussian"):
        rival = {row["seed"]: row["nll"] for row in by(rows, model=model, density=where)}
        both = sorted(cnf.keys() & rival.keys())
        if both:
            gain = Summary.of([rival[s] - cnf[s] for s in both])
            said.append(f"{_verdict(gain)} {LABELS[model]} ({_interval(gain)})")
    return f"**{where}.** In test likelihood the CNF is " + ", ".join(said) + "." if said else ""


def _gallery(rows: Sequence[Row]) -> str:
    """How near the CNF comes to the kernel density estimate on each density."""
    behind = {}
    for row in by(rows, model="cnf", regularised=PLAIN, seed=0):
        kernel = by(rows, model="kde", density=row["density"], seed=0)
        if kernel:
            behind[row["density"]] = row["nll"] - kernel[0]["nll"]
    if not behind:
        return ""
    order = sorted(behind, key=lambda name: behind[name])
    said = ", ".join(f"{name} {behind[name]:+.2f}" for name in order)
    far = [name for name in order if behind[name] > _FAR]
    steps = by(rows, model="cnf")[0]["steps"]
    verdict = (
        f"after {steps} steps {', '.join(far)} {'are' if len(far) > 1 else 'is'} not learned yet, "
        "as the pictures show"
        if far
        else "none of them is far"
    )
    return (
        "**In two dimensions a kernel density estimate is hard to beat.** −log p of the CNF minus "
        f"that of the estimate, seed 0: {said}; {verdict}."
    )


def _verdict(gain: Summary) -> str:
    if gain.n < 2:
        return "ahead of" if gain.mean > 0 else "behind"
    if abs(gain.mean) <= gain.half_width:
        return "not to be told from"
    return "ahead of" if gain.mean > 0 else "behind"


def _interval(gain: Summary) -> str:
    interval = f" ± {gain.half_width:.3f}" if gain.n > 1 else ", one seed"
    return f"{gain.mean:+.3f}{interval} nats"


def _inverse(rows: Sequence[Row]) -> str:
    found = round_trips(rows)
    if not found:
        return ""
    coarse, fine = found[0], found[-1]
    return (
        f"**Inversion** is as exact as the solve: from tolerance {coarse[0]:.0e} to {fine[0]:.0e} "
        f"the largest round-trip error falls from {coarse[1]:.0e} to {fine[1]:.0e}, while nfe "
        f"grows from {coarse[2]:.0f} to {fine[2]:.0f}. Nothing in the field was built to be "
        "invertible."
    )


def _regularisers_say(rows: Sequence[Row]) -> str:
    equal = equal_likelihood(rows)
    if PLAIN not in equal:
        return ""
    said = []
    for variant, label in list(VARIANTS.items())[1:]:
        pairs = [
            (a, b)
            for a, b in zip(equal[PLAIN], equal[variant], strict=True)
            if not (math.isnan(a) or math.isnan(b))
        ]
        if not pairs:
            continue
        saved = Summary.of([1 - b / a for a, b in pairs])
        sure = saved.n > 1 and abs(saved.mean) > saved.half_width
        verb = "saves" if saved.mean > 0 else "costs"
        doubt = "" if sure else ", which may be noise"
        spread = f" ± {100 * saved.half_width:.0f}" if saved.n > 1 else ""
        said.append(f"{label} {verb} {100 * abs(saved.mean):.0f}{spread} %{doubt}")
    return (
        "**Regularisers**, evaluations of the field at equal test likelihood, against none: "
        + "; ".join(said)
        + ". (95 % intervals over seeds.)"
    )


def _trace_says(rows: Sequence[Row]) -> str:
    found = costs(rows)
    if not found:
        return ""
    last = found[-1]
    return (
        f"**Trace.** In D = {last['features']} dimensions the exact trace takes "
        f"{last['exact_vjp']:.0f} passes for each evaluation, Hutchinson's estimate "
        f"{last['hutchinson_vjp']:.0f}, and a loss with its gradient "
        f"{last['exact_seconds'] / last['hutchinson_seconds']:.0f} times as long. The estimate is "
        f"paid for in noise: log p of a point has a standard deviation of "
        f"{last['hutchinson_sd']:.2f} nats over draws of ε."
    )


def _summary(rows: Sequence[Row], column: str) -> Summary:
    return Summary.of([row[column] for row in rows])
