"""Coverage of every interval that `jaxcond summary` prints, simulated with synthetic samples.

`python tests/test_coverage.py` prints the coverage of all cases.
"""

import math
import sys

import numpy as np
import pytest
from scipy import stats

from jaxcond import statistics

LEVEL = 0.95
LEVELS = (0.025, 0.25, 0.5, 0.75, 0.975)
REPETITIONS = 1000
SIGMAS = 3
LAWS = {
    "normal": stats.norm(3, 2),
    "uniform": stats.uniform(),
    "gamma(4)": stats.gamma(4),
    "lognormal(0.3)": stats.lognorm(0.3),
    "exponential": stats.expon(),
    "t(5)": stats.t(5),
    "lognormal(1)": stats.lognorm(1.0),
}
COUNTS = (50, 200, 1000)


def of_moments(law, count, rng):
    found = statistics.Moments.of(law.rvs(count, random_state=rng))
    return {
        "mean": (*found.mean_interval(LEVEL), law.mean()),
        "deviation": (*found.deviation_interval(LEVEL), law.std()),
    }


def of_comparisons(law, count, rng):
    found = statistics.compare(*law.rvs((2, count), random_state=rng), LEVEL)
    return {
        "difference": (found.difference_lower, found.difference_upper, 0.0),
        "ratio": (found.variance_ratio_lower, found.variance_ratio_upper, 1.0),
    }


def of_quantiles(law, count, rng):
    values = law.rvs(count, random_state=rng)
    found = statistics.quantiles(lambda: [values], LEVELS, LEVEL)
    return {f"quantile {q.level}": (q.lower, q.upper, law.ppf(q.level)) for q in found}


def of_controls(count, rng):
    """A function of the controls of degree three, of mean one, with noise."""
    entries = rng.standard_normal((count, 8))
    weights = 0.03 / np.arange(1, 9)
    line = entries @ weights
    values = 1 + line + line**2 - weights @ weights + line**3
    values += 0.003 * rng.standard_normal(count)
    columns = statistics.quadratic_controls(entries, np.zeros(8), np.ones(8), 4)
    controls = statistics.Controls(columns.shape[1])
    controls.add(values, columns)
    return {"control variate": (*controls.estimate().mean_interval(LEVEL), 1.0)}


def of_nets(count, replicates, dimension, rng):
    """A product of lognormal variables, from scrambled Sobol nets."""
    parts = []
    for _ in range(replicates):
        points = stats.qmc.Sobol(dimension, rng=rng).random(count // replicates)
        normal = stats.norm.ppf(np.clip(points, 1e-12, 1 - 1e-12))
        parts.append(np.exp(0.3 * normal.sum(1)))
    mean = statistics.replicated([statistics.Moments.of(part) for part in parts])
    found = {"mean": (*mean.mean_interval(LEVEL), math.exp(0.045 * dimension))}
    for level in LEVELS:
        truth = math.exp(0.3 * math.sqrt(dimension) * stats.norm.ppf(level))
        found[f"quantile {level}"] = (*net_limits(parts, level), truth)
    return found


def net_limits(parts, level):
    try:
        from jaxcond.statistics._quantiles import replicated_limits
    except ImportError:  # As it was before, for the table.
        values = np.array([np.quantile(part, level) for part in parts])
        half = stats.t.ppf(0.5 + LEVEL / 2, len(parts) - 1) * values.std(ddof=1)
        half /= math.sqrt(len(parts))
        middle = np.quantile(np.concatenate(parts), level)
        return middle - half, middle + half
    return replicated_limits(parts, level, LEVEL)


def deviation_error(moments):
    wide = getattr(moments, "wide_deviation_error", None)
    return wide(LEVEL) if wide else moments.deviation_error


def of_scaling(count, rng):
    """Samples of the law of equal scales up to 1 / m^2, at five widths."""
    widths, limit, correction, amplitude = np.array([25, 50, 100, 200, 400]), 1.168, 0.614, 0.534
    next_correction = 0.373
    found = []
    for m in widths:
        z = rng.standard_normal(count)
        found.append(
            statistics.Moments.of(
                (limit + amplitude * z / m**0.5 + correction / m + next_correction / m**2) / m**0.5
            )
        )
    fit = statistics.fit_scaling(
        widths,
        [f.mean for f in found],
        [f.standard_error for f in found],
        [f.deviation for f in found],
        [deviation_error(f) for f in found],
        confidence=LEVEL,
    )
    return {
        "limit": (fit.limit.lower, fit.limit.upper, limit),
        "correction": (fit.correction.lower, fit.correction.upper, correction),
        "alpha": (fit.mean_exponent.lower, fit.mean_exponent.upper, 0.5),
        "beta": (fit.fluctuation_exponent.lower, fit.fluctuation_exponent.upper, 0.5),
        "amplitude": (fit.amplitude.lower, fit.amplitude.upper, amplitude),
    }


def coverage(draw, *arguments, repetitions=REPETITIONS):
    """The part of the repetitions in which each interval holds the truth."""
    rng = np.random.default_rng(2026)
    covered = {}
    for _ in range(repetitions):
        for name, (lower, upper, truth) in draw(*arguments, rng).items():
            covered[name] = covered.get(name, 0) + (lower <= truth <= upper)
    return {name: number / repetitions for name, number in covered.items()}


def assert_covered(found, repetitions=REPETITIONS):
    """No interval covers less than its level, by over three standard errors."""
    least = LEVEL - SIGMAS * math.sqrt(LEVEL * (1 - LEVEL) / repetitions)
    assert {name: c for name, c in found.items() if c < least} == {}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("draw", [of_moments, of_comparisons, of_quantiles])
def test_intervals_of_independent_samples_cover(draw, name, count):
    assert_covered(coverage(draw, LAWS[name], count))


@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_control_variates_cover(count):
    assert_covered(coverage(of_controls, count))


NETS = [(64, 4, 1), (64, 4, 4), (256, 16, 1), (256, 16, 4), (1024, 8, 4)]


@pytest.mark.parametrize("case", NETS)
def test_intervals_of_nets_cover(case):
    assert_covered(coverage(of_nets, *case, repetitions=200), 200)


@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_the_scaling_cover(count):
    assert_covered(coverage(of_scaling, count))


def _table():
    rows = []
    for draw in (of_moments, of_comparisons, of_quantiles):
        for name, law in LAWS.items():
            rows += [(name, count, coverage(draw, law, count)) for count in COUNTS]
    rows += [("controls", count, coverage(of_controls, count)) for count in COUNTS]
    rows += [(f"net {case}", case[0], coverage(of_nets, *case, repetitions=200)) for case in NETS]
    rows += [("scaling", count, coverage(of_scaling, count)) for count in COUNTS]
    for name, count, found in rows:
        told = ", ".join(f"{key} {100 * value:.1f}" for key, value in found.items())
        sys.stdout.write(f"{name:15} {count:5}: {told}\n")


if __name__ == "__main__":
    _table()
