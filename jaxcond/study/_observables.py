r"""Observables: variables that a study records for each sample besides its blow-up time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .. import _trajectory  # pyright: ignore[reportPrivateUsage]
from .._chain import Chain
from .._energy import energy, vector_field
from .._state import State
from .._threads import map_on_threads, num_cores
from .._trajectory import OnsetStatus, PointStatus
from ..blowup import AbstractChainSource, AbstractSource, ChainSamples, Samples
from ..networks import EscapeStatus, Limit
from ..sampling import entry_names, leading_entries

NUM_ENTRIES = 8
# Samples per call, and samples vectorised together: a vectorised trajectory loop ends only when its
# slowest sample does.
_PIECE, _TOGETHER = 256, 8


@dataclass(frozen=True)
class Field:
    """A variable of the store: name, description, dtype and dimension besides `sample`."""

    name: str
    long_name: str
    dtype: str = "float"
    dim: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observable:
    """Quantities of one initial state.

    - `fields`: variables of the store, one per quantity.
    - `needs_full`: whether the quantities need the full state instead of its reduced form.
    - `function`: maps a state and the fractions of $T^*$ to one array per field; `None` if the
      samples already contain the fields.
    - `takes_chains`: whether the quantities exist for chains.
    """

    fields: tuple[Field, ...]
    needs_full: bool
    function: Callable[[Any, Float[Array, " num"]], tuple[Array, ...]] | None
    takes_chains: bool = False


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x * x))


def _gradient_norm(point: State | Chain, fractions: Array) -> tuple[Array, ...]:
    del fractions
    return (jnp.sqrt(sum(jnp.sum(layer**2) for layer in vector_field(point).layers)),)


def _onset(state: State, fractions: Array) -> tuple[Array, ...]:
    del fractions
    onset = _trajectory.trajectory(state).onset()
    return onset.time, onset.time_left, onset.status


def _counts(state: State, fractions: Array) -> tuple[Array, ...]:
    # Follow the trajectory beyond the last fraction, as far as the dtype resolves T* - t.
    least = 64 * jnp.finfo(state.dtype).eps
    closeness = jnp.clip(0.5 * (1 - jnp.max(fractions)), least, 0.5).astype(state.dtype)
    path = _trajectory.trajectory(state, closeness=closeness)
    times = fractions * path.blowup.time
    conditions = [path.condition(number, times) for number in (1, 2, 3)]
    return (
        *(condition.positive for condition in conditions),
        *(condition.undecided for condition in conditions),
        path.status(times),
    )


OBSERVABLES: dict[str, Observable] = {
    "energy": Observable(
        (Field("energy", "energy E = a^T b c of the initial state"),),
        False,
        lambda point, fractions: (energy(point),),
        takes_chains=True,
    ),
    "norms": Observable(
        (
            Field("norm_a", "norm |a| of the initial output layer"),
            Field("norm_c", "norm |c| of the initial input layer"),
        ),
        False,
        lambda state, fractions: (_norm(state.a), _norm(state.c)),
    ),
    "norm_b": Observable(
        (Field("norm_b", "Frobenius norm |b| of the initial middle layer"),),
        True,
        lambda state, fractions: (_norm(state.b),),
    ),
    "gradient_norm": Observable(
        (Field("gradient_norm", "norm of the gradient of the energy at the initial state"),),
        False,
        _gradient_norm,
        takes_chains=True,
    ),
    "entries": Observable(
        (Field("entries", "leading entries of the reduced state", dim="entry"),),
        False,
        lambda state, fractions: (leading_entries(state, NUM_ENTRIES),),
    ),
    "onset": Observable(
        (
            Field("onset", "time at which the final stage condition begins to hold"),
            Field("onset_time_left", "T* less the onset of the final stage"),
            Field(
                "onset_status",
                "status of the onset",
                "int8",
                flags=tuple(status.name.lower() for status in OnsetStatus),
            ),
        ),
        True,
        _onset,
    ),
    "counts": Observable(
        (
            *(
                Field(f"positive_{n}", f"positive entries of final stage condition {n}", "int32",
                      "fraction")
                for n in (1, 2, 3)
            ),
            *(
                Field(f"undecided_{n}", f"undecided entries of final stage condition {n}", "int32",
                      "fraction")
                for n in (1, 2, 3)
            ),
            Field("counts_status", "status of the trajectory point", "int8", "fraction",
                  tuple(status.name.lower() for status in PointStatus)),
        ),
        True,
        _counts,
    ),
    "escape": Observable(
        (
            Field("crossing", "iteration at which the loss of the network leaves the plateau"),
            Field("correction", "what the effective model alone is off by, relative"),
            Field("escape_status", "status of the prediction", "int8",
                  flags=tuple(status.name.lower() for status in EscapeStatus)),
            Field("limit", "why the effective model does not hold as far as the crossing", "int8",
                  flags=tuple(limit.name.lower() for limit in Limit)),
        ),
        True,
        None,
    ),
}  # fmt: skip


def entry_labels() -> tuple[str, ...]:
    """Names along the dimension `entry`."""
    return tuple(entry_names(NUM_ENTRIES))


@eqx.filter_jit
def _observe(
    source: AbstractSource | AbstractChainSource,
    indices: Array,
    fractions: Array,
    names: tuple[str, ...],
    together: int,
) -> dict[str, Array]:
    def one(index: Array) -> dict[str, Array]:
        state = source(index)
        fields = {}
        for name in names:
            observable = OBSERVABLES[name]
            assert observable.function is not None
            values = observable.function(state, fractions)
            fields |= dict(zip((f.name for f in observable.fields), values, strict=True))
        return fields

    blocks = lax.map(jax.vmap(one), indices.reshape(-1, together))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks)


def observe(
    samples: Samples | ChainSamples,
    names: tuple[str, ...],
    fractions: tuple[float, ...],
) -> Mapping[str, np.ndarray]:
    """The fields of the named observables for the samples, computed on the host's threads."""
    if not names:
        return {}
    source, indices = samples.source, samples.indices
    where = jnp.asarray(fractions)

    def run(piece: np.ndarray) -> dict[str, Any]:
        padded = np.pad(piece, (0, _PIECE - piece.size), mode="edge")
        fields = _observe(source, jnp.asarray(padded), where, names, _TOGETHER)
        fields = jax.block_until_ready(fields)
        return {name: np.asarray(values)[: piece.size] for name, values in fields.items()}

    pieces = [indices[i : i + _PIECE] for i in range(0, indices.size, _PIECE)]
    # The first piece runs alone, since each thread would compile a new program again.
    results = [run(pieces[0]), *map_on_threads(run, pieces[1:], num_cores())]
    return {name: np.concatenate([fields[name] for fields in results]) for name in results[0]}
