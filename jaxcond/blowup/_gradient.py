r"""The gradient of the blow-up time, computed in the coordinates of the reduced state.

$\nabla T^*$ lies in $PQ^T$: a change of $b$ outside both bases does not affect the flow, and by
reflection a change between a basis and its complement affects $T^*$ in second order only.
"""

from collections.abc import Callable

from jax import lax
from jaxtyping import Array, Float

from .._reduction import ends_early, pad, reduce, without_derivatives
from .._state import State


def gradient_in_reduction(
    state: State,
    time: Float[Array, ""],
    dim: int,
    small_gradient: Callable[[State, Array], State],
) -> State:
    """The gradient of the blow-up time `time` of one state, by every field of it.

    `small_gradient` computes the gradient from the time and a state of unit scale with equal widths
    of at most `dim`.
    """
    scale = lax.stop_gradient(state.unit_scale()[1])
    unit = state.scale(1 / scale)
    p, q = state.widths
    if max(p, q) > dim:
        reduction = reduce(unit, dim)
        small = small_gradient(reduction.state, time * scale)
        left, right = reduction.left, reduction.right
        ended = ends_early(reduction, (p, q))
        layers = small.a @ left, left.T @ (small.b @ right), small.c @ right
        # The gradient needs no other directions, but its derivatives do.
        a, b, c = (without_derivatives(layer, ended) for layer in layers)
    else:
        small = small_gradient(pad(unit, max(p, q)), time * scale)
        a, b, c = small.a[:, :p], small.b[:p, :q], small.c[:, :q]
    # T*(k theta) = T*(theta) / k.
    a, b, c = (layer / scale / scale for layer in (a, b, c))
    return State(a, b, c, small.strength / scale)
