r"""Compares the means, variances and laws of two sets of samples.

Welch's test compares the means and the Kolmogorov-Smirnov test compares the laws. The interval of
$\log(s_1^2/s_2^2)$ adds the half widths of both intervals in squares.

Source: B. L. Welch, *The generalization of "Student's" problem when several different population
variances are involved*, Biometrika 34 (1947) 28-35.
"""

import math
from dataclasses import dataclass

from scipy.special import stdtr
from scipy.stats import ks_2samp

from ._moments import Moments, Values, as_samples, check_level, student

# The exact law of the KS statistic costs time proportional to the product of the two counts; from
# this product on, the asymptotic law is accurate to at least three digits.
_EXACT = 1 << 20


@dataclass(frozen=True)
class Comparison:
    r"""The comparison of two sets of samples.

    - `first`, `second`: their moments.
    - `difference`: mean of the first minus that of the second, with its limits and the p-value of
      equal means.
    - `variance_ratio`: $s_1^2/s_2^2$ with its limits, asymptotic for any law; NaN
      if either set has fewer than four samples or no variance.
    - `ks_statistic`, `ks_p_value`: largest distance of the two distribution functions, and the
      p-value of equal laws (too large for tied values).
    """

    first: Moments
    second: Moments
    difference: float
    difference_lower: float
    difference_upper: float
    p_value: float
    variance_ratio: float
    variance_ratio_lower: float
    variance_ratio_upper: float
    ks_statistic: float
    ks_p_value: float


def compare(first: Values, second: Values, confidence: float = 0.95) -> Comparison:
    """Compare two sets of samples.

    **Arguments:** `first`, `second`: arrays of at least two finite values; `confidence`: confidence
    level of both intervals.

    **Raises:** `ValueError` for fewer values, for values that are not finite, and for a confidence
    out of range.
    """
    check_level(confidence, "confidence")
    one, two = as_samples(first, "first"), as_samples(second, "second")
    for name, values in (("first", one), ("second", two)):
        if values.size < 2:
            raise ValueError(
                f"Argument `{name}` must have at least 2 values, but has {values.size}."
            )
    a, b = Moments.of(one), Moments.of(two)
    difference = a.mean - b.mean
    half, p_value = _welch(a, b, confidence)
    ratio, factor = _variance_ratio(a, b, confidence)
    exact = one.size * two.size <= _EXACT
    ks_statistic, ks_p_value = map(float, ks_2samp(one, two, method="exact" if exact else "asymp"))
    return Comparison(
        first=a,
        second=b,
        difference=difference,
        difference_lower=difference - half,
        difference_upper=difference + half,
        p_value=p_value,
        variance_ratio=ratio,
        variance_ratio_lower=ratio / factor,
        variance_ratio_upper=ratio * factor,
        ks_statistic=ks_statistic,
        ks_p_value=ks_p_value,
    )


def _welch(a: Moments, b: Moments, confidence: float) -> tuple[float, float]:
    """Half the width of the interval for the difference of the means, and the p-value."""
    difference = a.mean - b.mean
    shares = [a.variance / a.count, b.variance / b.count]
    square = sum(shares)
    if square == 0:
        return 0.0, 1.0 if difference == 0 else 0.0
    # In terms of the parts of the whole, whose squares cannot leave the range of float64.
    parts = [share / square for share in shares]
    freedom = 1 / (parts[0] ** 2 / (a.count - 1) + parts[1] ** 2 / (b.count - 1))
    error = math.sqrt(square)
    return student(freedom, confidence) * error, float(2 * stdtr(freedom, -abs(difference) / error))


def _variance_ratio(a: Moments, b: Moments, confidence: float) -> tuple[float, float]:
    """The ratio, and the factor from it to the limits of its interval."""
    if not (a.variance > 0 and b.variance > 0):
        return math.nan, math.nan
    half = math.hypot(a.log_variance_half(confidence), b.log_variance_half(confidence))
    return a.variance / b.variance, math.exp(half)
