r"""The mean of the first n samples, as n grows: $\bar x_n \pm s_n / \sqrt n$.

The number of samples is known only at the end. The mean is therefore stored at more counts than
requested, in geometric progression, and an evenly spaced subset is returned.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ._moments import Moments


@dataclass(frozen=True, eq=False)
class RunningMean:
    """The `means` and `standard_errors` of the first samples, for increasing `counts`."""

    counts: np.ndarray
    means: np.ndarray
    standard_errors: np.ndarray


def running_mean(chunks: Callable[[], Iterable[np.ndarray]], num_points: int = 40) -> RunningMean:
    """Running mean at counts evenly spaced on a logarithmic scale, from 2 to all samples.

    **Arguments:** `chunks`: a function, called once, that gives arrays of any shape; `num_points`:
    largest number of counts, at least 2. Few samples give fewer counts.

    **Returns:** a `RunningMean`, empty for fewer than two samples.

    **Raises:** `ValueError` for a value that is not finite, or for `num_points` out of range.
    """
    if num_points < 2:
        raise ValueError(f"Argument `num_points` must be at least 2, but is {num_points}.")
    kept: list[Moments] = []
    total = Moments()
    marks = _marks(num_points)
    mark = next(marks)
    for chunk in chunks():
        flat = np.asarray(chunk).reshape(-1)
        while flat.size:
            piece, flat = flat[: mark - total.count], flat[mark - total.count :]
            total = total.merge(Moments.of(piece))
            if total.count == mark:
                kept.append(total)
                mark = next(marks)
    if total.count >= 2 and kept[-1].count < total.count:
        kept.append(total)
    kept = _spaced(kept, num_points)
    return RunningMean(
        counts=np.array([part.count for part in kept], np.int64),
        means=np.array([part.mean for part in kept], np.float64),
        standard_errors=np.array([part.standard_error for part in kept], np.float64),
    )


def _marks(density: int) -> Iterator[int]:
    """Integers from 2 upwards, with `density` integers per doubling once they are large enough."""
    mark, step = 2, 0
    while True:
        yield mark
        while round(2 ** (1 + step / density)) <= mark:
            step += 1
        mark = round(2 ** (1 + step / density))


def _spaced(kept: list[Moments], number: int) -> list[Moments]:
    """At most `number` of the moments, evenly spaced, including the first and the last."""
    if len(kept) <= number:
        return kept
    logs = np.log([part.count for part in kept])
    targets = np.linspace(logs[0], logs[-1], number)
    nearest = np.abs(logs[None, :] - targets[:, None]).argmin(axis=1)
    return [kept[i] for i in np.unique(nearest).tolist()]
