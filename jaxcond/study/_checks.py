"""Checks of configuration values, with error messages that name the key."""

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LONGEST = 80


def wrong(key: str, value: Any, wanted: str) -> ValueError:
    """The error for a value that a key does not accept."""
    return ValueError(f"Key `{key}` must be {wanted}, but is {_shown(value)}.")


def _shown(value: Any) -> str:
    """A value as text, cut to one short line."""
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # whole numbers of thousands of digits
        return "too large a number"
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # whole numbers beyond the range of floats
        return False


def whole(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number; floats such as 1e6 are accepted."""
    bounds = f"of at least {least}" if most is None else f"between {least} and {most}"
    if not _finite(value) or value != int(value):
        raise wrong(key, value, f"a whole number {bounds}")
    if value < least or (most is not None and value > most):
        raise wrong(key, value, f"a whole number {bounds}")
    return int(value)


def real(
    key: str, value: Any, least: float = 0.0, most: float = math.inf, *, strict: bool = True
) -> float:
    """A finite number between `least` and `most`; `strict` excludes `least` itself."""
    bounds = f"{'above' if strict else 'of at least'} {least:g}"
    bounds += "" if most == math.inf else f" and at most {most:g}"
    if not _finite(value):
        raise wrong(key, value, f"a finite number {bounds}")
    if value < least or (strict and value == least) or value > most:
        raise wrong(key, value, f"a finite number {bounds}")
    return float(value)


def choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """One of the given words."""
    if not isinstance(value, str) or value not in choices:
        raise wrong(key, value, f"one of {', '.join(choices)}")
    return value


def text(key: str, value: Any) -> str:
    """A non-empty text or path."""
    if not isinstance(value, str | Path) or not str(value):
        raise wrong(key, value, "a text")
    return str(value)


def sequence(key: str, value: Any, what: str) -> list[Any]:
    """A list, from a list, a tuple or a NumPy array."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise wrong(key, value, what)
    return list(value)


def known(keys: Sequence[str], names: Sequence[str], where: str) -> None:
    """Reject unknown keys."""
    for key in keys:
        if key not in names:
            name = f"{where}.{key}" if where else key
            raise ValueError(f"Key `{name}` is not known; known are {', '.join(sorted(names))}.")
