r"""The error of randomised quasi-Monte Carlo, from independent replicates.

Points of one replicate depend on each other, so their spread does not measure the error of their
mean. The means of $R$ replicates, each with its own randomisation, are independent. With
replicates of $n_r$ samples, $N$ in all,

$$\bar y = \frac1N\sum_r n_r \bar y_r, \qquad
\operatorname{se}^2 = \frac{1}{N (R-1)} \sum_r n_r (\bar y_r - \bar y)^2.$$

For equal counts this is the variance of the replicate means over $R$. For unequal ones, a mean
weighs by its count, and the error is unbiased where the variance of a replicate mean falls like
$1/n_r$; it falls faster here, so counts should be about equal.

Source: P. L'Ecuyer and C. Lemieux, *Recent advances in randomized quasi-Monte Carlo methods*
(2002), section 3.1.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ._moments import Moments, Values, as_samples, student


@dataclass(frozen=True)
class ReplicatedMean:
    r"""A mean over replicates.

    - `mean`, `standard_error`: the latter NaN for fewer than two replicates.
    - `gain`: variance of the mean of as many independent samples, over `standard_error` squared. It
      is an estimate with a relative error of about $\sqrt{2/(R-1)}$ for $R$ replicates.
    - `num_replicates`: with any samples; `count`: samples in all.
    """

    mean: float
    standard_error: float
    gain: float
    num_replicates: int
    count: int

    def mean_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval, with one degree of freedom fewer than replicates."""
        half = student(self.num_replicates - 1, level) * self.standard_error
        return self.mean - half, self.mean + half


def replicated(replicates: Iterable[Moments]) -> ReplicatedMean:
    """The mean over replicates, and its error from the spread of their means.

    **Arguments:** `replicates`: moments of the samples of each replicate; empty replicates are
    ignored.
    """
    parts = [part for part in replicates if part.count]
    pooled = functools.reduce(Moments.merge, parts, Moments())
    number, count = len(parts), pooled.count
    if number < 2:
        return ReplicatedMean(
            mean=pooled.mean,
            standard_error=math.nan,
            gain=math.nan,
            num_replicates=number,
            count=count,
        )
    squares = sum(part.count * (part.mean - pooled.mean) ** 2 for part in parts)
    variance = squares / (number - 1) / count
    plain = pooled.variance / count
    return ReplicatedMean(
        mean=pooled.mean,
        standard_error=math.sqrt(variance),
        gain=plain / variance if variance > 0 else (math.inf if plain > 0 else math.nan),
        num_replicates=number,
        count=count,
    )


def by_replicate(values: Values, replicate: Values, num_replicates: int) -> list[Moments]:
    """The moments of the samples of each replicate, to be merged piece by piece.

    **Arguments:** `values` and `replicate`, of equal size: each sample and the replicate that it
    belongs to, an integer from 0 to `num_replicates - 1`.

    **Raises:** `ValueError` for sizes that differ, a replicate out of range, or a value that is not
    finite.
    """
    values, labels = as_samples(values), np.asarray(replicate).reshape(-1)
    if labels.size != values.size:
        raise ValueError(
            f"Argument `replicate` must have {values.size} entries, but has {labels.size}."
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < num_replicates):
        raise ValueError(
            f"Argument `replicate` must be from 0 to {num_replicates - 1}, "
            f"but is from {labels.min()} to {labels.max()}."
        )
    values = values[np.argsort(labels, kind="stable")]
    ends = np.cumsum(np.bincount(labels.astype(np.int64), minlength=num_replicates))
    return [Moments.of(part) for part in np.split(values, ends[:-1])]
