"""The pieces of a flow, by the native kernel or, where it is not in use, by the JAX program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .. import _native
from .._native._calls import native_call, only_cpus
from .._state import State
from ._pieces import Front, Pieces, is_near, order_of, pieces_by_program, upper_of


def pieces(state: State, closeness: Float[Array, ""], max_pieces: int) -> Pieces:
    r"""Follow one state of equal widths until its blow-up is near.

    **Arguments:** `state`, of unit scale; `closeness`, the value of $(T^* - t)/T^*$ at which to
    stop, or a little closer; `max_pieces`, the limit for flows that come to rest or blow up late.

    Differentiable in both modes and to any order, with the lengths of the pieces as constants. The
    derivatives are those of the program, which agrees with the kernel to rounding.
    """
    supported = state.rank == 1 and state.dtype in (np.float64, np.float32)
    if not supported or not _native.handlers():
        return pieces_by_program(state, closeness, max_pieces)
    if only_cpus():
        return _natively(state, closeness, max_pieces)
    return lax.platform_dependent(
        state,
        closeness,
        cpu=functools.partial(_natively, max_pieces=max_pieces),
        default=functools.partial(pieces_by_program, max_pieces=max_pieces),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _natively(state: State, closeness: Float[Array, ""], max_pieces: int) -> Pieces:
    dtype, order, dim = state.dtype, order_of(state.dtype), state.a.shape[1]
    shapes = {
        "begin": (max_pieces,),
        "lag": (max_pieces,),
        "length": (max_pieces,),
        "sides": (max_pieces, order + 1, 2, 1, dim),
        "b": (max_pieces, dim, dim),
        "end_a": (dim,),
        "end_b": (dim, dim),
        "end_c": (dim,),
        "elapsed": (),
    }
    call = native_call("pieces", dtype, [jax.ShapeDtypeStruct(s, dtype) for s in shapes.values()])
    results = call(
        state.a[0], state.b, state.c[0], state.strength[0], closeness, order=np.int32(order)
    )
    arrays = dict(zip(shapes, results, strict=True))
    end = State(arrays["end_a"][None], arrays["end_b"], arrays["end_c"][None], state.strength)
    last = Front(end, arrays["elapsed"], jnp.zeros((), dtype), jnp.ones((), bool))
    return Pieces(
        begin=arrays["begin"],
        lag=arrays["lag"],
        length=arrays["length"],
        num=jnp.sum(arrays["length"] > 0),
        ends=is_near(last, closeness, upper_of),
        elapsed=arrays["elapsed"],
        sides=arrays["sides"],
        b=arrays["b"],
        strength=state.strength,
        end=end,
    )


@_natively.defjvp
def _(
    max_pieces: int, primals: tuple[State, Array], tangents: tuple[State, Array]
) -> tuple[Pieces, Pieces]:
    program = functools.partial(pieces_by_program, max_pieces=max_pieces)
    return jax.jvp(program, primals, tangents)
