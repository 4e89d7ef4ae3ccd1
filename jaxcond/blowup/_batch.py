"""Blow-up times of many states: cheap method for all, dearer ones for the few that need them.

On the host. A source says what state an index stands for: one of a stored batch, or a draw from an
ensemble. Chunks of indices are compiled once and run on as many threads as there are cores; on a
GPU one chunk fills the device. What a sample comes to does not depend on the chunk it is in.
"""

import abc
from collections.abc import Callable, Hashable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer

from .._state import State
from .._threads import chosen_device, map_on_threads, num_cores
from ._method import AbstractMethod
from ._result import BlowUp, Status
from ._solve import resolve_rtol
from .integration import Direct, Reduced
from .series import Series

# States with at most this many entries in b are reduced many at a time: their products are too
# small for a core's fast kernels. Between the two bounds a few at a time were fastest.
_NARROW, _MIDDLE = 32**2, 100**2
# Rank-one states up to this width are expanded as they are.
_UNREDUCED = 16
# Lanes that are solved together: what a core's second-level cache holds of their coefficients.
_LANES = 32
# Samples of a chunk: enough for its overhead to vanish, few enough to share out evenly. Chunks of
# wide states hold so many entries of b in all, some milliseconds of work.
_CPU_CHUNKS, _CPU_ENTRIES = (_LANES, 256, 2048), 1 << 22
_FIELDS = ("time", "lower", "upper", "error", "status", "num_steps", "stage")
_GPU_CHUNK, _GPU_BYTES = 1 << 16, 1 << 31


_compiled: set[Hashable] = set()


