"""Fitted models as files: tensors and plain values, never code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pynode.data.clock import Clock
from pynode.data.frames import Static
from pynode.data.tables import Columns, Text
from pynode.errors import InputError
from pynode.fitting.calibration import Calibration
from pynode.fitting.forecaster import Forecaster, Reader
from pynode.fitting.networks import WindowModel
from pynode.fitting.scaling import Scaling
from pynode.fitting.scores import Scores
from pynode.fitting.windows import Frame
from pynode.train.files import write_atomically

FORMAT = "pynode fitted model 1"


def reader_dict(reader: Reader) -> dict[str, Any]:
    """A reader as plain values."""
    return {
        "columns": asdict(reader.columns),
        "clock": asdict(reader.clock),
        "statics": [asdict(s) for s in reader.statics],
        "text": asdict(reader.text),
        "gap": reader.gap,
    }


def reader_from(saved: dict[str, Any]) -> Reader:
    """From :func:`reader_dict`."""
    return Reader(
        Columns(**saved["columns"]),
        Clock(**saved["clock"]),
        tuple(Static(**s) for s in saved["statics"]),
        Text(**saved["text"]),
        float(saved["gap"]),
    )


def save(model: Forecaster, path: Path) -> None:
    """Write ``model`` to ``path`` atomically."""
    state = {
        "format": FORMAT,
        "kind": "forecaster",
        "network": model.model.name,
        "hyper": model.hyper,
        "values": len(model.names),
        "weights": dict(model.model.state_dict()),
        "reader": reader_dict(model.reader),
        "frame": asdict(model.frame),
        "scaling": model.scaling.as_dict(),
        "calibration": model.calibration.as_dict(),
        "seed": model.seed,
        "scores": None if model.scores is None else model.scores.as_dict(),
        "history": model.history,
        "reasons": list(model.reasons),
    }
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: str | Path) -> Any:
    """Read a model that ``save`` wrote: a :class:`Forecaster` or a ``Classifier``.

    Only tensors and plain values are read (``torch.load(weights_only=True)``): a file that holds
    anything else is refused, and no code in it runs.

    Raises:
        InputError: there is no such file, or it is not one of a fitted model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or dangerous file
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a fitted model, or is damaged: {first}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a fitted model of this version of pynode")
    try:
        if state["kind"] == "classifier":
            from pynode.fitting.classifier import from_state

            return from_state(state)
        return _forecaster(state)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def _forecaster(state: dict[str, Any]) -> Forecaster:
    reader, frame = reader_from(state["reader"]), Frame(**state["frame"])
    static = sum(s.width for s in reader.statics)
    model = WindowModel(state["network"], state["values"], static, **state["hyper"])
    model.load_state_dict(state["weights"])
    return Forecaster(
        model=model.eval(),
        reader=reader,
        frame=frame,
        scaling=Scaling.from_dict(state["scaling"]),
        calibration=Calibration.from_dict(state["calibration"]),
        seed=int(state["seed"]),
        scores=None if state["scores"] is None else Scores.from_dict(state["scores"]),
        history=state["history"],
        reasons=tuple(state["reasons"]),
        hyper=state["hyper"],
    )
