import errno
import io
import json
import math
import os

import numpy as np
import pytest
from helpers import EPS
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from scipy import special, stats

from jaxcond import files, plotting
from jaxcond.blowup import Status
from jaxcond.statistics import Moments
from jaxcond.study import Study, Task, summarise
from jaxcond.study import run_study as run
from jaxcond.study._store import create, fields_of
from jaxcond.study._summary import LEVELS, limits_of

INFINITE_WIDTH, AMPLITUDE = 1.167972771, 0.533812
# Of a normal variable, exceeded with a probability below 1e-4.
SIGMAS = 4.0
METHODS = {"10x10": ("series", "direct")}
CHUNK = 64


def stored(study, columns, *, finished=None, chunk=CHUNK, complete=True):
    """A store in memory with records that no sampler has drawn.

    `columns`, a dictionary of arrays for each point; what it leaves out is made up.
    """
    store = create(study, None, chunk, METHODS)
    for point, given in enumerate(columns):
        count = len(given["blowup_time"]) if finished is None else finished
        for first in range(0, count, chunk):
            piece = slice(first, min(first + chunk, count))
            times = np.asarray(given["blowup_time"], float)[piece]
            fields = {
                "lower": times * (1 - 1e-11),
                "upper": times * (1 + 1e-11),
                "error": times * 1e-13,
                "status": np.where(np.isfinite(times), Status.CONVERGED, Status.NO_BLOW_UP),
                "num_steps": np.ones(times.size, int),
                "stage": np.zeros(times.size, int),
            }
            fields |= {name: np.asarray(values)[piece] for name, values in given.items()}
            fields = {field.name: fields[field.name] for field in fields_of(study)}
            task = Task(point, first // chunk, piece.start, piece.stop)
            store.mark(task, store.write(task, fields))
    store.describe(complete=complete)
    return store


def drawn(count, seed=0, mean=1.17, spread=0.03):
    return np.random.default_rng(seed).normal(mean, spread, count)


def of_times(*times, **keys):
    """A store of these times, of the balanced ensemble, whose limit is not asked for."""
    study = Study(**({"samples": len(times[0]), "ensemble": {"kind": "balanced"}} | keys))
    return stored(study, [{"blowup_time": t} for t in times])


# What is told of the samples.


@pytest.fixture(scope="module")
def mixed():
    """Two points, of which one ends within a chunk, with samples of all statuses."""
    rng = np.random.default_rng(5)
    study = Study(
        150,
        ensemble={"kind": "balanced", "width": 10},
        sweep={"scale": [0.5, 2.0]},
        observables=("energy", "norms"),
    )
    columns = []
    for scale in (0.5, 2.0):
        status = rng.choice(4, 150, p=[0.85, 0.05, 0.05, 0.05])
        times = scale * rng.lognormal(0, 0.3, 150)
        times[status == Status.NO_BLOW_UP] = np.inf
        times[status == Status.INVALID_INPUT] = np.nan
        width = rng.uniform(1e-13, 1e-10, 150)
        energy = rng.normal(1, 1, 150)
        energy[status == Status.INVALID_INPUT] = np.nan
        columns.append(
            {
                "blowup_time": times,
                "lower": times * (1 - width),
                "upper": times * (1 + width),
                "error": times * rng.uniform(1e-16, 1e-12, 150),
                "status": status,
                "stage": rng.integers(0, 2, 150),
                "energy": energy,
                "norm_a": rng.chisquare(3, 150),
                "norm_c": rng.chisquare(3, 150),
            }
        )
    store = stored(study, columns)
    return store, summarise(store, confidence=0.9)


def test_statistics_are_those_of_the_records(mixed):
    store, summary = mixed
    data = store.dataset().load()
    assert len(summary.points) == 2
    assert summary.complete
    for number, point in enumerate(summary.points):
        here = data.isel(scale=number)
        assert point.coordinates == {"scale": float(here.scale)}
        assert (point.point, point.p, point.q, point.num_samples) == (number, 10, 10, 150)
        known = here.where(here.status == Status.CONVERGED, drop=True)
        times = known.blowup_time.values
        count = times.size
        assert 100 < count == point.moments.count < 150
        error = times.std(ddof=1) / math.sqrt(count)
        for found, expected in (
            (point.moments.mean, times.mean()),
            (point.moments.deviation, times.std(ddof=1)),
            (point.moments.skewness, stats.skew(times)),
            (point.moments.kurtosis, stats.kurtosis(times)),
            (point.moments.least, times.min()),
            (point.moments.greatest, times.max()),
            (point.plain.mean, times.mean()),
            (point.plain.standard_error, error),
            (point.widest_bracket, ((known.upper - known.lower) / times).values.max()),
            (point.largest_error, (known.error / times).values.max()),
            (point.scale, math.sqrt(10)),
        ):
            assert found == pytest.approx(expected, rel=1e-12)
        interval = (point.plain.lower, point.plain.upper)
        assert interval == pytest.approx(Moments.of(times).mean_interval(0.9), rel=1e-12)
        assert point.mean == point.plain
        assert point.plain.method == "plain"
        assert point.plain.gain == 1
        assert point.deviation == pytest.approx(Moments.of(times).deviation_interval(0.9))
        assert point.deviation[0] < times.std(ddof=1) < point.deviation[1]
        assert [q.level for q in point.quantiles] == list(LEVELS)
        np.testing.assert_allclose(
            [q.value for q in point.quantiles], np.quantile(times, LEVELS), rtol=4 * EPS
        )
        assert all(q.lower <= q.value <= q.upper for q in point.quantiles)
        status = here.status.values
        assert point.statuses == {s.name.lower(): np.sum(status == s) for s in Status}
        assert all(point.statuses[code.name.lower()] for code in list(Status)[:4])
        stage = here.stage.values
        assert point.settled_by == {"series": np.sum(stage == 0), "direct": np.sum(stage == 1)}
        assert set(point.observables) == {"energy", "norm_a", "norm_c"}
        for name, moments in point.observables.items():
            values = here[name].values[np.isfinite(here[name].values)]
            assert moments.count == values.size
            assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
            assert moments.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)


