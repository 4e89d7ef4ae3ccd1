r"""Moments of a stream of samples: accumulated in pieces, merged in any order.

With $\delta = x - \bar x$, the sums $M_r = \sum \delta^r$ of two sets of samples follow from those
of each and from the difference of their means, so that no sum of raw powers is ever formed and
nothing cancels when the samples differ by far less than their mean.

Source: P. Pébay, *Formulas for robust, one-pass parallel computation of covariances and
arbitrary-order statistical moments*, Sandia report SAND2008-6212 (2008), eqs. (2.1) and (3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

# Array-like values. NumPy's own ArrayLike excludes sequences of integers at run time.
Values: TypeAlias = ArrayLike | Sequence[Any] | float | int

# Block size: small enough to stay in cache, large enough for NumPy to be efficient.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Moments:
    r"""Count, mean, central sums, and extremes of samples.

    - `count`: $n$; `mean`: $\bar x$, NaN when there are none.
    - `m2`, `m3`, `m4`: $\sum (x - \bar x)^r$.
    - `least`, `greatest`: infinity and minus infinity when there are none.

    `Moments()` holds no samples. What needs more samples than there are is NaN. The fourth sum
    leaves the range of float64 where samples deviate by more than about 1e75 from their mean, or
    less than 1e-75.
    """

    count: int = 0
    mean: float = math.nan
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    @classmethod
    def of(cls, values: Values) -> "Moments":
        """The moments of an array of any shape and real dtype.

        **Raises:** `ValueError` for a value that is not finite.
        """
        flat = np.asarray(values).reshape(-1)
        total = cls()
        for first in range(0, flat.size, _BLOCK):
            total = total.merge(_moments(as_samples(flat[first : first + _BLOCK])))
        return total

    def merge(self, other: "Moments") -> "Moments":
        r"""The moments of the samples of both, e.g. $M_2 = M_2^A + M_2^B + \delta^2 n_A n_B / n$.

        Associative and commutative up to rounding; exact when one of them holds no samples.
        Every merge rounds the mean, so that pieces should be of thousands of samples, not of one.
        """
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        delta = other.mean - self.mean
        a, b = self.count / count, other.count / count
        # The square of the difference times n_A n_B / n: its share of the second sum.
        between = delta * delta * self.count * b
        return Moments(
            count=count,
            mean=self.mean + delta * b,
            m2=self.m2 + other.m2 + between,
            m3=self.m3 + other.m3 + delta * (between * (a - b) + 3 * (a * other.m2 - b * self.m2)),
            m4=self.m4
            + other.m4
            + delta * delta * between * (a * a - a * b + b * b)
            + 6 * delta * delta * (a * a * other.m2 + b * b * self.m2)
            + 4 * delta * (a * other.m3 - b * self.m3),
            least=min(self.least, other.least),
            greatest=max(self.greatest, other.greatest),
        )

    @property
    def variance(self) -> float:
        """The unbiased estimate $s^2 = M_2 / (n - 1)$."""
        return self.m2 / (self.count - 1) if self.count > 1 else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation $s$."""
        return math.sqrt(self.variance)

    @property
    def standard_error(self) -> float:
        r"""Standard error of the mean, $s / \sqrt n$."""
        return self.deviation / math.sqrt(self.count) if self.count > 1 else math.nan

    @property
    def skewness(self) -> float:
        r"""$\sqrt n\, M_3 / M_2^{3/2}$; NaN for samples that are all equal."""
        if not self.m2 > 0:
            return math.nan
        # Divided one after the other: M_2^{3/2} alone may leave the range of float64.
        return math.sqrt(self.count) * (self.m3 / self.m2) / math.sqrt(self.m2)

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis $n M_4 / M_2^2 - 3$; NaN for samples that are all equal."""
        return self.count * (self.m4 / self.m2) / self.m2 - 3 if self.m2 > 0 else math.nan

    @property
    def log_variance_error(self) -> float:
        r"""Standard error of $\log s^2$, for samples of any law with a fourth moment.

        $$\operatorname{var}(s^2) = \frac1n\Bigl(\mu_4 - \frac{n-3}{n-1} s^4\Bigr)$$

        NaN for fewer than four samples, 0 when all are equal.
        """
        n = self.count
        if n < 4:
            return math.nan
        if self.m2 == 0:
            return 0.0
        square = (self.kurtosis + 3) * ((n - 1) / n) ** 2 - (n - 3) / (n - 1)
        # Negative only by rounding: the kurtosis of any sample is at least -2.
        return math.sqrt(max(square, 0.0) / n)

    @property
    def deviation_error(self) -> float:
        """Standard error of the deviation, to leading order in $1/n$."""
        return 0.5 * self.deviation * self.log_variance_error

    def mean_interval(self, level: float = 0.95) -> tuple[float, float]:
        r"""Interval for the mean of the law: Student's interval, or wider for skew laws.

        On each side the farther end of Student's interval and of Hall's, which corrects for the
        skewness $\gamma$: with $k = \gamma/\sqrt n$ and Student's quantile $t$, its ends are

        $$\bar x - \frac{s}{\sqrt n}\,h(\pm t), \qquad
          h(z) = \frac3k\Bigl(\bigl(1 + k(z - k/6)\bigr)^{1/3} - 1\Bigr).$$

        Neither alone covers skew and heavy-tailed laws of few samples. Source: P. Hall, *On the
        removal of skewness by transformation*, J. R. Stat. Soc. B 54 (1992) 221-228.
        """
        if self.count < 2:
            return math.nan, math.nan
        t = student(self.count - 1, level)
        k = self.skewness / math.sqrt(self.count) if self.m2 > 0 else 0.0
        lower, upper = max(t, _hall(t, k)), max(t, -_hall(-t, k))
        return self.mean - lower * self.standard_error, self.mean + upper * self.standard_error

    def log_variance_half(self, level: float = 0.95) -> float:
        r"""Half the width of a conservative interval of $\log s^2$.

        With the unbiased excess kurtosis $g$, taken two of its standard errors higher,
        $\kappa = g + 2\sqrt{24/n}\,(1 + \max(g, 0))$, the half is
        $t_\nu \sqrt{\kappa/n + 2/(n-1)}$ with $\nu = n/(3 + 10 \max(g, 0))$, at least 2, as few
        samples of a heavy tail tell the fourth moment. The constants are chosen by simulation. It
        tends to the normal one, $z\,\mathrm{se}(\log s^2)$. NaN for fewer than four samples.
        """
        n = self.count
        check_level(level)
        if n < 4:
            return math.nan
        if self.m2 == 0:
            return 0.0
        unbiased = (n - 1) / (n - 2) / (n - 3) * ((n + 1) * self.kurtosis + 6)
        heavy = max(unbiased, 0.0)
        raised = max(unbiased, self.kurtosis) + 2 * math.sqrt(24 / n) * (1 + heavy)
        error = math.sqrt(max(raised / n + 2 / (n - 1), 0.0))
        return student(max(2.0, n / (3 + 10 * heavy)), level) * error

    def wide_deviation_error(self, level: float = 0.95) -> float:
        """A standard error of the deviation that gives `deviation_interval` by the normal law."""
        return 0.5 * self.deviation * self.log_variance_half(level) / normal(level)

    def variance_interval(self, level: float = 0.95) -> tuple[float, float]:
        r"""Interval for the variance: $s^2$ times and over $e^h$, $h$ from `log_variance_half`.

        Asymptotic, and of no particular law: the fourth moment is estimated, and the interval is
        wider than a normal one at moderate counts, as that covers too little for skew laws.
        """
        factor = math.exp(self.log_variance_half(level))
        return self.variance / factor, self.variance * factor

    def deviation_interval(self, level: float = 0.95) -> tuple[float, float]:
        """The square roots of `variance_interval`."""
        lower, upper = self.variance_interval(level)
        return math.sqrt(lower), math.sqrt(upper)


def _hall(z: float, k: float) -> float:
    """The inverse at z of Hall's transformation of Student's statistic."""
    # Below this bound the correction is a rounding error.
    return z if abs(k) < 1e-8 else 3 / k * (float(np.cbrt(1 + k * (z - k / 6))) - 1)


def _moments(values: np.ndarray) -> Moments:
    least, greatest = float(values.min()), float(values.max())
    if least == greatest:
        # Rounding of the mean must not pass for a spread.
        return Moments(values.size, least, least=least, greatest=greatest)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean = values.mean()
        centred = values - mean
        # What rounding of the mean left over, of no account unless the spread is of its size.
        rest = centred.mean()
        centred -= rest
        squares = centred * centred
        return Moments(
            count=values.size,
            mean=float(mean + rest),
            m2=float(squares.sum()),
            m3=float((squares * centred).sum()),
            m4=float((squares * squares).sum()),
            least=least,
            greatest=greatest,
        )


def as_samples(values: Values, name: str = "values") -> np.ndarray:
    """A new flat float64 array of the values, all of them finite or else `ValueError`."""
    flat = np.array(values, np.float64).reshape(-1)
    finite = np.isfinite(flat)
    if not finite.all():
        number = flat.size - int(np.count_nonzero(finite))
        raise ValueError(
            f"Argument `{name}` must be finite, but {number} of {flat.size} values are not."
        )
    return flat


def check_level(level: float, name: str = "level") -> None:
    """Raise `ValueError` unless a confidence level is strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"Argument `{name}` must be between 0 and 1, but is {level}.")


def normal(level: float) -> float:
    """Half the width of the central interval of the normal law that has this probability."""
    check_level(level)
    return float(-ndtri((1 - level) / 2))


def student(freedom: float | int, level: float) -> float:
    """The same of Student's law with so many degrees of freedom; NaN when there are none."""
    check_level(level)
    return float(-stdtrit(freedom, (1 - level) / 2)) if freedom > 0 else math.nan
