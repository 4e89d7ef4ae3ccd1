r"""The statements, each as a function from evidence to the worst deviation from it.

A deviation is relative and at best rounding; a statement holds where it is at most its `limit`.
What is proved for a limit $t \to T^*$ is checked at the last point, some $10^{-6}\,T^*$ before it.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._energy import conserved, energy, squared_norms, vector_field
from .._reduction import reduce
from .._state import State
from ..blowup import Status, blowup_time, blowup_times
from ..bounds import blow_up_guaranteed, bracket, energy_growth
from ..flow import EnergyClock, follow
from ..indicators import angles, condensed_set, ratios
from ._evidence import Evidence

# What a sample contributes to which a statement does not apply.
NOT_TESTED = -jnp.inf


Deviation = Callable[[Evidence], Float[Array, " samples"]]


class Statement(eqx.Module):
    """A statement, and how it is checked.

    - `name`, `source`: what is said, and where; `tested`: what is measured.
    - `deviation`: from evidence to one number for each sample, `NOT_TESTED` where the statement
      assumes what the sample does not have.
    - `limit`: the largest deviation that still counts as agreement.
    - `rank`: of the evidence that it takes.
    """

    name: str
    source: str
    tested: str
    deviation: Deviation
    limit: float
    rank: int = 1


def _at_all_points(function: Callable[[State], Array], states: State) -> Array:
    return jax.vmap(jax.vmap(function))(states)


def _last(states: State) -> State:
    return jax.tree.map(lambda x: x[:, -1], states)


def _largest(values: Array) -> Array:
    """The largest value of each sample; NaN, which is not a value, counts as infinite."""
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    return jnp.max(values.reshape(values.shape[0], -1), axis=1)


def unit_conservation(evidence: Evidence) -> Array:
    """How far the conserved quantities of single units have moved."""
    return _conservation(evidence, lambda kept: (kept.left_units, kept.right_units))


def matrix_conservation(evidence: Evidence) -> Array:
    """How far the conserved matrices and balances have moved."""
    return _conservation(evidence, lambda kept: (kept.left, kept.right, kept.balance))


def _conservation(evidence: Evidence, choose: Callable) -> Array:
    def one(states: State) -> Array:
        start = choose(conserved(jax.tree.map(lambda x: x[0], states)))

        def moved(state: State) -> Array:
            now = choose(conserved(state))
            most = [jnp.max(jnp.abs(x - y)) for x, y in zip(now, start, strict=True)]
            return jnp.max(jnp.stack(most)) / jnp.sum(squared_norms(state))

        return lax.map(moved, states)

    return _largest(lax.map(one, evidence.states))


def norm_growth(evidence: Evidence) -> Array:
    """Rates of the three squared norms against $2E$."""
    layers = zip(evidence.states.layers, evidence.rates.layers, strict=True)
    rates = [2 * jnp.sum(x * y, axis=(-2, -1)) for x, y in layers]
    scale = jnp.prod(jnp.sqrt(evidence.norms()), axis=-1)
    return _largest(jnp.stack([jnp.abs(r - 2 * evidence.energies) / scale for r in rates], axis=1))


def energy_rate(evidence: Evidence) -> Array:
    """Rate of the energy along the flow against the sum of squares, and that against $3E^{4/3}$."""
    gradient = jax.vmap(jax.vmap(vector_field))(evidence.states)
    pairs = zip(gradient.layers, evidence.rates.layers, strict=True)
    rate = sum(jnp.sum(x * y, axis=(-2, -1)) for x, y in pairs)
    a, b, c = evidence.states.layers
    onto_a = jnp.einsum("...pq,...rq->...rp", b, c)
    onto_c = jnp.einsum("...pq,...rp->...rq", b, a)
    squares = [jnp.sum(x**2, axis=(-2, -1)) for x in (onto_a, onto_c, a)]
    total = squares[0] + squares[1] + squares[2] * jnp.sum(c**2, axis=(-2, -1))
    identity = jnp.abs(rate - total) / total
    floor = 3 * jnp.maximum(evidence.energies, 0) ** (4 / 3)
    return _largest(jnp.stack([identity, (floor - rate) / total], axis=1))


def upper_bound(evidence: Evidence) -> Array:
    """How far $T^*$ lies beyond $t + E^{-1/3}$, from every point with $E > 0$."""
    positive = evidence.energies > 0
    bound = evidence.times + jnp.where(positive, evidence.energies, 1) ** (-1 / 3)
    excess = evidence.blow_up[:, None] - jnp.where(positive, bound, jnp.inf)
    return _largest(excess / evidence.blow_up[:, None])


def blow_up(evidence: Evidence) -> Array:
    """Time of the last point and the bound from there against $T^*$ by other means."""
    end = evidence.times[:, -1] + evidence.energies[:, -1] ** (-1 / 3)
    return _largest((jnp.abs(end - evidence.blow_up) / evidence.blow_up)[:, None])


def guaranteed_blow_up(evidence: Evidence) -> Array:
    """Whether states that must blow up do: 0 or 1, and 1 for one that must not be promised."""
    initial = jax.tree.map(lambda x: x[:, 0], evidence.states)
    promised = jax.vmap(blow_up_guaranteed)(initial)
    last = evidence.energies[:, -1]
    happened = jnp.isfinite(evidence.blow_up) & jnp.isfinite(last) & (last > 0)
    broken = ~happened | blow_up_guaranteed(example_1())
    return jnp.where(promised, broken.astype(evidence.times.dtype), NOT_TESTED)


def example_1() -> State:
    """The state of Example 1, which comes to rest."""
    return State.from_vectors(
        jnp.array([1.0, 0.0]), jnp.diag(jnp.array([1.0, 0.0])), jnp.array([-1.0, 0.0])
    )


def example(evidence: Evidence) -> Array:
    r"""Example 1: $E' = 3|E|^{4/3}$, hence $E = -(1+t)^{-3}$, and no blow-up."""
    state = example_1()
    start, stop = -1.0, -1e-6
    clock = EnergyClock(jnp.asarray(1e-3))
    stops = jnp.arcsinh(jnp.linspace(start, stop, 20) / clock.unit)
    solver = diffrax.Dopri8()
    followed = follow(
        state, clock, stops[0], stops, solver, jnp.asarray(1e-12), 4096, field=evidence.field
    )
    expected = -((1 + followed.times) ** -3)
    wrong = jnp.max(jnp.abs(jax.vmap(energy)(followed.states) / expected - 1))
    rests = blowup_time(state).status == Status.NO_BLOW_UP
    return jnp.where(rests, wrong, jnp.inf)[None]


