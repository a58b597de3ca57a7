"""Fitting a person's own irregular table: fill in, forecast, classify, compare."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynode.fitting.classifier import Classifier
    from pynode.fitting.comparison import Comparison, compare
    from pynode.fitting.files import load
    from pynode.fitting.fitting import fit
    from pynode.fitting.forecaster import Forecaster
    from pynode.fitting.settings import Settings

__all__ = ["Classifier", "Comparison", "Forecaster", "Settings", "compare", "fit", "load"]

_HOME = {
    "Classifier": "classifier",
    "Comparison": "comparison",
    "Forecaster": "forecaster",
    "Settings": "settings",
    "compare": "comparison",
    "fit": "fitting",
    "load": "files",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line must not load pandas to print its help.
    if name not in _HOME:
        raise AttributeError(f"module 'pynode.fitting' has no attribute {name!r}")
    return getattr(import_module(f"pynode.fitting.{_HOME[name]}"), name)
