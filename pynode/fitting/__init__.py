"""Fitting a person's own irregular table: fill in, forecast, classify, compare."""

from pynode.fitting.files import load
from pynode.fitting.fitting import fit
from pynode.fitting.forecaster import Forecaster
from pynode.fitting.settings import Settings

__all__ = ["Forecaster", "Settings", "fit", "load"]
