"""Statistics of a study, computed from its store chunk by chunk."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..blowup import Status, is_known
from ..sampling import entry_moments, infinite_width_times
from ..statistics import (
    Controls,
    Moments,
    Quantile,
    Scaling,
    by_replicate,
    fit_scaling,
    quadratic_controls,
    quantiles,
    replicated,
)
from ..statistics._quantiles import replicated_limits
from ._config import Study
from ._observables import NUM_ENTRIES
from ._store import Store, observed_fields, read_configuration

LEVELS = (0.025, 0.25, 0.5, 0.75, 0.975)
# Ensembles whose entries are independent and of the same scale have the limit of the Gaussian one.
_WITH_LIMIT = ("gaussian", "uniform")


@dataclass(frozen=True)
class Estimate:
    """An estimate of the mean of $T^*$, with its gain over the plain mean.

    - `method`: `plain`, `control variate` or `quasi-Monte Carlo`.
    - `gain`: measured ratio of the variance of the plain mean of as many independent samples to the
      variance of this estimate.
    """

    method: str
    mean: float
    standard_error: float
    lower: float
    upper: float
    gain: float


@dataclass(frozen=True)
class PointSummary:
    r"""Statistics of the samples of one sweep point.

    - `point`: index of the sweep point; `coordinates`: its values of the swept keys; `p`, `q`: the
      widths; `scale`: factor $\sqrt q$ (chains: $q^{L/2-1}$) that makes times of order one at any
      width.
    - `num_samples`: number of samples in the store; `statuses`, `settled_by`: number of samples per
      status and per method. The other statistics use the `moments.count` samples of known value.
    - `moments`: moments of $T^*$; `mean`: the best estimate that the study allows; `plain`: the
      plain mean; `deviation`: ends of the interval of the standard deviation.
    - `quantiles`: quantiles with their intervals.
    - `limit`: limit of $\sqrt q\,T^*$ at infinite width; NaN if unknown.
    - `widest_bracket`, `largest_error`: relative to $T^*$.
    - `observables`: moments of the other variables over the samples in which they are finite, by
      name, and for those with a further dimension by name and place.
    """

    point: int
    coordinates: dict[str, Any]
    p: int
    q: int
    scale: float
    num_samples: int
    statuses: dict[str, int]
    settled_by: dict[str, int]
    moments: Moments
    mean: Estimate
    plain: Estimate
    deviation: tuple[float, float]
    quantiles: tuple[Quantile, ...]
    limit: float
    widest_bracket: float
    largest_error: float
    observables: dict[str, Moments]


@dataclass(frozen=True)
class StudySummary:
    """Statistics of all sweep points, with the scaling with the width if the width is swept.

    `scalings`: for each combination of the other swept keys, their values and the fit over widths.
    """

    study: Study
    points: tuple[PointSummary, ...]
    scalings: tuple[tuple[dict[str, Any], Scaling], ...]
    confidence: float
    complete: bool

    def rows(self) -> list[dict[str, Any]]:
        """A flat table of numbers and text, with one row per sweep point."""
        return [_row(point) for point in self.points]

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values for JSON; NaN and infinity become None."""
        return _plain(
            {
                "configuration": self.study.to_dict(),
                "complete": self.complete,
                "confidence": self.confidence,
                "points": self.rows(),
                "scaling": [
                    {"at": at, **dataclasses.asdict(scaling)} for at, scaling in self.scalings
                ],
            }
        )


def open_store(path: str | Path) -> Store:
    """Open a store on disk for reading.

    This imports no function and opens no file that the store names; `store.study.loaded()` does.

    **Raises:** `StoreError` if the store does not exist or is damaged.
    """
    path = Path(path)
    study, group = read_configuration(path)
    store = Store(study, group, path)
    store.check_coordinates()
    return store