def strictly(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_the_table_and_the_json_hold_the_same(mixed):
    _, summary = mixed
    rows = summary.rows()
    assert len({tuple(row) for row in rows}) == 1
    for row, point in zip(rows, summary.points, strict=True):
        assert row["scale"] == point.coordinates["scale"]
        assert (row["samples"], row["mean"]) == (150, point.mean.mean)
        assert row["scaled_mean"] == math.sqrt(10) * point.mean.mean
        assert row["quantile_0.025_lower"] == point.quantiles[0].lower
        assert row["not_converged"] == point.statuses["not_converged"]
        assert row["settled by direct"] == point.settled_by["direct"]
        assert row["energy mean"] == point.observables["energy"].mean
        # Nothing is known of the limit.
        assert math.isnan(row["limit"])
        assert all(isinstance(value, int | float | str) for value in row.values())
    found = strictly(json.dumps(summary.to_dict(), allow_nan=False))
    assert (found["complete"], found["confidence"], found["scaling"]) == (True, 0.9, [])
    assert found["configuration"] == summary.study.to_dict()
    for row, told in zip(rows, found["points"], strict=True):
        assert told == row | {"limit": None}


def test_an_unfinished_study_has_the_statistics_of_what_is_there():
    times = drawn(150)
    study = Study(150, ensemble={"kind": "balanced"}, sweep={"scale": [1.0, 2.0]})
    store = stored(study, [{"blowup_time": times}], finished=70, complete=False)
    summary = summarise(store)
    assert not summary.complete
    some, none = summary.points
    assert some.num_samples == some.moments.count == 70
    assert some.plain.mean == pytest.approx(times[:70].mean(), rel=1e-13)
    assert none.num_samples == 0
    assert not any(none.statuses.values())
    strictly(json.dumps(summary.to_dict(), allow_nan=False))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sampling": "sobol", "replicates": 4},
        {"observables": ("entries",)},
        {"sweep": {"width": [10, 20, 40]}},
    ],
)
def test_an_empty_study(keys):
    summary = summarise(stored(Study(100, **keys), [], complete=False))
    for point in summary.points:
        assert (point.num_samples, point.moments.count) == (0, 0)
        assert point.mean == point.plain or math.isnan(point.mean.mean)
        assert all(math.isnan(q.value) for q in point.quantiles)
        assert math.isnan(point.widest_bracket)
        # What does not need any samples is known.
        assert point.limit == pytest.approx(INFINITE_WIDTH, abs=1e-9)
    assert summary.scalings == ()
    row = strictly(json.dumps(summary.to_dict(), allow_nan=False))["points"][0]
    assert row["mean"] is None
    assert row["samples"] == 0


