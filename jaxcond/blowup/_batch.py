"""Blow-up times of many states: a cheap method for all, more expensive ones for hard states.

The host runs chunks of samples on one thread per core, with the native kernel or with programs
compiled for a few chunk sizes. On a GPU one chunk fills the device. The result of a sample does not
depend on its chunk.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer

from .._chain import Chain, as_state
from .._energy import integrals_of
from .._exact import may_rest, state_rests
from .._state import State
from .._threads import chosen_device, map_on_threads, num_cores
from . import chains, integration
from ._chain_source import AsStates, ChainSamples, StoredChains
from ._method import AbstractMethod, Form, HostStates, Kernel, fields_of, is_on_cpu
from ._result import BlowUp, Status
from ._solve import check_rtol
from ._source import AbstractSource, Samples, Stored
from .series import ExtendedSeries, Series
from .series._extended import LARGEST_WIDTH

# Rank-one states up to this width are expanded without reduction.
_UNREDUCED = 16
# Samples per chunk: enough to make the overhead negligible, few enough for an even share per
# thread and, with the kernel, for a core's caches between drawing and solving. A chunk of wide
# states holds at most _CPU_ENTRIES entries of b, some milliseconds of work.
_KERNEL_CHUNK, _CPU_CHUNKS, _CPU_ENTRIES = 1024, (32, 256, 2048), 1 << 22
# Work that is worth a thread, and the cost of an expansion, both in reduced entries of b.
_WORTH_A_THREAD, _ENTRIES_OF_EXPANSION = 200_000, 1_000
# Number of states that a program solves together on a CPU.
_LANES = 32
# For a GPU: one thread copies results to the host while the other keeps the device busy.
_GPU_CHUNK, _GPU_BYTES, _GPU_THREADS = 1 << 19, 1 << 31, 2
_FIELDS = ("time", "lower", "upper", "error", "status", "num_steps", "stage")

_NEVER_TRIED = -1
# First integrals below this fraction of their terms may be zero up to rounding.
_AT_REST = 1e-12

_compiled: set[Hashable] = set()


def escalation(form: Form | State, rtol: float, *, truncated: bool) -> Iterator[AbstractMethod]:
    """The methods that states of this form go through, cheapest first.

    The tolerance sets the order of the first method, so that it settles nearly all states with
    equal layer scales; the later methods do not depend on the tolerance. Narrow states are not
    reduced: their few directions are equally important, and one expansion of higher order costs
    less than a second attempt. Truncated states stand for wider states, and so have no full form
    for `Direct`.
    """
    if form.rank > 1:
        yield integration.Reduced()
        yield integration.Taylor(dim=32 * form.rank)
        yield integration.Direct()
        return
    width = max(form.widths)
    if jnp.finfo(form.dtype).bits < 64:
        order, dim = 16, 8
    elif rtol >= 1e-8:
        order, dim = 28, 8
    elif rtol >= 1e-10:
        order, dim = 32, 10
    else:
        order, dim = 36, 12
    if width <= _UNREDUCED and not truncated:
        order, dim = order + 4, max(width, dim)
    yield Series(order=order, dim=dim, max_expansions=1)
    yield Series(dim=24)
    if width > 24 or truncated:
        yield Series(dim=48)
    extended = ExtendedSeries()
    if (width <= LARGEST_WIDTH or truncated) and extended.kernel(form) is not None:
        yield extended
    yield integration.Reduced(dim=64)
    if not truncated:
        yield integration.Direct()


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _program_chunk(form: Form, on_cpu: bool, count: int) -> int:
    """Samples per chunk for a program, one of a few sizes."""
    p, q = form.widths
    if not on_cpu:
        bytes_each = 4 * p * q * form.dtype.itemsize
        return min(_GPU_CHUNK, max(1, _GPU_BYTES // bytes_each), _power_of_two(count))
    share = max(count // (2 * num_cores()), _CPU_CHUNKS[0])
    chunk = max(size for size in _CPU_CHUNKS if size <= share)
    return max(1, min(chunk, _power_of_two(_CPU_ENTRIES // (p * q))))


def _kernel_chunk(form: Form, count: int) -> int:
    """Samples per chunk for the kernel: an even share with enough work for a thread."""
    p, q = form.widths
    share = -(-count // (2 * num_cores()))
    return max(-(-_WORTH_A_THREAD // (p * q + _ENTRIES_OF_EXPANSION)), min(share, _KERNEL_CHUNK))


@eqx.filter_jit
def _draw_chunk(source: AbstractSource, indices: Integer[Array, " chunk"], together: int) -> State:
    return lax.map(source, indices, batch_size=together)


def _drawn(source: AbstractSource, indices: np.ndarray, chunk: int) -> State:
    """States at the indices, drawn by a program for `chunk` states; the last index is repeated."""
    padded = jnp.asarray(np.pad(indices, (0, chunk - indices.size), mode="edge"))
    return _draw_chunk(source, padded, min(chunk, _LANES) if is_on_cpu(source) else chunk)


Solve = Callable[[np.ndarray], dict[str, np.ndarray]]


def _by_kernel(
    source: AbstractSource, count: int, kernel: Kernel, rtol: float
) -> tuple[Solve, int, Hashable]:
    on_host = source.on_host()
    if on_host is not None:
        chunk = _kernel_chunk(source.form, count)
    else:
        chunk = _program_chunk(source.form, True, count)

    def solve(piece: np.ndarray) -> dict[str, np.ndarray]:
        if on_host is not None:
            return kernel(on_host(piece), rtol, source.truncated)
        states = jax.block_until_ready(_drawn(source, piece, chunk))
        host = HostStates(*(np.asarray(field)[: piece.size] for field in fields_of(states)))
        return kernel(host, rtol, source.truncated)

    return solve, chunk, (_signature(source, chunk) if on_host is None else None)


def _by_program(
    source: AbstractSource, count: int, method: AbstractMethod, rtol: float
) -> tuple[Solve, int, Hashable]:
    on_cpu, solver = is_on_cpu(source), method.batch_solver(source.form)
    chunk = _program_chunk(source.form, on_cpu, count)
    on_host = source.on_host() if on_cpu else None

    def solve(piece: np.ndarray) -> dict[str, np.ndarray]:
        if on_host is not None:
            states = on_host(np.pad(piece, (0, chunk - piece.size), mode="edge"))
        else:
            states = _drawn(source, piece, chunk)
        # Waiting here lets other threads run; converting to NumPy would hold the GIL.
        result = jax.block_until_ready(solver(states, rtol, source.truncated))
        return {name: np.asarray(getattr(result, name))[: piece.size] for name in _FIELDS[:-1]}

    return solve, chunk, _signature((source, method), chunk)


def _signature(arguments: object, chunk: int) -> Hashable:
    """A key that identifies the compiled programs of a chunk."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((x.shape, str(x.dtype)) if eqx.is_array(x) else x for x in leaves)
    wide_precision = jnp.result_type(float) == jnp.float64
    return structure, shapes, chunk, wide_precision, chosen_device()