def open_study(path: str | Path) -> xr.Dataset:
    """The records of a study as a lazy xarray Dataset.

    Equivalent to `xr.open_zarr(path)`, which does not need this package.

    **Raises:** `StoreError` if the store does not exist or is damaged.
    """
    return open_store(path).dataset()


def summarise(
    store: Store | str | Path,
    *,
    levels: Sequence[float] = LEVELS,
    confidence: float = 0.95,
) -> StudySummary:
    """The statistics of a finished or running study, in memory independent of its samples.

    **Arguments:**

    - `store`: a store or its path.
    - `levels`: levels of the quantiles.
    - `confidence`: confidence level of all intervals.

    **Raises:** `StoreError` if the store is damaged.
    """
    store = store if isinstance(store, Store) else open_store(store)
    study = store.study
    limits = limits_of(study)
    points = tuple(
        _point_summary(store, point, limits[point], levels, confidence)
        for point in range(len(study.points))
    )
    scalings = tuple(_scalings(study, points, confidence))
    complete = bool(store.group.attrs.get("complete", False))
    return StudySummary(
        study=study, points=points, scalings=scalings, confidence=confidence, complete=complete
    )


def limits_of(study: Study) -> np.ndarray:
    r"""Limit of $\sqrt q\,T^*$ at infinite width for each sweep point; NaN if unknown."""
    limits = np.full(len(study.points), np.nan)
    points = [
        (point, settings)
        for point, (kind, settings) in enumerate(study.settings)
        if kind in _WITH_LIMIT and settings.scales.count(0) < 2
    ]
    if points:
        aspect = np.array([settings.p / settings.q for _, settings in points])
        a, b, c = np.array([settings.scales for _, settings in points]).T
        with jax.enable_x64(True):
            found = infinite_width_times(aspect=aspect, scale_a=a, scale_b=b, scale_c=c)
        known = np.asarray(found.status) == Status.CONVERGED
        limits[[point for point, _ in points]] = np.where(known, np.asarray(found.time), np.nan)
    return limits


def converged_times(store: Store, point: int) -> Iterator[np.ndarray]:
    """The known values of the quantity of a study at a sweep point, chunk by chunk.

    These are the finite blow-up times with a finite error, or the predicted iterations.
    """
    quantity = store.study.quantity
    names = (quantity.field, quantity.status_field)
    for values, status in zip(*(store.stream(name, point) for name in names), strict=True):
        yield values[quantity.is_known(values, status)]


def _point_summary(
    store: Store, point: int, limit: float, levels: Sequence[float], confidence: float
) -> PointSummary:
    study = store.study
    moments = Moments()
    quantity = study.quantity
    statuses = np.zeros(len(quantity.statuses), int)
    stages = np.zeros(128, int)
    bracket = error = math.nan
    for values in converged_times(store, point):
        moments = moments.merge(Moments.of(values))
    for status in store.stream(quantity.status_field, point):
        statuses += np.bincount(np.maximum(status, 0), minlength=len(statuses))[: len(statuses)]
    streams = (store.brackets(point), store.stream("status", point), store.stream("error", point))
    for (times, lower, upper), status, errors in zip(*streams, strict=True):
        known = is_known(times, status)
        if known.any():
            t = times[known].astype(np.float64)
            width = (upper[known].astype(np.float64) - lower[known]) / t
            bracket = float(np.fmax(bracket, width.max()))
            error = float(np.fmax(error, (errors[known] / t).max()))
    for stage in store.stream("stage", point):
        stages += np.bincount(np.maximum(stage, 0), minlength=128)
    p, q = store.widths(point)
    plain = Estimate(
        "plain", moments.mean, moments.standard_error, *moments.mean_interval(confidence), 1.0
    )
    return PointSummary(
        point=point,
        coordinates=dict(study.points[point]),
        p=p,
        q=q,
        scale=_scale(study, point, q),
        num_samples=int(statuses.sum()),
        statuses={code.name.lower(): int(statuses[code]) for code in quantity.statuses},
        settled_by=_settled_by(store, point, stages),
        moments=moments,
        mean=_best(store, point, plain, confidence),
        plain=plain,
        deviation=moments.deviation_interval(confidence),
        quantiles=_quantiles(store, point, moments.count, levels, confidence),
        limit=float(limit),
        widest_bracket=bracket,
        largest_error=error,
        observables=_observables(store, point),
    )