def test_one_sample_has_a_mean_but_no_error():
    summary = summarise(of_times([1.25]))
    (point,) = summary.points
    assert point.mean.mean == 1.25
    assert math.isnan(point.mean.standard_error)
    assert math.isnan(point.moments.deviation)
    assert all(q.value == 1.25 for q in point.quantiles)
    row = strictly(json.dumps(summary.to_dict(), allow_nan=False))["points"][0]
    assert row["standard_error"] is None


def test_single_precision_is_summed_in_double():
    times = drawn(5000).astype(np.float32)
    (point,) = summarise(of_times(times, precision="float32")).points
    assert point.moments.mean == pytest.approx(times.astype(float).mean(), rel=8 * EPS)
    assert point.moments.deviation == pytest.approx(times.astype(float).std(ddof=1), rel=1e-10)


def test_entries_are_summarised_by_name():
    rng = np.random.default_rng(1)
    entries = rng.normal(size=(100, 8))
    store = stored(
        Study(100, observables=("entries",)), [{"blowup_time": drawn(100), "entries": entries}]
    )
    (point,) = summarise(store).points
    labels = [str(label) for label in store.dataset().entry.values]
    assert list(point.observables) == [f"entries {label}" for label in labels]
    means = [moments.mean for moments in point.observables.values()]
    np.testing.assert_allclose(means, entries.mean(0), rtol=1e-12)


# Estimates of less variance.


def test_failed_samples_leave_the_plain_mean():
    # The controls have their means over all samples, not over those that converged.
    rng = np.random.default_rng(2)
    columns = {
        "blowup_time": drawn(500),
        "entries": rng.normal(size=(500, 8)),
        "status": np.full(500, Status.CONVERGED),
    }
    study = Study(500, observables=("entries",))
    (point,) = summarise(stored(study, [columns])).points
    assert point.mean.method == "control variate"
    columns["status"][7] = Status.NOT_CONVERGED
    (point,) = summarise(stored(study, [columns])).points
    assert point.mean == point.plain
    assert point.plain.mean == pytest.approx(np.delete(columns["blowup_time"], 7).mean())


def test_replicates_are_taken_by_their_index():
    times = drawn(90, spread=0.1) + 0.2 * (np.arange(90) % 3)
    study = Study(90, sampling="sobol", replicates=3)
    (point,) = summarise(stored(study, [{"blowup_time": times}])).points
    each = times.reshape(-1, 3).mean(0)
    assert point.mean.method == "quasi-Monte Carlo"
    assert point.mean.mean == pytest.approx(times.mean(), rel=1e-13)
    error = each.std(ddof=1) / math.sqrt(3)
    assert point.mean.standard_error == pytest.approx(error, rel=1e-12)
    half = stats.t.ppf(0.975, 2) * error
    assert point.mean.upper - point.mean.lower == pytest.approx(2 * half, rel=1e-12)
    quantile = point.quantiles[2]
    assert quantile.value == pytest.approx(np.median(times))
    # The least and greatest time at which the replicates' shares up to it allow for 1/2.
    parts, ranked = times.reshape(-1, 3), np.sort(times)
    shares = np.array([np.mean(parts <= x, axis=0) for x in ranked])
    half = stats.t.ppf(0.975, 2) * shares.std(1, ddof=1) / math.sqrt(3) + 1 / 30
    (held,) = np.nonzero(abs(shares.mean(1) - 0.5) <= half)
    assert (quantile.lower, quantile.upper) == (ranked[held[0]], ranked[held[-1] + 1])
    # Of a replicate without samples nothing is known.
    times[np.arange(90) % 3 == 1] = np.inf
    (point,) = summarise(stored(study, [{"blowup_time": times}])).points
    assert point.mean == point.plain
    assert math.isnan(point.quantiles[2].lower)


@pytest.fixture(scope="module")
def swept():
    """Samples of five widths, with their entries."""
    study = Study(
        20_000, sweep={"width": [50, 100, 200, 400, 1000]}, observables=("entries",), seed=3
    )
    store = run(study)
    return store, summarise(store)


@pytest.fixture(scope="module")
def plain():
    """Many samples of width 200."""
    return summarise(run(Study(100_000, seed=11))).points[0]


