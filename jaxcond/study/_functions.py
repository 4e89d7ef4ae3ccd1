"""Functions that a configuration names as `module:name`."""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from ._checks import wrong

_FUNCTION = "a function or its name as `module:name`"


def check_function(key: str, value: Any) -> Callable | str:
    """A function, or what may be the name of one; nothing is imported."""
    if not callable(value) and not (isinstance(value, str) and value.count(":") == 1):
        raise wrong(key, value, _FUNCTION)
    return value


def load_function(key: str, value: Any) -> Callable:
    """A function, given as such or as `module:name`, which is imported."""
    value = check_function(key, value)
    if callable(value):
        return value
    module, name = value.split(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the module raises
        raise ValueError(f"Key `{key}`: {value!r} cannot be imported: {error}") from error
    if not callable(found):
        raise wrong(key, value, _FUNCTION)
    return found


def function_name(function: Any) -> str:
    """What `load_function` would find a function by."""
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}:{name}"


def function_digest(function: Callable) -> str:
    """A hash of a function's source, where there is one."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return "unknown"
    return hashlib.sha256(source.encode()).hexdigest()
