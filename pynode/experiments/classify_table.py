"""The classify experiment's results in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pynode.experiments.study import Row, Summary, markdown_table

LABELS = {
    "odenet": "ODE-Net",
    "rknet": "RK-Net",
    "resnet6": "ResNet, 6 blocks",
    "resnet1": "ResNet, 1 block",
    "mlp": "MLP, 1 hidden layer",
    "linear": "linear",
    "nearest": "nearest neighbour",
    "commonest": "commonest class",
}
# Chen et al. 2018, table 1: test error in percent on MNIST.
CHEN = {"mlp": 1.60, "resnet6": 0.41, "rknet": 0.47, "odenet": 0.42}


def render(rows: Sequence[Row], config: Row) -> str:
    """The whole of ``table.md``."""
    parts = ["# From ResNet to ODE-Net", _heading(config), "## Models", models(rows, config)]
    parts += [_MEMORY_NOTE, "## The limit", limit(rows), _LIMIT_NOTE]
    parts += ["## Tied ResNets that were trained", trained(rows), _TRAINED_NOTE]
    parts += ["## What came out", *findings(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(config: Row) -> str:
    data = {
        "digits": "scikit-learn's 1797 digits of 8 × 8 pixels, each seed with a split of its own "
        "(70 % to train on, 30 % to test on); blocks are two dense layers of 64",
        "mnist": "MNIST; blocks are two convolutions of 64 channels",
    }[config["data"]]
    return (
        f"`--scale {config['scale']}`: {data}. {config['epochs']} epochs of Adam in minibatches of "
        f"{config['batch_size']}, learning rate {config['lr']:g} on a cosine, the same for all; "
        "nothing is chosen by the test images. The ODE-Net is solved by tsit5 at tolerances of "
        "1e-3 with gradients by backsolve, the RK-Net by 4 fixed steps of rk4 with gradients "
        f"through them. Mean ± standard deviation over {config['seeds']} seeds; seconds are of one "
        "thread."
    )


_MEMORY_NOTE = (
    "Memory is counted, not sampled: the most bytes of tensors alive at once in the forward and "
    "backward pass of one minibatch, without parameters, input and optimiser. nfe is that of the "
    "last epoch; for ResNets, the number of blocks."
)
_LIMIT_NOTE = (
    "The trained ODE-Net's own weights, run as a ResNet of L tied layers, h ← h + f(t, h)/L, "
    "against the ODE solved at 1e-6: error of the last hidden state relative to the way it went, "
    "and of the loss's gradient relative to its size. The order is the slope between the last two "
    "L; Euler's method has order 1."
)
_TRAINED_NOTE = (
    "Here each depth was trained by itself. The last column is how far such a network's last "
    "hidden state is from that of the ODE with the network's weights, relative to the way it went: "
    "small where the network is a discretised ODE, of order 1 where it merely is a network."
)


def by(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def models(rows: Sequence[Row], config: Row) -> str:
    header = ["model", "accuracy %", "parameters", "memory, kB", "train s", "nfe forward",
              "nfe backward"]  # fmt: skip
    printed = config["data"] == "mnist"
    if printed:
        header.append("Chen et al., accuracy %")
    lines = []
    for model, label in LABELS.items():
        mine = by(rows, model=model)
        if not mine:
            continue
        trained = "train_seconds" in mine[0]
        there, back = nfe(mine)
        line = [
            label,
            f"{Summary.of([100 * row['accuracy'] for row in mine]):.2f}",
            str(mine[0]["parameters"]),
            f"{mean(mine, 'peak_bytes') / 1e3:.0f}" if trained else "–",
            f"{mean(mine, 'train_seconds'):.1f}" if trained else "0",
            there,
            back,
        ]
        if printed:
            line.append(f"{100 - CHEN[model]:.2f}" if model in CHEN else "–")
        lines.append(line)
    return markdown_table(header, lines)


def nfe(rows: Sequence[Row]) -> tuple[str, str]:
    """Evaluations there and back in the last epoch, as text."""
    blocks = {"resnet6": "6", "resnet1": "1"}.get(rows[0]["model"])
    if blocks:
        return blocks, blocks
    if not rows[0].get("nfe_by_epoch"):
        return "–", "–"
    ends = [row["nfe_by_epoch"][-1] for row in rows]
    return tuple(f"{Summary.of([e[i] for e in ends]).mean:.0f}" for i in (0, 1))  # type: ignore[return-value]


def mean(rows: Sequence[Row], column: str) -> float:
    return Summary.of([row[column] for row in rows]).mean


def limits(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The comparisons with the ODE, by depth."""
    found: dict[int, list[Row]] = {}
    for row in by(rows, model="odenet"):
        for point in row["limit"]:
            found.setdefault(point["depth"], []).append(point)
    return found


def limit(rows: Sequence[Row]) -> str:
    header = ("L", "error of the state", "error of the gradient", "accuracy %")
    lines = [
        (
            str(depth),
            f"{mean(points, 'state_error'):.2e}",
            f"{mean(points, 'gradient_error'):.2e}",
            f"{Summary.of([100 * p['accuracy'] for p in points]):.2f}",
        )
        for depth, points in limits(rows).items()
    ]
    return markdown_table(header, lines)