def test_the_control_variate_is_unbiased_and_gains(swept, plain):
    point = swept[1].points[2]
    assert point.mean.method == "control variate"
    assert point.mean.gain > 100
    assert point.mean.standard_error < 0.1 * point.plain.standard_error
    together = math.hypot(point.mean.standard_error, plain.plain.standard_error)
    assert abs(point.mean.mean - plain.plain.mean) < SIGMAS * together
    assert point.mean.lower < point.mean.mean < point.mean.upper
    assert plain.mean == plain.plain


def test_quasi_monte_carlo_beats_many_plain_samples(swept, plain):
    (point,) = summarise(run(Study(4096, sampling="sobol", seed=5))).points
    assert point.mean.method == "quasi-Monte Carlo"
    assert point.mean.gain > 100
    assert point.mean.standard_error < 0.5 * plain.plain.standard_error
    together = math.hypot(point.mean.standard_error, plain.plain.standard_error)
    assert abs(point.mean.mean - plain.plain.mean) < SIGMAS * together
    controlled = swept[1].points[2].mean
    together = math.hypot(point.mean.standard_error, controlled.standard_error)
    # Few replicates: their error is not well known.
    assert abs(point.mean.mean - controlled.mean) < 6 * together


def test_the_scaling_covers_the_theory(swept):
    (((at, scaling)),) = swept[1].scalings
    assert at == {}
    assert scaling.covers_limit
    assert scaling.limit.lower < INFINITE_WIDTH < scaling.limit.upper
    assert scaling.limit.error < 1e-5
    assert scaling.mean_exponent.lower < 0.5 < scaling.mean_exponent.upper
    assert scaling.fluctuation_exponent.lower < 0.5 < scaling.fluctuation_exponent.upper
    assert abs(scaling.amplitude.value - AMPLITUDE) < SIGMAS * scaling.amplitude.error
    assert scaling.amplitude.error < 0.01


def test_real_records_are_summarised_as_they_are(swept):
    store, summary = swept
    data = store.dataset().load()
    np.testing.assert_array_equal(data.width, [50, 100, 200, 400, 1000])
    times = data.blowup_time.values
    np.testing.assert_allclose([p.plain.mean for p in summary.points], times.mean(1), rtol=1e-13)
    assert all(p.statuses["converged"] == 20_000 for p in summary.points)
    assert all(sum(p.settled_by.values()) == 20_000 for p in summary.points)
    # The error on either side, and the bracket of the state that was reached.
    assert all(p.widest_bracket < 3.01e-10 for p in summary.points)
    assert all(p.largest_error < 1e-10 for p in summary.points)


# Limits.


def test_limits_of_the_ensembles():
    sweep = {"kind": ["gaussian", "uniform", "orthogonal", "balanced"], "scale": [1.0, 2.0]}
    limits = limits_of(Study(sweep=sweep)).reshape(4, 2)
    # Times go with the inverse of the scale of all layers.
    expected = INFINITE_WIDTH / np.array([1, 2])
    np.testing.assert_allclose(limits[:2], [expected, expected], atol=1e-9)
    assert np.isnan(limits[2:]).all()


def test_limits_do_not_depend_on_the_precision_or_the_width():
    single = limits_of(Study(precision="float32", ensemble={"width": 10**15}))
    np.testing.assert_array_equal(single, limits_of(Study()))


def test_limits_where_scales_are_zero():
    sweep = {
        "scale_a": [1.0, 0.0, 1.0, 0.0],
        "scale_b": [0.0, 1.0, 0.0, 0.0],
        "scale_c": [2.0, 0.0, 0.0, 0.0],
    }
    limits = limits_of(Study(sweep=sweep, combine="zip"))
    assert limits[0] == pytest.approx(special.elliprf(1, 0, 4), rel=1e-13)
    assert np.isnan(limits[1:]).all()


# Figures.


def bars(axes):
    return np.array([(patch.get_x(), patch.get_width(), patch.get_height()) for patch in
                     axes.patches]).T  # fmt: skip


def drawable(figure):
    figure.savefig(io.BytesIO())
    return figure


def figure_of(store):
    return drawable(plotting.distributions(store, summarise(store)))


