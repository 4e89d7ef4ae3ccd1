"""Monte Carlo studies of the blow-up time.

A study is a configuration that determines every sample: the ensemble, the seed and how many. It is
run in pieces of bounded memory, and gives one record per sample with a summary.
"""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .blowup import BlowUp, Series, Status, blowup_time
from .ensembles import Gaussian, check_seed, infinite_width, sample_blowup_times, seed_key

_PIECE = 1 << 18
_QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[str]:
    """The name of a file to write, which becomes `path` at the end, or is removed on failure."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class Summary(eqx.Module):
    r"""Statistics of the samples whose blow-up time is finite and known.

    - `count`: their number; `mean`, `deviation`, `error`: mean, standard deviation and standard
      error of the mean of $T^*$; `quantiles`: pairs of level and value.
    - `scaled_mean`, `scaled_error`: of $\sqrt q\,T^*$; `limit`: what it tends to at infinite width
      with the same aspect ratio and scales.
    - `statuses`, `settled_by`: number of samples per status and per method.
    - `widest_bracket`, `largest_error`: relative to $T^*$, over the same samples.
    """

    count: int
    mean: float
    deviation: float
    error: float
    quantiles: tuple[tuple[float, float], ...]
    scaled_mean: float
    scaled_error: float
    limit: float
    statuses: dict[str, int]
    settled_by: dict[str, int]
    widest_bracket: float
    largest_error: float


class StudyResult(eqx.Module):
    """The records of a study: one `BlowUp` entry per sample, in the order of their indices."""

    study: "Study"
    blow_up: BlowUp
    seconds: float

    @property
    def known(self) -> np.ndarray:
        """Which samples have a finite, converged blow-up time."""
        return np.asarray(self.blow_up.status) == Status.CONVERGED

    def summary(self) -> Summary:
        """Statistics over the samples; NaN where there are too few."""
        found, known = self.blow_up, self.known
        times = np.asarray(found.time, np.float64)[known]
        nan = math.nan
        mean = float(times.mean()) if times.size else nan
        deviation = float(times.std(ddof=1)) if times.size > 1 else nan
        error = deviation / math.sqrt(times.size) if times.size > 1 else nan
        values = np.quantile(times, _QUANTILES) if times.size else np.full(len(_QUANTILES), nan)
        width = (
            np.asarray(found.upper, np.float64)[known] - np.asarray(found.lower, np.float64)[known]
        )
        errors = np.asarray(found.error, np.float64)[known]
        root = math.sqrt(self.study.q)
        return Summary(
            count=int(times.size),
            mean=mean,
            deviation=deviation,
            error=error,
            quantiles=tuple(zip(_QUANTILES, map(float, values), strict=True)),
            scaled_mean=root * mean,
            scaled_error=root * error,
            limit=self.study.limit(),
            statuses=found.counts(),
            settled_by=found.settled_by(),
            widest_bracket=float((width / times).max()) if times.size else nan,
            largest_error=float((errors / times).max()) if times.size else nan,
        )

    def save(self, path: str) -> None:
        """Write the records as a NumPy `.npz` archive: a column per field, the configuration."""
        columns = ("time", "lower", "upper", "error", "status", "num_steps", "stage")
        study = self.study
        arrays: dict[str, Any] = {name: np.asarray(getattr(self.blow_up, name)) for name in columns}
        arrays |= {"methods": self.blow_up.methods, "scales": study.scales, "seed": study.seed}
        # Python integers beyond 64 bits would be pickled.
        whole = max(study.p, study.q) < 2**63
        arrays["widths"] = np.array([study.p, study.q], np.int64 if whole else np.float64)
        arrays["rtol"] = math.nan if study.rtol is None else study.rtol
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)


class Study(eqx.Module):
    """Blow-up times over a Gaussian ensemble.

    **Arguments:**

    - `p`, `q`: the widths of the network, positive.
    - `num_samples`: number of random initialisations, positive.
    - `seed`: a sample depends on this and its index only.
    - `scales`: standard deviations of the entries of $a$, $b$, $c$.
    - `rtol`: relative tolerance; by default 1e-10 for float64, 1e-5 for float32.
    - `reduced`: sample the exact reduced form, at a cost independent of the widths; otherwise form
      every state in full.

    **Raises:** `ValueError` for values out of range.
    """

    p: int = eqx.field(static=True)
    q: int = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    seed: int = eqx.field(static=True, default=0)
    scales: tuple[float, float, float] = eqx.field(static=True, default=(1.0, 1.0, 1.0))
    rtol: float | None = eqx.field(static=True, default=None)
    reduced: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"Argument `num_samples` must be positive, but is {self.num_samples}.")
        check_seed(self.seed)
        _ = self.ensemble

    @property
    def ensemble(self) -> Gaussian:
        """The distribution that the study samples."""
        return Gaussian(self.p, self.q, self.scales)

    def limit(self) -> float:
        r"""What $\sqrt q\,T^*$ tends to at infinite width, same aspect ratio and scales."""
        if self.scales.count(0) > 1:
            return math.nan
        state = infinite_width(aspect=self.p / self.q, scales=self.scales, dim=24)
        found = blowup_time(state, Series(dim=24, max_expansions=1))
        if int(found.status) != Status.CONVERGED:
            # Unequal scales need more directions and more than one expansion.
            state = infinite_width(aspect=self.p / self.q, scales=self.scales, dim=48)
            found = blowup_time(state, Series(dim=48))
        return float(found.time) if int(found.status) == Status.CONVERGED else math.nan

    def run(self, progress: Callable[[int], None] | None = None) -> StudyResult:
        """Run all samples, in pieces of bounded memory.

        **Arguments:** `progress`, called with the number of samples finished since its last call.

        **Returns:** a `StudyResult`.
        """
        start = time.perf_counter()
        key = seed_key(self.seed)
        pieces = []
        for first in range(0, self.num_samples, _PIECE):
            indices = np.arange(first, min(first + _PIECE, self.num_samples))
            found = sample_blowup_times(
                self.ensemble,
                indices,
                key=key,
                rtol=self.rtol,
                reduced=self.reduced,
                progress=progress,
            )
            pieces.append(jax.tree.map(np.asarray, found))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
        return StudyResult(self, joined, time.perf_counter() - start)
