"""Trajectories of random ensembles at full width, on which the statements are checked."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._energy import vector_field
from .._state import State
from ..blowup import blowup_times
from ..flow import EnergyClock, follow

Field = Callable[[State], State]

# Points saved of a trajectory, evenly spaced in arsinh of the energy divided by its initial value.
# The first ones end at a few times that value (past zero if it is negative), the others at the last
# energy, which is in units of the norms' mean square to the power 3/2. Close to the blow-up E is
# (T* - t)^-3, so that the last point is about 1e-6 T* before it.
_EARLY_POINTS, _LATE_POINTS = 16, 48
_EARLY_ENERGY, _LAST_ENERGY = 3.0, 1e18
_LEAST_UNIT = 1e-4
# The end of the flow of Example 1, which comes to rest.
_LAST_OF_EXAMPLE = -1e-9
_TOLERANCE = 1e-13
_MAX_STEPS = 4096
# Trajectories that are followed together, fewer if they exceed this number of entries. All
# ensembles are padded with zeros, which stay zero, to one shape, so that one program follows them
# all.
_LANES, _MOST_ENTRIES = 16, 1 << 17
# The other ensembles have the number of samples of the square one divided by this.
_SHARE = 4
# Margins of the final stage condition above all rounding errors.
_CLEAR = 16 * np.finfo(float).eps

SQUARE, RECTANGULAR, RANK_2, RANK_3 = "rank 1", "rank 1, p > q", "rank 2, p > q", "rank 3, p < q"
INITIAL, PARTIAL, EXAMPLE = "initial states", "C₂ not empty", "Example 1"
RANK_1 = (SQUARE, RECTANGULAR)
HIGHER = (RANK_2, RANK_3)

# Strengths of equal and mixed signs, of equal and different size: sample i takes row i mod 3.
_STRENGTHS = {
    RANK_2: ((1.0, -1.0), (1.0, 0.6), (-0.8, -1.0)),
    RANK_3: ((1.0, -1.0, 0.5), (0.5, 1.0, 0.8), (-1.0, -0.7, -0.9)),
}


class Points(NamedTuple):
    """States as NumPy arrays, with any leading axes."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    strength: np.ndarray

    @classmethod
    def of(cls, states: State) -> "Points":
        """The points of a batch of states."""
        return cls(*[np.asarray(getattr(states, name)) for name in cls._fields])

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Points":
        """Points from a function of each field."""
        return Points(*[function(x) for x in self])

    @property
    def layers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The layers without the strengths."""
        return self.a, self.b, self.c

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.a.shape[-2]

    @property
    def widths(self) -> tuple[int, int]:
        """The widths `(p, q)`."""
        return self.b.shape[-2], self.b.shape[-1]

    def transpose(self) -> "Points":
        """The states read from the other end."""
        return Points(self.c, np.swapaxes(self.b, -1, -2), self.a, self.strength)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Samples of one ensemble along their flow, as NumPy arrays.

    - `states`: full states, fields of shape `(samples, points, ...)`; `rates`: their `field`.
    - `times`: shape `(samples, points)`.
    - `blow_up`: the blow-up times, shape `(samples,)`. At rank 1 those of the initial states by
      `blowup_times`, independently of `field`; at higher rank the upper bound at the last point,
      which agrees with them to rounding; infinite for a flow that comes to rest.
    - `error`: the relative error that `blowup_times` reports.
    """

    states: Points
    rates: Points
    times: np.ndarray
    blow_up: np.ndarray
    error: np.ndarray

    @property
    def num_samples(self) -> int:
        """Number of trajectories."""
        return self.times.shape[0]

    @property
    def initial(self) -> Points:
        """The initial states."""
        return self.states.map(lambda x: x[:, 0])

    @functools.cached_property
    def gradient(self) -> Points:
        """The gradient of the energy, eqs. (3.10) and (A.8), in fields like those of `rates`."""
        a, b, c, strength = self.states
        weight = strength[..., None]
        return Points(
            weight * np.einsum("...pq,...rq->...rp", b, c),
            np.einsum("...rp,...rq->...pq", weight * a, c),
            weight * np.einsum("...pq,...rp->...rq", b, a),
            np.zeros_like(strength),
        )

    @functools.cached_property
    def energies(self) -> np.ndarray:
        """The energy, eqs. (3.8) and (A.9), shape `(samples, points)`."""
        return np.sum(self.states.a * self.gradient.a, axis=(-2, -1))

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """Squared norms of the layers, shape `(3, samples, points)`."""
        return np.stack([np.sum(x * x, axis=(-2, -1)) for x in self.states.layers])

    @functools.cached_property
    def size(self) -> np.ndarray:
        r"""$\|\theta\|$, shape `(samples, points)`."""
        return np.sqrt(np.sum(self.norms, axis=0))

    @property
    def unit_square(self) -> np.ndarray:
        r"""The largest $\|\theta\|^2/\max(p, q)$ so far, the scale of conserved quantities."""
        return np.maximum.accumulate(self.size**2, axis=1) / max(self.states.widths)

    @functools.cached_property
    def columns(self) -> np.ndarray:
        """$b^Tb$, the products of the columns, shape `(samples, points, q, q)`."""
        return np.einsum("...pq,...pr->...qr", self.states.b, self.states.b)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """$bb^T$, the products of the rows, shape `(samples, points, p, p)`."""
        return np.einsum("...pq,...rq->...pr", self.states.b, self.states.b)

    @functools.cached_property
    def margin(self) -> np.ndarray:
        """The least left-hand side of the final stage condition (Assumptions 2 to 4), as a cosine.

        Computed from the definitions, independently of `jaxcond.indicators`; shape `(samples,
        points)`.
        """
        sign = np.sign(self.states.strength)[..., None]
        sides = (
            (self.states.c, self.states.a, self.states.b, self.columns),
            (self.states.a, self.states.c, np.swapaxes(self.states.b, -1, -2), self.rows),
        )
        least, units = [], []
        for layer, other, b, gram in sides:
            lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))[..., None, :]
            onto = np.einsum("...pq,...rp->...rq", b, other)
            length = np.linalg.norm(other, axis=-1, keepdims=True)
            first = np.sign(layer) * sign * onto / (lengths * length)
            cosines = gram / (lengths * np.swapaxes(lengths, -1, -2))
            signed = np.sign(layer)[..., :, None] * np.sign(layer)[..., None, :]
            least += [_least(first), _least(signed * cosines[..., None, :, :])]
            units.append(layer / np.linalg.norm(layer, axis=-1, keepdims=True))
        pull = (sign * units[1])[..., :, :, None] * units[0][..., :, None, :]
        for i in range(pull.shape[2]):
            least.append(_least(pull * pull[:, :, i : i + 1]))
        return np.min(least, axis=0)

    @functools.cached_property
    def final(self) -> np.ndarray:
        """Whether the final stage condition holds, shape `(samples, points)`."""
        return self.margin > _CLEAR

    @functools.cached_property
    def onset(self) -> np.ndarray:
        """The first point at which the final stage condition holds, else the last point."""
        first = np.argmax(self.final, axis=1)
        return np.where(np.any(self.final, axis=1), first, self.times.shape[1])

    @property
    def once_final(self) -> np.ndarray:
        """Which points are at or after the onset, shape `(samples, points)`."""
        return np.arange(self.times.shape[1]) >= self.onset[:, None]


