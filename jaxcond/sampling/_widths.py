"""Checks of widths."""

from typing import Any

from jax.core import Tracer


def check_width(name: str, width: Any) -> None:
    """Raise `ValueError` for a width that is a number but not a positive whole one."""
    if isinstance(width, (int, float)) and not (width >= 1 and float(width).is_integer()):
        raise ValueError(f"Argument `{name}` must be a positive whole number, but is {width}.")


def is_traced(number: Any) -> bool:
    """Whether a number is traced, so that its value is not available."""
    return isinstance(number, Tracer)
