"""Statistics of samples against NumPy, SciPy, mpmath and brute force; seeds are fixed."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from helpers import EPS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from jaxcond import statistics
from jaxcond.statistics._quantiles import replicated_limits

# Sums of a few thousand terms, relative to the sum of the sizes of the terms.
ROUNDING = 1e3 * EPS
# Intervals of level 0.95 over 2000 repetitions: the fraction covered deviates by 0.005, so that a
# right interval is within four deviations of its level.
REPETITIONS = 2000
COVERED = (0.93, 0.97)
# Means are compared within so many standard errors.
SIGMAS = 5

INFINITE_WIDTH = 1.167972771072370
MEAN_SHIFT = 0.61445
DEVIATION = 0.533812


def assert_covers(intervals, truth):
    """Intervals, shape (repetitions, 2), hold the truth as often as they should."""
    intervals = np.asarray(intervals)
    covered = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert COVERED[0] <= covered <= COVERED[1], covered


def least_covered(level, repetitions=REPETITIONS):
    """Three standard errors below a level, of the part of so many repetitions that are covered."""
    return level - 3 * math.sqrt(level * (1 - level) / repetitions)


def assert_same(left, right, rtol=ROUNDING):
    """Two moments agree, up to rounding of samples whose size is that of the largest."""
    assert left.count == right.count
    assert (left.least, left.greatest) == (right.least, right.greatest)
    if not left.count:
        return
    size = max(abs(left.least), abs(left.greatest))
    spread = left.greatest - left.least
    # A mean is known to its rounding, which the central sums inherit.
    unit = spread + EPS * size
    assert left.mean == pytest.approx(right.mean, rel=0, abs=rtol * size)
    for power, name in ((2, "m2"), (3, "m3"), (4, "m4")):
        scale = left.count * unit ** (power - 1) * (rtol * spread + 100 * EPS * size)
        assert getattr(left, name) == pytest.approx(getattr(right, name), rel=0, abs=scale + 1e-300)


class Chunks:
    """An array in pieces, and how often it was asked for."""

    def __init__(self, values, sizes=(7, 1, 0, 300)):
        self.values, self.sizes, self.passes = values, sizes, 0

    def __call__(self):
        self.passes += 1
        first = 0
        while first < len(self.values):
            for size in self.sizes:
                yield self.values[first : first + size]
                first += size


# Moments


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
def test_moments_against_scipy(dtype):
    values = (100 * np.random.default_rng(0).gamma(2.0, size=(50, 60))).astype(dtype)
    found, exact = statistics.Moments.of(values), values.astype(np.float64).ravel()
    assert found.count == exact.size
    assert (found.least, found.greatest) == (exact.min(), exact.max())
    for ours, theirs in (
        (found.mean, exact.mean()),
        (found.variance, exact.var(ddof=1)),
        (found.deviation, exact.std(ddof=1)),
        (found.standard_error, stats.sem(exact)),
        (found.skewness, stats.skew(exact)),
        (found.kurtosis, stats.kurtosis(exact)),
    ):
        assert ours == pytest.approx(float(theirs), rel=ROUNDING)
    error = float(stats.sem(exact))
    lower, upper = stats.t.interval(0.9, exact.size - 1, exact.mean(), error)
    # Of samples skew to the right, Student's lower end, and an upper end at which the transform
    # of Student's statistic, inverted by root finding, is the lower quantile.
    k, t = stats.skew(exact) / math.sqrt(exact.size), stats.t.ppf(0.05, exact.size - 1)
    student = optimize.brentq(lambda w: w + k * w**2 / 3 + k**2 * w**3 / 27 + k / 6 - t, -9, 9)
    expected = lower, exact.mean() - error * student
    assert expected[1] > upper
    assert found.mean_interval(0.9) == pytest.approx(expected, rel=ROUNDING)
    below, above = statistics.Moments.of(-exact).mean_interval(0.9)
    assert (-above, -below) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_moments_of_small_relative_spread(pieces):
    values = 1.234e9 * (1 + 1e-7 * np.random.default_rng(1).gamma(2.0, size=3000))
    found = statistics.Moments()
    for piece in np.array_split(values, pieces):
        found = found.merge(statistics.Moments.of(piece))
    exact = [Fraction(x) for x in values.tolist()]
    mean = sum(exact) / len(exact)
    m2, m3, m4 = (float(sum((x - mean) ** r for x in exact)) for r in (2, 3, 4))
    # Each merge rounds the mean, by EPS / 1e-7 of the deviation: a walk of so many steps.
    walk = 4 * math.sqrt(pieces) * EPS
    assert found.mean == pytest.approx(float(mean), rel=walk)
    for ours, theirs in ((found.m2, m2), (found.m3, m3), (found.m4, m4)):
        assert ours == pytest.approx(theirs, rel=ROUNDING if pieces == 1 else walk / 1e-7)


def test_moments_in_many_blocks():
    values = np.random.default_rng(2).standard_normal(200_001) + 5
    found = statistics.Moments.of(values)
    assert found.mean == pytest.approx(values.mean(), rel=ROUNDING)
    assert found.variance == pytest.approx(values.var(ddof=1), rel=ROUNDING)
    assert found.kurtosis == pytest.approx(float(stats.kurtosis(values)), abs=ROUNDING * 100)


numbers = st.lists(st.floats(-1e6, 1e6), max_size=20)


@settings(deadline=None)
@given(numbers, numbers, numbers)
def test_merge_is_associative_and_commutative(a, b, c):
    x, y, z = (statistics.Moments.of(v) for v in (a, b, c))
    assert_same(x.merge(y).merge(z), x.merge(y.merge(z)))
    assert_same(x.merge(y), y.merge(x))
    assert_same(x.merge(y).merge(z), statistics.Moments.of(a + b + c))
    assert x.merge(statistics.Moments()) == x or not a
    assert statistics.Moments().merge(x) == x or not a


def test_moments_of_few_samples():
    none, one, two = (statistics.Moments.of(v) for v in ([], [3.0], [3.0, 5.0]))
    assert none.count == 0
    assert (none.least, none.greatest) == (math.inf, -math.inf)
    for found in (none, one):
        for value in (found.variance, found.deviation, found.standard_error, found.skewness):
            assert math.isnan(value)
        assert np.isnan(found.mean_interval()).all()
        assert np.isnan(found.deviation_interval()).all()
    assert math.isnan(none.mean)
    assert one.mean == one.least == one.greatest == 3.0
    assert (two.mean, two.variance, two.standard_error) == (4.0, 2.0, 1.0)
    assert two.mean_interval() == pytest.approx(stats.t.interval(0.95, 1, 4.0, 1.0))
    assert np.isnan(two.variance_interval()).all()


def test_moments_of_equal_samples():
    found = statistics.Moments.of(np.full(1001, 0.1)).merge(statistics.Moments.of([0.1] * 7))
    assert (found.mean, found.variance, found.standard_error) == (0.1, 0.0, 0.0)
    assert math.isnan(found.skewness)
    assert math.isnan(found.kurtosis)
    assert found.mean_interval() == (0.1, 0.1)
    assert found.variance_interval() == found.deviation_interval() == (0.0, 0.0)
    # Two values as often as each other have the least kurtosis there is.
    assert statistics.Moments.of([0.0, 1.0] * 500).log_variance_error < 0.01


def test_moments_beyond_the_range_do_not_warn():
    found = statistics.Moments.of([1e200, -1e200, 3.0, 0.0])
    assert found.merge(found).variance == math.inf
    tiny = statistics.Moments.of([1e-200, 2e-200])
    assert tiny.variance == 0.0
    assert math.isnan(tiny.skewness)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_are_refused(bad):
    values = np.array([1.0, bad, 2.0])
    controls = statistics.Controls(1)
    for call in (
        lambda: statistics.Moments.of(values),
        lambda: statistics.quantiles(lambda: [values], [0.5]),
        lambda: statistics.running_mean(lambda: [values]),
        lambda: statistics.by_replicate(values, [0, 1, 1], 2),
        lambda: controls.add(values, np.zeros((3, 1))),
        lambda: controls.add(np.zeros(3), values[:, None]),
        lambda: statistics.compare(values, [1.0, 2.0]),
        lambda: statistics.compare([1.0, 2.0], values),
        lambda: statistics.fit_scaling([1, 2, 3], values, *[[0.1] * 3] * 3),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            call()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95.0, math.nan])
def test_levels_out_of_range_are_refused(level):
    found = statistics.Moments.of([1.0, 2.0, 4.0])
    for call in (
        lambda: found.mean_interval(level),
        lambda: found.variance_interval(level),
        lambda: statistics.quantiles(lambda: [np.ones(3)], [0.5], level),
        lambda: statistics.compare([1.0, 2.0], [1.0, 2.0], level),
        lambda: statistics.fit_scaling([1, 2], *[[1.0, 2.0]] * 4, confidence=level),
    ):
        with pytest.raises(ValueError, match=f"must be between 0 and 1, but is {level}"):
            call()


@pytest.mark.parametrize("law", [stats.norm(3, 2), stats.gamma(4), stats.uniform()])
def test_intervals_of_moments_cover(law):
    samples = law.rvs((REPETITIONS, 500), random_state=np.random.default_rng(3))
    found = [statistics.Moments.of(row) for row in samples]
    assert_covers([m.mean_interval() for m in found], law.mean())
    # Those of the variance are conservative, of no more than 1.5 times the normal width.
    for intervals, truth in (
        ([m.variance_interval() for m in found], law.var()),
        ([m.deviation_interval() for m in found], law.std()),
    ):
        covered = np.mean([lower <= truth <= upper for lower, upper in intervals])
        assert covered >= least_covered(0.95), covered
    halves = [m.log_variance_half() / m.log_variance_error for m in found]
    assert 1 < np.mean(halves) / stats.norm.ppf(0.975) < 1.5
    # The standard error of the deviation is what the deviations spread by.
    spread = np.std([m.deviation for m in found])
    assert np.mean([m.deviation_error for m in found]) == pytest.approx(spread, rel=0.1)


# Quantiles


LEVELS = (0.0, 0.025, 0.1, 1 / 3, 0.5, 0.75, 0.975, 0.999, 1.0)


def quantile_data():
    rng = np.random.default_rng(4)
    normal = rng.standard_normal(30_000)
    outliers = np.concatenate([normal, [1e300, -1e300, 5e-324, -5e-324, 1e12]])
    return {
        "normal": normal,
        "narrow": 1.25 * (1 + 1e-7 * normal),
        "ties": np.repeat([0.0, -0.0, 1.0, 2.0, np.pi], [9000, 9000, 12_000, 300, 200]),
        "equal": np.full(30_000, 0.1),
        "outliers": outliers,
        "mixed": np.concatenate([np.full(20_000, 1.5), outliers, np.full(9000, -1e300)]),
        "neighbours": 1 + EPS * rng.integers(0, 3, 30_000),
        "float32": normal.astype(np.float32),
        "integers": rng.integers(-(2**40), 2**40, 30_000),
    }


@pytest.mark.parametrize("capacity", [1, 100, 5000, 1 << 21])
@pytest.mark.parametrize("name", quantile_data())
def test_quantiles_equal_those_of_numpy(name, capacity):
    values = quantile_data()[name]
    np.random.default_rng(5).shuffle(values)
    chunks = Chunks(values, (12_345, 0, 1, 2**14))
    found = statistics.quantiles(chunks, LEVELS, capacity=capacity)
    exact = np.quantile(values.astype(np.float64), LEVELS)
    ranked = np.sort(values)
    assert [q.level for q in found] == list(LEVELS)
    for quantile, value in zip(found, exact, strict=True):
        assert quantile.value == value
        assert quantile.lower <= quantile.value <= quantile.upper
        assert quantile.lower in ranked or quantile.level <= 0
        assert quantile.upper in ranked or quantile.level >= 1
    assert (found[0].lower, found[-1].upper) == (-math.inf, math.inf)
    # The whole, at most five divisions that leave 16 bits fewer each, and the values.
    assert chunks.passes <= 7
    if capacity > values.size:
        assert chunks.passes == 1


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1),
    st.floats(0, 1),
    st.integers(1, 10),
)
def test_quantiles_of_any_values(values, level, capacity):
    found = statistics.quantiles(Chunks(np.array(values)), [level], capacity=capacity)[0]
    assert found.value == np.quantile(values, level)


def test_quantiles_with_many_levels_and_little_memory():
    values = np.random.default_rng(6).standard_cauchy(20_000)
    levels = np.linspace(0, 1, 201)
    found = statistics.quantiles(Chunks(values), levels, capacity=10)
    assert np.array_equal([q.value for q in found], np.quantile(values, levels))


@pytest.mark.parametrize("count", [1, 5, 50, 200, 1001])
@pytest.mark.parametrize("level", [0.0, 0.025, 0.3, 0.5, 0.975, 1.0])
def test_quantile_limits_are_the_tightest_that_the_binomial_law_allows(count, level):
    found = statistics.quantiles(lambda: [np.arange(1.0, count + 1)], [level], 0.9)[0]
    # Tails P(B < l) and P(B >= u) of the limits x_(l) and x_(u), by summing probabilities.
    below = np.concatenate([[0], np.cumsum(stats.binom.pmf(np.arange(count + 1), count, level))])
    fits = [rank for rank in range(1, count + 1) if below[rank] <= 0.05]
    assert found.lower == (max(fits) if fits else -math.inf)
    fits = [rank for rank in range(1, count + 1) if 1 - below[rank] <= 0.05]
    assert found.upper == (min(fits) if fits else math.inf)


@pytest.mark.parametrize("count", [50, 200, 1000])
@pytest.mark.parametrize("law", [stats.norm(), stats.lognorm(1.0), stats.poisson(3)])
def test_quantile_intervals_cover(law, count):
    samples = law.rvs((REPETITIONS, count), random_state=np.random.default_rng(9))
    levels = (0.025, 0.25, 0.5, 0.75, 0.975)
    found = [statistics.quantiles(lambda row=row: [row], levels) for row in samples]
    for i, level in enumerate(levels):
        limits = np.array([(q[i].lower, q[i].upper) for q in found])
        truth = law.ppf(level)
        covered = np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1]))
        assert covered >= least_covered(0.95), (level, covered)


@pytest.mark.parametrize(("count", "replicates"), [(64, 4), (256, 16), (1024, 8)])
@pytest.mark.parametrize("dimension", [1, 4])
def test_quantile_intervals_of_nets_cover(count, replicates, dimension):
    rng = np.random.default_rng(19)
    levels = np.array([0.025, 0.25, 0.5, 0.75, 0.975])
    # Product of lognormal variables, which is lognormal; in one dimension nets are stratified.
    truth = np.exp(0.3 * math.sqrt(dimension) * stats.norm.ppf(levels))
    repetitions = 200
    covered = np.zeros(levels.size)
    for _ in range(repetitions):
        nets = [stats.qmc.Sobol(dimension, rng=rng) for _ in range(replicates)]
        uniform = [np.clip(net.random(count // replicates), 1e-12, 1 - 1e-12) for net in nets]
        parts = [np.exp(0.3 * stats.norm.ppf(u).sum(1)) for u in uniform]
        limits = [replicated_limits(parts, level, 0.95) for level in levels]
        covered += [a <= x <= b for (a, b), x in zip(limits, truth, strict=True)]
    assert (covered / repetitions >= least_covered(0.95, repetitions)).all(), covered


def test_limits_of_replicates_by_hand():
    # Shares up to 1, 2, 3, 4: (1/2, 0), (1, 0), (1, 1/2), (1, 1) of two replicates, whose mean
    # differs from the level 1/2 by 1/4, 0, 1/4, 1/2, and half the width is over 1/2 for all.
    parts = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    assert replicated_limits(parts, 0.5, 0.95) == (-math.inf, math.inf)
    # Replicates that agree: the limits are as far as one step of 1/100 on either side.
    equal = [np.arange(100.0)] * 3
    assert replicated_limits(equal, 0.505, 0.95) == (49.0, 51.0)
    assert np.isnan(replicated_limits(equal[:1], 0.5, 0.95)).all()


def test_quantiles_of_few_values():
    nothing = statistics.quantiles(lambda: [], [0.5])[0]
    assert np.isnan([nothing.value, nothing.lower, nothing.upper]).all()
    assert np.isnan(statistics.quantiles(lambda: [np.empty(0)] * 2, [0.1, 1])[1].value)
    one = statistics.quantiles(lambda: [np.array(2.5)], [0.3])[0]
    assert (one.value, one.lower, one.upper) == (2.5, -math.inf, math.inf)
    two = statistics.quantiles(lambda: [np.array([2.0]), np.array([1.0])], [0.5], capacity=1)[0]
    assert (two.value, two.lower, two.upper) == (1.5, -math.inf, math.inf)
    assert statistics.quantiles(lambda: [np.ones(3)], []) == ()


def test_quantiles_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match=r"`levels` must be between 0 and 1, but one is 1\.5"):
        statistics.quantiles(lambda: [np.ones(3)], [0.5, 1.5])
    with pytest.raises(ValueError, match="`capacity` must be positive"):
        statistics.quantiles(lambda: [np.ones(3)], [0.5], capacity=0)
    once = iter([np.arange(10.0)])
    with pytest.raises(ValueError, match="the same values each time"):
        statistics.quantiles(lambda: once, [0.5], capacity=5)
    # Found in the last pass as well, here the third.
    passes = iter([np.arange(100.0), np.arange(100.0), np.arange(90.0)])
    with pytest.raises(ValueError, match="the same values each time"):
        statistics.quantiles(lambda: [next(passes)], [0.99], capacity=20)


# Control variates


def regression(values, controls):
    """Intercept and its standard error, by ordinary least squares on all samples at once."""
    design = np.column_stack([np.ones(len(values)), controls])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ values
    rest = values - design @ beta
    variance = rest @ rest / (len(values) - design.shape[1])
    return beta[0], math.sqrt(variance * inverse[0, 0])


def controlled(values, controls, pieces=3):
    total = statistics.Controls(controls.shape[1])
    for index in np.array_split(np.arange(len(values)), pieces):
        total.add(values[index], controls[index])
    return total


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_controls_against_regression(offset):
    rng = np.random.default_rng(10)
    controls = rng.standard_normal((500, 4)) * [1, 10, 1e-6, 1e6]
    values = 2 + controls @ [1, 0.3, 1e5, 1e-6] + rng.gamma(2.0, size=500)
    mean, error = regression(values, controls)
    for pieces in (1, 3, 500):
        found = controlled(values + offset, controls, pieces).estimate()
        rounding = ROUNDING + EPS * offset
        assert found.mean - offset == pytest.approx(mean, rel=100 * rounding)
        assert found.standard_error == pytest.approx(error, rel=100 * rounding)
        gain = values.var(ddof=1) / 500 / error**2
        assert found.gain == pytest.approx(gain, rel=200 * rounding)
        assert 0 < found.r_squared < 1
        assert (found.num_controls, found.count) == (4, 500)


def test_controls_merge():
    rng = np.random.default_rng(11)
    controls = rng.standard_normal((300, 2))
    values = 5 + controls @ [1.0, 2.0] + rng.standard_normal(300)
    whole = controlled(values, controls).estimate()
    parts = [controlled(values[i::3], controls[i::3]) for i in range(3)]
    for merged in (
        parts[0].merge(parts[1]).merge(parts[2]),
        parts[0].merge(parts[1].merge(parts[2])),
    ):
        found = merged.estimate()
        assert found.mean == pytest.approx(whole.mean, rel=ROUNDING)
        assert found.standard_error == pytest.approx(whole.standard_error, rel=ROUNDING)
    assert parts[0].count == 100
    empty = statistics.Controls(2)
    assert empty.merge(parts[0]).estimate() == parts[0].estimate()
    assert parts[0].merge(empty).estimate() == parts[0].estimate()
    with pytest.raises(ValueError, match="`other` must have 2 controls, but has 1"):
        parts[0].merge(statistics.Controls(1))


def test_constant_and_collinear_controls_change_nothing():
    rng = np.random.default_rng(12)
    z = rng.standard_normal((400, 2))
    values = 1 + z @ [1.0, -2.0] + 0.1 * rng.standard_normal(400)
    plain = controlled(values, z).estimate()
    more = np.column_stack([z, z @ [3.0, 1.0], np.zeros(400), np.full(400, 0.1), 1e9 * z[:, 0]])
    found = controlled(values, more).estimate()
    assert found.num_controls == 2
    assert found.mean == pytest.approx(plain.mean, rel=ROUNDING)
    assert found.standard_error == pytest.approx(plain.standard_error, rel=ROUNDING)


def test_no_controls_is_the_plain_mean():
    values = np.random.default_rng(13).gamma(2.0, size=100)
    found = controlled(values, np.empty((100, 0))).estimate()
    plain = statistics.Moments.of(values)
    assert found.mean == pytest.approx(plain.mean, rel=ROUNDING)
    assert found.standard_error == pytest.approx(plain.standard_error, rel=ROUNDING)
    assert found.gain == pytest.approx(1, rel=ROUNDING)
    interval = stats.t.interval(0.95, 99, values.mean(), stats.sem(values))
    assert found.mean_interval() == pytest.approx(interval, rel=ROUNDING)


def test_controls_of_few_or_equal_samples():
    z = np.random.default_rng(14).standard_normal((5, 2))
    for count in range(4):
        found = controlled(np.arange(count) * 1.0, z[:count], 1).estimate()
        assert math.isnan(found.mean)
        assert math.isnan(found.standard_error)
        assert np.isnan(found.mean_interval()).all()
    equal = controlled(np.full(5, 0.1), z).estimate()
    assert (equal.mean, equal.standard_error) == (0.1, 0.0)
    assert math.isnan(equal.gain)
    exact = controlled(3 + z @ [1.0, 2.0], z).estimate()
    assert exact.mean == pytest.approx(3, rel=ROUNDING)
    assert exact.standard_error < 1e-7
    assert exact.r_squared == pytest.approx(1, rel=ROUNDING)


def test_controls_refuse_wrong_shapes():
    with pytest.raises(ValueError, match="`num_controls` must not be negative, but is -1"):
        statistics.Controls(-1)
    total = statistics.Controls(2)
    with pytest.raises(ValueError, match=r"`controls` must have shape \(3, 2\)"):
        total.add(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="`values` must have one axis"):
        total.add(np.zeros((3, 1)), np.zeros((3, 2)))


def test_interval_with_controls_covers():
    rng = np.random.default_rng(15)
    found = []
    for _ in range(REPETITIONS):
        x = rng.standard_normal((200, 3))
        # Smooth, not linear, of mean exp(0.125).
        values = np.exp(0.5 * x[:, 0]) + 0.3 * x[:, 1] * x[:, 2] + 0.1 * rng.standard_normal(200)
        z = statistics.quadratic_controls(x, np.zeros(3), np.ones(3), 3)
        total = statistics.Controls(z.shape[1])
        total.add(values, z)
        found.append(total.estimate())
    assert_covers([f.mean_interval() for f in found], math.exp(0.125))
    # The gain is that of the spread of the estimates.
    plain = (math.exp(0.25) * (math.exp(0.25) - 1) + 0.09 + 0.01) / 200
    gain = plain / np.var([f.mean for f in found])
    assert np.median([f.gain for f in found]) == pytest.approx(gain, rel=0.2)
    assert gain > 5


def test_quadratic_controls_have_mean_zero_and_unit_variance():
    rng = np.random.default_rng(16)
    degrees = np.array([3, 50, 0, 10**6])
    entries = np.sqrt(rng.chisquare(np.maximum(degrees, 1), (100_000, 4))) * (degrees > 0)
    columns = statistics.quadratic_controls(
        entries, statistics.chi_mean(degrees), statistics.chi_variance(degrees), 3
    )
    assert columns.shape == (100_000, 4 + 3 + 3)
    zero = [2, 6, 8, 9]
    assert not columns[:, zero].any()
    rest = np.delete(columns, zero, axis=1)
    errors = rest.std(axis=0) / math.sqrt(len(rest))
    assert (np.abs(rest.mean(axis=0)) < SIGMAS * errors).all()
    variances = rest.var(axis=0)
    assert np.delete(variances, [3, 4]) == pytest.approx(1, abs=0.05)
    assert ((variances[3:5] > 1) & (variances[3:5] < 4)).all()
    u = (entries - statistics.chi_mean(degrees))[:, :2] / np.sqrt(
        statistics.chi_variance(degrees[:2])
    )
    assert np.allclose(columns[:, 4], u[:, 0] ** 2 - 1)
    assert np.allclose(columns[:, 7], u[:, 0] * u[:, 1])


def test_quadratic_controls_refuse_wrong_arguments():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="`entries` must have two axes"):
        statistics.quadratic_controls(ones, ones, ones, 0)
    entries = np.ones((5, 2))
    with pytest.raises(ValueError, match=r"`means` must have shape \(2,\)"):
        statistics.quadratic_controls(entries, np.ones(3), ones, 0)
    with pytest.raises(ValueError, match=r"`variances` must not be negative, but the least is -1"):
        statistics.quadratic_controls(entries, ones, -ones, 0)
    with pytest.raises(ValueError, match="`num_squared` must be from 0 to 2, but is 3"):
        statistics.quadratic_controls(entries, ones, ones, 3)


def test_chi_moments_against_mpmath():
    degrees = [*range(1, 64), 19.5, 20.5, *(10**i + 1 for i in range(2, 19))]
    mean, variance = statistics.chi_mean(degrees), statistics.chi_variance(degrees)
    with mpmath.workdps(80):
        for i, k in enumerate(mpmath.mpf(k) for k in degrees):
            gammas = mpmath.loggamma((k + 1) / 2) - mpmath.loggamma(k / 2)
            exact = mpmath.sqrt(2) * mpmath.exp(gammas)
            assert abs(mean[i] / exact - 1) < 4 * EPS
            assert abs(variance[i] / (k - exact**2) - 1) < 8 * EPS
    assert statistics.chi_mean(0) == statistics.chi_variance(0) == 0
    assert statistics.chi_mean([[0, 1]]).shape == (1, 2)
    for function in (statistics.chi_mean, statistics.chi_variance):
        for bad in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match="`k` must be finite and not negative"):
                function(bad)


# Replicates


def test_replicated_is_the_spread_of_the_means():
    values = np.random.default_rng(17).gamma(2.0, size=(8, 100)) + np.arange(8)[:, None]
    found = statistics.replicated([statistics.Moments.of(row) for row in values])
    means = values.mean(axis=1)
    assert found.mean == pytest.approx(values.mean(), rel=ROUNDING)
    assert found.standard_error == pytest.approx(float(stats.sem(means)), rel=ROUNDING)
    interval = stats.t.interval(0.95, 7, means.mean(), stats.sem(means))
    assert found.mean_interval() == pytest.approx(interval, rel=ROUNDING)
    gain = values.var(ddof=1) / values.size / stats.sem(means) ** 2
    assert found.gain == pytest.approx(gain, rel=ROUNDING)
    assert (found.num_replicates, found.count) == (8, 800)


def test_replicated_by_pieces():
    rng = np.random.default_rng(18)
    values, labels = rng.standard_normal(1000), rng.integers(0, 5, 1000)
    whole = statistics.by_replicate(values, labels, 6)
    for label, part in enumerate(whole):
        assert_same(part, statistics.Moments.of(values[labels == label]))
    pieces = [statistics.by_replicate(values[i::4], labels[i::4], 6) for i in range(4)]
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = [a.merge(b) for a, b in zip(merged, piece, strict=True)]
    found, exact = statistics.replicated(merged), statistics.replicated(whole)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=ROUNDING)
    assert (found.num_replicates, found.count) == (5, 1000)
    with pytest.raises(ValueError, match="`replicate` must have 3 entries, but has 2"):
        statistics.by_replicate([1.0, 2.0, 3.0], [0, 1], 2)
    with pytest.raises(ValueError, match="`replicate` must be from 0 to 1, but is from 0 to 2"):
        statistics.by_replicate([1.0, 2.0, 3.0], [0, 1, 2], 2)


def test_replicated_with_few_or_equal_replicates():
    one = statistics.Moments.of([1.0, 2.0])
    for parts in ([], [one], [statistics.Moments(), one]):
        found = statistics.replicated(parts)
        assert math.isnan(found.standard_error)
        assert math.isnan(found.gain)
        assert np.isnan(found.mean_interval()).all()
    assert statistics.replicated([one, one]).gain == math.inf
    equal = statistics.replicated([statistics.Moments.of([0.1] * 3)] * 4)
    assert (equal.mean, equal.standard_error) == (0.1, 0.0)
    assert math.isnan(equal.gain)


@pytest.mark.parametrize("counts", [(40,) * 8, (20, 30, 40, 50, 60)])
def test_interval_over_replicates_covers(counts):
    rng = np.random.default_rng(19)
    labels = np.repeat(np.arange(len(counts)), counts)
    found = [
        statistics.replicated(
            statistics.by_replicate(rng.gamma(4.0, size=labels.size), labels, len(counts))
        )
        for _ in range(REPETITIONS)
    ]
    assert_covers([f.mean_interval() for f in found], 4.0)
    # Independent samples gain nothing: the squared error is unbiased.
    gains = [1 / f.gain for f in found]
    assert np.mean(gains) == pytest.approx(1, abs=SIGMAS * np.std(gains) / math.sqrt(REPETITIONS))


def test_replicated_quasi_monte_carlo_gains():
    parts = []
    for seed in range(16):
        points = stats.qmc.Sobol(2, rng=np.random.default_rng(seed)).random_base2(8)
        parts.append(statistics.Moments.of(np.exp(points.sum(axis=1))))
    found = statistics.replicated(parts)
    assert abs(found.mean - (math.e - 1) ** 2) < SIGMAS * found.standard_error
    assert found.gain > 100


# Scaling


WIDTHS = np.array([20, 50, 100, 1000, 10**6])


def theory(widths, samples=math.inf):
    """What theory says of T* at each width, and errors for so many samples."""
    widths = np.asarray(widths, np.float64)
    series = INFINITE_WIDTH + MEAN_SHIFT / widths + 0.373 / widths**2 + 0.13 / widths**3
    means = series / np.sqrt(widths)
    deviations = (DEVIATION + 0.57 / widths) / widths
    return means, deviations / math.sqrt(samples), deviations, deviations / math.sqrt(2 * samples)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_scaling_recovers_the_theory(number):
    widths = WIDTHS[-number:]
    found = statistics.fit_scaling(widths, *theory(widths, 1e12), limit=INFINITE_WIDTH)
    assert found.covers_limit is True
    assert found.limit.value == pytest.approx(INFINITE_WIDTH, rel=1e-8)
    assert found.amplitude.value == pytest.approx(DEVIATION, rel=1e-5)
    assert found.amplitude.lower < DEVIATION < found.amplitude.upper
    assert found.correction.value == pytest.approx(MEAN_SHIFT, rel=1e-3)
    # As many powers as the widths and their errors tell, and no more.
    powers = {2: 1, 3: 2, 4: 3, 5: 3}[number]
    told = " + ".join(["tau_inf", "k/m", "k2/m^2", "k3/m^3"][: powers + 1])
    assert found.limit.model == told
    assert found.mean_exponent.value == pytest.approx(0.5, abs=1e-3)
    assert found.fluctuation_exponent.value == pytest.approx(0.5, abs=2e-3)
    assert found.mean_exponent.model.startswith("log A - alpha log m")
    assert ("k1/m" in found.mean_exponent.model) == (number > 2)
    assert math.isnan(found.limit.p_value) == (number == 2)
    assert found.limit.agrees is (None if number == 2 else True)


@pytest.mark.parametrize("samples", [1e2, 1e4, 1e6])
def test_scaling_is_generalised_least_squares(samples):
    """Free coefficients, with the covariance of the errors and of the powers that are not free."""
    rng = np.random.default_rng(20)
    widths = np.array([30.0, 60.0, 120.0])
    means, errors, deviations, deviation_errors = theory(widths, samples)
    means = means + errors * rng.standard_normal(3)
    found = statistics.fit_scaling(widths, means, errors, deviations, deviation_errors)
    assert found.covers_limit is None
    y, e = np.sqrt(widths) * means, np.sqrt(widths) * errors
    straight = np.polyfit(1 / widths, y, 1, w=1 / e)
    ratio = max(abs(straight[0]) / y.max(), 0.5)
    covariance = np.diag(e**2)
    for j in range(2, 10):
        covariance += np.outer(widths**-j, widths**-j) * (2 * y.max() * ratio**j) ** 2
    free = np.stack([np.ones(3), 1 / widths], 1)
    inverse = np.linalg.inv(covariance)
    of_values = np.linalg.inv(free.T @ inverse @ free)
    tau, k = of_values @ free.T @ inverse @ y
    assert found.limit.value == pytest.approx(tau, rel=1e-9)
    assert found.correction.value == pytest.approx(k, rel=1e-7)
    assert found.limit.error == pytest.approx(math.sqrt(of_values[0, 0]), rel=1e-7)
    assert found.correction.error == pytest.approx(math.sqrt(of_values[1, 1]), rel=1e-7)
    rest = y - free @ [tau, k]
    assert found.limit.p_value == pytest.approx(stats.chi2.sf(rest @ inverse @ rest, 1), rel=1e-4)


@pytest.mark.parametrize("samples", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("widths", [(50, 200), (50, 200, 1000), (20, 50, 100, 1000, 10**6)])
def test_scaling_intervals_cover(widths, samples):
    """Precise means show the next orders, of which the fit must not be wrong."""
    rng = np.random.default_rng(21)
    means, errors, deviations, deviation_errors = theory(widths, samples)
    found = []
    for _ in range(REPETITIONS // 4):
        noise = rng.standard_normal((2, len(widths)))
        found.append(
            statistics.fit_scaling(
                widths,
                means + errors * noise[0],
                errors,
                deviations + deviation_errors * noise[1],
                deviation_errors,
                limit=INFINITE_WIDTH,
            )
        )
    for name, truth in (
        ("limit", INFINITE_WIDTH),
        ("correction", MEAN_SHIFT),
        ("amplitude", DEVIATION),
        ("mean_exponent", 0.5),
        ("fluctuation_exponent", 0.5),
    ):
        fits = [getattr(f, name) for f in found]
        covered = np.mean([fit.lower <= truth <= fit.upper for fit in fits])
        assert covered >= least_covered(0.95, len(found)), name
        assert np.mean([fit.agrees is False for fit in fits]) <= 0.03, name
    assert np.mean([f.covers_limit for f in found]) >= least_covered(0.95, len(found))


def test_scaling_intervals_cover_as_often_as_they_say():
    """For coefficients that are as large as the fit takes them to be."""
    rng = np.random.default_rng(23)
    widths = np.array([20.0, 50.0, 100.0, 300.0])
    ratio = MEAN_SHIFT / INFINITE_WIDTH
    errors = np.full(4, 1e-6)
    limits, p_values = [], []
    for _ in range(REPETITIONS):
        y = INFINITE_WIDTH + MEAN_SHIFT / widths + errors * rng.standard_normal(4)
        for j in range(2, 6):
            y += 2 * INFINITE_WIDTH * (ratio / widths) ** j * rng.standard_normal()
        root = np.sqrt(widths)
        found = statistics.fit_scaling(widths, y / root, errors / root, *theory(widths, 1e4)[2:])
        limits.append((found.limit.lower, found.limit.upper))
        p_values.append(found.limit.p_value)
    assert_covers(limits, INFINITE_WIDTH)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_scaling_sees_a_wrong_law():
    means, errors, deviations, deviation_errors = theory(WIDTHS, 1e6)
    found = statistics.fit_scaling(
        WIDTHS, means * WIDTHS**0.1, errors, deviations, deviation_errors, limit=INFINITE_WIDTH
    )
    assert found.covers_limit is False
    assert found.limit.p_value < 1e-6
    assert found.limit.agrees is False
    assert found.mean_exponent.value == pytest.approx(0.4, abs=1e-3)
    assert found.mean_exponent.p_value > 0.01


def test_scaling_without_errors():
    means, *_ = theory(WIDTHS)
    zero = np.zeros(len(WIDTHS))
    found = statistics.fit_scaling(WIDTHS, means, zero, zero, zero, limit=1.0)
    assert found.limit.value == pytest.approx(INFINITE_WIDTH, rel=1e-12)
    assert found.limit.error < 1e-12
    assert found.covers_limit is False
    assert found.limit.agrees
    assert math.isnan(found.fluctuation_exponent.value)
    assert found.amplitude.value == found.amplitude.error == 0
    two = statistics.fit_scaling(WIDTHS[:2], means[:2], zero[:2], zero[:2], zero[:2])
    assert abs(two.limit.value - INFINITE_WIDTH) < 2 * two.limit.error < 1e-2
    # One width known without error pins the fit there.
    errors = theory(WIDTHS, 1e4)[1]
    errors[-1] = 0
    found = statistics.fit_scaling(WIDTHS, means, errors, zero, errors)
    assert found.limit.error < 5e-8
    assert abs(found.limit.value - INFINITE_WIDTH) < 2 * found.limit.error
    assert found.amplitude.value == pytest.approx(0, abs=1e-12)


def test_scaling_at_extreme_and_repeated_widths():
    widths = np.array([1e3, 1e9, 1e18, 1e18])
    found = statistics.fit_scaling(widths, *theory(widths, 1e6), limit=INFINITE_WIDTH)
    assert found.limit.model == "tau_inf + k/m"
    assert found.covers_limit is True
    assert found.limit.value == pytest.approx(INFINITE_WIDTH, rel=1e-9)
    assert found.mean_exponent.value == pytest.approx(0.5, abs=1e-6)


def test_scaling_refuses_what_it_cannot_fit():
    two = np.array([1.0, 2.0])
    for widths in ([5, 5], [5.0, 5.0 + 1e-9], [5]):
        column = np.ones(len(widths))
        with pytest.raises(ValueError, match="`widths` must have at least 2 different values"):
            statistics.fit_scaling(widths, *[column] * 4)
    with pytest.raises(ValueError, match="`widths` must have at least 2 different values"):
        statistics.fit_scaling([], *[[]] * 4)
    for name, position in (("widths", 0), ("means", 1), ("standard_errors", 2), ("deviations", 3)):
        arguments = [two] * 5
        arguments[position] = np.array([1.0, -2.0])
        with pytest.raises(ValueError, match=f"`{name}` must"):
            statistics.fit_scaling(*arguments)
    with pytest.raises(ValueError, match="`deviations` must have 2 entries, but has 3"):
        statistics.fit_scaling(two, two, two, np.ones(3), two)
    with pytest.raises(ValueError, match="`widths` must have one axis"):
        statistics.fit_scaling(two[:, None], two, two, two, two)


# Comparison


def test_compare_against_scipy():
    rng = np.random.default_rng(22)
    first, second = rng.gamma(2.0, size=300), 1.2 * rng.gamma(2.0, size=200)
    found = statistics.compare(first, second, 0.9)
    test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(0.9)
    assert found.difference == pytest.approx(first.mean() - second.mean(), rel=ROUNDING)
    assert found.p_value == pytest.approx(test.pvalue, rel=100 * ROUNDING)
    assert found.difference_lower == pytest.approx(interval.low, rel=100 * ROUNDING)
    assert found.difference_upper == pytest.approx(interval.high, rel=100 * ROUNDING)
    ratio = first.var(ddof=1) / second.var(ddof=1)
    assert found.variance_ratio == pytest.approx(ratio, rel=ROUNDING)
    assert found.variance_ratio_lower < ratio < found.variance_ratio_upper
    law = stats.ks_2samp(first, second)
    assert (found.ks_statistic, found.ks_p_value) == pytest.approx(tuple(law), rel=ROUNDING)
    assert (found.first.count, found.second.count) == (300, 200)


def test_compare_intervals_cover():
    rng = np.random.default_rng(23)
    # The Kolmogorov-Smirnov test apart, which takes most of the time, at the same counts.
    found = [
        statistics.compare(rng.gamma(4.0, size=300), rng.normal(3.0, 1.0, size=500))
        for _ in range(REPETITIONS)
    ]
    assert_covers([(f.difference_lower, f.difference_upper) for f in found], 1.0)
    # Conservative, as those of the variances are.
    held = [c.variance_ratio_lower <= 4.0 <= c.variance_ratio_upper for c in found]
    assert np.mean(held) >= least_covered(0.95)


def test_compare_of_equal_or_few_samples():
    constant = np.full(10, 0.1)
    same = statistics.compare(constant, constant)
    assert (same.difference, same.p_value, same.ks_statistic, same.ks_p_value) == (0, 1, 0, 1)
    assert (same.difference_lower, same.difference_upper) == (0, 0)
    assert math.isnan(same.variance_ratio)
    other = statistics.compare(constant, constant + 1)
    assert (other.p_value, other.ks_statistic) == (0, 1)
    assert other.difference_lower == other.difference_upper == other.difference
    half = statistics.compare(constant, [1.0, 2.0, 3.0, 4.0])
    assert 0 < half.p_value < 0.1
    assert half.difference_lower < -2.4 < half.difference_upper
    few = statistics.compare([1.0, 2.0], [1.0, 3.0])
    assert few.variance_ratio == 0.25
    assert math.isnan(few.variance_ratio_lower)
    for values in ([], [1.0]):
        with pytest.raises(ValueError, match=f"`second` must have at least 2.*{len(values)}"):
            statistics.compare([1.0, 2.0], values)


@pytest.mark.parametrize("sizes", [(2, 5000), (999, 1000), (1024, 1024), (1025, 1023), (7, 40_000)])
@pytest.mark.parametrize("shift", [0.0, 0.2, 20.0])
def test_compare_at_any_size_without_warning(sizes, shift):
    rng = np.random.default_rng(24)
    first, second = (rng.standard_normal(size).round(3) for size in sizes)
    found = statistics.compare(first, second + shift)
    assert 0 <= found.ks_p_value <= 1
    assert 0 <= found.p_value <= 1


# Running mean


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_running_mean_against_prefixes(dtype):
    values = np.random.default_rng(25).gamma(2.0, size=5003).astype(dtype)
    chunks = Chunks(values)
    found = statistics.running_mean(chunks, 30)
    assert chunks.passes == 1
    assert (found.counts[0], found.counts[-1]) == (2, values.size)
    assert 25 <= found.counts.size <= 30
    # Evenly spaced once integers are: neither gaps nor crowds.
    ratios = np.diff(np.log(found.counts[found.counts > 30]))
    assert ratios.max() < 1.5 * ratios.min()
    exact = values.astype(np.float64)
    for count, mean, error in zip(found.counts, found.means, found.standard_errors, strict=True):
        assert mean == pytest.approx(exact[:count].mean(), rel=ROUNDING)
        assert error == pytest.approx(float(stats.sem(exact[:count])), rel=ROUNDING)


def test_running_mean_of_few_samples():
    for values in ([], [1.0]):
        found = statistics.running_mean(lambda values=values: [np.array(values)])
        assert found.counts.size == found.means.size == found.standard_errors.size == 0
    two = statistics.running_mean(lambda: [np.array([1.0]), np.array([3.0])])
    assert (two.counts.tolist(), two.means.tolist()) == ([2], [2.0])
    assert two.standard_errors.tolist() == [1.0]
    five = statistics.running_mean(lambda: [np.arange(5.0)])
    assert five.counts.tolist() == [2, 3, 4, 5]
    ends = statistics.running_mean(lambda: [np.arange(1000.0)], 2)
    assert ends.counts.tolist() == [2, 1000]
    with pytest.raises(ValueError, match="`num_points` must be at least 2, but is 1"):
        statistics.running_mean(lambda: [np.arange(5.0)], 1)
