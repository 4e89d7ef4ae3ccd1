r"""The only place at which diffrax integrates the effective flow, and its step control.

Programs hold no host callbacks. diffrax adds one if it is given a first step or times to save at,
so the step control chooses the first step itself, and the flow is integrated from stop to stop.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

# First step of a leg, in units of the mean step of the leg before.
_LONGER = 4.0


def _size_of_layer(leaf: Array) -> Array:
    return jnp.full_like(leaf, jnp.sqrt(jnp.mean(leaf**2)))


def worst_layer(errors: PyTree[Array]) -> Float[Array, ""]:
    """The largest of the root mean squares of the layers."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(errors)]))


class Layerwise(diffrax.AbstractAdaptiveStepSizeController):
    r"""A step size controller whose tolerance is relative to the norm of each layer.

    If $a \sim 10^{-8}$ and $b \sim 1$, an absolute tolerance that suits $b$ costs $a$ its digits,
    and one that suits $a$ is below the rounding of $b$. Therefore the error of every leaf of the
    solution is compared with its root mean square, at every step, and the worst leaf decides.

    - `rtol`, `atol`: the tolerances; `first`: the first step, unless the solve has one.
    """

    rtol: Any
    atol: Any
    first: Any
    norm: Callable[[PyTree], Any] = eqx.field(static=True, default=worst_layer)

    def wrap(self, direction):
        return self

    @property
    def _controller(self) -> diffrax.PIDController:
        # Layers that are exactly zero need an absolute tolerance.
        smallest = float(jnp.finfo(jnp.result_type(self.rtol)).tiny)
        return diffrax.PIDController(rtol=self.rtol, atol=smallest, norm=self.norm)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first = jnp.minimum(self.first, t1 - t0) if dt0 is None else dt0
        return self._controller.init(terms, t0, t1, y0, first, args, func, error_order)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        before, after = (jax.tree.map(_size_of_layer, y) for y in (y0, y1_candidate))
        return self._controller.adapt_step_size(
            t0, t1, before, after, args, y_error, error_order, controller_state
        )


def split_terms(
    term: diffrax.ODETerm, solver: diffrax.AbstractSolver
) -> PyTree[diffrax.AbstractTerm]:
    """The terms in the form that a solver takes."""
    if isinstance(solver, diffrax.AbstractImplicitSolver) and not isinstance(
        solver.term_structure, type
    ):
        # Implicit-explicit solvers get everything on the explicit side: in desingularised time the
        # flow is not stiff, and with a vanishing explicit side KenCarp3 to 5 did not finish in
        # 4,096 steps a state of width 3 that takes 19 to 113 this way.
        nothing = diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.zeros_like, y))
        return diffrax.MultiTerm(term, nothing)
    return term


def solve(
    field: Callable[[Any, PyTree, Any], PyTree],
    y: PyTree,
    args: Any,
    *,
    solver: diffrax.AbstractSolver,
    tolerance: Float[Array, ""],
    smallest: Float[Array, ""] | float,
    until: Float[Array, ""] | float,
    first: Float[Array, ""] | float,
    max_steps: int,
    event: Callable[..., Array] | None = None,
    dense: bool = False,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> diffrax.Solution:
    """Integrate $dy/ds = f(s, y)$ from $s = 0$ to `until`, or until an event is true.

    **Arguments:** `tolerance`, relative to each leaf of `y`, and absolute as a share of `smallest`;
    `first`, the first step; `dense`, whether the solution can be evaluated between the steps.
    """
    dtype = jax.tree.leaves(y)[0].dtype
    return diffrax.diffeqsolve(
        split_terms(diffrax.ODETerm(field), solver),
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.asarray(until, dtype),
        dt0=None,
        y0=y,
        args=args,
        stepsize_controller=Layerwise(
            rtol=tolerance, atol=tolerance * smallest, first=jnp.asarray(first, dtype)
        ),
        event=None if event is None else diffrax.Event(event),
        saveat=diffrax.SaveAt(t1=True, dense=dense),
        max_steps=max_steps,
        throw=False,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )


class Visited(eqx.Module):
    """Values of a solution at its stops; infinite after a failure."""

    values: PyTree
    reached: Bool[Array, " num"]
    num_steps: Int[Array, ""]


def visit(
    field: Callable[[Any, PyTree, Any], PyTree],
    y: PyTree,
    args: Any,
    lengths: Float[Array, " num"],
    *,
    first: Float[Array, ""] | float,
    **options: Any,
) -> Visited:
    """Integrate leg by leg and keep the value at the end of each leg.

    **Arguments:** `lengths` of the legs in $s$, which may be zero; the field must not depend on
    $s$. The others as for `solve`.
    """

    def leg(carry: tuple[PyTree, Array, Array], length: Array) -> tuple[Any, Any]:
        y, first, going = carry
        # After a failure the remaining legs do nothing.
        length = jnp.where(going, length, 0)
        solution = solve(field, y, args, until=length, first=first, **options)
        going = going & (solution.result == diffrax.RESULTS.successful)
        new = jax.tree.map(lambda x: x[0], solution.ys)
        y = jax.tree.map(lambda old, x: jnp.where(going, x, old), y, new)
        accepted = jnp.maximum(solution.stats["num_accepted_steps"], 1)
        pace = _LONGER * length / accepted.astype(length.dtype)
        first = jnp.where(length > 0, pace, first)
        shown = jax.tree.map(lambda x: jnp.where(going, x, jnp.inf), y)
        return (y, first, going), (shown, going, solution.stats["num_steps"])

    start = (y, jnp.asarray(first, lengths.dtype), jnp.ones((), bool))
    _, (values, reached, num_steps) = lax.scan(leg, start, lengths)
    return Visited(values, reached, jnp.sum(num_steps))


def smallest_size(layers: PyTree[Array]) -> Float[Array, ""]:
    """The root mean square of the smallest layer."""
    return jnp.min(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in jax.tree.leaves(layers)]))
