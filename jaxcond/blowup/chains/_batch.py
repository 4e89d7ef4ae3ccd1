"""Blow-up times of many chains of two layers, or of four and more. On the host."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer

from ..._chain import Chain, with_diagonal_target
from ..._threads import map_on_threads, num_cores
from .. import integration
from .._chain_source import AbstractChainSource, ChainSamples, StoredChains
from .._method import AbstractMethod, is_on_cpu
from .._result import BlowUp, Status
from .._solve import check_rtol
from ._solve import check_chain_method, is_proven_at_rest, solve_chain, without_blow_up

# Lanes that are integrated together hold so many entries in all, and at most so many lanes: on a
# CPU narrow chains share the cost of a step, wide ones only wait for each other.
_CPU_ENTRIES, _CPU_LANES, _GPU_ENTRIES, _GPU_LANES = 1 << 13, 32, 1 << 26, 1 << 12
_UNSETTLED = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)


def chain_times(
    samples: ChainSamples,
    methods: Sequence[AbstractMethod] | None,
    rtol: float | None,
    progress: Callable[[int], None],
) -> BlowUp:
    """`blowup_times` of chains that are not three layers deep.

    Each method goes through the chains that those before it could not settle.
    """
    source, form = samples.source, samples.source.form
    chosen = [integration.Direct()] if methods is None else list(methods)
    for method in chosen:
        check_chain_method(method, form.depth)
    tolerance = jnp.asarray(check_rtol(rtol, form.dtype), form.dtype)
    count = len(samples)
    fields = {name: np.empty(count, form.dtype) for name in ("time", "lower", "upper", "error")}
    fields |= {name: np.empty(count, np.int32) for name in ("status", "num_steps", "stage")}
    waiting, labels = np.arange(count), []
    for stage, method in enumerate(chosen):
        if waiting.size == 0:
            break
        labels.append(method.label)
        report = progress if stage == 0 else (lambda _: None)
        results = _solve_all(source, samples.indices[waiting], tolerance, method, report)
        results["stage"][:] = stage
        unsettled = np.isin(results["status"], _UNSETTLED)
        better = ~unsettled | (stage == 0)
        for name, values in results.items():
            fields[name][waiting[better]] = values[better]
        waiting = waiting[unsettled]
    _prove_rest(samples, fields, waiting)
    settled_by = ("closed form",) if form.depth == 2 else tuple(labels)
    return BlowUp(**jax.device_put(fields), methods=settled_by)


def _solve_all(
    source: AbstractChainSource,
    indices: np.ndarray,
    rtol: Array,
    method: AbstractMethod,
    done: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """One method on many indices, chunk by chunk; the last index fills up the last chunk."""
    on_cpu = is_on_cpu(source)
    entries, most = (_CPU_ENTRIES, _CPU_LANES) if on_cpu else (_GPU_ENTRIES, _GPU_LANES)
    size = sum(layer.size for layer in source.form.layers)
    # A power of two, so that few sizes of a batch need a program of their own.
    chunk = 1 << max(1, min(most, entries // size, indices.size)).bit_length() - 1

    def run(piece: np.ndarray) -> dict[str, np.ndarray]:
        padded = jnp.asarray(np.pad(piece, (0, chunk - piece.size), mode="edge"))
        result = jax.block_until_ready(_solve_chunk(_drawn(source, padded), rtol, method))
        done(piece.size)
        leaves = {name: value for name, value in vars(result).items() if name != "methods"}
        return {name: np.array(value)[: piece.size] for name, value in leaves.items()}

    pieces = [indices[i : i + chunk] for i in range(0, indices.size, chunk)]
    # Threads that meet a new program at once would each compile it.
    parts = [run(pieces[0]), *map_on_threads(run, pieces[1:], num_cores() if on_cpu else 1)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@eqx.filter_jit
def _drawn(source: AbstractChainSource, indices: Integer[Array, " chunk"]) -> Chain:
    return lax.map(source, indices)


@eqx.filter_jit
def _solve_chunk(chains: Chain, rtol: Array, method: AbstractMethod) -> BlowUp:
    """One program for all sources of chains of the same shapes."""
    if chains.depth == 2:
        return without_blow_up(chains)

    def one(chain: Chain) -> BlowUp:
        return solve_chain(chain, with_diagonal_target(chain), rtol, method)

    # One lane by itself: a batch of one would carry out both branches of every choice.
    return lax.map(one, chains) if chains.batch_shape == (1,) else jax.vmap(one)(chains)


def _prove_rest(
    samples: ChainSamples, fields: dict[str, np.ndarray], unsettled: np.ndarray
) -> None:
    """Exact arithmetic for chains that were given one by one and are not settled."""
    if not isinstance(samples.source, StoredChains):
        return
    chains = jax.tree.map(np.asarray, samples.source.chains)
    for place in unsettled:
        chain = jax.tree.map(lambda leaf, i=samples.indices[place]: leaf[i], chains)
        if is_proven_at_rest(chain.layers, chain.target):
            for name in ("time", "lower", "upper"):
                fields[name][place] = np.inf
            fields["error"][place], fields["status"][place] = 0, Status.NO_BLOW_UP
