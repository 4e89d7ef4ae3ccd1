r"""Integration in desingularised time until the bracket closes on the blow-up time.

The field is homogeneous of degree 2, so $ds = \rho\,dt$ with $\rho = \sqrt{\|a\|^2 + \|b\|^2 +
\|c\|^2}$ turns blow-up into exponential growth in $s$; $t$ is carried along as one more component.
Every state then needs about as many steps, and a solver stops as soon as the bracket is narrow
enough.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..._energy import component_energies, squared_norms, vector_field
from ..._state import State
from ...bounds import bracket, carlson_rf
from .._method import Raw

Point = tuple[tuple[Array, Array, Array], Array]

# Steps are bounded by `max_steps`; the course in desingularised time is longer than any of them.
LONGEST_COURSE = 1e6
# The solver's tolerance is this fraction of the one asked for, and the companion run that measures
# the error is this much looser.
SAFETY = 0.05
_LOOSER = 30.0
# The ratio of the two errors is about `_LOOSER`; a quarter of their difference leaves a margin.
_ERROR_FACTOR = 0.25


def _size_of_layer(leaf: Array) -> Array:
    return jnp.full_like(leaf, jnp.sqrt(jnp.mean(leaf**2)))


def _worst_layer(errors: PyTree[Array]) -> Float[Array, ""]:
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(errors)]))


class Layerwise(diffrax.AbstractAdaptiveStepSizeController):
    r"""A step size controller whose tolerance is relative to the norm of each layer.

    With $a \sim 10^{-8}$ beside $b \sim 1$ an absolute tolerance that suits $b$ costs $a$ its
    digits, and one that suits $a$ is below the rounding of $b$. So every leaf of the solution is
    compared with its own root mean square, at every step, and the worst leaf decides.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Any] = eqx.field(static=True, default=_worst_layer)

    def wrap(self, direction):
        return self

    @property
    def _controller(self) -> diffrax.PIDController:
        # Layers that are exactly zero need some absolute tolerance to be compared at all.
        smallest = float(jnp.finfo(jnp.result_type(self.rtol)).tiny)
        return diffrax.PIDController(rtol=self.rtol, atol=smallest, norm=self.norm)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._controller.init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        before, after = (jax.tree.map(_size_of_layer, y) for y in (y0, y1_candidate))
        return self._controller.adapt_step_size(
            t0, t1, before, after, args, y_error, error_order, controller_state
        )


def speed_of(state: State) -> Float[Array, ""]:
    """How much time passes in a unit of desingularised time; strengths of any scale."""
    strongest = jnp.max(jnp.abs(state.strength))
    return 1 / (jnp.sqrt(jnp.sum(squared_norms(state))) * jnp.where(strongest > 0, strongest, 1))


def desingularised(_: Any, point: Point, strength: Array) -> Point:
    r"""The layers' and the time's change per unit of desingularised time."""
    layers, _ = point
    state = State(*layers, strength)
    speed = speed_of(state)
    return jax.tree.map(lambda x: speed * x, vector_field(state).layers), speed


def split_terms(
    term: diffrax.ODETerm, solver: diffrax.AbstractSolver
) -> PyTree[diffrax.AbstractTerm]:
    """The terms in the form that a solver takes them."""
    if isinstance(solver, diffrax.AbstractImplicitSolver) and not isinstance(
        solver.term_structure, type
    ):
        # Implicit-explicit solvers get everything on the explicit side: in desingularised time the
        # flow is not stiff, and with a vanishing explicit side KenCarp3 to 5 did not finish in
        # 4,096 steps a state of width 3 that takes 19 to 113 this way.
        nothing = diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.zeros_like, y))
        return diffrax.MultiTerm(term, nothing)
    return term


def time_left(state: State) -> Float[Array, ""]:
    r"""The time left, to higher order than the bracket.

    Close to blow-up the component that dominates is aligned but for a part of $b$ that stays
    behind; without that part, $\|b\|$ is $E/(\lambda\|a\|\|c\|)$, and the aligned case is
    known in closed form.
    """
    leading = jnp.argmax(component_energies(state))
    a, c, strength = state.a[leading], state.c[leading], jnp.abs(state.strength[leading])
    size_a, size_c = jnp.sum(a * a), jnp.sum(c * c)
    along = jnp.sum(a * (state.b @ c))
    return carlson_rf(size_a, along**2 / (size_a * size_c), size_c) / strength


