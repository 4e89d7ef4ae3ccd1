r"""Blow-up times of chains of two layers, which have none, and of four and more, by integration.

The flow is followed in the time $ds = (R/L)^{(L-2)/2}\,dt$, $R$ the sum of the squared norms, in
which the layers grow exponentially, until `bounds.bracket` closes, which it does like
$(T^*-t)^{L/(L-2)}$; and twice more to measure the error: at a looser tolerance, and from layers
with noise in their last bits. Three layers are solved as a `State`.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from ..._chain import Chain, with_diagonal_target
from ..._chain_bounds import bracket_of_diagonal, chain_integral, squared_sizes
from ..._energy import energy, vector_field
from ..._exact import chain_rests
from ..._noise import LARGEST_SHIFT, with_noise
from ...flow import CLOSED, ERROR_FACTOR, FIRST_STEP, LEAST_ERROR, LOOSER, SAFETY, solve
from .._method import AbstractMethod, Integrator, Known, Raw, classify
from .._result import BlowUp, Status

# As for states, but longer, as layers much smaller than their mean grow slowly.
_LONGEST_COURSE = 1e12


def check_chain_method(method: AbstractMethod, depth: int) -> None:
    """Raise `ValueError` for a method that does not take chains of this depth."""
    if depth > 3 and not method.takes_chains:
        raise ValueError(
            f"Method `{type(method).__name__}` takes at most 3 layers, but the chain has {depth}: "
            "use `Direct`."
        )


def blowup_time_of_chain(
    chain: Chain, method: AbstractMethod, rtol: float | Float[Array, ""]
) -> BlowUp:
    """`blowup_time` of one chain of two, or of at least four layers."""
    if chain.depth == 2:
        return without_blow_up(chain)
    check_chain_method(method, chain.depth)
    tolerance = jnp.asarray(rtol, chain.dtype)
    result = _compiled(chain, with_diagonal_target(chain), tolerance, method)
    unsettled = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)
    if isinstance(result.status, Tracer) or int(result.status) not in unsettled:
        return result
    if not is_proven_at_rest(chain.layers, chain.target):
        return result
    infinite, none = jnp.full_like(result.time, jnp.inf), jnp.zeros_like(result.error)
    status = jnp.full_like(result.status, Status.NO_BLOW_UP)
    fields = {"time": infinite, "lower": infinite, "upper": infinite, "error": none}
    return dataclasses.replace(result, **fields, status=status)


def without_blow_up(chain: Chain) -> BlowUp:
    r"""The result of two layers, of one chain or a batch: $R$ is at most $R(0)e^{2\|V\|_2t}$."""
    finite = jnp.isfinite(chain.target).all((-2, -1))
    for layer in chain.layers:
        finite = finite & jnp.isfinite(layer).all((-2, -1))
    time = jnp.where(finite, jnp.inf, jnp.nan).astype(chain.dtype)
    status = jnp.where(finite, Status.NO_BLOW_UP, Status.INVALID_INPUT).astype(jnp.int32)
    none = jnp.zeros_like(status)
    error = jnp.where(finite, 0, jnp.nan).astype(chain.dtype)
    return BlowUp(
        time=time,
        lower=time,
        upper=time,
        error=error,
        status=status,
        num_steps=none,
        stage=none,
        methods=("closed form",),
    )


def is_proven_at_rest(layers: Any, target: Any) -> bool:
    """`chain_rests` of concrete layers, where one output and one input make it applicable."""
    return target.size == 1 and chain_rests(layers, float(np.asarray(target)[0, 0]))


@eqx.filter_jit
def _compiled(chain: Chain, diagonal: Chain, rtol: Array, method: AbstractMethod) -> BlowUp:
    return solve_chain(chain, diagonal, rtol, method)


def solve_chain(chain: Chain, diagonal: Chain, rtol: Array, method: AbstractMethod) -> BlowUp:
    """The blow-up time of a chain, by the same flow in the form of `with_diagonal_target`."""
    integrator = method.integrator
    assert integrator is not None
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(chain)]))
    rests = _comes_to_rest(chain)
    unit, exponent = diagonal.unit_scale()
    # What will not be solved is replaced by a point that is solved at once.
    ones = jax.tree.map(jnp.ones_like, unit.layers), jnp.eye(len(unit.target), dtype=unit.dtype)
    unit = jax.tree.map(lambda x, y: jnp.where(finite & ~rests, x, y), unit, Chain(*ones))
    raw = _run_copies(unit, rtol, integrator)
    # What is rounded; and no upper bound is certain where the energy may be negative by rounding.
    begun = 1 - 16 * jnp.finfo(unit.dtype).eps * max(chain.widths)
    lower, infinite = bracket_of_diagonal(unit)[0], jnp.full_like(raw.time, jnp.inf)
    scale = jnp.ldexp(jnp.ones_like(raw.time), exponent)
    result = classify(
        raw,
        Known(lower=begun * lower, upper=infinite, scale=scale, finite=finite, rests=rests),
        rtol,
        method.label,
    )
    lost = (result.status == Status.CONVERGED) & ~(result.time > 0)
    status = jnp.where(lost, Status.NOT_CONVERGED, result.status)
    constants = {name: lax.stop_gradient(getattr(result, name)) for name in ("lower", "upper")}
    error = lax.stop_gradient(result.error)
    return dataclasses.replace(result, **constants, error=error, status=status)


def _comes_to_rest(chain: Chain) -> Bool[Array, ""]:
    """Whether it is proven in floating point: nothing is rounded."""
    # Which entries of the gradient are not zero, if none of them cancels.
    counts = jax.tree.map(lambda x: (x != 0).astype(chain.dtype), chain)
    still = jnp.all(squared_sizes(vector_field(counts)) == 0)
    entries = jnp.stack([jnp.sum(x != 0) for x in (*chain.layers, chain.target)])
    sizes = jnp.sort(jnp.stack([jnp.max(jnp.abs(layer)) for layer in chain.layers]))
    signs = energy(jax.tree.map(jnp.sign, chain))
    single = jnp.all(entries == 1) & (signs < 0)
    return still | (single & (sizes[0] == sizes[1]))


def _run_copies(unit: Chain, rtol: Array, integrator: Integrator) -> Raw:
    eps = jnp.finfo(unit.dtype).eps
    tolerances = jnp.array([1, LOOSER, 1], rtol.dtype) * jnp.maximum(SAFETY * rtol, 20 * eps)
    copies = [unit.layers, with_noise(unit.layers, 1), with_noise(unit.layers, 2)]
    copies = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)

    def run(copy: tuple[tuple[Array, ...], Array]) -> tuple[Array, Array, Array, Array]:
        return _run(Chain(copy[0], unit.target), CLOSED * rtol, copy[1], integrator)

    times, missed, ended, num_steps = lax.map(run, (copies, tolerances))
    time, lower, upper = times[0]
    apart = jnp.abs(jnp.where(ended, times[:, 0], jnp.inf) - time)
    error = ERROR_FACTOR * apart[1] + LEAST_ERROR * tolerances[0] * time + missed[0]
    error = jnp.where(apart[1] <= LARGEST_SHIFT * time, error, jnp.inf)
    return Raw(
        time,
        lower,
        upper,
        error,
        spread=apart[2],
        settled=ended[0] & jnp.isfinite(error),
        limited=jnp.any(ended),
        num_steps=jnp.sum(num_steps).astype(jnp.int32),
    )


def _run(
    chain: Chain, rtol: Array, tolerance: Array, integrator: Integrator
) -> tuple[Array, Array, Array, Array]:
    """Time, lower and upper end of its bracket; what it may miss; whether it ended; steps."""

    def closed(t: Array, y: Any, args: Array, **kwargs: Any) -> Array:
        lower, upper = bracket_of_diagonal(Chain(y[0], args))
        return upper - lower <= rtol * (y[1] + lower)

    solution = solve(
        _field,
        (chain.layers, jnp.zeros((), chain.dtype)),
        chain.target,
        solver=integrator.solver,
        tolerance=tolerance,
        smallest=1.0,
        until=_LONGEST_COURSE,
        first=FIRST_STEP,
        max_steps=integrator.max_steps,
        event=closed,
    )
    layers, elapsed = jax.tree.map(lambda x: x[0], solution.ys)
    last = Chain(layers, chain.target)
    lower, upper = bracket_of_diagonal(last)
    left, missed = time_left_of_chain(last)
    times = elapsed + jnp.stack([jnp.clip(left, lower, upper), lower, upper])
    width = upper - lower
    # What `_time_left` leaves out is of second order where the bracket's width is of first, unless
    # there are other components of the target that may still grow.
    missed = missed + (upper / lower - 1) * width if chain.target.size == 1 else width
    ended = solution.result == diffrax.RESULTS.event_occurred
    return times, jnp.minimum(missed, width), ended, solution.stats["num_steps"]


def _field(_: Any, point: tuple[tuple[Array, ...], Array], target: Array) -> Any:
    chain = Chain(point[0], target)
    speed = jnp.sqrt(jnp.mean(squared_sizes(chain))) ** (2 - chain.depth)
    return jax.tree.map(lambda x: speed * x, vector_field(chain).layers), speed


def time_left_of_chain(chain: Chain) -> tuple[Array, Array]:
    """The time left to higher order than the bracket, and what the angles between layers add to it.

    Close to blow-up all layers are aligned but for parts that stay behind and do not count: along
    its own gradient $G$, a layer is $E/|G|$. The angles that are left make the product of these
    differ from the energy; as they fall, the difference counts for less than it does now.
    """
    current = energy(chain)
    along = current / jnp.sqrt(squared_sizes(vector_field(chain)))
    ratio, time = jnp.abs(jnp.prod(along) / current), chain_integral(along**2)
    return ratio * time, jnp.abs(ratio - 1) * time