def _once_final(evidence: Evidence) -> Array:
    """Which points come after one at which the final stage condition held."""
    return lax.cummax(evidence.final.astype(jnp.int32), axis=1) > 0


def persistence(evidence: Evidence) -> Array:
    """How negative the margin of the final stage condition is after it once held."""
    after = _once_final(evidence)
    reached = jnp.any(evidence.final, axis=1)
    fallen = jnp.where(after, jnp.maximum(-evidence.margin, 0), 0)
    return jnp.where(reached, _largest(fallen), NOT_TESTED)


def rising_units(evidence: Evidence) -> Array:
    r"""How far any $|a_k|$ or $|c_l|$ falls in the final stage, over its value."""
    after = _once_final(evidence)[:, :-1, None, None]
    falls = []
    for layer in (evidence.states.a, evidence.states.c):
        size = jnp.abs(layer)
        fall = (size[:, :-1] - size[:, 1:]) / size[:, :-1]
        falls.append(jnp.where(after, fall, 0))
    worst = _largest(jnp.concatenate(falls, axis=-1))
    return jnp.where(jnp.any(evidence.final, axis=1), worst, NOT_TESTED)


def aligned_columns(evidence: Evidence) -> Array:
    r"""$1 - \cos\xi_{ll'}$ on $C_1$ at the last point, where the final stage has begun."""

    def one(state: State) -> Array:
        inside = condensed_set(state)
        pairs = inside[:, :, None] & inside[:, None, :]
        return jnp.max(jnp.where(pairs, 1 - angles(state).xi, 0))

    return _in_final_stage(evidence, lax.map(one, _last(evidence.states)))


