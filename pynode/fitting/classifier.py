"""The class of a series, from its irregular, incomplete rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pynode.data.frames import SeriesTable
from pynode.data.series import IrregularSeries
from pynode.data.tables import Text
from pynode.errors import InputError
from pynode.experiments.pool import one_thread
from pynode.fitting.class_networks import CLASSIFIERS, SeriesClassifier
from pynode.fitting.files import FORMAT, reader_dict, reader_from
from pynode.fitting.forecaster import Reader, Table
from pynode.fitting.scaling import Scaling, Shape, learn_scaling
from pynode.fitting.settings import Settings, train_config
from pynode.train import fit as train
from pynode.train.files import write_atomically

FEWEST_SERIES = 10
_UNITS = 6.0  # of the network's time in the longest series
_CHUNK = 100


@dataclass(eq=False)
class Classifier:
    """A fitted classifier of series; made by :func:`pynode.fit` with ``label``.

    Attributes:
        model: the network.
        reader: how tables are read.
        scaling: of the values.
        unit: of the network's time, in the table's.
        classes: names of the classes.
        scores: on held-out series: ``accuracy`` with its 95 % interval ``accuracy_low`` and
            ``accuracy_high``, ``log_loss``, ``auc`` (mean over classes, one against the rest),
            ``majority``, the accuracy of always saying the commonest class, and ``series``.
        history: rows of training.
        hyper: the network's options.
    """

    model: SeriesClassifier
    reader: Reader
    scaling: Scaling
    unit: float
    classes: tuple[str, ...]
    scores: dict[str, float]
    history: list[dict[str, Any]]
    hyper: dict[str, Any]

    def __repr__(self) -> str:
        return f"Classifier({self.model.name}, classes {', '.join(self.classes)})"

    def predict(self, frame: Table) -> pd.DataFrame:
        """A row a series: id, ``prediction``, and ``p_NAME``, the probability of each class."""
        table = self.reader.read(frame)
        found = self._probabilities(table)
        columns: dict[str, Any] = {}
        if table.columns.id is not None:
            columns[table.columns.id] = list(table.ids)
        columns["prediction"] = [self.classes[i] for i in found.argmax(axis=1)]
        columns |= {f"p_{name}": found[:, k] for k, name in enumerate(self.classes)}
        return pd.DataFrame(columns)

    def score(self, frame: Table) -> dict[str, float]:
        """Scores on a table with labels, as in ``scores``."""
        table = _labelled(self.reader.read(frame, need_label=True))
        return _scores(self._probabilities(table), _numbers(table, self.classes))

    def save(self, path: str | Path) -> None:
        """Write the model to one file, which :func:`pynode.load` reads."""
        state = {
            "format": FORMAT,
            "kind": "classifier",
            "network": self.model.name,
            "inputs": self.model.coordinates - 1,
            "hyper": self.hyper,
            "weights": dict(self.model.state_dict()),
            "reader": reader_dict(self.reader),
            "scaling": self.scaling.as_dict(),
            "unit": self.unit,
            "classes": list(self.classes),
            "scores": self.scores,
            "history": self.history,
        }
        write_atomically(Path(path), lambda file: torch.save(state, file))

    @torch.no_grad()
    def _probabilities(self, table: SeriesTable) -> np.ndarray:
        self.model.eval()
        series = _packed(table, self.scaling, self.unit, np.zeros(len(table)))
        parts = [
            self.model.probabilities(series[first : first + _CHUNK])
            for first in range(0, len(series), _CHUNK)
        ]
        return torch.cat(parts).double().numpy()


def from_state(state: dict[str, Any]) -> Classifier:
    """From what :meth:`Classifier.save` writes."""
    model = SeriesClassifier(
        state["network"], state["inputs"], len(state["classes"]), _START, **state["hyper"]
    )
    model.load_state_dict(state["weights"])
    return Classifier(
        model=model.eval(),
        reader=reader_from(state["reader"]),
        scaling=Scaling.from_dict(state["scaling"]),
        unit=float(state["unit"]),
        classes=tuple(state["classes"]),
        scores=dict(state["scores"]),
        history=state["history"],
        hyper=state["hyper"],
    )


_START = -1e-3  # series are counted from their first row


def fit_classifier(
    table: SeriesTable,
    settings: Settings,
    text: Text,
    out: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Classifier:
    """Fit a classifier to a table with labels that has been read; see :func:`pynode.fit`.

    Raises:
        InputError: there are too few series, or classes.
    """
    if settings.model not in CLASSIFIERS:
        raise InputError(f"model={settings.model!r}: classes are told by {', '.join(CLASSIFIERS)}")
    for line in table.notes:
        say(line)
    before, table = len(table), _labelled(table)
    if len(table) < before:
        say(f"{before - len(table)} series without a label were left out")
    classes = tuple(sorted({str(x) for x in table.labels}))
    if len(table) < FEWEST_SERIES or len(classes) < 2:
        raise InputError(
            f"there are {len(table)} series of {len(classes)} classes: at least {FEWEST_SERIES} "
            "and 2 are needed"
        )
    y = _numbers(table, classes)
    parts = _stratified(y, settings)
    train_rows, valid_rows, test_rows = parts
    with one_thread():
        scaling = learn_scaling(table[train_rows], Shape(), centred=False)
        longest = max(float(t[-1] - t[0]) for t in table.times)
        unit = longest / _UNITS if longest > 0 else 1.0
        inputs = len(table.names) + table.static.shape[1]
        hyper = dict(settings.hyper)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = SeriesClassifier(settings.model, inputs, len(classes), _START, **hyper)
        config = train_config(settings, len(train_rows), steps=600, at_most=150)
        say(
            f"{model.name}: {model.n_parameters} parameters; {len(train_rows)} series to learn "
            f"from, {len(valid_rows)} to choose the epoch by, {len(test_rows)} held out; "
            f"{config.epochs} epochs, at most {settings.minutes:g} minutes"
        )
        series = [_packed(table[rows], scaling, unit, y[rows]) for rows in (train_rows, valid_rows)]
        history = train(model, series[0], series[1], config, out, resume, progress, on_epoch).rows
        gaps = table.gaps
        fitted = Classifier(
            model=model.eval(),
            reader=Reader(
                table.source, table.clock, table.statics, text,
                float(np.median(gaps)) if len(gaps) else unit,
            ),
            scaling=scaling,
            unit=unit,
            classes=classes,
            scores={},
            history=history,
            hyper=hyper,
        )  # fmt: skip
        if len(test_rows):
            fitted.scores = _scores(fitted._probabilities(table[test_rows]), y[test_rows])
    return fitted


def _labelled(table: SeriesTable) -> SeriesTable:
    if not table.labels:
        raise InputError("the table has no labels")
    return table[[b for b, label in enumerate(table.labels) if not _missing(label)]]


def _missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and np.isnan(label)) or label is pd.NA


def _numbers(table: SeriesTable, classes: Sequence[str]) -> np.ndarray:
    unknown = sorted({str(x) for x in table.labels} - set(classes))
    if unknown:
        raise InputError(f"the label {unknown[0]!r} is not one of {', '.join(classes)}")
    return np.array([classes.index(str(x)) for x in table.labels], dtype=np.int64)


def _stratified(y: np.ndarray, settings: Settings) -> tuple[list[int], list[int], list[int]]:
    """Rows to train, validate and test on, each class in the same shares."""
    rng = np.random.default_rng(settings.seed)
    train_rows: list[int] = []
    valid_rows: list[int] = []
    test_rows: list[int] = []
    for k in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == k)).tolist()
        n_test = round(settings.test * len(rows))
        n_valid = max(1, round(settings.valid * len(rows))) if len(rows) > 1 else 0
        n_test = min(n_test, max(len(rows) - n_valid - 1, 0))
        test_rows += rows[:n_test]
        valid_rows += rows[n_test : n_test + n_valid]
        train_rows += rows[n_test + n_valid :]
    return sorted(train_rows), sorted(valid_rows), sorted(test_rows)


def _packed(table: SeriesTable, scaling: Scaling, unit: float, y: np.ndarray) -> IrregularSeries:
    """Series from their first row on, with the number of the class as the last coordinate."""
    times, values = [], []
    for t, x, static, k in zip(table.times, table.values, table.static, y, strict=True):
        seen = np.isfinite(x).any(axis=1)
        moments = ((t[seen] - t[seen][0]) / unit).astype(np.float32)
        distinct = np.r_[True, np.diff(moments) > 0]
        constant = np.broadcast_to(np.r_[static, k], (len(moments), len(static) + 1))
        rows = np.concatenate([scaling.reduced(t, x)[seen], constant], axis=1)
        times.append(torch.from_numpy(moments[distinct]))
        values.append(torch.from_numpy(rows[distinct].astype(np.float32)))
    return IrregularSeries.from_ragged(times, values)


def _scores(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    n = len(y)
    right = probabilities.argmax(axis=1) == y
    accuracy = float(right.mean())
    # Wilson's interval (1927), which stays inside [0, 1].
    z = 1.96
    middle = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    said = probabilities[np.arange(n), y].clip(min=1e-12)
    areas = [_auc(probabilities[:, k], y == k) for k in range(probabilities.shape[1])]
    known = [a for a in areas if np.isfinite(a)]
    return {
        "accuracy": accuracy,
        "accuracy_low": float(middle - half),
        "accuracy_high": float(middle + half),
        "log_loss": float(-np.log(said).mean()),
        "auc": float(np.mean(known)) if known else float("nan"),
        "majority": float(np.bincount(y).max() / n),
        "series": float(n),
    }


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in the right order, ties counting half."""
    if positive.all() or not positive.any():
        return float("nan")
    ranks = pd.Series(score).rank().to_numpy()
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))
