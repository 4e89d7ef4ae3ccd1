"""What `jaxcond summary` says in words, before its tables."""

import dataclasses
import math

import numpy as np

from jaxcond.blowup import Status
from jaxcond.cli._words import in_words
from jaxcond.statistics import Fitted, fit_scaling
from jaxcond.study import Study, Task, summarise
from jaxcond.study._store import create, fields_of

LIMIT, SHIFT, SPREAD = 1.167972771, 0.61445, 0.534
WIDTHS = (50, 200, 1000)


def summary_of(*times, **keys):
    """The summary of made-up times of the Gaussian ensemble, whose limit is known."""
    study = Study(**({"samples": len(times[0])} | keys))
    store = create(study, None, 512, {"12x12": ("series",)})
    for point, t in enumerate(map(np.asarray, times)):
        fields = {name: t for name in ("blowup_time", "lower", "upper")}
        fields |= {
            "error": np.zeros(t.size),
            "num_steps": np.ones(t.size, int),
            "stage": np.zeros(t.size, int),
        }
        fields["status"] = np.where(np.isfinite(t), Status.CONVERGED, Status.NO_BLOW_UP)
        task = Task(point, 0, 0, t.size)
        store.mark(
            task, store.write(task, {field.name: fields[field.name] for field in fields_of(study)})
        )
    store.describe(complete=True)
    return summarise(store)


def swept(shift=0.0, widths=WIDTHS):
    """Times at several widths whose means are those of the law, but for a relative shift."""
    z = np.linspace(-1.7, 1.7, 400)
    means = {m: (LIMIT * (1 + shift) + SHIFT / m + 0.373 / m**2) / math.sqrt(m) for m in widths}
    return summary_of(*(means[m] + SPREAD / m * z for m in widths), sweep={"width": list(widths)})


def test_a_single_point_tells_mean_error_and_the_distance_from_the_limit():
    times = 1.01 * LIMIT / 10 + 0.001 * np.linspace(-1, 1, 101)
    computed, mean, every = in_words(summary_of(times, ensemble={"width": 100}))
    assert "for 101 random initialisations (gaussian)." in computed
    assert "Mean T* = 0.117965 ± 6e-05 (one standard error); 95 % interval 0.1178" in mean
    assert "√q·T* = 1.17965 at this width is 1 % above its value 1.167973 at infinite" in mean
    assert every.startswith("Every sample has")
    times[0] = np.inf
    *_, failed = in_words(summary_of(times, ensemble={"width": 100}))
    assert failed.startswith("Blow-up time T*: 1 of 101 samples have no known value")
    # Below the limit it is said to be below.
    _, mean, _ = in_words(summary_of(0.98 * times[1:], ensemble={"width": 100}))
    assert " % below its value" in mean
    _, mean, _ = in_words(summary_of(times[1:2], ensemble={"width": 100}))
    assert "only sample, which gives no standard error" in mean


def test_a_sweep_tells_whether_the_law_of_large_width_holds():
    computed, means, _, law = in_words(swept())
    assert "for 400 random initialisations (gaussian) at each of 3 points" in computed
    assert " at width 1000 to " in means
    assert "This covers the value 1.1679728 at infinite width: the law holds this far." in law
    assert "The fit agrees with the means (p = " in law
    assert "Two widths leave the fit unchecked." in in_words(swept(widths=(50, 200)))[-1]
    wrong = in_words(swept(0.01))[-1]
    assert "standard errors away (p = " in wrong
    assert "the law does NOT hold for these means." in wrong


def test_one_study_in_twenty_is_no_failure_of_the_law():
    summary = swept()
    ((at, scaling),) = summary.scalings
    limit = dataclasses.replace(scaling.limit, value=LIMIT + 2.3 * scaling.limit.error)
    moved = dataclasses.replace(scaling, limit=limit, covers_limit=False)
    law = in_words(dataclasses.replace(summary, scalings=((at, moved),)))[-1]
    assert "lies 2.3 standard errors away (p = 0.02), outside the interval, as in one of 20" in law
    assert "NOT" not in law


def test_means_without_a_series_in_one_over_the_width_are_told():
    summary = swept()
    ((at, _),) = summary.scalings
    m = np.array(WIDTHS, float)
    errors = 1e-6 / m
    means = LIMIT / m**0.5 + np.array([1.0, -1.0, 1.0]) * 1e-2
    fitted = fit_scaling(m, means, errors, means, errors, LIMIT)
    assert isinstance(fitted.limit, Fitted)
    law = in_words(dataclasses.replace(summary, scalings=((at, fitted),)))[-1]
    assert "the means do NOT follow a series in 1/m" in law
    assert "the interval does not hold" in law


def test_a_limit_that_is_not_known_is_not_compared():
    z = np.linspace(-1, 1, 50)
    summary = summary_of(
        *((1.1 + 0.1 * z) / m**0.5 for m in WIDTHS),
        ensemble={"kind": "balanced"},
        sweep={"width": list(WIDTHS)},
    )
    assert "not known for this ensemble" in in_words(summary)[-1]
