r"""What the gradients of all methods share: they are found in the coordinates of the reduced state.

$\nabla T^*$ lies in $PQ^T$, since a change of $b$ outside both bases leaves the flow as it is, and
one between a basis and its complement changes $T^*$ in second order only, by reflection.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._reduction import pad, reduce
from .._state import State


@jax.custom_jvp
def _first_order(gradient: Array, ended: Bool[Array, ""]) -> Array:
    """The gradient as it is, with NaN for its own derivatives where the bases have ended.

    They are exact for that state, but a change of the state may need directions that they lack.
    """
    del ended
    return gradient


@_first_order.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    gradient, ended = primals
    # A factor, since a constant in the place of the tangent would be lost in reverse mode.
    return gradient, tangents[0] * jnp.where(ended, jnp.nan, 1)


def gradient_in_reduction(
    state: State,
    time: Float[Array, ""],
    dim: int,
    small_gradient: Callable[[State, Array], State],
) -> State:
    """The gradient of the blow-up time `time` of one state, by every field of it.

    `small_gradient` finds it for a state of unit scale and equal widths, at most `dim`, and its
    time.
    """
    scale = lax.stop_gradient(state.unit_scale()[1])
    unit = state.scale(1 / scale)
    p, q = state.widths
    if max(p, q) > dim:
        reduction = reduce(unit, dim)
        small = small_gradient(reduction.state, time * scale)
        left, right = reduction.left, reduction.right
        # They end by themselves, too, where they hold all of the narrower layer.
        sizes = [jnp.sum(jnp.any(basis != 0, axis=1)) for basis in (left, right)]
        ended = (sizes[0] < min(p, dim)) & (sizes[1] < min(q, dim))
        layers = small.a @ left, left.T @ (small.b @ right), small.c @ right
        a, b, c = (_first_order(layer, ended) for layer in layers)
    else:
        small = small_gradient(pad(unit, max(p, q)), time * scale)
        a, b, c = small.a[:, :p], small.b[:p, :q], small.c[:, :q]
    # T*(k theta) = T*(theta) / k.
    a, b, c = (layer / scale / scale for layer in (a, b, c))
    return State(a, b, c, small.strength / scale)
