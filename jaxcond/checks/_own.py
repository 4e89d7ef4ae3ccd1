"""Statements about the results that this package adds to the paper, and about its methods."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._energy import vector_field
from .._reduction import reduce
from .._state import State
from ..blowup import blowup_time, blowup_times
from ..bounds import blow_up_guaranteed, bracket
from ._evidence import (
    HIGHER,
    INITIAL,
    PARTIAL,
    RANK_1,
    SQUARE,
    Evidence,
    Points,
    example_1,
    in_lanes,
)
from ._statement import NOT_TESTED, Statement, largest, where_tested

# Number of samples with derivatives.
_NUM_GRADIENTS = 16


def matrix_conservation(evidence: Evidence) -> np.ndarray:
    """The change of the conserved matrices."""
    a, _, c = evidence.states.layers
    moved = []
    for layer, gram in ((a, evidence.rows), (c, evidence.columns)):
        kept = gram - np.einsum("...ri,...rj->...ij", layer, layer)
        moved.append(largest(np.abs(kept - kept[:, :1]) / evidence.unit_square[..., None, None]))
    return np.max(moved, axis=0)


def guaranteed_blow_up(evidence: Evidence) -> np.ndarray:
    """0 if all states that are guaranteed to blow up do, and Example 1 is not one; else 1."""
    promised = in_lanes(blow_up_guaranteed, evidence.initial)
    rests = Points.of(example_1(evidence.states.widths[0])).map(lambda x: x[None])
    broken = ~np.isfinite(evidence.blow_up) | in_lanes(blow_up_guaranteed, rests)
    return np.where(promised, broken.astype(float), NOT_TESTED)


def bracketed(evidence: Evidence) -> np.ndarray:
    """The distance of $T^*$ from the bracket at every point."""
    lower, upper = in_lanes(bracket, evidence.states)
    below = evidence.times + lower - evidence.blow_up[:, None]
    above = evidence.blow_up[:, None] - evidence.times - upper
    excess = largest(np.maximum(below, above)) / evidence.blow_up
    return where_tested(np.isfinite(evidence.blow_up), excess, evidence)


def semigroup(evidence: Evidence) -> np.ndarray:
    r"""$T^*$ of the states at $t = T^*/2$ against $T^* - t$."""
    middle = np.argmin(np.abs(evidence.times / evidence.blow_up[:, None] - 0.5), axis=1)
    samples = np.arange(evidence.num_samples)
    states = State(*evidence.states.map(lambda x: x[samples, middle]))
    left = np.asarray(blowup_times(states, rtol=1e-12).time)
    expected = evidence.blow_up - evidence.times[samples, middle]
    return np.abs(left - expected) / evidence.blow_up


@jax.jit
def _derivatives(pairs: tuple[State, State]) -> Array:
    def one(pair: tuple[State, State]) -> Array:
        state, rate = pair
        time, gradient = jax.value_and_grad(lambda s: blowup_time(s).time)(state)
        along, onward = (
            sum(jnp.vdot(x, y) for x, y in zip(gradient.layers, other.layers, strict=True))
            for other in (state, rate)
        )
        return jnp.stack([jnp.abs(along / time + 1), jnp.abs(onward + 1)])

    return jax.lax.map(one, pairs)


def gradient_identities(evidence: Evidence) -> np.ndarray:
    r"""$\nabla T^*\cdot\theta = -T^*$ and $\nabla T^*\cdot\theta' = -1$, $\theta'$ of the flow."""
    some = tuple(
        State(*(x[:_NUM_GRADIENTS, 0] for x in points))
        for points in (evidence.states, evidence.rates)
    )

    found = largest(np.asarray(_derivatives(some)))
    return np.pad(found, (0, evidence.num_samples - len(found)), constant_values=NOT_TESTED)


def _lifted(state: State) -> tuple[Array, ...]:
    """The velocity of a state from that of its reduced form."""
    reduction = reduce(state, min(state.widths))
    small = vector_field(reduction.state)
    left, right = reduction.left, reduction.right
    return small.a @ left, left.T @ small.b @ right, small.c @ right


def reduced_flow(evidence: Evidence) -> np.ndarray:
    """Lifted velocities of the reduced states against those of the full ones."""
    pairs = zip(in_lanes(_lifted, evidence.initial), evidence.rates.layers, strict=True)
    norms = [(np.linalg.norm(x - y[:, 0], axis=(-2, -1)), y) for x, y in pairs]
    return np.max([x / np.linalg.norm(y[:, 0], axis=(-2, -1)) for x, y in norms], axis=0)


OWN = (
    Statement(
        name="A and C conserved",
        proven="bbᵀ - Σ_i a_i a_iᵀ, bᵀb - Σ_i c_i c_iᵀ constant",
        observed="change, over |θ|²/m",
        deviation=matrix_conservation,
        limit=1e-13,
        on=(*RANK_1, *HIGHER),
    ),
    Statement(
        name="blow-up guaranteed",
        proven="E > 0, or A (C) not positive: finite T*",
        observed="promises broken",
        deviation=guaranteed_blow_up,
        limit=0.0,
        on=(INITIAL,),
    ),
    Statement(
        name="bracket holds T*",
        proven="T* - t between R_F and E^(-1/3)",
        observed="distance outside, over T*",
        deviation=bracketed,
        limit=1e-13,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="bracket holds T*, rank 2 and 3",
        proven="T* - t between R_F/max|λ| and |θ|²/(3E)",
        observed="distance outside, over T*",
        deviation=bracketed,
        limit=3e-15,
        on=HIGHER,
    ),
    Statement(
        name="T*(θ(t)) = T* - t",
        proven="by uniqueness",
        observed="difference near T*/2, over T*",
        deviation=semigroup,
        limit=1e-13,
        on=(SQUARE,),
    ),
    Statement(
        name="∇T*·θ = -T*, ∇T*·θ' = -1",
        proven="by scaling, and along the flow",
        observed="difference, relative",
        deviation=gradient_identities,
        limit=1e-11,
        on=(INITIAL,),
    ),
    Statement(
        name="reduced flow",
        proven="in Krylov coordinates the flow is the same",
        observed="lifted velocity, relative",
        deviation=reduced_flow,
        limit=5e-15,
        on=(INITIAL,),
    ),
)