def orders(rows: Sequence[Row]) -> tuple[float, float]:
    """Observed orders of the state and of the gradient, between the last two depths."""
    found = limits(rows)
    (a, first), (b, last) = list(found.items())[-2:]
    state, gradient = (
        math.log(mean(first, c) / mean(last, c)) / math.log(b / a)
        for c in ("state_error", "gradient_error")
    )
    return state, gradient


def trained(rows: Sequence[Row]) -> str:
    header = ("L", "accuracy %", "memory, kB", "train s", "distance from its ODE")
    lines = []
    for depth in depths(rows):
        mine = by(rows, model="tied_resnet", depth=depth)
        lines.append(
            (
                str(depth),
                f"{Summary.of([100 * row['accuracy'] for row in mine]):.2f}",
                f"{mean(mine, 'peak_bytes') / 1e3:.0f}",
                f"{mean(mine, 'train_seconds'):.1f}",
                f"{mean(mine, 'from_its_ode'):.3f}",
            )
        )
    return markdown_table(header, lines)


def depths(rows: Sequence[Row]) -> list[int]:
    """L of the tied ResNets that were trained."""
    return sorted({row["depth"] for row in by(rows, model="tied_resnet")})


# -- what came out --------------------------------------------------------------------------------


def findings(rows: Sequence[Row]) -> list[str]:
    """A paragraph for each question, made from the numbers."""
    return [text for text in (_accuracy(rows), _price(rows), _limit_says(rows)) if text]


def _accuracy(rows: Sequence[Row]) -> str:
    ode = {row["seed"]: row["accuracy"] for row in by(rows, model="odenet")}
    said: dict[str, list[str]] = {"ahead of": [], "behind": [], "not to be told from": []}
    for model in ("resnet6", "resnet1", "rknet", "mlp", "linear", "nearest"):
        rival = {row["seed"]: row["accuracy"] for row in by(rows, model=model)}
        both = sorted(ode.keys() & rival.keys())
        if not both:
            continue
        gain = Summary.of([100 * (ode[s] - rival[s]) for s in both])
        sure = abs(gain.mean) > gain.half_width
        verdict = ("ahead of" if gain.mean > 0 else "behind") if sure else "not to be told from"
        spread = f" ± {gain.half_width:.2f}" if gain.n > 1 else ", one seed"
        said[verdict].append(f"{LABELS[model]} ({gain.mean:+.2f}{spread})")
    text = "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in said.items() if names)
    return (
        f"**Accuracy.** The ODE-Net is {text}. Differences are in percentage points, paired by "
        "seed, with 95 % intervals."
    )


def _price(rows: Sequence[Row]) -> str:
    ode, deep, shallow = (by(rows, model=m) for m in ("odenet", "resnet6", "resnet1"))
    if not (ode and deep and shallow):
        return ""
    share = ode[0]["parameters"] / deep[0]["parameters"]
    memory = mean(ode, "peak_bytes") / mean(deep, "peak_bytes")
    slower = mean(ode, "train_seconds") / mean(deep, "train_seconds")
    gap = 100 * (mean(deep, "accuracy") - mean(shallow, "accuracy"))
    return (
        f"**Price.** Against the ResNet of six blocks the ODE-Net has {share:.2f} times the "
        f"parameters, takes {memory:.2f} times the memory and {slower:.1f} times as long to train. "
        f"{_flat(ode)} Parameters are no "
        "argument by themselves: a ResNet of one block has as few, and is "
        f"{abs(gap):.2f} percentage points {'behind' if gap > 0 else 'ahead of'} the one of six."
    )


def _flat(ode: Sequence[Row]) -> str:
    measured = [row["memory"] for row in ode if "memory" in row]
    if not measured:
        return ""
    curve, layers = measured[0]["ode"], measured[0]["tied_resnet"]
    coarse, fine = curve[0], curve[-1]
    deeper = [point["nfe"] for point in layers if point["bytes"] > fine["bytes"]]
    text = (
        f"Solved more finely, with {fine['nfe']} evaluations for {coarse['nfe']}, it takes "
        f"{fine['bytes'] / coarse['bytes']:.2f} times the memory: that of backsolve does not grow "
        "with depth, but it holds the stages of state, adjoint and parameters' gradient at once."
    )
    if not deeper:
        return f"{text} No tied ResNet measured here takes as much."
    return f"{text} Tied ResNets take more from {min(deeper)} layers on."


def _limit_says(rows: Sequence[Row]) -> str:
    found = limits(rows)
    if len(found) < 2:
        return ""
    state, gradient = orders(rows)
    first, last = min(found), max(found)
    text = (
        f"**Limit.** Run as a ResNet of {first} to {last} tied layers, the ODE-Net's last state "
        f"comes from {mean(found[first], 'state_error'):.2g} to "
        f"{mean(found[last], 'state_error'):.1e} of its ODE's, with observed order {state:.2f}, "
        f"its gradient with order {gradient:.2f}."
    )
    levels = depths(rows)
    if len(levels) < 2:
        return text
    near, far = (by(rows, model="tied_resnet", depth=d) for d in (levels[-1], levels[0]))
    return (
        f"{text} Trained by themselves, tied ResNets of {levels[0]} layer"
        f"{'s' if levels[0] > 1 else ''} end {mean(far, 'from_its_ode'):.2f} from the ODE of their "
        f"weights, those of {levels[-1]} layers {mean(near, 'from_its_ode'):.3f}: depth turns the "
        "one into the other, without being told to."
    )
