"""Trajectories of a random ensemble, followed in full: what the statements are checked on."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._energy import energy, squared_norms, vector_field
from .._state import State
from ..blowup import blowup_times
from ..ensembles import Gaussian
from ..flow import EnergyClock, follow
from ..indicators import final_stage
from ..sampling import sample_key, seed_key

Field = Callable[[State], State]

# Points saved of a trajectory, evenly in arsinh of the energy, up to this many units of it: close
# to the blow-up E is (T* - t)^-3, so that the last point is about 1e-6 of T* away from it.
_NUM_POINTS = 64
_LAST_ENERGY = 1e18
_TOLERANCE = 1e-13
_TOGETHER = 8


class Evidence(eqx.Module):
    """Samples of one rank along their flow; arrays have axes `(samples, points, ...)`.

    - `states`: full states; `rates`: the `field` there, as states.
    - `times`; `blow_up`: the blow-up times of the initial states, shape `(samples,)`, by the
      methods of the package, which know nothing of `field`.
    - `energies`; `final`: whether the final stage condition holds; `margin`: its margin.
    """

    states: State
    rates: State
    times: Float[Array, "samples points"]
    blow_up: Float[Array, " samples"]
    energies: Float[Array, "samples points"]
    final: Bool[Array, "samples points"]
    margin: Float[Array, "samples points"]
    field: Field = eqx.field(static=True)

    @property
    def num_samples(self) -> int:
        """Number of trajectories."""
        return self.blow_up.shape[0]

    def norms(self) -> Float[Array, "samples points 3"]:
        """Squared norms of the layers at every point."""
        return jax.vmap(jax.vmap(squared_norms))(self.states)


def random_states(width: int, samples: int, seed: int, rank: int) -> State:
    """Gaussian initial states of either sign of the energy, `rank` components, unit strengths.

    At higher rank every second strength is negative, and the second layer is narrower by one.
    """
    p, q = width, width if rank == 1 else width - 1
    root = seed_key(seed)

    def draw(index: Array) -> State:
        keys = jax.random.split(sample_key(root, index), rank)
        parts = [Gaussian(p, q).sample(key=key) for key in keys]
        signs = [1.0 if i % 2 == 0 else -1.0 for i in range(rank)]
        return State(
            jnp.concatenate([part.a for part in parts]),
            parts[0].b,
            jnp.concatenate([part.c for part in parts]),
            jnp.array(signs),
        )

    return jax.vmap(draw)(jnp.arange(samples))


def gather(states: State, field: Field = vector_field) -> Evidence:
    """Follow a batch of initial states, by plain integration of all unknowns."""
    blow_up = blowup_times(states, rtol=1e-12 if states.rank == 1 else 1e-10).time
    return _follow_all(states, blow_up, field)


@eqx.filter_jit
def _follow_all(states: State, blow_up: Array, field: Field) -> Evidence:
    def one(state: State) -> tuple[State, Array]:
        clock = EnergyClock(jnp.sqrt(jnp.sum(squared_norms(state)) / 3) ** 3)
        start = jnp.arcsinh(energy(state) / clock.unit)
        stops = jnp.linspace(start, jnp.arcsinh(jnp.asarray(_LAST_ENERGY)), _NUM_POINTS)
        tolerance = jnp.asarray(_TOLERANCE)
        followed = follow(
            state, clock, start, stops, diffrax.Dopri8(), tolerance, 4096, field=field
        )
        return followed.states, followed.times

    along, times = lax.map(one, states, batch_size=_TOGETHER)
    every = jax.vmap(jax.vmap(final_stage))(along)
    return Evidence(
        states=along,
        rates=jax.vmap(jax.vmap(field))(along),
        times=times,
        blow_up=blow_up,
        energies=jax.vmap(jax.vmap(energy))(along),
        final=every.holds,
        margin=every.margin,
        field=field,
    )
