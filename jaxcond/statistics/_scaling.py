r"""How the blow-up time depends on width: its limit, its exponent and its fluctuations.

At width $m$ and fixed aspect ratio and scales, with $Z$ standard normal to leading order,

$$\sqrt m\,T^* = \tau_\infty + \frac{s}{\sqrt m} Z + \frac km + \dots$$

so that the mean of $T^*$ falls like $m^{-1/2}$, the deviation of $\sqrt m\,T^*$ likewise, and the
corrections are powers of $1/m$. The limit and $k$ are fitted by least squares, weighted by the
errors given. The series has no end, so the fit has all powers up to $1/m^9$. The coefficients of
those from $1/m^2$ on are taken to be zero with the standard error $2\tau_\infty \rho^j$, where
$\rho = \max(|k|/\tau_\infty, 1/2)$ is the ratio of the first two terms. Precise means decide these
coefficients; where they do not, the intervals hold what the missing terms may amount to.

Sources: the delta method on the independent entries of the reduced form; for equal unit scales
$\tau_\infty = 1.167973$, $s = 0.533812$ and $k = 0.61445$. The errors of truncated series by
coefficients of natural size: R. J. Furnstahl, N. Klco, D. R. Phillips and S. Wesolowski,
*Quantifying truncation errors in effective field theory*, Phys. Rev. C 92 (2015) 024005.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from ._moments import Values, check_level, normal

_EPS = float(np.finfo(np.float64).eps)
# Widths whose logarithms differ by less count as one, since fits cannot distinguish them.
_DISTINCT = 1e-6
# Standard error of the coefficients beyond those that are fitted freely, in units of their natural
# size, and the least ratio of one natural size to the next: both twice what equal scales have.
_NATURAL, _LEAST_RATIO = 2.0, 0.5
_HIGHEST = 9
# Least probability of the scatter about a fit that agrees.
_AGREES = 0.01


@dataclass(frozen=True)
class Fitted:
    r"""One coefficient of a fit: `value`, standard `error`, and limits `lower` and `upper`.

    - `p_value`: probability of a $\chi^2$ at least this large if the model holds; NaN for as many
      coefficients as widths.
    - `model`: the fitted model, with the powers of $1/m$ whose coefficients the data determine
      better than their natural size does.
    """

    value: float
    error: float
    lower: float
    upper: float
    p_value: float
    model: str

    @property
    def agrees(self) -> bool | None:
        """Whether the data agree with the model (`p_value` of at least 0.01); `None` if unknown."""
        return None if math.isnan(self.p_value) else self.p_value >= _AGREES


@dataclass(frozen=True)
class Scaling:
    r"""Laws of the blow-up time in the width.

    - `limit`, `correction`: $\tau_\infty$ and $k$ of the mean of $\sqrt m\,T^*$; `covers_limit`:
      whether the interval of the limit contains the given limit, `None` if no limit is given.
    - `mean_exponent`: $\alpha$ of the mean of $T^* \propto m^{-\alpha}$, in theory 1/2.
    - `fluctuation_exponent`: $\beta$ of the deviation of $\sqrt m\,T^* \propto m^{-\beta}$, in
      theory 1/2; NaN where a deviation is zero.
    - `amplitude`: $s$, with $\beta = 1/2$.
    """

    limit: Fitted
    correction: Fitted
    covers_limit: bool | None
    mean_exponent: Fitted
    fluctuation_exponent: Fitted
    amplitude: Fitted


def fit_scaling(
    widths: Values,
    means: Values,
    standard_errors: Values,
    deviations: Values,
    deviation_errors: Values,
    limit: float | None = None,
    confidence: float = 0.95,
) -> Scaling:
    r"""Fit the laws of the mean and the deviation of $T^*$ to several widths.

    Powers of $1/m$ that the data do not determine widen the intervals by the possible size of the
    term. A small p-value means that the data do not follow the law, so that no interval holds.

    **Arguments:**

    - `widths`: $m$, positive, at least two of them different.
    - `means`, `standard_errors`, `deviations`, `deviation_errors`: of $T^*$ (not scaled) at each.
      An error of zero is that of a value known to rounding.
    - `limit`: what $\tau_\infty$ should be.
    - `confidence`: of the intervals, which are normal: those of errors known well.

    **Raises:** `ValueError` for arguments out of range, of different sizes, or of a single width.
    """
    check_level(confidence, "confidence")
    m = _column("widths", widths, None)
    if not (m > 0).all():
        raise ValueError(f"Argument `widths` must be positive, but one is {m.min()}.")
    mean = _column("means", means, m.size)
    if not (mean > 0).all():
        raise ValueError(f"Argument `means` must be positive, but one is {mean.min()}.")
    mean_error = _column("standard_errors", standard_errors, m.size)
    deviation = _column("deviations", deviations, m.size)
    deviation_error = _column("deviation_errors", deviation_errors, m.size)
    for name, column in (
        ("standard_errors", mean_error),
        ("deviations", deviation),
        ("deviation_errors", deviation_error),
    ):
        if not (column >= 0).all():
            raise ValueError(f"Argument `{name}` must not be negative, but one is {column.min()}.")
    number = _number_distinct(m)
    if number < 2:
        raise ValueError(
            f"Argument `widths` must have at least 2 different values, but has {number}."
        )
    root = np.sqrt(m)
    tau, k = _extrapolate(m, root * mean, root * mean_error, "tau_inf", confidence)
    covers = None if limit is None else tau.lower <= limit <= tau.upper
    amplitude, _ = _extrapolate(m, m * deviation, m * deviation_error, "s", confidence)
    return Scaling(
        limit=tau,
        correction=k,
        covers_limit=covers,
        mean_exponent=_exponent(m, mean, mean_error, "alpha", confidence),
        fluctuation_exponent=_exponent(
            m, root * deviation, root * deviation_error, "beta", confidence
        ),
        amplitude=amplitude,
    )


def _extrapolate(
    m: np.ndarray, y: np.ndarray, errors: np.ndarray, name: str, confidence: float
) -> tuple[Fitted, Fitted]:
    """The limit of y at infinite width, and the coefficient of 1 / m."""
    # In units of the least width, so that the columns are comparable.
    unit = m.min()
    x = unit / m
    size, ratio = _natural_sizes(x, y, errors, unit)
    powers = np.arange(2, _HIGHEST + 1)
    fit = _least_squares(
        [np.ones_like(x), x], x, powers, _NATURAL * size * ratio**powers, y, errors
    )
    model = _model(f"{name} + k/m", fit.decided)
    return (
        _fitted(fit.values[0], fit.errors[0], fit.p_value, model, confidence),
        _fitted(fit.values[1] * unit, fit.errors[1] * unit, fit.p_value, model, confidence),
    )


def _exponent(
    m: np.ndarray, y: np.ndarray, errors: np.ndarray, name: str, confidence: float
) -> Fitted:
    """The exponent of y as a power of 1 / m, from the logarithms."""
    model = f"log A - {name} log m"
    if not (y > 0).all():
        nan = math.nan
        return Fitted(value=nan, error=nan, lower=nan, upper=nan, p_value=nan, model=model)
    x = m.min() / m
    scaled = y * x**-0.5
    _, ratio = _natural_sizes(x, scaled, errors * x**-0.5, m.min())
    powers = np.arange(1, _HIGHEST + 1)
    columns = [np.ones_like(x), np.log(x)]
    fit = _least_squares(columns, x, powers, _NATURAL * ratio**powers, np.log(y), errors / y)
    return _fitted(
        fit.values[1], fit.errors[1], fit.p_value, _model(model, fit.decided), confidence
    )


def _natural_sizes(
    x: np.ndarray, y: np.ndarray, errors: np.ndarray, unit: float
) -> tuple[float, float]:
    """The size of a series in x, and the ratio of each of its coefficients to the one before."""
    no_more = np.arange(0)
    fit = _least_squares([np.ones_like(x), x], x, no_more, no_more, y, errors)
    size = float(np.abs(y).max())
    ratio = abs(float(fit.values[1])) / size if size > 0 else 0.0
    return size, max(ratio, _LEAST_RATIO / unit)


def _model(free: str, decided: np.ndarray) -> str:
    return " + ".join([free, *(f"k{j}/m^{j}" if j > 1 else "k1/m" for j in decided)])


@dataclass(frozen=True)
class _Fit:
    """Coefficients of the free columns, their errors, the p-value, and the determined powers."""

    values: np.ndarray
    errors: np.ndarray
    p_value: float
    decided: np.ndarray


def _least_squares(
    free: list[np.ndarray],
    x: np.ndarray,
    powers: np.ndarray,
    sizes: np.ndarray,
    y: np.ndarray,
    errors: np.ndarray,
) -> _Fit:
    """Fit free columns and powers of x, whose coefficients are zero up to the given sizes."""
    number = len(free)
    freedom = y.size - number
    errors = np.maximum(errors, 4 * _EPS * np.abs(y))
    if not errors.any():
        zero = np.zeros(number)
        return _Fit(values=zero, errors=zero, p_value=math.nan, decided=powers[:0])
    # A zero without error gets the smallest error of the other values.
    errors = np.where(errors > 0, errors, errors[errors > 0].min())
    # The prior of each coefficient is a row of its own. A size below the smallest
    # number is a coefficient of zero.
    kept = sizes > np.finfo(np.float64).tiny
    powers, sizes = powers[kept], sizes[kept]
    columns = np.stack([*free, *(x**j for j in powers)], axis=1)
    known = np.eye(len(powers), number + len(powers), number)
    rows = np.concatenate([columns / errors[:, None], known / sizes[:, None]])
    right = np.concatenate([y / errors, np.zeros(len(powers))])
    # In units of the sizes, and the heaviest rows first, which keeps weights of very different size
    # from mixing by rounding.
    units = np.concatenate([np.ones(number), sizes])
    rows = rows * units
    order = np.argsort(-np.abs(rows).max(axis=1), kind="stable")
    q, r = np.linalg.qr(rows[order])
    values = np.linalg.solve(r, q.T @ right[order])
    deviations = np.sqrt((np.linalg.inv(r) ** 2).sum(axis=1))
    chi_squared = float(((right - rows @ values) ** 2).sum())
    return _Fit(
        values=values[:number],
        errors=deviations[:number],
        p_value=float(chdtrc(freedom, chi_squared)) if freedom else math.nan,
        decided=powers[deviations[number:] < 0.5],
    )


def _fitted(value: float, error: float, p_value: float, model: str, confidence: float) -> Fitted:
    half = normal(confidence) * error
    return Fitted(
        value=float(value),
        error=float(error),
        lower=float(value - half),
        upper=float(value + half),
        p_value=p_value,
        model=model,
    )


def _number_distinct(m: np.ndarray) -> int:
    gaps = np.diff(np.sort(np.log(m)))
    return min(m.size, 1 + int(np.count_nonzero(gaps > _DISTINCT)))


def _column(name: str, values: Values, size: int | None) -> np.ndarray:
    """A float64 vector of finite numbers, of this size."""
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise ValueError(f"Argument `{name}` must have one axis, but has {column.ndim}.")
    if size is not None and column.size != size:
        raise ValueError(f"Argument `{name}` must have {size} entries, but has {column.size}.")
    if not np.isfinite(column).all():
        raise ValueError(f"Argument `{name}` must be finite, but is {column}.")
    return column
