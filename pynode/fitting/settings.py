"""What a person may choose, and what follows from it and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pynode.data.frames import SeriesTable
from pynode.errors import InputError
from pynode.fitting.networks import FORECASTERS, PLAIN_RULES
from pynode.fitting.scaling import (
    Scaling,
    Shape,
    find_period,
    harmonics_of,
    learn_scaling,
    level_of,
)
from pynode.fitting.windows import Frame, Place, Window, cut, places
from pynode.train import TrainConfig

MANY_SERIES = 20  # from so many on, whole series are held out
FEWEST_ROWS = 8
GAIN = 0.98  # a trend or season is taken out if it brings the error below this share
_CONTEXT_ROWS = 150  # that a window may hold by default


@dataclass(frozen=True)
class Settings:
    """Options of :func:`pynode.fit`; None is chosen by the data, and printed.

    Attributes:
        model: one of ``FORECASTERS``.
        horizon: how far ahead the model is trained and scored, in units of time (``"90d"`` with
            timestamps).
        context: how far back it reads.
        trend: ``"linear"``, ``"none"``, or None.
        season: periods; () for none.
        level: ``"window"``: each window is counted from its own mean; ``"table"``: from that of
            the training data.
        split: ``"time"``: the last rows are held out; ``"series"``: whole series, at random.
        valid, test: shares held out to choose the best epoch and calibrate intervals, and to
            score.
        epochs: passes over the training windows.
        windows: how many of these there are.
        batch_size, lr, seed, accumulate, precision: see :class:`pynode.train.TrainConfig`.
        repeat: which of several trainings that differ only in initial weights and batches.
        minutes: training stops after the first epoch that ends beyond so many.
        hide: share of the known rows that a training window does not show but asks for.
        hyper: the network's own options.

    Raises:
        InputError: a value has no meaning.
    """

    model: str = "latent_ode"
    horizon: Any = None
    context: Any = None
    trend: str | None = None
    season: Sequence[Any] | None = None
    level: str | None = None
    split: str | None = None
    valid: float = 0.15
    test: float = 0.15
    epochs: int | None = None
    windows: int | None = None
    batch_size: int = 32
    lr: float = 0.02
    seed: int = 0
    repeat: int = 0
    accumulate: int = 1
    precision: str = "float32"
    minutes: float = 3.0
    hide: float = 0.2
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("model", self.model, (*FORECASTERS, "neural_cde"))
        _one_of("trend", self.trend, (None, "linear", "none"))
        _one_of("level", self.level, (None, "window", "table"))
        _one_of("split", self.split, (None, "time", "series"))
        for name in ("epochs", "windows", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise InputError(f"{name}={value}: at least 1 is needed")
        for name, low in (("valid", 0.01), ("test", 0.0), ("hide", 0.0)):
            if not low <= getattr(self, name) <= 0.9:
                raise InputError(f"{name}={getattr(self, name)}: must be in [{low}, 0.9]")
        if self.valid + self.test > 0.9:
            raise InputError(f"valid={self.valid} and test={self.test} leave nothing to learn from")
        if not self.minutes > 0:
            raise InputError(f"minutes={self.minutes}: must be above 0")


def _one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        listed = ", ".join(str(k) for k in known if k is not None)
        raise InputError(f"{name}={value!r} is not one of {listed}")


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the data: windows lie in it whose future is in (after, until].

    Attributes:
        table: all that may be read.
        after, until: where the future of its windows lies.
    """

    table: SeriesTable
    after: float = -np.inf
    until: float = np.inf

    def places(self, frame: Frame, count: int, seed: int) -> list[Place]:
        """Random places for windows."""
        rng = np.random.default_rng(seed)
        return places(self.table, frame, count, rng, self.after, self.until)

    def windows(
        self, scaling: Scaling, frame: Frame, count: int, seed: int, hide: float = 0.0
    ) -> list[Window]:
        """Random windows, the same for the same seed."""
        rng = np.random.default_rng(seed + 1)
        found = (
            cut(self.table, scaling, frame, place, hide, rng)
            for place in self.places(frame, count, seed)
        )
        return [w for w in found if w is not None and len(w.asked_times)]


@dataclass(frozen=True, eq=False)
class Split:
    """The data in three parts.

    Attributes:
        kind: ``"time"`` or ``"series"``.
        train, valid: to learn from, and to choose the epoch and calibrate the intervals by.
        test: to score on; None if nothing was held out.
    """

    kind: str
    train: Part
    valid: Part
    test: Part | None