def _solve_all(
    source: AbstractSource,
    indices: np.ndarray,
    method: AbstractMethod,
    rtol: float,
    done: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """One method on many indices, chunk by chunk."""
    on_cpu = is_on_cpu(source)
    kernel = method.kernel(source.form) if on_cpu else None
    if kernel is not None:
        solve, chunk, program = _by_kernel(source, indices.size, kernel, rtol)
    else:
        solve, chunk, program = _by_program(source, indices.size, method, rtol)
    pieces = [indices[i : i + chunk] for i in range(0, indices.size, chunk)]

    def run(piece: np.ndarray) -> dict[str, np.ndarray]:
        result = solve(piece)
        done(piece.size)
        return result

    # The first piece runs alone, since each thread would compile a new program again.
    alone = 0 if program is None or program in _compiled else 1
    results = [run(piece) for piece in pieces[:alone]]
    _compiled.add(program)
    results += map_on_threads(run, pieces[alone:], num_cores() if on_cpu else _GPU_THREADS)
    return {name: np.concatenate([part[name] for part in results]) for name in _FIELDS[:-1]}


def blowup_times(
    source: State | Chain | Samples | ChainSamples,
    *,
    rtol: float | None = None,
    methods: Sequence[AbstractMethod] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlowUp:
    """The blow-up times of many states or chains, each by the cheapest method that settles it.

    The first method runs on every state. Only states with the status `not_converged` or
    `ill_conditioned` go on to the next method. At rank 1 the methods are one Taylor expansion,
    re-expansion in more dimensions, the same with more digits, diffrax on the reduced state and
    diffrax on the full state. At rank 2 and higher they are diffrax on the reduced state, `Taylor`
    and diffrax on the full state. The most accurate result is kept. A state that the method with
    more digits finds ill-conditioned goes no further. Hard states do not delay the others, no
    state is dropped, and the result of a state does not depend on its batch.

    **Arguments:**

    - `source`: a `State` or a `Chain` with one leading batch axis on every field; or samples of an
      ensemble, `ensemble.draws(n, key=key)` or `ensemble.quasi(n, key=key, seed=seed)`, which are
      drawn when they are solved and never stored. Chains of three layers are solved as states,
      deeper chains only by `Direct`.
    - `rtol`: relative tolerance, as for `blowup_time`.
    - `methods`: methods that replace the default ones, cheapest first.
    - `progress`: called from any thread with the number of samples finished since its last call.

    **Returns:** a `BlowUp` with one entry per state; `stage` and `methods` give the method that
    settled each state.

    **Raises:** `ValueError` for a state or chain without exactly one batch axis, for a tolerance
    beyond the dtype, and for methods that do not apply to the rank or the depth.

    This function runs on the host and cannot be traced: inside `jit`, use `jax.vmap` of
    `blowup_time`.
    """
    if methods is not None and not methods:
        raise ValueError("Argument `methods` must name at least one method.")
    report = progress or (lambda _: None)
    if isinstance(source, Chain):
        if len(source.batch_shape) != 1:
            raise ValueError(
                "`blowup_times` takes chains with one batch axis, but the batch shape is "
                f"{source.batch_shape}."
            )
        if source.depth != 3:
            return chains.chain_times(_all_of(source), methods, rtol, report)
        source = as_state(source)
    if isinstance(source, ChainSamples):
        if source.source.form.depth != 3:
            return chains.chain_times(source, methods, rtol, report)
        source = Samples(AsStates(source.source), source.indices)
    if isinstance(source, State):
        if len(source.batch_shape) != 1:
            raise ValueError(
                "`blowup_times` takes states with one batch axis, but the batch shape is "
                f"{source.batch_shape}."
            )
        source = Samples(Stored(source), np.arange(source.batch_shape[0], dtype=np.uint32))
    samples, form = source, source.source.form
    tolerance = float(check_rtol(rtol, form.dtype))
    if methods is None:
        chosen = escalation(form, tolerance, truncated=samples.source.truncated)
    else:
        chosen = iter(methods)
        for method in methods:
            method.check(form)
    return _escalate(samples, tolerance, chosen, report)


def _all_of(batch: Chain) -> ChainSamples:
    return ChainSamples(StoredChains(batch), np.arange(batch.batch_shape[0], dtype=np.uint32))


def _prove_rest(samples: Samples, fields: dict[str, np.ndarray], tried: np.ndarray) -> None:
    """Prove rest in exact arithmetic for states that a method could not settle."""
    at = samples.source.on_host()
    if at is None or not samples.source.is_given:
        return
    unsettled = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)
    open_ones = tried[np.isin(fields["status"][tried], unsettled)]
    if open_ones.size == 0:
        return
    states = at(samples.indices[open_ones])
    worth = may_rest(*states)
    for place, *state in zip(open_ones[worth], *(x[worth] for x in states), strict=True):
        if state_rests(*state):
            for name in ("time", "lower", "upper"):
                fields[name][place] = np.inf
            fields["error"][place], fields["status"][place] = 0, Status.NO_BLOW_UP


def _tell_late_from_rest(samples: Samples, fields: dict[str, np.ndarray], rank: int) -> None:
    """Mark states of unknown error as not converged if their first integrals exclude rest."""
    at = samples.source.on_host()
    if rank > 1 or at is None or not samples.source.is_given:
        return
    limited = fields["status"] == Status.ILL_CONDITIONED
    unknown = np.flatnonzero(limited & ~np.isfinite(fields["error"]))
    if unknown.size == 0:
        return
    for place, a, b, c, strength in zip(unknown, *at(samples.indices[unknown]), strict=True):
        if _rest_distance(a[0], b, np.sign(strength[0]) * c[0]) > _AT_REST:
            fields["status"][place] = Status.NOT_CONVERGED


def _rest_distance(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    largest = max(np.max(np.abs(x)) for x in (a, b, c))
    a, b, c = (x / largest for x in (a, b, c))
    k = max(b.shape)
    a, c = (np.pad(x, (0, k - x.size)) for x in (a, c))
    b = np.pad(b, [(0, k - n) for n in b.shape])
    values, sizes = integrals_of(a, b, c, np)
    return float(np.max(np.abs(values)) / (np.max(sizes) or 1))


def _better(new: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> np.ndarray:
    """Mask of the samples for which the new results are more accurate than the old ones."""
    unsettled = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)
    settled = ~np.isin(new["status"], unsettled)
    gave_up = new["status"] == Status.NOT_CONVERGED
    first = old["status"] == _NEVER_TRIED
    before = np.where(old["status"] == Status.ILL_CONDITIONED, old["error"], np.inf)
    return (
        settled
        | first
        | (~gave_up & (new["error"] <= before))
        | (gave_up & (old["status"] == Status.NOT_CONVERGED))
    )


def _escalate(
    samples: Samples,
    rtol: float,
    methods: Iterator[AbstractMethod],
    progress: Callable[[int], None],
) -> BlowUp:
    source, count, dtype = samples.source, len(samples), samples.source.form.dtype
    fields = {name: np.empty(count, dtype) for name in _FIELDS[:4]}
    fields |= {name: np.zeros(count, np.int32) for name in _FIELDS[4:]}
    fields["status"][:] = _NEVER_TRIED
    waiting, labels = np.arange(count), []
    for stage, method in enumerate(methods):
        if waiting.size == 0:
            break
        report = progress if stage == 0 else (lambda _: None)
        suited = source.suited_to(method)
        results = _solve_all(suited, samples.indices[waiting], method, rtol, report)
        better = _better(results, {name: values[waiting] for name, values in fields.items()})
        for name, values in results.items():
            fields[name][waiting[better]] = values[better]
        fields["stage"][waiting[better]] = stage
        labels.append(method.label)
        if stage == 0:
            _prove_rest(samples, fields, waiting)
        goes_on = fields["status"][waiting] == Status.NOT_CONVERGED
        if not method.is_finest:
            goes_on |= fields["status"][waiting] == Status.ILL_CONDITIONED
        waiting = waiting[goes_on]
    _tell_late_from_rest(samples, fields, source.form.rank)
    return BlowUp(**jax.device_put(fields), methods=tuple(labels))