def equal_norms(evidence: Evidence) -> Array:
    r"""$\|a'\|/\|c\|^2$ and $\|a'\|/\|a\|^2$ against 1 at the last point, with $a'$ of the flow."""
    last, rate = _last(evidence.states), _last(evidence.rates)
    speed = jnp.linalg.norm(rate.a, axis=-1)
    both = [speed / jnp.sum(x**2, axis=-1) - 1 for x in (last.c, last.a)]
    by_state = jax.vmap(ratios)(last) - 1
    return _largest(
        jnp.concatenate([jnp.abs(jnp.concatenate(both, -1)), jnp.abs(by_state[..., 0])], axis=-1)
    )


def aligned_velocity(evidence: Evidence) -> Array:
    r"""$1 - \cos\psi_l$ on $C_1$ at the last point, where the final stage has begun."""

    def one(state: State) -> Array:
        return jnp.max(jnp.where(condensed_set(state), 1 - angles(state).psi, 0))

    return _in_final_stage(evidence, lax.map(one, _last(evidence.states)))


def _in_final_stage(evidence: Evidence, deviation: Array) -> Array:
    """The deviations at the last point, infinite for samples that were lost on the way."""
    last = _last(evidence.states)
    finite = jnp.isfinite(jax.vmap(energy)(last)) & jnp.isfinite(deviation)
    units = jnp.sum(jax.vmap(condensed_set)(last), axis=(1, 2))
    applies = evidence.final[:, -1] & (units >= 2)
    return jnp.where(finite, jnp.where(applies, deviation, NOT_TESTED), jnp.inf)


def velocity_along(evidence: Evidence) -> Array:
    r"""How far $\cos\zeta$ falls below its value where the final stage began, over that value.

    Bounded away from zero it stays if it does not fall.
    """
    cosines = _at_all_points(lambda s: angles(s).zeta[0], evidence.states)
    after = _once_final(evidence)
    first = jnp.argmax(evidence.final, axis=1)
    begun = jnp.take_along_axis(cosines, first[:, None], axis=1)
    falls = jnp.where(after, (begun - cosines) / begun, 0)
    reached = jnp.any(evidence.final, axis=1)
    return jnp.where(reached, jnp.where(begun[:, 0] > 0, _largest(falls), jnp.inf), NOT_TESTED)


def energy_bound(evidence: Evidence) -> Array:
    """How far the energy exceeds its bound with the constant $C$, from every point with $E > 0$."""
    growth = _growth(evidence)
    inverse = jnp.where(evidence.energies > 0, evidence.energies, jnp.nan) ** (-1 / 3)
    elapsed = evidence.times[:, None, :] - evidence.times[:, :, None]
    # E(t) <= (E(s)^(-1/3) - C (t - s))^(-3), where the right-hand side is finite.
    least = inverse[:, :, None] - growth[:, :, None] * elapsed
    excess = (least - inverse[:, None, :]) / evidence.blow_up[:, None, None]
    later = (elapsed >= 0) & ~jnp.isnan(inverse)[:, :, None]
    return _largest(jnp.where(later, excess, 0))


def lower_bound(evidence: Evidence) -> Array:
    """How far $t + E^{-1/3}/C$ lies beyond $T^*$, from every point with $E > 0$."""
    positive = evidence.energies > 0
    inverse = jnp.where(positive, evidence.energies, 1) ** (-1 / 3)
    bound = evidence.times + inverse / _growth(evidence)
    excess = jnp.where(positive, bound - evidence.blow_up[:, None], -jnp.inf)
    return _largest(excess / evidence.blow_up[:, None])