def _least(values: np.ndarray) -> np.ndarray:
    """The least value at each point."""
    return np.min(values.reshape(*values.shape[:2], -1), axis=-1)


def initial_states(width: int, samples: int, seed: int = 0) -> dict[str, State]:
    """Gaussian initial states with energies of both signs, by the name of their ensemble.

    All entries are independent N(0, 1). Rank 1 with `samples` states of $p = q$ and a quarter as
    many of $p > q$; rank 2 and rank 3 with a quarter as many each, two thirds of the units in the
    narrower layer, and strengths of equal and of mixed signs.

    **Returns:** batches of states; a sample depends only on the seed, its ensemble and its index.
    """
    narrow = max(1, 2 * width // 3)
    few = -(-samples // _SHARE)
    shapes = {
        SQUARE: (samples, 1, width, width),
        RECTANGULAR: (few, 1, width, narrow),
        RANK_2: (few, 2, width, narrow),
        RANK_3: (few, 3, narrow, width),
    }
    return {
        name: _draw(name, count, (rank, p, q), (seed, number))
        for number, (name, (count, rank, p, q)) in enumerate(shapes.items())
    }


def _draw(name: str, count: int, shape: tuple[int, int, int], root: tuple[int, int]) -> State:
    rank, p, q = shape
    drawn = []
    for index in range(count):
        normal = np.random.default_rng((*root, index)).standard_normal
        drawn.append((normal((rank, p)), normal((p, q)), normal((rank, q))))
    strengths = _STRENGTHS.get(name, ((1.0,) * rank,))
    strength = [strengths[index % len(strengths)] for index in range(count)]
    a, b, c = (np.stack(layers) for layers in zip(*drawn, strict=True))
    return State(a, b, c, np.array(strength))


def example_1(width: int = 2) -> State:
    """The state of Example 1, which comes to rest; wider ones are padded with zeros."""
    first = np.eye(width)[0]
    return State.from_vectors(first, np.diag(first), -first)


def start(states: State, field: Field = vector_field) -> dict[str, Evidence]:
    """The evidence `INITIAL`: initial rank-one states of equal widths with their rates."""
    initial = Points.of(states)
    points = initial.map(lambda x: x[:, None])
    rates = Points.of(in_lanes(field, initial)).map(lambda x: x[:, None])
    return {INITIAL: _evidence(points, rates, np.zeros((len(initial.strength), 1)))}


def gather(states: dict[str, State], field: Field = vector_field) -> dict[str, Evidence]:
    """Follow batches of initial states by plain integration of all unknowns.

    **Returns:** their evidence, and that of two more ensembles: `EXAMPLE`, and `PARTIAL`, a quarter
    of the square states with the units of the input layer rotated so that the first one does not
    take part in the blow-up.
    """
    batches = {name: Points.of(batch) for name, batch in states.items()}
    shape = np.max([(batch.rank, *batch.widths) for batch in batches.values()], axis=0)
    example = Points.of(example_1(batches[SQUARE].widths[0])).map(lambda x: x[None])
    evidence = _gather({**batches, EXAMPLE: example}, tuple(shape), field)
    towards = evidence[SQUARE].states.c[: -(-len(batches[SQUARE].c) // _SHARE), -1, 0]
    rotated = {PARTIAL: _rotated(batches[SQUARE], towards)}
    return evidence | _gather(rotated, tuple(shape), field)


def _rotated(states: Points, towards: np.ndarray) -> Points:
    """States with two units of the input layer rotated so that `towards` has no first entry."""
    a, b, c, strength = (np.array(x[: len(towards)]) for x in states)
    first, second = (towards[:, i] / np.hypot(*towards[:, :2].T) for i in (0, 1))
    turn = np.stack([np.stack([second, -first], -1), np.stack([first, second], -1)], -2)
    b[:, :, :2] = np.einsum("sij,spj->spi", turn, b[:, :, :2])
    c[:, :, :2] = np.einsum("sij,srj->sri", turn, c[:, :, :2])
    return Points(a, b, c, strength)


def _gather(
    states: dict[str, Points], shape: tuple[int, int, int], field: Field
) -> dict[str, Evidence]:
    ends = {name: _LAST_OF_EXAMPLE if name == EXAMPLE else _LAST_ENERGY for name in states}
    padded = [_padded(batch, shape) for batch in states.values()]
    stops = [_stops(batch, ends[name]) for name, batch in states.items()]
    every = Points(*map(np.concatenate, zip(*padded, strict=True)))
    along, rates, times = _follow_all(every, np.concatenate(stops), field)
    evidence, begin = {}, 0
    for name, batch in states.items():
        part = slice(begin, begin + len(batch.strength))
        begin = part.stop
        ours, speeds = (_cut(x, part, batch) for x in (along, rates))
        evidence[name] = _evidence(ours, speeds, times[part])
    return evidence


def _evidence(states: Points, rates: Points, times: np.ndarray) -> Evidence:
    unknown = np.full(len(times), np.nan)
    evidence = Evidence(states=states, rates=rates, times=times, blow_up=unknown, error=unknown)
    if states.rank == 1:
        blowup = blowup_times(State(*evidence.initial), rtol=1e-12)
        blow_up, error = np.asarray(blowup.time), np.asarray(blowup.error)
        error = np.where(np.isfinite(blow_up), error / blow_up, 0)
    else:
        with np.errstate(all="ignore"):
            left = evidence.size[:, -1] ** 2 / (3 * evidence.energies[:, -1])
        blow_up, error = times[:, -1] + left, np.zeros(len(times))
    return dataclasses.replace(evidence, blow_up=blow_up, error=error)


def _padded(states: Points, shape: tuple[int, int, int]) -> Points:
    """States with zeros up to a shape `(rank, p, q)`."""
    pairs = zip("rpq", shape, (states.rank, *states.widths), strict=True)
    missing = {axis: (0, most - size) for axis, most, size in pairs}
    return Points(
        *(
            np.pad(x, [(0, 0)] * (x.ndim - len(axes)) + [missing[axis] for axis in axes])
            for x, axes in zip(states, ("rp", "pq", "rq", "r"), strict=True)
        )
    )


def _cut(points: Points, part: slice, states: Points) -> Points:
    """One ensemble, without the padding."""
    rank, (p, q) = states.rank, states.widths
    a, b, c, strength = (x[part] for x in points)
    return Points(a[:, :, :rank, :p], b[:, :, :p, :q], c[:, :, :rank, :q], strength[:, :, :rank])


def _stops(states: Points, end: float) -> np.ndarray:
    """The units of energy of a batch, and the values of the clock at which points are saved."""
    a, b, c, strength = states
    square = np.sum([np.sum(x * x, axis=(-2, -1)) for x in states.layers], axis=0) / 3
    energies = np.einsum("sr,srp,spq,srq->s", strength, a, b, c)
    if end > 0:
        unit = np.maximum(np.abs(energies), _LEAST_UNIT * square**1.5)
        middle, last = np.full_like(unit, _EARLY_ENERGY), end * square**1.5 / unit
    else:
        # An energy that stays negative: evenly spaced in its logarithm.
        unit = np.full_like(energies, -end)
        middle, last = -np.cbrt(energies / end), -np.ones_like(unit)
    first = energies / unit
    first, middle, last = (np.arcsinh(x) for x in (first, middle, last))
    early = np.linspace(first, middle, _EARLY_POINTS, endpoint=False, axis=1)
    late = np.linspace(middle, last, _LATE_POINTS, axis=1)
    return np.concatenate([unit[:, None], early, late], axis=1)


def _follow_all(
    padded: Points, stops: np.ndarray, field: Field
) -> tuple[Points, Points, np.ndarray]:
    """Follow all states, in chunks of equal size and on two threads."""
    count = len(stops)
    chunks = _chunks((padded, stops), count, padded.b[0].size)

    def one(chunk: tuple[Points, np.ndarray]) -> tuple[Points, Points, np.ndarray]:
        # The caller's setting may be local to its thread.
        with jax.enable_x64(True):
            along, rates, times = _follow(State(*chunk[0]), jnp.asarray(chunk[1]), field)
            return Points.of(along), Points.of(rates), np.asarray(times)

    # The first call compiles.
    done = [one(chunks[0])]
    with ThreadPoolExecutor(2) as pool:
        done += pool.map(one, chunks[1:])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *done)


def _chunks(batches: Any, count: int, entries: int) -> list[Any]:
    """Batches in parts of equal size, the last one padded with its last sample."""
    chunks, num = [], max(1, min(_LANES, _MOST_ENTRIES // entries))
    for begin in range(0, count, num):
        lanes = np.minimum(np.arange(begin, begin + num), count - 1)
        chunks.append(jax.tree.map(lambda x, lanes=lanes: np.asarray(x)[lanes], batches))
    return chunks


def in_lanes(function: Callable[[State], Any], states: Points) -> Any:
    """A function of one state over a batch or points of it, compiled once for all batch sizes.

    States are padded with zeros to equal widths, and to rank 3 if their rank is higher than 1.

    **Returns:** the values as NumPy arrays.
    """
    width = max(states.widths)
    padded = _padded(states, (1 if states.rank == 1 else 3, width, width))
    count = len(states.strength)
    parts = [_in_lanes(function, State(*chunk)) for chunk in _chunks(padded, count, width**2)]
    return jax.tree.map(lambda *values: np.concatenate(values)[:count], *parts)


@eqx.filter_jit
def _in_lanes(function: Callable[[State], Any], states: State) -> Any:
    for _ in range(states.strength.ndim - 1):
        function = jax.vmap(function)
    return function(states)


@eqx.filter_jit
def _follow(states: State, stops: jax.Array, field: Field) -> tuple[State, State, jax.Array]:
    def one(state: State, stops: jax.Array) -> tuple[State, State, jax.Array]:
        clock, solver, tolerance = EnergyClock(stops[0]), diffrax.Dopri8(), jnp.asarray(_TOLERANCE)
        followed = follow(
            state, clock, stops[1], stops[1:], solver, tolerance, _MAX_STEPS, field=field
        )
        return followed.states, jax.vmap(field)(followed.states), followed.times

    return jax.vmap(one)(states, stops)