class AbstractSource(eqx.Module):
    """What state an index stands for."""

    @property
    @abc.abstractmethod
    def truncated(self) -> bool:
        """Whether its states stand for wider ones, of which they are the reduced form."""

    @abc.abstractmethod
    def suited_to(self, method: AbstractMethod) -> "AbstractSource":
        """The same states in the dimension that a method asks for, where there is a choice."""

    @abc.abstractmethod
    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index."""


class Stored(AbstractSource):
    """The states of a batch along the leading axis."""

    states: State

    @property
    def truncated(self) -> bool:
        """Stored states are taken for what they are."""
        return False

    def suited_to(self, method: AbstractMethod) -> "Stored":
        """Stored states have one form."""
        del method
        return self

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), self.states
        )


def escalation(state: State, rtol: float, *, truncated: bool = False) -> tuple[AbstractMethod, ...]:
    """The methods that states of this shape go through, cheapest first.

    The first is chosen by the tolerance such that it settles nearly all states with layer scales
    alike; those after it do not depend on it. Narrow states are not reduced: their fewer
    directions are all alike, and one expansion of higher order costs less than a second try.
    Truncated states, which stand for wider ones, have no full form for `Direct`.
    """
    if state.rank > 1:
        return Reduced(), Reduced(dim=32 * state.rank), Direct()
    width = max(state.widths)
    if jnp.finfo(state.dtype).bits < 64:
        order, dim = 16, 8
    elif rtol >= 1e-8:
        order, dim = 28, 8
    elif rtol >= 1e-10:
        order, dim = 32, 10
    else:
        order, dim = 36, 12
    if width <= _UNREDUCED and not truncated:
        order, dim = order + 4, max(width, dim)
    first = Series(order=order, dim=dim, max_expansions=1)
    again = (Series(dim=24), Series(dim=48), Reduced(dim=64))
    return (first, *again) if truncated else (first, *again, Direct())


class _Layout(eqx.Module):
    """How a batch is cut up: samples per call, per reduction, per solve, and threads."""

    chunk: int
    together: int
    lanes: int
    threads: int

    @classmethod
    def of(cls, source: AbstractSource, method: AbstractMethod, count: int) -> "_Layout":
        states = eqx.filter_eval_shape(source, jnp.zeros((), jnp.int32))
        p, q = states.widths
        dim = method.reduced_dim(states.rank)
        width = max(p, q) if dim is None else min(dim, max(p, q))
        if _platform(source) != "cpu":
            bytes_each = 4 * p * q * states.dtype.itemsize
            chunk = min(_GPU_CHUNK, max(1, _GPU_BYTES // bytes_each), _power_of_two(count))
            return cls(chunk, chunk, chunk, 1)
        threads = num_cores()
        largest = _CPU_CHUNKS[-1] if p * q <= _MIDDLE else _power_of_two(_CPU_ENTRIES // (p * q))
        # A few chunks for each thread even out their costs; less than a block wastes lanes.
        share = count // (2 * threads)
        if p * q <= _NARROW:
            # Few sizes, since each is a program of its own; narrow states waste little.
            chunk = max(size for size in _CPU_CHUNKS if size <= max(share, _CPU_CHUNKS[0]))
        else:
            share = _power_of_two(share + 1) // 2
            chunk = min(largest, max(_LANES, share), _power_of_two(-(-count // threads)))
        together = chunk if p * q <= _NARROW else (8 if p * q <= _MIDDLE else 1)
        lanes = _LANES if width <= 2 * _LANES else 1
        return cls(chunk, min(together, _LANES, chunk), min(lanes, chunk), threads)


def _platform(source: AbstractSource) -> str:
    arrays = [leaf for leaf in jax.tree.leaves(source) if isinstance(leaf, jax.Array)]
    return next(iter(arrays[0].devices())).platform if arrays else jax.default_backend()


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


@eqx.filter_jit
def _solve_chunk(
    source: AbstractSource,
    indices: Integer[Array, " chunk"],
    method: AbstractMethod,
    rtol: Array,
    lanes: int,
) -> BlowUp:
    def solve_block(block: Array) -> BlowUp:
        return method.solve(jax.vmap(source)(block), rtol, jnp.asarray(source.truncated))

    return jax.tree.map(lambda x: x.reshape(-1), lax.map(solve_block, indices.reshape(-1, lanes)))


def _signature(source: AbstractSource, method: AbstractMethod, layout: _Layout) -> Hashable:
    """What distinguishes the compiled programs of one chunk from others."""
    leaves, structure = jax.tree.flatten((source, method))
    shapes = tuple((x.shape, str(x.dtype)) if eqx.is_array(x) else x for x in leaves)
    sizes = (layout.chunk, layout.together, layout.lanes)
    wide_precision = jnp.result_type(float) == jnp.float64
    return structure, shapes, sizes, wide_precision, chosen_device()


def _solve_all(
    source: AbstractSource,
    indices: np.ndarray,
    method: AbstractMethod,
    rtol: Array,
    done: Callable[[int], None],
) -> BlowUp:
    """One method on many indices, chunk by chunk; arrays of the result are on the host."""
    layout = _Layout.of(source, method, indices.size)
    chunks = [indices[i : i + layout.chunk] for i in range(0, indices.size, layout.chunk)]

    def run(chunk: np.ndarray) -> BlowUp:
        padded = np.pad(chunk, (0, layout.chunk - chunk.size), mode="edge")
        found = _solve_chunk(source, jnp.asarray(padded), method, rtol, layout.lanes)
        # Waiting here lets other threads run; converting to NumPy would hold the lock.
        found = jax.block_until_ready(found)
        found = jax.tree.map(lambda x: np.asarray(x)[: chunk.size], found)
        done(chunk.size)
        return found

    # Threads that meet a new program at once would each compile it.
    program = _signature(source, method, layout)
    alone = 0 if program in _compiled else 1
    results = [run(chunk) for chunk in chunks[:alone]]
    _compiled.add(program)
    results += map_on_threads(run, chunks[alone:], layout.threads)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def solve_indices(
    source: AbstractSource,
    indices: np.ndarray,
    *,
    rtol: float | None = None,
    methods: Sequence[AbstractMethod] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlowUp:
    """Blow-up times of what a source holds at some indices, escalating lane by lane.

    **Arguments:** as for `blowup_times`, with the states given by a source and its indices.

    **Returns:** a `BlowUp` with one entry per index, in their order.
    """
    example = eqx.filter_eval_shape(source, jnp.zeros((), indices.dtype))
    tolerance = resolve_rtol(rtol, example.dtype)
    if methods is None:
        methods = escalation(example, float(tolerance), truncated=source.truncated)
    if not methods:
        raise ValueError("Argument `methods` must name at least one method.")
    for method in methods:
        method.check(example)
    labels = tuple(method.label for method in methods)
    waiting = np.arange(indices.size)
    result = None
    for stage, method in enumerate(methods):
        last = stage == len(methods) - 1
        report = progress if progress is not None and stage == 0 else (lambda _: None)
        found = _solve_all(source.suited_to(method), indices[waiting], method, tolerance, report)
        found = eqx.tree_at(lambda b: b.stage, found, np.full(waiting.size, stage, np.int32))
        if result is None:
            result = jax.tree.map(np.array, found)
        else:
            for name in _FIELDS:
                getattr(result, name)[waiting] = getattr(found, name)
        waiting = waiting[found.status == Status.NOT_CONVERGED]
        if last or waiting.size == 0:
            break
    fields = {name: jnp.asarray(getattr(result, name)) for name in _FIELDS}
    return BlowUp(**fields, methods=labels)


def blowup_times(
    states: State,
    *,
    rtol: float | None = None,
    methods: Sequence[AbstractMethod] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlowUp:
    """The blow-up times of a batch of states, each by the cheapest method that settles it.

    The first method runs on every state; those that report `not_converged`, and only those, go on
    to the next: one Taylor expansion, then re-expansion in more dimensions, then diffrax on the
    reduced and at last on the full state. No state holds up the others, none is dropped, and what
    a state comes to does not depend on the batch it is in.

    **Arguments:**

    - `states`: a `State` with one leading batch axis on every field.
    - `rtol`: as for `blowup_time`.
    - `methods`: the methods to go through instead, cheapest first.
    - `progress`: called with the number of samples finished since its last call, from any thread.

    **Returns:** a `BlowUp` with one entry per state; `stage` and `methods` tell which method
    settled each.

    **Raises:** `ValueError` for a state without exactly one batch axis, for a tolerance beyond the
    dtype, and for methods that do not apply to the rank.

    Runs on the host and cannot be traced: inside `jit`, use `jax.vmap` of `blowup_time`.
    """
    if len(states.batch_shape) != 1:
        raise ValueError(
            "`blowup_times` takes states with one batch axis, but the batch shape is "
            f"{states.batch_shape}."
        )
    count = states.batch_shape[0]
    if count == 0:
        dtype = states.dtype
        empty, none = jnp.zeros(0, dtype), jnp.zeros(0, jnp.int32)
        return BlowUp(empty, empty, empty, empty, none, none, none, methods=())
    return solve_indices(
        Stored(states),
        np.arange(count, dtype=np.int32),
        rtol=rtol,
        methods=methods,
        progress=progress,
    )