def test_a_distribution_is_the_histogram_of_its_samples():
    times = drawn(5000) / math.sqrt(200)
    store = stored(Study(5000), [{"blowup_time": times}], chunk=1024)
    figure = figure_of(store)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert "blow-up time" in axes.get_xlabel()
    assert axes.get_ylabel() == "probability density"
    assert axes.get_title() == "width 200 × 200, 5000 samples"
    left, width, height = bars(axes)
    assert np.sum(width * height) == pytest.approx(1)
    values = math.sqrt(200) * times
    low, high = np.quantile(values, [0.001, 0.999])
    inside = values[(values >= low) & (values <= high)]
    expected, edges = np.histogram(inside, left.size, (low, high), density=True)
    np.testing.assert_allclose(left, edges[:-1])
    np.testing.assert_allclose(height, expected, atol=2 / (5000 * width[0]))
    assert f"({5000 - inside.size} of 5000 beyond the axis)" in axes.get_xlabel()
    assert 8 <= 5000 - inside.size <= 12
    marks = [float(line.get_xdata()[0]) for line in axes.lines]
    assert marks == pytest.approx([values.mean(), INFINITE_WIDTH], rel=1e-9)
    error = values.std(ddof=1) / math.sqrt(5000)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"mean {values.mean():.5g} ± {error:.1g}", "infinite width 1.16797"]


@pytest.mark.parametrize("count", [1, 2, 3, 200, 1000])
def test_distributions_of_few_samples_show_all_of_them(count):
    (axes,) = figure_of(of_times(drawn(count))).axes
    assert "beyond" not in axes.get_xlabel()
    _, width, height = bars(axes)
    assert np.sum(width * height) == pytest.approx(1)
    assert ("±" in axes.get_legend().get_texts()[0].get_text()) == (count > 1)
    # Nothing is known of the limit.
    assert len(axes.lines) == 1


@pytest.mark.parametrize("count", [10, 2000])
def test_distributions_of_samples_equal_to_rounding(count):
    # At enormous widths the fluctuations are below the precision.
    (axes,) = figure_of(of_times(1.2 + EPS * (np.arange(count) % 5))).axes
    _, width, height = bars(axes)
    assert np.sum(width * height) == pytest.approx(1)


def test_distributions_need_a_finite_time():
    store = of_times(np.full(20, np.inf))
    with pytest.raises(ValueError, match="No sample has a finite blow-up time"):
        plotting.distributions(store, summarise(store))


def test_points_have_a_panel_each_and_those_without_times_none():
    times = [drawn(20, seed) for seed in range(19)]
    times[4] = np.full(20, np.inf)
    sweep = {"width": list(range(10, 29))}
    figure = figure_of(of_times(*times, sweep=sweep))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == [f"width {m}" for m in (*range(10, 14), *range(15, 27))]
    assert "first 16 of 18 points" in figure.get_suptitle()
    for axes, index in zip(shown, (*range(4), *range(5, 17)), strict=True):
        assert axes.lines[0].get_xdata()[0] == pytest.approx(
            math.sqrt(10 + index) * times[index].mean()
        )


def test_a_title_names_all_kinds():
    store = of_times(drawn(9), drawn(9), ensemble={}, sweep={"kind": ["balanced", "orthogonal"]})
    assert "balanced, orthogonal ensemble" in figure_of(store).get_suptitle()


def scaled_times(widths, spread, seed=0):
    """Times with the laws of the mean and the deviation, by width."""
    rng = np.random.default_rng(seed)
    for m in widths:
        z = rng.normal(size=400)
        z = (z - z.mean()) / z.std(ddof=1)
        yield (1.1 + 0.6 / m + spread * z / math.sqrt(m)) / math.sqrt(m)


WIDTHS = [50, 100, 200, 400]


