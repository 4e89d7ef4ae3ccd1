"""The series method by the native kernel: of NumPy arrays, and inside traced programs."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ... import _native
from ..._native._calls import native_call
from ..._state import State
from .._method import Form, HostStates, Kernel
from .._result import BlowUp

if TYPE_CHECKING:
    from ._series import Series

_FIELDS = ("time", "lower", "upper", "error", "status", "num_steps")


def native_kernel(method: "Series", form: Form | State) -> Kernel | None:
    """`AbstractMethod.kernel` of the series method; `None` where no kernel is in use."""
    if form.rank != 1 or form.dtype not in (np.float64, np.float32) or not _native.handlers():
        return None

    def solve(states: HostStates, rtol: float, truncated: bool) -> dict[str, np.ndarray]:
        results = _native.solve_series(
            states.a[:, 0],
            states.b,
            states.c[:, 0],
            states.strength[:, 0],
            rtol,
            truncated,
            order=method.degree(form.dtype),
            dim=method.dim,
            max_expansions=method.max_expansions,
            extended=False,
        )
        assert results is not None
        return results

    return solve


def solve_natively(
    method: "Series", states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]
) -> BlowUp:
    """`Series.solve` for a batch inside a traced program, as a call of the kernel by XLA."""
    count, dtype = states.strength.shape[0], states.dtype
    real, whole = jax.ShapeDtypeStruct((count,), dtype), jax.ShapeDtypeStruct((count,), jnp.int32)
    call = native_call("series", dtype, [real] * 4 + [whole] * 2)
    results = call(
        states.a[:, 0],
        states.b,
        states.c[:, 0],
        states.strength[:, 0],
        jnp.broadcast_to(rtol, count),
        jnp.broadcast_to(truncated, count),
        order=np.int32(method.degree(dtype)),
        dim=np.int32(method.dim),
        max_expansions=np.int32(method.max_expansions),
    )
    fields = dict(zip(_FIELDS, results, strict=True))
    stage = jnp.zeros_like(fields["num_steps"])
    return BlowUp(**fields, stage=stage, methods=(method.label,))


def gradient_natively(
    method: "Series", state: State, time: Float[Array, ""], rtol: Float[Array, ""]
) -> State:
    """`Series.gradient` inside a traced program, as a call of the kernel by XLA."""
    fields = (state.a, state.b[None], state.c, state.strength, rtol[None])
    shapes = [jax.ShapeDtypeStruct(field.shape, state.dtype) for field in fields[:3]]
    call = native_call("gradient", state.dtype, shapes)
    a, b, c = call(
        *fields,
        order=np.int32(method.degree(state.dtype)),
        dim=np.int32(method.dim),
        max_expansions=np.int32(method.max_expansions),
    )
    # The strength of a single component sets the unit of time.
    return State(a, b[0], c, -time / state.strength)


def gradient_on_host(
    method: "Series", state: State, time: Float[Array, ""], rtol: Float[Array, ""]
) -> State:
    """`Series.gradient` of NumPy arrays, by a call of the kernel without any program."""
    a, b, c, strength, value, tolerance = (
        np.asarray(x) for x in (state.a, state.b, state.c, state.strength, time, rtol)
    )
    layers = _native.series_gradient(
        a,
        b[None],
        c,
        strength,
        tolerance[None],
        order=method.degree(state.dtype),
        dim=method.dim,
        max_expansions=method.max_expansions,
    )
    assert layers is not None
    of_a, of_b, of_c = layers
    return jax.device_put(State(of_a, of_b[0], of_c, -value / strength))
