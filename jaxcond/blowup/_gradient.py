r"""What the gradients of all methods share: they are found in the coordinates of the reduced state.

$\nabla T^*$ lies in $PQ^T$, since a change of $b$ outside both bases leaves the flow as it is, and
one between a basis and its complement changes $T^*$ in second order only, by reflection.
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
        ended = ends_early(reduction, (p, q))
        layers = small.a @ left, left.T @ (small.b @ right), small.c @ right
        # The gradient itself needs no other directions, its own derivatives do.
        a, b, c = (without_derivatives(layer, ended) for layer in layers)
    else:
        small = small_gradient(pad(unit, max(p, q)), time * scale)
        a, b, c = small.a[:, :p], small.b[:p, :q], small.c[:, :q]
    # T*(k theta) = T*(theta) / k.
    a, b, c = (layer / scale / scale for layer in (a, b, c))
    return State(a, b, c, small.strength / scale)