def test_the_scaling_shows_samples_and_fit():
    store = of_times(*scaled_times(WIDTHS, 0.5), sweep={"width": WIDTHS})
    summary = summarise(store)
    left, right = drawable(plotting.scaling(summary)).axes
    m = np.array(WIDTHS, float)
    samples, fit = left.lines[0], left.lines[-1]
    ((_, fitted),) = summary.scalings
    np.testing.assert_allclose(samples.get_xdata(), m)
    expected = 1.1 + 0.6 / m - fitted.limit.value
    np.testing.assert_allclose(samples.get_ydata(), expected, rtol=1e-9)
    # The means were made without any scatter, so that the fit is exact.
    np.testing.assert_allclose(expected, 0.6 / m, rtol=1e-3)
    np.testing.assert_allclose(fit.get_ydata(), 0.6 / np.asarray(fit.get_xdata()), rtol=1e-3)
    assert "$k$ = 0.6 $" in fit.get_label()
    np.testing.assert_allclose(right.lines[0].get_ydata(), 0.5 / np.sqrt(m), rtol=1e-10)
    law = right.lines[-1]
    np.testing.assert_allclose(law.get_ydata(), 0.5 / np.sqrt(law.get_xdata()), rtol=1e-6)
    # The limit of this ensemble is not known, and not drawn.
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert not any("infinite width" in label for label in labels)
    assert any("$\\tau$ = 1.1 of the fit" in label for label in labels)
    # No line crosses the text of the legend.
    for axes in (left, right):
        axes.figure.draw_without_rendering()
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0


def test_the_scaling_shows_the_limit_and_every_group(swept):
    left, _ = drawable(plotting.scaling(swept[1])).axes
    means = [point.scale * point.mean.mean - INFINITE_WIDTH for point in swept[1].points]
    np.testing.assert_allclose(left.lines[0].get_ydata(), np.abs(means), rtol=1e-6)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert any("1.167973 of infinite width" in label for label in labels)
    times = [t / s for s in (1.0, 2.0) for t in scaled_times(WIDTHS, 0.5)]
    summary = summarise(of_times(*times, sweep={"scale": [1.0, 2.0], "width": WIDTHS}))
    left, _ = drawable(plotting.scaling(summary)).axes
    assert [at for at, _ in summary.scalings] == [{"scale": 1.0}, {"scale": 2.0}]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert sum(label.startswith("scale 1: ") for label in labels) == 2
    assert sum(label.startswith("scale 2: ") for label in labels) == 2


def test_equal_samples_have_a_scaling():
    # As a function gives that does not look at its key.
    times = [np.full(10, t.mean()) for t in scaled_times(WIDTHS, 0.5)]
    summary = summarise(of_times(*times, sweep={"width": WIDTHS}))
    ((_, scaling),) = summary.scalings
    assert scaling.limit.value == pytest.approx(1.1)
    strictly(json.dumps(summary.to_dict(), allow_nan=False))


@pytest.mark.parametrize("sweep", [{}, {"scale": [1.0, 2.0]}, {"width": [50]}])
def test_a_scaling_needs_widths(sweep):
    summary = summarise(of_times(drawn(9), *([drawn(9)] if "scale" in sweep else []), sweep=sweep))
    assert summary.scalings == ()
    with pytest.raises(ValueError, match="needs a sweep over at least two widths"):
        plotting.scaling(summary)


def test_convergence_shows_the_running_mean():
    times = drawn(3000)
    store = of_times(times)
    (axes,) = drawable(plotting.convergence(store, summarise(store))).axes
    line = axes.lines[0]
    counts = np.asarray(line.get_xdata())
    assert counts[0] == 2
    assert counts[-1] == 3000
    expected = [times[:n].mean() / times.mean() - 1 for n in counts]
    np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-13)
    band = axes.collections[0].get_paths()[0].vertices
    half = [2 * times[:n].std(ddof=1) / math.sqrt(n) / times.mean() for n in counts]
    for n, h in zip(counts, half, strict=True):
        at = band[band[:, 0] == n, 1]
        assert at.max() == pytest.approx(h, rel=1e-9)
        assert at.min() == pytest.approx(-h, rel=1e-9)


def test_convergence_of_several_points_and_of_none():
    store = of_times(drawn(50), drawn(50, 1), sweep={"width": [10, 20]})
    (axes,) = drawable(plotting.convergence(store, summarise(store))).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["width 10", "width 20"]
    store = of_times([1.0])
    with pytest.raises(ValueError, match="No point has two finite blow-up times"):
        plotting.convergence(store, summarise(store))


def mapped(axes):
    (mesh,) = [c for c in axes.collections if isinstance(c, QuadMesh)]
    return np.ma.filled(mesh.get_array(), np.nan)


