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
    """Check for a function or a name of the form `module:name`, without importing it."""
    if not callable(value) and not (isinstance(value, str) and value.count(":") == 1):
        raise wrong(key, value, _FUNCTION)
    return value


def load_function(key: str, value: Any) -> Callable:
    """A function, given directly or imported from `module:name`."""
    value = check_function(key, value)
    if callable(value):
        return value
    module, name = value.split(":")
    try:
        function = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the module raises
        raise ValueError(f"Key `{key}`: {value!r} cannot be imported: {error}") from error
    if not callable(function):
        raise wrong(key, value, _FUNCTION)
    return function


def function_name(function: Any) -> str:
    """The name from which `load_function` imports a function."""
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}:{name}"


def function_digest(function: Callable) -> str:
    """A hash of a function's source; `unknown` if the source is not available."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return "unknown"
    return hashlib.sha256(source.encode()).hexdigest()
