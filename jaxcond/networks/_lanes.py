"""Many networks at once, in the way that suits the backend."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._threads import map_on_threads, num_cores


def over_lanes(function: Callable[[Any], Any], lanes: Any) -> Any:
    """A function of one lane, mapped over the leading axis, with stacked results.

    On an accelerator it is vmapped. On a CPU each lane runs by itself, one per core, since batched
    matrix products do not use the fast kernels of single products. The function runs compiled code
    on arrays.
    """
    if jax.default_backend() != "cpu":
        return eqx.filter_vmap(function)(lanes)
    singles = unstacked(lanes)
    results = [jax.block_until_ready(function(singles[0]))]  # compiles once for all lanes
    if len(singles) > 1:
        results += map_on_threads(
            lambda lane: jax.block_until_ready(function(lane)), singles[1:], num_cores()
        )
    return stacked(results)


def unstacked(lanes: Any) -> list[Any]:
    """The lanes along the leading axis, one by one."""
    count = next(leaf.shape[0] for leaf in jax.tree.leaves(lanes) if eqx.is_array(leaf))
    arrays, others = eqx.partition(lanes, eqx.is_array)
    return [eqx.combine(_lane(arrays, jnp.asarray(i)), others) for i in range(count)]


@jax.jit
def _lane(lanes: Any, index: Int[Array, ""]) -> Any:
    """One lane; the index is traced, so that one program takes all lanes."""
    return jax.tree.map(lambda leaf: leaf[index], lanes)


def stacked(lanes: Sequence[Any]) -> Any:
    """Lanes stacked along a new leading axis."""
    return jax.tree.map(_stack, *lanes)


def _stack(*leaves: Any) -> Array:
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    # On the host, since a program would be compiled for every number of lanes.
    return jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves]))
