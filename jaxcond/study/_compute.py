"""The samples of one task: drawn, solved, observed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from ..blowup import Form, Samples, Stored, blowup_times, check_rtol, escalation, is_known
from ..ensembles import Gaussian
from ..statistics import Moments
from ._config import Study
from ._kinds import KINDS
from ._observables import observe
from ._store import Task

# Dimension in which reduced samples are drawn unless a method asks for another.
_DIM = 12
# Samples of a chunk by default: up to some seconds of work, and so many bytes of full states.
_LARGEST_CHUNK, _CHUNK_ENTRIES = 1 << 16, 1 << 26
# Trajectories cost about a hundred times what a blow-up time does.
_COSTLY = ("onset", "counts")


@dataclass(frozen=True)
class Outcome:
    """What is told of a task: its moments of $T^*$, statuses, and, once written, its digests."""

    moments: Moments
    statuses: dict[str, int]
    seals: tuple[int, ...] = ()


def default_chunk(study: Study) -> int:
    """Samples of a chunk: a power of two, by what a sample of the study costs."""
    if study.reduced:
        return _LARGEST_CHUNK
    entries = max((settings.p * settings.q for _, settings in study.settings), default=1)
    if study.kinds == {"file"}:
        p, q = study.stored.widths
        entries = p * q
    size = _CHUNK_ENTRIES // entries
    if any(name in _COSTLY for name in study.observables):
        size //= 32
    return 1 << (min(max(size, 32), _LARGEST_CHUNK).bit_length() - 1)


def methods_of(study: Study) -> dict[str, tuple[str, ...]]:
    """The methods that samples go through, by the widths of the states that are drawn."""
    with jax.enable_x64(study.precision == "float64"):
        if study.kinds == {"file"}:
            shapes = {study.stored.widths: study.stored.rank}
        elif study.reduced:
            shapes = {(_DIM, _DIM): 1}
        else:
            shapes = {(settings.p, settings.q): 1 for _, settings in study.settings}
        found = {}
        for (p, q), rank in shapes.items():
            dtype = np.dtype(study.precision)
            rtol = float(check_rtol(study.rtol, dtype))
            methods = escalation(Form(rank, (p, q), dtype), rtol, truncated=study.reduced)
            found[f"{p}x{q}"] = tuple(method.label for method in methods)
    return found


def _sobol_seed(study: Study, point: int) -> int:
    """A seed of the scrambles for each sweep point."""
    words = np.random.SeedSequence([study.seed, point]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _samples(study: Study, task: Task) -> Samples:
    """The samples of a task."""
    indices = np.arange(task.start, task.stop)
    kind, settings = study.settings[task.point]
    if kind == "file":
        return Samples(Stored(study.stored), indices.astype(np.int32))
    ensemble = KINDS[kind].build(settings, study.reduced)
    key = study.key(task.point)
    if study.sampling == "sobol":
        assert isinstance(ensemble, Gaussian)
        seed = _sobol_seed(study, task.point)
        return ensemble.quasi(indices, key=key, seed=seed, num_replicates=study.replicates)
    return ensemble.draws(indices, key=key, reduced=study.reduced)


def compute(
    study: Study, task: Task, progress: Callable[[int], None] | None = None
) -> tuple[Mapping[str, np.ndarray], Outcome]:
    """The fields of the store for the samples of a task, and what is told of them.

    **Arguments:** `progress`, called with the number of samples finished since its last call, from
    any thread.
    """
    with jax.enable_x64(study.precision == "float64"):
        samples = _samples(study, task)
        found = blowup_times(samples, rtol=study.rtol, progress=progress)
        fields = {
            "blowup_time": found.time,
            "lower": found.lower,
            "upper": found.upper,
            "error": found.error,
            "status": found.status,
            "num_steps": found.num_steps,
            "stage": found.stage,
        }
        observed = observe(samples, study.observables, study.fractions)
        arrays = {name: np.asarray(values) for name, values in (fields | dict(observed)).items()}
    known = is_known(arrays["blowup_time"], arrays["status"])
    return arrays, Outcome(Moments.of(arrays["blowup_time"][known]), found.counts())
