"""Values of configuration keys, and messages that name the key."""

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LONGEST = 80


def wrong(key: str, value: Any, wanted: str) -> ValueError:
    """What to say of a value that a key does not take."""
    return ValueError(f"Key `{key}` must be {wanted}, but is {_told(value)}.")


def _told(value: Any) -> str:
    """A value in one line that is not too long."""
    try:
        told = " ".join(repr(value).split())
    except ValueError:  # whole numbers of thousands of digits
        return "too large a number"
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 3]}..."


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # whole numbers beyond the range of floats
        return False


def whole(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number; also as a float, since 1e6 is one."""
    bounds = f"of at least {least}" if most is None else f"between {least} and {most}"
    if not _finite(value) or value != int(value):
        raise wrong(key, value, f"a whole number {bounds}")
    if value < least or (most is not None and value > most):
        raise wrong(key, value, f"a whole number {bounds}")
    return int(value)


def real(
    key: str, value: Any, least: float = 0.0, most: float = math.inf, *, strict: bool = True
) -> float:
    """A finite number, above `least` or, unless `strict`, equal to it, and at most `most`."""
    bounds = f"{'above' if strict else 'of at least'} {least:g}"
    bounds += "" if most == math.inf else f" and at most {most:g}"
    if not _finite(value):
        raise wrong(key, value, f"a finite number {bounds}")
    if value < least or (strict and value == least) or value > most:
        raise wrong(key, value, f"a finite number {bounds}")
    return float(value)


def choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise wrong(key, value, f"one of {', '.join(choices)}")
    return value


def text(key: str, value: Any) -> str:
    """Any text but none at all; also as a path."""
    if not isinstance(value, str | Path) or not str(value):
        raise wrong(key, value, "a text")
    return str(value)


def sequence(key: str, value: Any, what: str) -> list[Any]:
    """A list, which may come as a tuple or a NumPy array."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise wrong(key, value, what)
    return list(value)


def known(found: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse keys that there are not."""
    for key in found:
        if key not in names:
            name = f"{where}.{key}" if where else key
            raise ValueError(f"Key `{name}` is not known; known are {', '.join(sorted(names))}.")
