"""The warning that double precision was given and single precision is used."""

import functools
import inspect
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

SWITCH = "jax.config.update('jax_enable_x64', True)"

# Packages whose frames stand between the caller and the warning.
_BETWEEN = {"jaxcond", "equinox", "jaxtyping", "beartype"}


class PrecisionWarning(UserWarning):
    """Arrays in float64 were rounded to float32, since JAX's 64-bit mode is off."""


def to_jax(values: ArrayLike) -> Array:
    """`jnp.asarray`, with a warning, once per process, if it rounds float64 to float32.

    Small weights lose most: their updates vanish in the rounding error of float32.
    """
    array = jnp.asarray(values)
    if array.dtype == jnp.float32 and getattr(values, "dtype", None) == np.float64:
        _warn()
    return array


@functools.cache
def _warn() -> None:
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "Arrays in float64 are rounded to float32, which keeps 7 digits and may lose the updates "
        f"of small weights. For float64, call {SWITCH} before any other use of JAX.",
        PrecisionWarning,
        stacklevel=level,
    )
