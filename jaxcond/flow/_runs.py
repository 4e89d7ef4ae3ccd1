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
from jaxtyping import Array, Bool, Float, Int

from .._energy import component_energies, squared_norms, vector_field
from .._noise import LARGEST_SHIFT, with_noise
from .._state import State
from ..bounds import bracket, carlson_rf
from ._solve import smallest_size, solve

Point = tuple[tuple[Array, Array, Array], Array]

# The end in desingularised time, which no run reaches: runs are bounded by `max_steps`.
LONGEST_COURSE, FIRST_STEP = 1e6, 1e-3
# The solver's tolerance as a fraction of `rtol`, and the factor by which the tolerance of the run
# that measures the error is larger.
SAFETY = 0.003
LOOSER = 30.0
# The ratio of the two errors is `LOOSER` on average. Even if it is as small as 3/2, twice the
# difference of the runs still covers the error of the better one.
ERROR_FACTOR = 2.0
# The ratio may be smaller by chance, so the error is at least this many tolerances.
LEAST_ERROR = 10.0
# Width of the bracket as a share of the tolerance.
CLOSED = 0.25


def speed_of(state: State) -> Float[Array, ""]:
    """The time per unit of desingularised time, for strengths of any scale."""
    strongest = jnp.max(jnp.abs(state.strength))
    return 1 / (jnp.sqrt(jnp.sum(squared_norms(state))) * jnp.where(strongest > 0, strongest, 1))


def desingularised(_: Any, point: Point, strength: Array) -> Point:
    r"""The rates of the layers and of time in desingularised time."""
    layers, _ = point
    state = State(*layers, strength)
    speed = speed_of(state)
    return jax.tree.map(lambda x: speed * x, vector_field(state).layers), speed


def time_left(state: State) -> Float[Array, ""]:
    r"""The time left, to higher order than the bracket.

    Close to the blow-up the dominant component is aligned, up to a part of $b$ that stays bounded.
    Without that part, $\|b\|$ is $E/(\lambda\|a\|\|c\|)$, and the aligned case has a closed form.
    """
    leading = jnp.argmax(component_energies(state))
    a, c, strength = state.a[leading], state.c[leading], jnp.abs(state.strength[leading])
    size_a, size_c = jnp.sum(a * a), jnp.sum(c * c)
    along = jnp.sum(a * (state.b @ c))
    return carlson_rf(size_a, along**2 / (size_a * size_c), size_c) / strength


class End(eqx.Module):
    """The end of a run: the state, the time, and the desingularised time `course`."""

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

    solution = solve(
        desingularised,
        (state.layers, jnp.zeros((), state.dtype)),
        state.strength,
        solver=solver,
        tolerance=tolerance,
        smallest=smallest_size(state.layers),
        until=LONGEST_COURSE,
        first=FIRST_STEP,
        max_steps=max_steps,
        event=ended,
    )
    assert solution.ts is not None
    (a, b, c), elapsed = jax.tree.map(lambda x: x[0], solution.ys)
    reached = solution.result == diffrax.RESULTS.event_occurred
    last = State(a, b, c, state.strength)
    return End(
        state=last,
        elapsed=elapsed,
        course=solution.ts[0],
        reached=reached,
        num_steps=solution.stats["num_steps"],
    )


class Runs(eqx.Module):
    """A blow-up time by integration, and its accuracy.

    - `spread`: the difference to the time of a copy with noise.
    - `reached`: whether the state and its copies reach the blow-up; `some_reach`: whether any of
      them does.
    """

    time: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    error: Float[Array, ""]
    spread: Float[Array, ""]
    reached: Bool[Array, ""]
    some_reach: Bool[Array, ""]
    num_steps: Int[Array, ""]
    last: State


def run_copies(state: State, solver: diffrax.AbstractSolver, rtol: Array, max_steps: int) -> Runs:
    """The blow-up time of one state of unit scale by integration, and the last state.

    The state is integrated at two tolerances that differ by a known factor, and the difference
    measures the error of the better run. It does not show the rounding of the state, which both
    runs share; a third run, from a copy with noise, does.
    """
    eps = jnp.finfo(state.dtype).eps
    finest = jnp.maximum(SAFETY * rtol, 20 * eps)
    tolerances = finest * jnp.array([1, LOOSER, 1], rtol.dtype)
    copies = [state.layers, with_noise(state.layers, 1), with_noise(state.layers, 2)]
    copies = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)

    def run(copy: tuple[Any, Array]) -> End:
        (a, b, c), tolerance = copy
        start = State(a, b, c, state.strength)
        return run_to_end(start, solver, CLOSED * rtol, tolerance, max_steps)

    ends = jax.lax.map(run, (copies, tolerances))
    elapsed = ends.elapsed
    lower, upper = jax.vmap(bracket)(ends.state)
    times = elapsed + jnp.clip(jax.vmap(time_left)(ends.state), lower, upper)
    times = jnp.where(ends.reached, times, jnp.inf)
    time, apart = times[0], jnp.abs(times - times[0])
    # The looser run also shows whether errors act in proportion.
    error = ERROR_FACTOR * apart[1] + LEAST_ERROR * finest * time
    error = jnp.where(apart[1] <= LARGEST_SHIFT * time, error, jnp.inf)
    if state.rank > 1:
        # Components that do not dominate may still grow, but `time_left` ignores them.
        error = error + (upper[0] - lower[0])
    return Runs(
        time=time,
        lower=elapsed[0] + lower[0],
        upper=elapsed[0] + upper[0],
        error=error,
        spread=apart[2],
        reached=ends.reached[0] & jnp.isfinite(error),
        some_reach=jnp.any(ends.reached),
        num_steps=jnp.sum(ends.num_steps).astype(jnp.int32),
        last=jax.tree.map(lambda x: x[0], ends.state),
    )
