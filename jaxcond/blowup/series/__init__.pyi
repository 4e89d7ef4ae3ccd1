from ._series import Series as Series
