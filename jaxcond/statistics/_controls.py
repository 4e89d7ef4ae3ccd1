r"""Control variates: a mean without the noise that variables of known mean explain.

With controls $z$ of mean zero, $\hat\beta$ by least squares and $S$ the centred cross-products,

$$\hat\mu = \bar y - \hat\beta\cdot\bar z, \qquad
\operatorname{se}^2 = s^2\Bigl(\frac1n + \bar z^\top S^{-1} \bar z\Bigr),$$

$s^2$ the residual variance with $n - K - 1$ degrees of freedom: the variance of the intercept of a
regression, whose second term is the price of an estimated $\beta$. The estimate has a bias of order
$1/n$ unless the samples are linear in the controls.

Source: S. S. Lavenberg and P. D. Welch, *A perspective on the use of control variables to increase
the efficiency of Monte Carlo simulations*, Management Science 27 (1981) 322-335.
"""

import math
from dataclasses import dataclass

import numpy as np

from ._moments import Values, as_samples, student

_BLOCK = 1 << 14
# A control whose deviation is below this part of its mean, which is known to be zero, is constant.
_CONSTANT = 1e-13
# Combinations of controls (of unit variance) with a smaller variance than this are collinear:
# cross-products are accurate to about 1e-15 times the number of controls.
_COLLINEAR = 1e-12
# Coefficients of 1 / (k - 1/2) to the powers 1, 3, 5, ... in the variance of the chi law less 1/2:
# from Stirling's series of the gamma functions at k/2 - 1/4 + 3/4 and + 1/4, in which the even
# powers cancel. From here on, what follows the last of them is below rounding.
_CHI_SERIES = tuple(
    n / d
    for n, d in (
        (-1, 8),
        (9, 128),
        (-153, 1024),
        (21429, 32768),
        (-1268343, 262144),
        (227803437, 4194304),
        (-28918062729, 33554432),
        (39470164739469, 2147483648),
    )
)
_SERIES_FROM = 20


@dataclass(frozen=True)
class ControlledMean:
    r"""A mean estimated with control variates.

    - `mean`, `standard_error`: NaN if the samples do not outnumber the independent controls + 1.
    - `gain`: estimated variance of the plain mean over that of this mean; the plain mean needs this
      many times more samples.
    - `r_squared`: fraction of the variance that the controls explain.
    - `num_controls`: how many independent ones there are among the controls.
    - `count`: number of samples.
    """

    mean: float
    standard_error: float
    gain: float
    r_squared: float
    num_controls: int
    count: int

    def mean_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the mean."""
        half = student(self.count - self.num_controls - 1, level) * self.standard_error
        return self.mean - half, self.mean + half


class Controls:
    """Accumulates the sums for the regression of a value on `num_controls` controls.

    `add` adds samples; `merge` returns a new accumulator with the samples of two. Standard errors
    below about 1e-8 of the plain standard error are lost in rounding.

    **Raises:** `ValueError` for a negative `num_controls`.
    """

    def __init__(self, num_controls: int):
        if num_controls < 0:
            raise ValueError(
                f"Argument `num_controls` must not be negative, but is {num_controls}."
            )
        self.num_controls = num_controls
        self.count = 0
        # Of the controls, and last of the value.
        self._means = np.zeros(num_controls + 1)
        self._products = np.zeros((num_controls + 1, num_controls + 1))

    def add(self, values: Values, controls: Values) -> None:
        """Add samples.

        **Arguments:** `values`, shape `(n,)`; `controls`, shape `(n, num_controls)`, each column of
        known mean zero.

        **Raises:** `ValueError` for other shapes, and for values that are not finite.
        """
        values, controls = np.asarray(values), np.asarray(controls)
        if values.ndim != 1:
            raise ValueError(
                f"Argument `values` must have one axis, but its shape is {values.shape}."
            )
        if controls.shape != (values.size, self.num_controls):
            raise ValueError(
                f"Argument `controls` must have shape {(values.size, self.num_controls)}, "
                f"but its shape is {controls.shape}."
            )
        for first in range(0, values.size, _BLOCK):
            part = slice(first, first + _BLOCK)
            block = np.empty((values[part].size, self.num_controls + 1))
            block[:, -1] = as_samples(values[part])
            block[:, :-1] = as_samples(controls[part], "controls").reshape(controls[part].shape)
            means = block.mean(axis=0)
            block -= means
            rest = block.mean(axis=0)
            block -= rest
            self._take(len(block), means + rest, block.T @ block)

    def merge(self, other: "Controls") -> "Controls":
        """A new accumulator with the samples of both.

        **Raises:** `ValueError` if the numbers of controls differ.
        """
        if self.num_controls != other.num_controls:
            raise ValueError(
                f"Argument `other` must have {self.num_controls} controls, "
                f"but has {other.num_controls}."
            )
        total = Controls(self.num_controls)
        for part in (self, other):
            total._take(part.count, part._means, part._products)
        return total

    def estimate(self) -> ControlledMean:
        """The mean from a regression on the controls, without collinear controls."""
        n, nan = self.count, math.nan
        zbar, ybar = self._means[:-1], float(self._means[-1])
        inverse, rank = _pseudo_inverse(self._products[:-1, :-1], zbar, n)
        freedom = n - rank - 1
        if freedom < 1:
            return ControlledMean(
                mean=nan, standard_error=nan, gain=nan, r_squared=nan, num_controls=rank, count=n
            )
        beta = inverse @ self._products[:-1, -1]
        contrast = np.append(-beta, 1.0)
        total = float(self._products[-1, -1])
        residual = max(float(contrast @ self._products @ contrast), 0.0)
        variance = residual / freedom * (1 / n + float(zbar @ inverse @ zbar))
        plain = total / (n - 1) / n
        return ControlledMean(
            mean=ybar - float(beta @ zbar),
            standard_error=math.sqrt(variance),
            gain=plain / variance if variance > 0 else (math.inf if plain > 0 else nan),
            r_squared=1 - residual / total if total > 0 else nan,
            num_controls=rank,
            count=n,
        )

    def _take(self, count: int, means: np.ndarray, products: np.ndarray) -> None:
        """Merge centred samples into the sums."""
        if count == 0:
            return
        total = self.count + count
        delta = means - self._means
        # Written so that the first piece is taken as it is.
        self._products = self._products + products
        if self.count:
            self._products += np.outer(delta, delta) * (self.count / total * count)
        self._means = self._means + delta * (count / total)
        self.count = total


def _pseudo_inverse(products: np.ndarray, means: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The inverse of the cross-products on the controls that vary, and its rank."""
    squares = np.diagonal(products)
    varies = squares > count * (_CONSTANT * means) ** 2
    scales = np.where(varies, 1 / np.sqrt(np.where(varies, squares, 1.0)), 0.0)
    values, vectors = np.linalg.eigh(products * np.outer(scales, scales))
    kept = values > _COLLINEAR * max(1, len(values))
    basis = scales[:, None] * vectors[:, kept]
    return basis / values[kept] @ basis.T, int(np.count_nonzero(kept))