def split_table(table: SeriesTable, settings: Settings) -> Split:
    """The parts of ``table``.

    Raises:
        InputError: there is too little data.
    """
    rows = sum(len(t) for t in table.times)
    if rows < FEWEST_ROWS:
        raise InputError(
            f"the table has {rows} usable rows: at least {FEWEST_ROWS} are needed to learn from"
        )
    kind = settings.split or ("series" if len(table) >= MANY_SERIES else "time")
    if kind == "series":
        if len(table) < 5:
            raise InputError(
                f"split='series' with {len(table)} series: at least 5 are needed; use split='time'"
            )
        order = np.random.default_rng(settings.seed).permutation(len(table))
        n_test = round(settings.test * len(table)) if settings.test else 0
        n_test = max(n_test, 1) if settings.test else 0
        n_valid = max(round(settings.valid * len(table)), 1)
        test, valid, train = np.split(order, [n_test, n_test + n_valid])
        parts = [Part(table[np.sort(p).tolist()]) for p in (train, valid)]
        held = Part(table[np.sort(test).tolist()]) if n_test else None
        return Split(kind, parts[0], parts[1], held)
    moments = np.sort(np.concatenate(table.times))
    first, second = np.quantile(moments, [1 - settings.test - settings.valid, 1 - settings.test])
    if not moments[0] < first < second:
        raise InputError("the table has too few different times to hold any out")
    return Split(
        kind,
        train=Part(table.cut(until=float(first)), until=float(first)),
        valid=Part(table.cut(until=float(second)), float(first), float(second)),
        test=Part(table, float(second)) if settings.test else None,
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """All that was decided before training.

    Attributes:
        frame: sizes of a window.
        scaling: what is taken out of the values.
        split: the parts of the data.
        reasons: what was decided, in words.
        shaped: whether trend and season were looked for.
    """

    frame: Frame
    scaling: Scaling
    split: Split
    reasons: tuple[str, ...]
    shaped: bool


def make_plan(table: SeriesTable, settings: Settings, reuse: Plan | None = None) -> Plan:
    """Decide what the settings leave open.

    Args:
        reuse: a plan for the same table by another model: its parts and windows are kept.

    Raises:
        InputError: there is too little data, or an option does not fit it.
    """
    split = reuse.split if reuse else split_table(table, settings)
    reasons: list[str] = []
    frame = reuse.frame if reuse else _frame(table, split, settings, reasons)
    if settings.model in PLAIN_RULES:
        shape = Shape()
    elif reuse is not None and reuse.shaped:
        shape = reuse.scaling.shape
    else:
        shape = _shape(split, frame, settings, reasons)
    centred = _centred(split, shape, settings, reasons)
    scaling = learn_scaling(split.train.table, shape, centred)
    scaling = _rescaled(split.train, scaling, frame)
    return Plan(frame, scaling, split, tuple(reasons), settings.model not in PLAIN_RULES)


def _frame(table: SeriesTable, split: Split, settings: Settings, reasons: list[str]) -> Frame:
    clock = table.clock
    durations = np.array([t[-1] - t[0] for t in table.times])
    duration = float(np.median(durations[durations > 0])) if (durations > 0).any() else 0.0
    if duration <= 0:
        raise InputError("no series has two different times: there is nothing to learn from")
    if settings.horizon is not None:
        horizon = clock.duration(settings.horizon, "horizon")
    else:
        gap = float(np.median(table.gaps))
        horizon = max(duration * (0.25 if split.kind == "series" else 0.1), 2 * gap)
        if split.kind == "time":
            horizon = min(horizon, max(_CONTEXT_ROWS * gap, 2 * gap))
        reasons.append(f"horizon {clock.say(horizon)}: by the length of the series")
    longest = float(durations.max())
    if settings.context is not None:
        context = clock.duration(settings.context, "context")
    elif split.kind == "series":
        context = longest
        reasons.append(f"context {clock.say(context)}: all that is known of a series")
    else:
        gap = float(np.median(table.gaps))
        context = min(3 * horizon, _CONTEXT_ROWS * max(gap, 1e-300), 0.5 * duration)
        context = max(context, min(horizon, 0.5 * duration), 10 * gap)
        reasons.append(f"context {clock.say(context)}")
    if horizon > 10 * duration:
        raise InputError(
            f"horizon {clock.say(horizon)} is more than ten times as long as the series "
            f"({clock.say(duration)})"
        )
    return Frame.of(context, horizon)


def _shape(split: Split, frame: Frame, settings: Settings, reasons: list[str]) -> Shape:
    """Trend and season: as told, or those that forecast the end of the training part better."""
    table = split.train.table
    if settings.season is not None:
        periods = tuple(table.clock.duration(p, "season") for p in settings.season)
        if len(set(periods)) < len(periods):
            raise InputError("season names one period twice")
    else:
        periods = None
    automatic = split.kind == "time"
    trends = {"linear": (True,), "none": (False,)}.get(
        settings.trend or "", (False, True) if automatic else (False,)
    )
    candidates = []
    for trend in trends:
        seasons: list[tuple[float, ...]] = [periods] if periods is not None else [()]
        if periods is None and automatic:
            found = find_period(table, Shape(trend))
            seasons += [(found,)] if found else []
        for some in seasons:
            candidates.append(Shape(trend, some, tuple(harmonics_of(table, p) for p in some)))
    best = candidates[0]
    if len(candidates) > 1:
        errors = [_held_error(table, frame, shape, settings.seed) for shape in candidates]
        for shape, error in zip(candidates[1:], errors[1:], strict=True):
            if error < GAIN * errors[candidates.index(best)]:
                best = shape
        if settings.trend is None or settings.season is None:
            reasons.append(_because(candidates, errors, best, table))
    elif automatic and (settings.trend is None or settings.season is None):
        reasons.append("no season was found")
    return best


def _because(candidates: list[Shape], errors: list[float], best: Shape, table: SeriesTable) -> str:
    what = _words(best, table)
    if best == candidates[0]:
        return f"taken out before training: {what}; nothing else helped to forecast"
    share = errors[candidates.index(best)] / errors[0]
    return (
        f"taken out before training: {what}. By itself it brings the error in the last quarter of "
        f"the training part to {share:.0%} of that without"
    )


def _words(shape: Shape, table: SeriesTable) -> str:
    parts = ["a linear trend"] if shape.trend else []
    parts += [
        f"a season of {table.clock.say(p)} ({n} harmonics)"
        for p, n in zip(shape.periods, shape.harmonics, strict=True)
    ]
    return " and ".join(parts) or "neither trend nor season"


def _held_error(table: SeriesTable, frame: Frame, shape: Shape, seed: int) -> float:
    """RMSE, in standard deviations, of holding what ``shape`` leaves, after the first 3/4."""
    moments = np.sort(np.concatenate(table.times))
    border = float(np.quantile(moments, 0.75))
    try:
        plain = learn_scaling(table, Shape(), True)
        scaling = learn_scaling(table.cut(until=border), shape, True)
    except InputError:
        return np.inf
    part = Part(table, border)
    total, count = 0.0, 0
    for w in part.windows(scaling, frame, 60, seed):
        held = level_of(w.known[-5:])
        squares = np.square((w.asked - held) * scaling.scale / plain.scale)[w.asked_times > 0]
        total += float(np.nansum(squares))
        count += int(np.isfinite(squares).sum())
    return float(np.sqrt(total / count)) if count else np.inf


def _centred(split: Split, shape: Shape, settings: Settings, reasons: list[str]) -> bool:
    if settings.level is not None:
        return settings.level == "window"
    table = split.train.table
    if split.kind == "time":
        reasons.append("each window is counted from its own mean")
        return True
    whole, own = learn_scaling(table, shape, False), learn_scaling(table, shape, True)
    share = float(np.mean(1 - np.square(own.scale / whole.scale)))
    if share > 0.5:
        reasons.append(
            f"each window is counted from its own mean: {share:.0%} of the variance lies between "
            "series"
        )
    return share > 0.5


def _rescaled(train: Part, scaling: Scaling, frame: Frame) -> Scaling:
    """With the scale that the values have about the levels of windows."""
    if not scaling.centred:
        return scaling
    rest = [np.concatenate([w.known, w.asked]) for w in train.windows(scaling, frame, 200, seed=0)]
    if not rest:
        return scaling
    stacked = np.concatenate(rest)
    ratio = np.sqrt(level_of(np.square(stacked)))
    ratio = np.where(ratio > 1e-9, ratio, 1.0)
    return Scaling(
        scaling.shape,
        scaling.origin,
        scaling.span,
        scaling.coefficients,
        scaling.mean,
        scaling.scale * ratio,
        True,
    )


def train_config(
    settings: Settings, examples: int, *, steps: int = 1500, at_most: int = 200
) -> TrainConfig:
    """Training options that suit so many examples.

    Args:
        steps: of the optimiser that the default number of epochs takes, about.
        at_most: as many epochs, by default; at least 20.
    """
    epochs = settings.epochs
    if epochs is None:
        an_epoch = -(-examples // settings.batch_size)
        epochs = int(np.clip(steps // an_epoch, 20, at_most))
    return TrainConfig(
        epochs=epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        lr_decay=0.1 ** (1 / epochs),
        lr_min=min(settings.lr, 0.001),
        kl_start=epochs // 10,
        kl_decay=0.5 ** (2 / epochs),
        seed=settings.seed + 7919 * settings.repeat,
        max_seconds=60 * settings.minutes,
        accumulate=settings.accumulate,
        precision=settings.precision,
    )