class End(eqx.Module):
    """Where a run ended: the state, the time, and the desingularised time `course`."""

    state: State
    elapsed: Float[Array, ""]
    course: Float[Array, ""]
    reached: Bool[Array, ""]
    num_steps: Array


def run_to_end(
    state: State,
    solver: diffrax.AbstractSolver,
    rtol: Array,
    tolerance: Array,
    max_steps: int,
) -> End:
    """Follow one state of unit scale until its bracket is narrower than `rtol` of the time.

    `tolerance` is the solver's, relative to each layer.
    """

    def closed(current: State, elapsed: Array) -> Array:
        lower, upper = bracket(current)
        return upper - lower <= rtol * (elapsed + lower)

    return _run(state, solver, closed, tolerance, max_steps)


def run_to_distance(
    state: State,
    solver: diffrax.AbstractSolver,
    distance: Array,
    tolerance: Array,
    max_steps: int,
) -> End:
    """Follow one state of unit scale until its blow-up is at most `distance` away in time."""

    def close(current: State, elapsed: Array) -> Array:
        del elapsed
        lower, upper = bracket(current)
        return jnp.clip(time_left(current), lower, upper) <= distance

    return _run(state, solver, close, tolerance, max_steps)


def _run(
    state: State,
    solver: diffrax.AbstractSolver,
    ends: Callable[[State, Array], Array],
    tolerance: Array,
    max_steps: int,
) -> End:
    def ended(t: Array, y: Point, args: Array, **kwargs: Any) -> Array:
        layers, elapsed = y
        return ends(State(*layers, args), elapsed)

    dtype = state.dtype
    smallest = jnp.min(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in state.layers]))
    solution = diffrax.diffeqsolve(
        split_terms(diffrax.ODETerm(desingularised), solver),
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.asarray(LONGEST_COURSE, dtype),
        dt0=jnp.asarray(1e-3, dtype),
        y0=(state.layers, jnp.zeros((), dtype)),
        args=state.strength,
        stepsize_controller=Layerwise(rtol=tolerance, atol=tolerance * smallest),
        event=diffrax.Event(ended),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None
    (a, b, c), elapsed = jax.tree.map(lambda x: x[0], solution.ys)
    reached = solution.result == diffrax.RESULTS.event_occurred
    last = State(a, b, c, state.strength)
    return End(last, elapsed, solution.ts[0], reached, solution.stats["num_steps"])


def integrate(
    state: State, solver: diffrax.AbstractSolver, rtol: Array, max_steps: int
) -> tuple[Raw, State]:
    """The blow-up time of one state of unit scale by integration, and the last state.

    It is integrated twice, at tolerances that differ by a known factor: the difference measures
    the error of the better run, condition of the problem included.
    """
    eps = jnp.finfo(state.dtype).eps
    finest = jnp.maximum(SAFETY * rtol, 20 * eps)
    tolerances = jnp.stack([finest, _LOOSER * finest])
    ends = jax.lax.map(
        lambda tolerance: run_to_end(state, solver, rtol, tolerance, max_steps), tolerances
    )
    elapsed = ends.elapsed
    lower, upper = jax.vmap(bracket)(ends.state)
    time = elapsed + jnp.clip(jax.vmap(time_left)(ends.state), lower, upper)
    error = _ERROR_FACTOR * jnp.abs(time[0] - time[1]) + 4 * eps * time[0]
    if state.rank > 1:
        # Components that do not dominate may still grow, and `time_left` leaves them out.
        error = error + (upper[0] - lower[0])
    raw = Raw(
        time[0],
        elapsed[0] + lower[0],
        elapsed[0] + upper[0],
        error,
        jnp.all(ends.reached) & jnp.isfinite(error),
        jnp.sum(ends.num_steps).astype(jnp.int32),
    )
    return raw, jax.tree.map(lambda x: x[0], ends.state)