def _growth(evidence: Evidence) -> Array:
    """The constant $C$ of Theorem 2 from every point on."""
    growth = _at_all_points(energy_growth, evidence.states)
    growth = jnp.where(evidence.energies > 0, growth, 1)
    return lax.cummax(growth, axis=1, reverse=True)


def condensation(evidence: Evidence) -> Array:
    r"""$|1 - \text{exponent}|$ of the slowest $|c_l| \sim (T^*-t)^{-1}$ over the last decade."""
    # E is (T* - t)^-3: a decade in time is three in energy.
    positive = jnp.where(evidence.energies > 0, evidence.energies, 1e-300)
    exponents = jnp.log(positive[:, -1:] / positive) / 3
    back = jnp.argmin(jnp.abs(exponents - jnp.log(10.0)), axis=1)

    def at(values: Array) -> Array:
        index = back.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.take_along_axis(values, index, axis=1)[:, 0]

    size = jnp.abs(evidence.states.c)
    slopes = jnp.log(size[:, -1] / at(size)) / at(exponents)[:, None, None]
    settled = at(evidence.final)
    return jnp.where(settled, _largest(jnp.abs(1 - slopes)), NOT_TESTED)


def bracketed(evidence: Evidence) -> Array:
    """How far $T^*$ lies outside the bracket, from every point."""
    lower, upper = jax.vmap(jax.vmap(bracket))(evidence.states)
    below = evidence.times + lower - evidence.blow_up[:, None]
    above = evidence.blow_up[:, None] - evidence.times - upper
    return _largest(jnp.maximum(below, above) / evidence.blow_up[:, None])


def semigroup(evidence: Evidence) -> Array:
    r"""$T^*$ of the states at half of it against $T^* - t$."""
    middle = jnp.argmin(jnp.abs(evidence.times / evidence.blow_up[:, None] - 0.5), axis=1)
    samples = jnp.arange(evidence.num_samples)
    states = jax.tree.map(lambda x: x[samples, middle], evidence.states)
    left = blowup_times(states, rtol=1e-12).time
    expected = evidence.blow_up - evidence.times[samples, middle]
    return _largest((jnp.abs(left - expected) / evidence.blow_up)[:, None])


def gradient_identities(evidence: Evidence) -> Array:
    r"""$\nabla T^*\cdot\theta = -T^*$ and $\nabla T^*\cdot\theta' = -1$, $\theta'$ of the flow."""
    initial, rates = (
        jax.tree.map(lambda x: x[:, 0], states) for states in (evidence.states, evidence.rates)
    )

    def one(state: State, rate: State) -> Array:
        time, gradient = jax.value_and_grad(lambda s: blowup_time(s).time)(state)
        along, onward = (
            sum(jnp.vdot(x, y) for x, y in zip(gradient.layers, other.layers, strict=True))
            for other in (state, rate)
        )
        return jnp.stack([jnp.abs(along / time + 1), jnp.abs(onward + 1)])

    return _largest(lax.map(lambda pair: one(*pair), (initial, rates)))


def reduced_flow(evidence: Evidence) -> Array:
    """Velocities of the reduced states, lifted, against those of the full ones."""
    initial, rates = (
        jax.tree.map(lambda x: x[:, 0], states) for states in (evidence.states, evidence.rates)
    )

    def one(state: State, rate: State) -> Array:
        reduction = reduce(state, min(state.widths))
        small = vector_field(reduction.state)
        layers = (
            small.a @ reduction.left,
            reduction.left.T @ small.b @ reduction.right,
            small.c @ reduction.right,
        )
        sizes = [jnp.linalg.norm(x) for x in rate.layers]
        pairs = zip(layers, rate.layers, sizes, strict=True)
        return jnp.stack([jnp.linalg.norm(x - y) / size for x, y, size in pairs])

    return _largest(jax.vmap(one)(initial, rates))
