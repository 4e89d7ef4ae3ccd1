"""The blow-up time of one state or chain, and its derivatives."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from .._chain import Chain, as_state, check_single
from .._state import State
from . import chains, integration
from ._method import AbstractMethod, host_states, is_on_cpu, tolerance_floor
from ._result import BlowUp, Status
from .series import Series


def check_rtol(rtol: float | Float[Array, ""] | None, dtype: jnp.dtype) -> float | Float[Array, ""]:
    """A tolerance that a dtype can give; `None` is 1e-10 in float64 and 1e-5 in float32.

    **Raises:** `ValueError` for other tolerances; a traced tolerance is not checked.
    """
    floor = tolerance_floor(dtype)
    if jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"Blow-up times need states in float32 or float64, but the dtype is {dtype}: convert "
            "them with `jax.tree.map(lambda x: x.astype('float32'), state)`."
        )
    if rtol is None:
        rtol = 1e-10 if floor < 1e-10 else max(1e-5, floor)
    if isinstance(rtol, Tracer):
        return rtol
    if not floor <= float(rtol) <= 0.1:
        advice = ""
        if 0 < float(rtol) < floor and jnp.finfo(dtype).bits < 64:
            advice = " For float64, call jax.config.update('jax_enable_x64', True) beforehand."
        raise ValueError(
            f"Argument `rtol` must lie between {floor:.2g} and 0.1 for states in {dtype}, "
            f"but is {rtol}.{advice}"
        )
    return float(rtol)


def resolve_rtol(rtol: float | Float[Array, ""] | None, dtype: jnp.dtype) -> Float[Array, ""]:
    """`check_rtol` as an array of the dtype."""
    return jnp.asarray(check_rtol(rtol, dtype), dtype)


def default_method(rank: int) -> AbstractMethod:
    """The default method of `blowup_time`."""
    return Series() if rank == 1 else integration.Reduced()


def blowup_time(
    point: State | Chain,
    method: AbstractMethod | None = None,
    *,
    rtol: float | Float[Array, ""] | None = None,
) -> BlowUp:
    r"""The blow-up time $T^*$ of the effective dynamics from one state or chain.

    $$a_i' = \lambda_i b c_i, \quad b' = \sum_i \lambda_i a_i c_i^T, \quad c_i' = \lambda_i b^T a_i,
      \qquad E(t) \to \infty \text{ as } t \to T^* ;$$

    for $L$ layers $W_l' = \partial E/\partial W_l$ with $E = \langle W_L\cdots W_1, V\rangle$.

    **Arguments:**

    - `point`: one `State`, or one `Chain` of any depth; batch with `jax.vmap`, or with
      `blowup_times` for many.
    - `method`: `Series`, `Reduced`, `Taylor` or `Direct`. The default is `Series` at rank 1 and
      `Reduced` at higher rank. If the default method cannot settle a state outside traced
      programs, the state goes through the methods of `blowup_times`. Chains of four or more
      layers support only `Direct`, which is their default.
    - `rtol`: relative tolerance on $T^*$ and on the width of its bracket; the default is 1e-10 for
      float64 and 1e-5 for float32.

    **Returns:** a `BlowUp` in the dtype of the state. The time scales as $T^*(\kappa\theta) =
    \kappa^{2-L}\,T^*(\theta)$, which is $1/\kappa$ for a state, at every scale within the range of
    the dtype.

    **Raises:** `ValueError` for a batch, a tolerance beyond the dtype, or a method that does not
    apply to the rank or the depth.

    **Status:** see `Status`. A state has the status `no_blow_up` if it provably comes to rest (as
    in Example 1 of Chen and Luo). Nearby states blow up late, and `error` gives their accuracy.
    Chains of two layers never blow up. A deeper chain with one input and one output provably
    comes to rest if its layers are aligned with negative energy and the two smallest $w_l^2$ are
    equal; traced programs detect this only for layers of one entry each. A chain whose time is
    beyond the range of the dtype is `not_converged`.

    **Chains:** a chain of three layers is solved as the `State` in the singular vectors of the
    target. This state is exact if the target is diagonal, and is rounded to the dtype otherwise.
    A proof of rest then holds for the rounded state.

    **Derivatives:** `time` can be differentiated by every field of the state, in forward and
    reverse mode and under `jax.vmap`; second derivatives use forward over reverse (`jax.hessian`).
    The gradient lies in the directions of the reduction, $\nabla_b T^* = P G Q^T$, and costs about
    as much as the time. The other results are constants under differentiation. Derivatives are NaN
    if the time is infinite or unknown. Second derivatives are also NaN for wide states whose
    reduction ends early (such as aligned states), because they need directions that the reduction
    lacks. Chains of four or more layers have first derivatives in reverse mode, through the steps
    of the integration.

    Jit-compiled; may be called inside other transformations.
    """
    if isinstance(point, Chain):
        check_single("blowup_time", point)
        if point.depth != 3:
            chosen = integration.Direct() if method is None else method
            return chains.blowup_time_of_chain(point, chosen, check_rtol(rtol, point.dtype))
    state = as_state(point) if isinstance(point, Chain) else point
    if state.batch_shape:
        raise ValueError(
            f"`blowup_time` takes one state, but got a batch of shape {state.batch_shape}: use "
            "`blowup_times`, or `jax.vmap`."
        )
    chosen = default_method(state.rank) if method is None else method
    chosen.check(state)
    rtol = check_rtol(rtol, state.dtype)
    # At the top level of a derivative the values are concrete and need no compiled program.
    values = jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, Tracer) else x, state)
    if _is_traced((values, rtol)):
        return _traced(state, chosen, jnp.asarray(rtol, state.dtype))
    result = _of_known_state(values, chosen, float(rtol))
    unsettled = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)
    if method is None and int(result.status) in unsettled:
        result = _of_hard_state(values, float(rtol))
    if not _is_traced(state):
        return result
    tolerance = jax.device_put(np.asarray(rtol, state.dtype))
    time = _differentiable(chosen, state, result.time, tolerance)
    return dataclasses.replace(result, time=time)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _of_known_state(state: State, method: AbstractMethod, rtol: float) -> BlowUp:
    """Solve a concrete state with the native kernel if it applies, else with a batch program."""
    on_cpu = is_on_cpu(state)
    kernel = method.kernel(state) if on_cpu else None
    if kernel is None:
        # Adding the batch axis in NumPy compiles nothing for a new shape.
        batch = host_states(state, _alone) if on_cpu else jax.tree.map(_alone, state)
        result = method.batch_solver(state)(batch, rtol, False)
        return jax.tree.map(lambda leaf: leaf[0], result)
    results = kernel(host_states(state, _alone), rtol, False)
    results["stage"] = np.zeros(1, np.int32)
    fields = jax.device_put({name: values[0] for name, values in results.items()})
    return BlowUp(**fields, methods=(method.label,))


def _of_hard_state(state: State, rtol: float) -> BlowUp:
    """Solve a state with one method after another, as in `blowup_times`."""
    from ._batch import blowup_times

    result = blowup_times(jax.tree.map(_alone, state), rtol=rtol)
    return jax.tree.map(lambda leaf: leaf[0], result)


def _alone(array: Any) -> Any:
    return array[None]


@eqx.filter_jit
def _traced(state: State, method: AbstractMethod, rtol: Array) -> BlowUp:
    batch = jax.tree.map(lambda leaf: lax.stop_gradient(leaf)[None], state)
    result = method.solve(batch, lax.stop_gradient(rtol), jnp.zeros((), bool))
    result = jax.tree.map(lambda leaf: leaf[0], result)
    time = _differentiable(method, state, result.time, lax.stop_gradient(rtol))
    return eqx.tree_at(lambda b: b.time, result, time)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(method: AbstractMethod, state: State, time: Array, rtol: Array) -> Array:
    """The time, unchanged, with the derivatives of the blow-up time by the state attached."""
    del method, state, rtol
    return time


@_differentiable.defjvp
def _(
    method: AbstractMethod,
    primals: tuple[State, Array, Array],
    tangents: tuple[State, Array, Array],
) -> tuple[Array, Array]:
    state, time, rtol = primals
    # Second derivatives need the differentiable time in the gradient and in the result.
    time = _differentiable(method, state, time, rtol)
    find = method.gradient if _is_traced((state, time)) else method.gradient_of_known
    return time, _along(find(state, time, rtol), tangents[0], time)


@jax.jit
def _along(gradient: State, direction: State, time: Array) -> Array:
    # Times that are infinite or unknown have no derivative.
    gradient = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(time), leaf, jnp.nan), gradient)
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, direction))