def quadratic_controls(
    entries: Values, means: Values, variances: Values, num_squared: int
) -> np.ndarray:
    r"""Linear and quadratic functions of independent variables that have mean zero.

    With $u_i = (x_i - \mu_i) / \sigma_i$: all $u_i$, then $u_i^2 - 1$ for $i$ among the first
    `num_squared`, then $u_i u_j$ for $i < j$ among these, row by row. A variable of variance zero
    gives columns of zeros.

    **Arguments:** `entries`, shape `(n, m)`; `means` and `variances`, shape `(m,)`; `num_squared`
    from 0 to `m`.

    **Returns:** an array of shape `(n, m + s (s + 1) / 2)` for `s = num_squared`.

    **Raises:** `ValueError` for other shapes or numbers, and for a negative variance.
    """
    entries = np.asarray(entries, np.float64)
    means, variances = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    if entries.ndim != 2:
        raise ValueError(f"Argument `entries` must have two axes, but has {entries.ndim}.")
    number = entries.shape[1]
    for name, vector in (("means", means), ("variances", variances)):
        if vector.shape != (number,):
            raise ValueError(
                f"Argument `{name}` must have shape {(number,)}, but its shape is {vector.shape}."
            )
    if not (variances >= 0).all():
        raise ValueError(
            f"Argument `variances` must not be negative, but the least is {variances.min()}."
        )
    if not 0 <= num_squared <= number:
        raise ValueError(
            f"Argument `num_squared` must be from 0 to {number}, but is {num_squared}."
        )
    positive = variances > 0
    scales = np.where(positive, 1 / np.sqrt(np.where(positive, variances, 1.0)), 0.0)
    unit = (entries - means) * scales
    first = unit[:, :num_squared]
    i, j = np.triu_indices(num_squared, 1)
    squares = first**2 - positive[:num_squared]
    return np.concatenate([unit, squares, first[:, i] * first[:, j]], axis=1)


def chi_mean(k: Values) -> np.ndarray:
    r"""Mean $\sqrt2\,\Gamma(\tfrac{k+1}2)/\Gamma(\tfrac k2)$ of the chi law, 0 for $k = 0$.

    **Arguments:** `k`, degrees of freedom, an array of any shape, not negative.

    **Returns:** float64 of the same shape, to a few units of rounding for all k.

    **Raises:** `ValueError` for a negative or infinite `k`.
    """
    k = _degrees(k)
    # The product of the means at k and k + 1 is k, and the square of a mean is k less the variance.
    return np.asarray(k / np.sqrt(k + 1 - _chi_variance(np.asarray(k + 1))))


def chi_variance(k: Values) -> np.ndarray:
    r"""Variance $k - \mu_k^2 = \tfrac12 - \tfrac1{8k} - \tfrac1{16k^2} + \dots$ of the chi law.

    **Arguments**, **Returns**, **Raises:** as for `chi_mean`.
    """
    return np.asarray(_chi_variance(_degrees(k)))


def _degrees(k: Values) -> np.ndarray:
    k = np.asarray(k, np.float64)
    if not ((k >= 0) & (k < np.inf)).all():
        raise ValueError(f"Argument `k` must be finite and not negative, but is {k}.")
    return k


def _chi_variance(k: np.ndarray) -> np.ndarray:
    # No nearly equal numbers are subtracted: a series in 1 / (k - 1/2) from _SERIES_FROM on,
    # and below it the recurrence that follows from mu_k mu_{k+1} = k, which damps errors downwards.
    small = k < _SERIES_FROM
    start = np.where(small, k + _SERIES_FROM, k)
    x = 1 / (start - 0.5)
    variance = 0.5 + x * np.polynomial.polynomial.polyval(x * x, _CHI_SERIES)
    for step in range(_SERIES_FROM - 1, -1, -1):
        degrees = k + step
        variance = np.where(small, degrees * (1 - variance) / (degrees + 1 - variance), variance)
    return variance
