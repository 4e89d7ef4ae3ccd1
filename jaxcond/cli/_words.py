"""The results of a study in a few plain sentences."""

from __future__ import annotations

import math
from typing import Any

from .. import statistics
from .. import study as studies

# A deviation from the law with a smaller p-value is reported as a failure of the law.
_RARE = 1e-3
_METHODS = {
    "plain": "",
    "control variate": ", by a control variate",
    "quasi-Monte Carlo": ", by quasi-Monte Carlo",
}


def in_words(summary: studies.StudySummary) -> list[str]:
    """What was computed, its mean and error, and whether the law of large width holds."""
    lines = [_computed(summary)]
    points = [point for point in summary.points if math.isfinite(point.mean.mean)]
    quantity = summary.study.quantity
    if len(summary.points) == 1:
        lines += [_mean(point, quantity, summary.confidence) for point in points]
    elif points:
        least, most = (f(points, key=lambda p: p.mean.mean) for f in (min, max))
        lines.append(
            f"The mean {quantity.symbol} goes from {_value(least)}{_at(least)} to "
            f"{_value(most)}{_at(most)}; ± is one standard error."
        )
    lines += [_failures(summary)]
    for at, scaling in summary.scalings:
        limits = (p.limit for p in summary.points if at.items() <= p.coordinates.items())
        lines.append(_law(at, quantity, scaling, next(limits), summary.confidence))
    return lines


def _computed(summary: studies.StudySummary) -> str:
    counts = {point.num_samples for point in summary.points}
    number = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    kinds = " and ".join(sorted(summary.study.kinds)).replace("_", " ")
    points = len(summary.points)
    where = "" if points == 1 else f" at each of {points} points of a sweep"
    return f"{summary.study.quantity.subject} for {number} random initialisations ({kinds}){where}."


def _mean(point: studies.PointSummary, quantity: studies.Quantity, confidence: float) -> str:
    mean = point.mean
    if not math.isfinite(mean.standard_error):
        return (
            f"{quantity.symbol} = {mean.mean:.6g} for the only sample, which gives no standard "
            "error."
        )
    half = (mean.upper - mean.lower) / 2
    text = (
        f"Mean {quantity.symbol} = {_value(point)} (one standard error{_METHODS[mean.method]}); "
        f"{100 * confidence:g} % interval {_digits(mean.lower, half)} to "
        f"{_digits(mean.upper, half)}."
    )
    if not math.isfinite(point.limit):
        return text
    scaled, error = point.scale * mean.mean, point.scale * mean.standard_error
    share = 100 * (scaled / point.limit - 1)
    side = "above" if share >= 0 else "below"
    return (
        f"{text} {quantity.rescaled} = {_digits(scaled, error)} at this width is "
        f"{abs(share):.2g} % {side} its value {point.limit:.7g} at infinite width."
    )


def _failures(summary: studies.StudySummary) -> str:
    failed = sum(point.num_samples - point.moments.count for point in summary.points)
    total = sum(point.num_samples for point in summary.points)
    if total == 0:
        return "The store holds no samples yet."
    if failed == 0:
        return summary.study.quantity.complete
    title = summary.study.quantity.title
    return f"{title}: {failed} of {total} samples have no known value; see the statuses."


def _law(
    at: dict[str, Any],
    quantity: studies.Quantity,
    scaling: statistics.Scaling,
    known: float,
    confidence: float,
) -> str:
    limit = scaling.limit
    where = ", ".join(f"{name} {value}" for name, value in at.items())
    interval = f"{_digits(limit.lower, limit.error)} to {_digits(limit.upper, limit.error)}"
    text = (
        f"Law of large width{f' ({where})' if where else ''}: the means extrapolate to "
        f"{quantity.rescaled} = {_digits(limit.value, limit.error)} "
        f"({100 * confidence:g} % interval {interval}). "
    )
    if limit.agrees is False:
        return (
            f"{text}But the means do NOT follow a series in 1/m (p = {limit.p_value:.1g}), so that "
            "the interval does not hold."
        )
    if scaling.covers_limit is None:
        text += "The value at infinite width is not known for this ensemble."
    elif scaling.covers_limit:
        text += f"This covers the value {known:.8g} at infinite width: the law holds this far."
    else:
        text += _outside(limit, known, confidence)
    if limit.agrees is None:
        return f"{text} Two widths leave the fit unchecked."
    return f"{text} The fit agrees with the means (p = {limit.p_value:.1g})."


def _outside(limit: statistics.Fitted, known: float, confidence: float) -> str:
    """The distance of the value at infinite width from an interval that excludes it."""
    distance = abs(limit.value - known) / limit.error if limit.error > 0 else math.inf
    p_value = math.erfc(distance / math.sqrt(2))
    text = f"The value {known:.8g} at infinite width lies {distance:.1f} standard errors away"
    if p_value < _RARE:
        return f"{text} (p = {p_value:.1g}): the law does NOT hold for these means."
    one_in = round(1 / (1 - confidence))
    return (
        f"{text} (p = {p_value:.1g}), outside the interval, as in one of {one_in} studies even if "
        "the law holds: more samples decide."
    )


def _at(point: studies.PointSummary) -> str:
    coordinates = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in point.coordinates.items()
    )
    return f" at {coordinates}"


def _value(point: studies.PointSummary) -> str:
    mean, error = point.mean.mean, point.mean.standard_error
    return f"{_digits(mean, error)} ± {error:.1g}" if math.isfinite(error) else f"{mean:.6g}"


def _digits(value: float, error: float) -> str:
    """A number, rounded to two significant digits of its error."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.8g}"
    return f"{value:.{min(max(1 - math.floor(math.log10(error)), 0), 15)}f}"
