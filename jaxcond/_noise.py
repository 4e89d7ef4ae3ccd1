"""Noise in the last bits, which measures the condition of a blow-up time."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

# Size of the noise in units of rounding of the layer's root mean square. It is close to rounding
# itself, since near a state that never blows up the time is far from linear.
NOISE = 32
# The effect of rounding on a time, as a share of the effect of the noise.
ROUNDING_SHARE = 2.0
# If noise moves the time by more than this share, the effect is no longer proportional to the noise
# and gives no error estimate: a state that comes to rest may lie as close.
LARGEST_SHIFT = 2.0**-8


def signs(probe: Any, layer: Any, i: Any, j: Any) -> Any:
    """Signs that depend on the position alone, so that padding does not change them.

    **Arguments:** unsigned 32-bit integers, which broadcast and whose products wrap around.

    The native kernel computes the same signs.
    """
    factors = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
    h = functools.reduce(
        operator.xor,
        (x * np.uint32(factor) for x, factor in zip((probe, layer, i, j), factors, strict=True)),
    )
    h = h ^ np.uint32(0x165667B1)
    h = (h ^ h >> 15) * np.uint32(0x2C1B3C6D)
    h = (h ^ h >> 12) * np.uint32(0x297A2D39)
    return 1 - 2 * ((h ^ h >> 15) & 1).astype(np.int8)


def patterns(layers: PyTree[Array], probe: int) -> PyTree[np.ndarray]:
    """Signs for every entry of the layers, different for each `probe`."""
    leaves, structure = jax.tree.flatten(layers)

    def pattern(number: int, layer: Array) -> np.ndarray:
        places = np.arange(layer.size, dtype=np.uint32).reshape(layer.shape)
        alike = (np.full_like(places, probe), np.full_like(places, number))
        return signs(alike[0], alike[1], places, 0 * places)

    return jax.tree.unflatten(structure, [pattern(i, x) for i, x in enumerate(leaves)])


def stirred(layers: PyTree[Array], pattern: PyTree[Any]) -> PyTree[Array]:
    """Layers with noise of the given signs in every entry."""

    def noisy(layer: Array, chosen: Any) -> Array:
        # Squares of the entries must neither overflow nor vanish.
        most = jnp.max(jnp.abs(layer))
        most = jnp.where(most > 0, most, 1)
        size = most * jnp.sqrt(jnp.mean((layer / most) ** 2))
        return layer + NOISE * jnp.finfo(layer.dtype).eps * size * chosen

    return jax.tree.map(noisy, layers, pattern)


def with_noise(layers: PyTree[Array], probe: int) -> PyTree[Array]:
    """Layers with noise in every entry, with different signs for each `probe`."""
    return stirred(layers, patterns(layers, probe))
