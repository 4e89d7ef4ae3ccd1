"""Draws, solves and observes the samples of one task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from ..blowup import (
    ChainSamples,
    Form,
    Samples,
    Status,
    Stored,
    blowup_times,
    check_rtol,
    escalation,
    integration,
)
from ..statistics import Moments
from ._config import LARGEST_CHUNK, Study
from ._cost import least_chunk
from ._escapes import predict
from ._kinds import KINDS, Settings, gaussian
from ._observables import observe
from ._store import Task

# Dimension in which reduced samples are drawn unless a method asks for another.
_DIM = 12
# Default chunk: at most 65536 samples and 2^26 entries of full states, some seconds of work.
_LARGEST_CHUNK, _CHUNK_ENTRIES = 1 << 16, 1 << 26
# A chain is integrated; one of its entries costs as much as this many entries of a state.
_CHAIN_COST = 1024
# Networks per chunk; each network takes tenths of a second.
_NETWORKS = 64
# A trajectory costs milliseconds per sample. Smaller batches are padded to the least chunk.
_COSTLY, _COSTLY_CHUNKS = ("onset", "counts"), (256, 512)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task: the moments of its values, the statuses and, once written, the digests."""

    moments: Moments
    statuses: dict[str, int]
    seals: tuple[int, ...] = ()


def default_chunk(study: Study) -> int:
    """Samples per chunk: a power of two, from the cost and the number of the samples."""
    size = _affordable_chunk(study)
    least = 1 << (least_chunk(study) - 1).bit_length()
    return min(max(size, least), LARGEST_CHUNK)


def _affordable_chunk(study: Study) -> int:
    if study.reduced:
        return _LARGEST_CHUNK
    entries = max((settings.p * settings.q for _, settings in study.settings), default=1)
    if study.kinds == {"file"}:
        p, q = study.stored.widths
        entries = p * q
    if study.predicts_escapes:
        return _NETWORKS
    if study.takes_chains:
        entries = _CHAIN_COST * max(settings.entries for _, settings in study.settings)
    size = _CHUNK_ENTRIES // entries
    if _is_costly(study):
        least, most = _COSTLY_CHUNKS
        return least if size // 32 < most else most
    return 1 << (min(max(size, 32), _LARGEST_CHUNK).bit_length() - 1)


def _is_costly(study: Study) -> bool:
    return any(name in _COSTLY for name in study.observables)


def methods_of(study: Study) -> dict[str, tuple[str, ...]]:
    """The methods that samples go through, by the shape of the drawn states."""
    with jax.enable_x64(study.precision == "float64"):
        if study.kinds == {"file"}:
            p, q = study.stored.widths
            return {f"{p}x{q}": _state_methods(study, study.stored.rank, (p, q))}
        if study.reduced:
            return {f"{_DIM}x{_DIM}": _state_methods(study, 1, (_DIM, _DIM))}
        return {settings.form: _full_methods(study, settings) for _, settings in study.settings}


def _full_methods(study: Study, settings: Settings) -> tuple[str, ...]:
    if settings.training is not None:
        return ()
    if settings.depth == 2:
        return ("closed form",)
    if settings.depth > 3:
        return (integration.Direct().label,)
    return _state_methods(study, 1, (settings.p, settings.q))


def _state_methods(study: Study, rank: int, widths: tuple[int, int]) -> tuple[str, ...]:
    dtype = np.dtype(study.precision)
    rtol = float(check_rtol(study.rtol, dtype))
    methods = escalation(Form(rank, widths, dtype), rtol, truncated=study.reduced)
    return tuple(method.label for method in methods)


def _sobol_seed(study: Study, point: int) -> int:
    """Seed of the Sobol scrambles at a sweep point."""
    words = np.random.SeedSequence([study.seed, point]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _samples(study: Study, task: Task) -> Samples | ChainSamples:
    """The samples of a task."""
    indices = np.arange(task.start, task.stop)
    kind, settings = study.settings[task.point]
    if kind == "file":
        return Samples(Stored(study.stored), indices.astype(np.int32))
    key = study.key(task.point)
    if study.sampling == "sobol":
        return gaussian(settings, study.reduced).quasi(
            indices,
            key=key,
            seed=_sobol_seed(study, task.point),
            num_replicates=study.replicates,
        )
    draw = KINDS[kind].draw
    assert draw is not None
    return draw(settings, indices, key, study.reduced)


def compute(
    study: Study, task: Task, progress: Callable[[int], None] | None = None
) -> tuple[Mapping[str, np.ndarray], Outcome]:
    """The fields of the store for the samples of a task, and their outcome.

    **Arguments:** `progress`: called from any thread with the number of samples finished since
    its last call.
    """
    with jax.enable_x64(study.precision == "float64"):
        if study.predicts_escapes:
            _, settings = study.settings[task.point]
            assert settings.training is not None
            indices, key = np.arange(task.start, task.stop), study.key(task.point)
            arrays = predict(settings.training, indices, key, progress or (lambda _: None))
        else:
            arrays = _solved(study, task, progress)
    quantity, status = study.quantity, arrays["status"]
    values = arrays[quantity.field]
    known = quantity.is_known(values, arrays[quantity.status_field])
    counts = {code.name.lower(): int(np.sum(status == code)) for code in Status}
    return arrays, Outcome(Moments.of(values[known]), counts)


def _solved(
    study: Study, task: Task, progress: Callable[[int], None] | None
) -> dict[str, np.ndarray]:
    samples = _samples(study, task)
    # If trajectories are computed, a sample is finished when its trajectory is finished.
    costly = _is_costly(study)
    blowup = blowup_times(samples, rtol=study.rtol, progress=None if costly else progress)
    names = ("lower", "upper", "error", "status", "num_steps", "stage")
    fields = {"blowup_time": blowup.time} | {name: getattr(blowup, name) for name in names}
    observed = observe(samples, study.observables, study.fractions)
    if costly and progress is not None:
        progress(len(samples))
    return {name: np.asarray(values) for name, values in (fields | dict(observed)).items()}
