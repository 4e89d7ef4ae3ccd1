r"""Gradient descent of any loss, followed as a flow until the loss falls to a level.

Gradient descent of step $\eta$ follows, to second order in $\eta$, not the gradient flow but

$$\dot\theta = -\nabla R\Bigl(\theta + \tfrac\eta2\nabla R(\theta)\Bigr)
    = -\nabla R - \tfrac\eta2\nabla^2R\,\nabla R + O(\eta^2),$$

at the cost of two gradients instead of one. Along the flow this is a lag of
$\frac\eta2\log(\|\nabla R(t)\|/\|\nabla R(0)\|)$, as in `jaxcond.networks._course`; The field also
holds when parameters move at different times, as biases do before the others; there the logarithm
would contain the gradients of all, but the lag of a mode depends on its own growth.

Source: backward error analysis of the explicit Euler method, Hairer, Lubich and Wanner, chapter IX.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..flow import worst_layer
from ._order import inner, once_jit, split

# Relative tolerance of a step; double and single precision.
_RTOL = {64: 1e-9, 32: 1e-5}
_POWER_ITERATIONS = 40
# Gradients per step: the stages of Dopri8 that each step computes, times the gradients of a stage.
_GRADIENTS_A_STEP = 2 * 13


class Arrival(eqx.Module):
    """The end of a flow; `floats` are its floating-point arrays."""

    floats: PyTree
    time: Float[Array, ""]
    loss: Float[Array, ""]
    gradient: Float[Array, ""]
    crossed: Bool[Array, ""]
    failed: Bool[Array, ""]
    num_steps: Int[Array, ""]


def usual_rtol(dtype: Any) -> float:
    """The relative tolerance of a step."""
    return _RTOL.get(jnp.finfo(dtype).bits, 1e-3)


def smallest_array(floats: PyTree[Array]) -> Float[Array, ""]:
    """The root mean square of the smallest array that is not zero."""
    sizes = jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in jax.tree.leaves(floats)])
    least = jnp.min(jnp.where(sizes > 0, sizes, jnp.inf))
    return jnp.where(jnp.isfinite(least), least, 1)


def integrate(
    field: Callable[[PyTree], PyTree],
    reached: Callable[[PyTree], Array],
    start: PyTree,
    span: tuple[Array | float, Array | float],
    tolerance: tuple[Array | float, Array],
    max_steps: int,
    observe: Callable[[PyTree], PyTree] | None = None,
) -> diffrax.Solution:
    """Integrate to the root of `reached` or the end of `span`; return the first step and the end.

    **Arguments:** `tolerance`, the relative tolerance and the size below which it is absolute;
    `observe`, a function of the state that is saved at the start and after each step, as the last
    entry of the list `ys`.
    """
    dtype = jnp.result_type(*jax.tree.leaves(start))
    first, end = (jnp.asarray(x, dtype) for x in span)
    rtol, smallest = tolerance
    # The solver calls the field in several places; this way it is traced once.
    field = jax.jit(field)
    exact = float(jnp.finfo(dtype).eps) ** 0.75

    def above(t: Array, y: PyTree, args: Any, **kwargs: Any) -> Array:
        del t, args, kwargs
        # diffrax requires events in JAX's default precision, even if the state has another.
        value = reached(y).astype(jnp.result_type(float))
        return jnp.where(jnp.isfinite(value), value, 1)

    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(y)),
        diffrax.Dopri8(),
        jnp.zeros((), dtype),
        end,
        first,
        start,
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=rtol * smallest, norm=worst_layer
        ),
        event=diffrax.Event(above, optimistix.Bisection(exact, exact, flip="detect")),
        saveat=diffrax.SaveAt(t1=True) if observe is None else _at_steps(observe),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )


def _at_steps(observe: Callable[[PyTree], PyTree]) -> diffrax.SaveAt:
    steps = diffrax.SubSaveAt(t0=True, steps=True, fn=lambda t, y, args: observe(y))
    return diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True), steps])


def as_descent(
    loss: Callable[[PyTree], Array], floats: PyTree, learning_rate: Float[Array, ""]
) -> PyTree:
    """The field that gradient descent follows."""

    def gradient(shift: PyTree, factor: Array) -> tuple[PyTree, None]:
        slope = jax.grad(loss)(jax.tree.map(jnp.add, floats, shift))
        return jax.tree.map(lambda g: factor.astype(g.dtype) * g, slope), None

    # A loop, so that the gradient is compiled once.
    factors = jnp.stack([0.5 * learning_rate, -jnp.ones_like(learning_rate)])
    return lax.scan(gradient, jax.tree.map(jnp.zeros_like, floats), factors)[0]


@eqx.filter_jit
def fall(
    loss_fn: Callable,
    params: PyTree,
    learning_rate: Float[Array, ""],
    level: Float[Array, ""],
    max_time: Float[Array, ""],
    max_steps: int,
) -> Arrival:
    """Follow descent as a flow until the loss falls to `level`."""
    loss, floats = split(loss_fn, params)
    speed = as_descent(loss, floats, learning_rate)
    grows = jnp.sqrt(inner(floats, floats) / inner(speed, speed))
    # The learning rate if that gives no step; a step that is too long costs a few rejections.
    first = jnp.where(jnp.isfinite(grows) & (grows > 0), 1e-2 * grows, learning_rate)
    # The root finder's tolerance is absolute, but losses are of any size.
    scale = jnp.maximum(jnp.abs(level), jnp.abs(loss(floats)))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    solution = integrate(
        lambda y: as_descent(loss, y, learning_rate),
        lambda y: (loss(y) - level) / scale,
        floats,
        (jnp.minimum(first, max_time), max_time),
        (usual_rtol(jnp.result_type(*jax.tree.leaves(floats))), smallest_array(floats)),
        max_steps,
    )
    result = solution.result
    crossed = result == diffrax.RESULTS.event_occurred
    whole = crossed | (result == diffrax.RESULTS.successful)
    here = jax.tree.map(lambda x: x[0], solution.ys)
    value, gradient = jax.value_and_grad(loss)(here)
    assert solution.ts is not None
    return Arrival(
        floats=here,
        time=solution.ts[0],
        loss=value,
        gradient=jnp.sqrt(inner(gradient, gradient)),
        crossed=crossed,
        failed=~(whole | (result == diffrax.RESULTS.max_steps_reached)),
        num_steps=solution.stats["num_steps"],
    )


@eqx.filter_jit
def earlier(loss_fn: Callable, params: PyTree, learning_rate: Array, span: Array) -> PyTree:
    """The parameters a training time `span` earlier, a part of an iteration."""
    loss, floats = split(loss_fn, params)
    speed = as_descent(loss, floats, learning_rate)
    before = jax.tree.map(lambda x, v: x - span.astype(x.dtype) * v, floats, speed)
    return eqx.combine(before, params)


def gradients_of(arrival: Arrival) -> Int[Array, ""]:
    """The number of gradients that an arrival took."""
    return _GRADIENTS_A_STEP * arrival.num_steps


@once_jit
def largest_curvature(loss_fn: Callable, params: PyTree) -> Float[Array, ""]:
    """An estimate of the largest eigenvalue of the Hessian by power iteration; 0 if all are
    negative.

    The iteration runs on the Hessian, whose largest eigenvalue by size may be negative, and then on
    the Hessian shifted by that size.
    """
    loss, floats = split(loss_fn, params)
    gradient = jax.grad(loss)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(floats)))
    leaves, tree = jax.tree.flatten(floats)
    start = jax.tree.unflatten(
        tree, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )

    def iterate(shift: Array, _: Any) -> tuple[Array, Array]:
        def step(_: Array, vector: PyTree) -> PyTree:
            size = jnp.sqrt(inner(vector, vector))
            unit = jax.tree.map(lambda x: x / jnp.where(size == 0, 1, size).astype(x.dtype), vector)
            turned = jax.jvp(gradient, (floats,), (unit,))[1]
            return jax.tree.map(lambda h, u: h + shift.astype(u.dtype) * u, turned, unit)

        vector = lax.fori_loop(0, _POWER_ITERATIONS, step, start)
        size = jnp.sqrt(inner(vector, vector)).astype(shift.dtype)
        return size, size

    # A loop over both, so that the iteration is compiled once.
    _, (size, shifted) = lax.scan(iterate, jnp.zeros(()), length=2)
    return jnp.maximum(shifted - size, 0)
