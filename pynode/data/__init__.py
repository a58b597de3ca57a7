"""Time series with uneven times and missing values, and where to get some."""

from pynode.data.series import IrregularSeries
from pynode.data.spirals import ForecastTask, spirals

__all__ = ["ForecastTask", "IrregularSeries", "spirals"]
