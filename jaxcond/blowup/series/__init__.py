"""The blow-up time as the zero of an entire function."""

from ._series import Series as Series