def _scale(study: Study, point: int, q: int) -> float:
    kind, settings = study.settings[point]
    return math.sqrt(q) if kind == "file" else settings.rescaling


def _settled_by(store: Store, point: int, stages: np.ndarray) -> dict[str, int]:
    methods = json.loads(str(store.group.attrs.get("methods", "{}")))
    _, settings = store.study.settings[point]
    labels = methods.get(settings.form, next(iter(methods.values()), []))
    return {label: int(stages[i]) for i, label in enumerate(labels)}


def _best(store: Store, point: int, plain: Estimate, confidence: float) -> Estimate:
    study = store.study
    if study.sampling == "sobol":
        total = [Moments() for _ in range(study.replicates)]
        for index, times in _indexed(store, point):
            pieces = by_replicate(times, index % study.replicates, study.replicates)
            total = [a.merge(b) for a, b in zip(total, pieces, strict=True)]
        if min(part.count for part in total) == 0:
            return plain
        found = replicated(total)
        return Estimate(
            "quasi-Monte Carlo",
            found.mean,
            found.standard_error,
            *found.mean_interval(confidence),
            found.gain,
        )
    if "entries" not in study.observables:
        return plain
    _, settings = study.settings[point]
    means, variances = entry_moments(settings.p, settings.q, settings.scales, NUM_ENTRIES)
    controls: Controls | None = None
    streams = (store.stream(name, point) for name in ("blowup_time", "status", "entries"))
    lost = 0
    for times, status, entries in zip(*streams, strict=True):
        known = is_known(times, status)
        lost += int(np.sum(~known))
        columns = quadratic_controls(entries[known], means, variances, NUM_ENTRIES)
        controls = Controls(columns.shape[1]) if controls is None else controls
        controls.add(times[known], columns)
    # Were samples left out, the controls would no longer have the means that they are known by.
    if controls is None or lost or math.isnan(plain.mean):
        return plain
    found = controls.estimate()
    if not math.isfinite(found.standard_error):
        return plain
    return Estimate(
        "control variate",
        found.mean,
        found.standard_error,
        *found.mean_interval(confidence),
        found.gain,
    )


