r"""How the blow-up time depends on width: its limit, its exponent and its fluctuations.

At width $m$ and fixed aspect ratio and scales, with $Z$ standard normal to leading order,

$$\sqrt m\,T^* = \tau_\infty + \frac{s}{\sqrt m} Z + \frac km + \dots$$

so that the mean of $T^*$ falls like $m^{-1/2}$, the deviation of $\sqrt m\,T^*$ likewise, and the
corrections are powers of $1/m$. Each is fitted by least squares, weighted by the errors given.

Source: the delta method on the independent entries of the reduced form; for equal unit scales
$\tau_\infty = 1.167973$, $s = 0.533812$ and $k = 0.61445$.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from ._moments import Values, check_level, normal

_EPS = float(np.finfo(np.float64).eps)
# Widths whose logarithms differ by less count as one: the fits could not tell them apart.
_DISTINCT = 1e-6


@dataclass(frozen=True)
class Fitted:
    r"""One coefficient of a fit: `value`, standard `error`, and limits `lower` and `upper`.

    - `p_value`: of the fit's $\chi^2$, that it would be so large if the model held; NaN where there
      are as many coefficients as widths, or no errors.
    - `model`: what was fitted.
    """

    value: float
    error: float
    lower: float
    upper: float
    p_value: float
    model: str


@dataclass(frozen=True)
class Scaling:
    r"""Laws of the blow-up time in the width.

    - `limit`, `correction`: $\tau_\infty$ and $k$ of the mean of $\sqrt m\,T^*$; `covers_limit`:
      whether the interval of the former holds the limit given, `None` if none was.
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

    The limit and the amplitude are extrapolated with a term in $1/m$, and with one in $1/m^2$ from
    four widths on; the exponents likewise from three and from five widths on, as they have one
    coefficient more. Few widths leave no freedom to tell whether the model holds, and a narrow
    interval with a small p-value is that of a model that does not: leave out the least widths.

    **Arguments:**

    - `widths`: $m$, positive, at least two of them different.
    - `means`, `standard_errors`, `deviations`, `deviation_errors`: of $T^*$ (not scaled) at each.
      Where all errors of a kind are zero, the scatter about the fit gives those of the
      coefficients; where some are, these are taken for rounding.
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
    tau, k = _extrapolate(m, root * mean, root * mean_error, "tau_inf", number, confidence)
    covers = None if limit is None else tau.lower <= limit <= tau.upper
    amplitude, _ = _extrapolate(m, m * deviation, m * deviation_error, "s", number, confidence)
    return Scaling(
        limit=tau,
        correction=k,
        covers_limit=covers,
        mean_exponent=_exponent(m, mean, mean_error, "alpha", number, confidence),
        fluctuation_exponent=_exponent(
            m, root * deviation, root * deviation_error, "beta", number, confidence
        ),
        amplitude=amplitude,
    )


def _extrapolate(
    m: np.ndarray, y: np.ndarray, errors: np.ndarray, name: str, number: int, confidence: float
) -> tuple[Fitted, Fitted]:
    """The limit of y at infinite width, and the coefficient of 1 / m."""
    # In units of the least width, so that the columns are comparable.
    unit = m.min()
    x = unit / m
    powers = 2 if number >= 4 else 1
    columns = [x**i for i in range(powers + 1)]
    model = " + ".join([name, "k/m", "l/m^2"][: powers + 1])
    values, deviations, p_value = _least_squares(columns, y, errors)
    return (
        _fitted(values[0], deviations[0], p_value, model, confidence),
        _fitted(values[1] * unit, deviations[1] * unit, p_value, model, confidence),
    )


def _exponent(
    m: np.ndarray, y: np.ndarray, errors: np.ndarray, name: str, number: int, confidence: float
) -> Fitted:
    """The exponent of y as a power of 1 / m, from the logarithms."""
    powers = 0 if number < 3 else 1 if number < 5 else 2
    model = " + ".join([f"log A - {name} log m", "c/m", "d/m^2"][: powers + 1])
    if not (y > 0).all():
        nan = math.nan
        return Fitted(value=nan, error=nan, lower=nan, upper=nan, p_value=nan, model=model)
    x = m.min() / m
    columns = [np.ones_like(x), np.log(x), *(x**i for i in range(1, powers + 1))]
    values, deviations, p_value = _least_squares(columns, np.log(y), errors / y)
    return _fitted(values[1], deviations[1], p_value, model, confidence)


def _least_squares(
    columns: list[np.ndarray], y: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients, their standard errors, and the p-value of the fit."""
    known = bool((errors > 0).any())
    freedom = y.size - len(columns)
    errors = np.maximum(errors, 4 * _EPS * np.abs(y)) if known else np.ones_like(y)
    # A zero that is known without error is as good as the best of the others.
    errors = np.where(errors > 0, errors, errors[errors > 0].min())
    # The heaviest rows first, which keeps weights of very different size from mixing by rounding.
    order = np.argsort(errors)
    rows = (np.stack(columns, axis=1) / errors[:, None])[order]
    q, r = np.linalg.qr(rows)
    values = np.linalg.solve(r, q.T @ (y / errors)[order])
    chi_squared = float((((y / errors)[order] - rows @ values) ** 2).sum())
    scatter = 1.0 if known else math.sqrt(chi_squared / freedom) if freedom else 0.0
    deviations = scatter * np.sqrt((np.linalg.inv(r) ** 2).sum(axis=1))
    p_value = float(chdtrc(freedom, chi_squared)) if known and freedom else math.nan
    return values, deviations, p_value


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
