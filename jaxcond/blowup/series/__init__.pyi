from ._extended import ExtendedSeries as ExtendedSeries
from ._series import Series as Series