def test_a_map_shows_means_limits_and_their_difference():
    # In no order, and with a point of which nothing is known.
    aspects, scales = [1.2, 0.8, 1.0], [1.5, 0.8]
    times = [drawn(30, seed) for seed in range(6)]
    times[1] = np.full(30, np.inf)
    study = Study(30, sweep={"aspect": aspects, "scale_b": scales}, ensemble={"width": 100})
    summary = summarise(stored(study, [{"blowup_time": t} for t in times]))
    figure = drawable(plotting.study_map(summary, "aspect", "scale_b"))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().split("\n")[0] for axes in panels] == [
        "sampled", "infinite width", "sampled / infinite width − 1"
    ]  # fmt: skip
    means = 10 * np.array([t.mean() for t in times]).reshape(3, 2)[[1, 2, 0]][:, [1, 0]].T
    limits = limits_of(study).reshape(3, 2)[[1, 2, 0]][:, [1, 0]].T
    means[~np.isfinite(means)] = np.nan
    assert np.isnan(means).sum() == 1
    np.testing.assert_allclose(mapped(panels[0]), means, rtol=1e-12)
    np.testing.assert_allclose(mapped(panels[1]), limits, rtol=1e-12)
    np.testing.assert_allclose(mapped(panels[2]), means / limits - 1, rtol=1e-9)
    # The other way round it is the transpose.
    turned = drawable(plotting.study_map(summary, "scale_b", "aspect"))
    np.testing.assert_allclose(mapped(turned.axes[0]), means.T, rtol=1e-12)


def test_a_map_without_limits_is_one_panel():
    times = [drawn(9, seed) for seed in range(4)]
    sweep = {"width": [10, 20], "scale": [1.0, 2.0]}
    figure = drawable(
        plotting.study_map(summarise(of_times(*times, sweep=sweep)), "width", "scale")
    )
    assert len([axes for axes in figure.axes if axes.get_title()]) == 1


@pytest.mark.parametrize(
    ("keys", "axes", "message"),
    [
        ({"width": [1, 2]}, ("width", "scale"), "scale is not one of this sweep"),
        ({"width": [1, 2], "kind": ["balanced", "orthogonal"]}, ("width", "kind"),
         "kind is not one of this sweep"),
        ({"width": [1, 2]}, ("width", "width"), "two different axes"),
        ({"width": [1, 2], "scale": [1], "aspect": [1, 2]}, ("width", "scale"),
         "width and scale cannot show aspect besides"),
    ],
)  # fmt: skip
def test_maps_need_two_axes_of_numbers(keys, axes, message):
    ensemble = {} if "kind" in keys else {"kind": "balanced"}
    study = Study(10, ensemble=ensemble, sweep=keys)
    summary = summarise(stored(study, [], complete=False))
    with pytest.raises(ValueError, match=message):
        plotting.study_map(summary, *axes)


def test_maps_need_a_grid():
    study = Study(
        10,
        ensemble={"kind": "balanced"},
        sweep={"width": [10, 20], "scale": [1.0, 2.0]},
        combine="zip",
    )
    summary = summarise(stored(study, [], complete=False))
    with pytest.raises(ValueError, match="cannot show zipped axes besides"):
        plotting.study_map(summary, "width", "scale")


# Files of figures.


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "start"), [("f.png", b"\x89PNG\r\n\x1a\n"), ("f.pdf", b"%PDF"), ("f", b"\x89PNG")]
)
def test_figures_are_written_in_the_format_of_the_suffix(tmp_path, name, start):
    plotting.check_format(tmp_path / name)
    plotting.save(Figure(), tmp_path / name)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes().startswith(start)


def test_unknown_formats_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"cannot be written as \.doc; known are .*pdf, .*png"):
        plotting.check_format("figure.doc")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_figures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch, failure):
    path = tmp_path / "figure.png"
    path.write_text("earlier")

    def write_half(self, file, **_):
        with open(file, "wb") as half:
            half.write(b"\x89PNG")
        raise failure

    monkeypatch.setattr(Figure, "savefig", write_half)
    with pytest.raises(type(failure)):
        plotting.save(Figure(), path)
    assert names(tmp_path) == ["figure.png"]
    assert path.read_text() == "earlier"


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (files.tempfile, "mkstemp")])
def test_a_name_that_cannot_be_taken_leaves_nothing(tmp_path, monkeypatch, module, name):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module, name, refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        plotting.save(Figure(), tmp_path / "figure.png")
    assert names(tmp_path) == []


def test_folders_that_do_not_exist_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError):
        plotting.save(Figure(), tmp_path / "no" / "figure.png")