def _indexed(store: Store, point: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Global indices and times of the samples of a point whose time is known."""
    for chunk, count in enumerate(store.finished_at(point)):
        if count:
            times = store.read("blowup_time", point, chunk, int(count))
            known = is_known(times, store.read("status", point, chunk, int(count)))
            yield (chunk * store.chunk + np.arange(count))[known], times[known]


def _quantiles(
    store: Store, point: int, count: int, levels: Sequence[float], confidence: float
) -> tuple[Quantile, ...]:
    if count == 0:
        return tuple(Quantile(float(level), *(math.nan,) * 3) for level in levels)
    found = quantiles(lambda: converged_times(store, point), list(levels), confidence)
    if store.study.sampling == "random":
        return found
    # Points of one replicate are not independent, but the replicates are.
    number = store.study.replicates
    index, times = (np.concatenate(part) for part in zip(*_indexed(store, point), strict=True))
    each = [times[index % number == replicate] for replicate in range(number)]
    if min(map(len, each)) == 0:
        return tuple(dataclasses.replace(q, lower=math.nan, upper=math.nan) for q in found)
    limits = [replicated_limits(each, q.level, confidence) for q in found]
    return tuple(
        dataclasses.replace(q, lower=lower, upper=upper)
        for q, (lower, upper) in zip(found, limits, strict=True)
    )


def _observables(store: Store, point: int) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for field in observed_fields(store.study):
        if field.flags:
            continue
        labels = [""]
        if field.dim is not None:
            labels = [f" {value}" for value in store.array(field.dim)[...]]
        totals = [Moments() for _ in labels]
        for values in store.stream(field.name, point):
            columns = values.reshape(len(values), -1).T
            totals = [
                total.merge(Moments.of(column[np.isfinite(column)]))
                for total, column in zip(totals, columns, strict=True)
            ]
        found |= {f"{field.name}{label}": t for label, t in zip(labels, totals, strict=True)}
    return found


def _scalings(
    study: Study, points: Sequence[PointSummary], confidence: float
) -> Iterator[tuple[dict[str, Any], Scaling]]:
    """The fit over the widths, for each combination of the other swept keys."""
    if "width" not in study.sweep or study.predicts_escapes:  # iterations follow no such law
        return
    groups: dict[tuple, list[PointSummary]] = {}
    for summary in points:
        others = tuple((k, v) for k, v in summary.coordinates.items() if k != "width")
        groups.setdefault(others, []).append(summary)
    for others, members in groups.items():
        usable = [s for s in members if s.moments.count > 3 and math.isfinite(s.mean.mean)]
        if len({s.q for s in usable}) < 2:
            continue
        limit = usable[0].limit
        # The fit takes times that go like one over the root of the width.
        factors = [s.scale / math.sqrt(s.q) for s in usable]
        found = fit_scaling(
            [float(s.q) for s in usable],
            [f * s.mean.mean for f, s in zip(factors, usable, strict=True)],
            [f * s.mean.standard_error for f, s in zip(factors, usable, strict=True)],
            [f * s.moments.deviation for f, s in zip(factors, usable, strict=True)],
            [
                f * s.moments.wide_deviation_error(confidence)
                for f, s in zip(factors, usable, strict=True)
            ],
            limit if math.isfinite(limit) else None,
            confidence,
        )
        _, settings = study.settings[usable[0].point]
        yield dict(others), _of_depth(found, settings.depth)


def _of_depth(scaling: Scaling, depth: int) -> Scaling:
    """The scaling with the exponent of the mean itself, which is 1/2 for three layers."""
    alpha, more = scaling.mean_exponent, (depth - 3) / 2
    moved = {name: getattr(alpha, name) + more for name in ("value", "lower", "upper")}
    return dataclasses.replace(scaling, mean_exponent=dataclasses.replace(alpha, **moved))


def _row(point: PointSummary) -> dict[str, Any]:
    row: dict[str, Any] = dict(point.coordinates) | {"p": point.p, "q": point.q}
    row |= {
        "samples": point.num_samples,
        "mean": point.mean.mean,
        "standard_error": point.mean.standard_error,
        "mean_lower": point.mean.lower,
        "mean_upper": point.mean.upper,
        "estimator": point.mean.method,
        "gain": point.mean.gain,
        "plain_mean": point.plain.mean,
        "plain_standard_error": point.plain.standard_error,
        "deviation": point.moments.deviation,
        "deviation_lower": point.deviation[0],
        "deviation_upper": point.deviation[1],
        "skewness": point.moments.skewness,
        "kurtosis": point.moments.kurtosis,
        "least": point.moments.least,
        "greatest": point.moments.greatest,
    }
    for q in point.quantiles:
        name = f"quantile_{q.level:g}"
        row |= {name: q.value, f"{name}_lower": q.lower, f"{name}_upper": q.upper}
    row |= {
        "scaled_mean": point.scale * point.mean.mean,
        "scaled_standard_error": point.scale * point.mean.standard_error,
        "limit": point.limit,
        "widest_bracket": point.widest_bracket,
        "largest_error": point.largest_error,
    }
    row |= point.statuses
    row |= {f"settled by {name}": count for name, count in point.settled_by.items()}
    for name, moments in point.observables.items():
        row |= {f"{name} mean": moments.mean, f"{name} deviation": moments.deviation}
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
