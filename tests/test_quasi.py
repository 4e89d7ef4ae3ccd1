import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import EPS
from scipy import stats

import jaxcond as jc
from jaxcond.sampling import (
    QuasiDraws,
    chi_quantile,
    entry_moments,
    entry_names,
    leading_entries,
    sobol_entries,
)
from jaxcond.statistics import by_replicate, replicated

# Of the inverse distribution functions: SciPy's for few degrees of freedom, and our series.
QUANTILE = 24 * EPS
# As in test_ensembles: fixed keys, and comparisons that a right sampler fails this rarely.
SMALLEST_P_VALUE = 1e-4
SIGMAS = 5
# The same sample solved by another program.
REPRODUCED = 4e3 * EPS

SEED, RTOL, NUM = 7, 1e-8, 4096
# Unequal widths and scales, for which every entry has another law.
P, Q = 20, 12
SCALES = (0.8, 1.2, 0.5)
DIM, WIDER = 12, 24
# Mean and deviation of sqrt(m) T* at width m, to leading orders in 1/m: THEORY, section 8.
INFINITE_WIDTH, MEAN_SHIFT, DEVIATION = 1.167972771072370, 0.61445, 0.533812
WIDTH = 200


def law(degrees):
    return stats.norm() if degrees < 0 else stats.chi(degrees)


def degrees_of(p, q, num=36):
    """Degrees of freedom by entry, -1 for normal ones and 0 for none, written out again."""
    degrees = {"|a|": p, "|c|": q}
    for j in range(1, DIM + 1):
        degrees[f"T{j}{j}"] = -1 if j <= min(p, q) else 0
        degrees[f"T{j}{j + 1}"] = max(q - j, 0) if j <= p else 0
        degrees[f"T{j + 1}{j}"] = max(p - j, 0) if j <= q else 0
    return list(degrees.values())[:num]


def residual(degrees, u, x):
    """How far the distribution function at x is from u, as a relative error of x."""
    with mpmath.workdps(40):
        k, u, x = mpmath.mpf(degrees), mpmath.mpf(float(u)), mpmath.mpf(float(x))

        def density(r):
            log = (k - 1) * mpmath.log(r) - r * r / 2 - (k / 2 - 1) * mpmath.log(2)
            return mpmath.exp(log - mpmath.loggamma(k / 2))

        above = u > 0.5
        if k < 1e4:
            ends = (x * x / 2, mpmath.inf) if above else (0, x * x / 2)
            tail = mpmath.gammainc(k / 2, *ends, regularized=True)
        else:
            steps = (0, 0.5, 1, 2, 3, 4, 6, 9, 12)
            tail = mpmath.quad(density, sorted(x + (d if above else -d) for d in steps))
        miss = (1 - u - tail) if above else tail - u
        return abs(float(miss / density(x) / x))


@pytest.mark.parametrize("degrees", [1, 2, 3, 199, 9999, 10_000, 1e6, 1e9, 1e15])
def test_chi_quantiles_keep_their_digits_in_both_tails(degrees):
    for u in (2.0**-53, 1e-9, 0.02, 0.5, 0.9, 1 - 2.0**-30, 1 - 2.0**-53):
        (x,) = chi_quantile(degrees, np.array([u]))
        assert residual(degrees, u, x) < QUANTILE, u


@pytest.fixture(scope="module")
def one_replicate():
    return sobol_entries(P, Q, 1024, seed=SEED, num_replicates=1)


def test_every_entry_has_its_law_to_one_part_in_the_number_of_points(one_replicate):
    # A scrambled net has one point in each of 1024 cells of equal probability, on every axis.
    for values, degrees in zip(one_replicate.T, degrees_of(P, Q), strict=True):
        if degrees == 0:
            np.testing.assert_array_equal(values, 0)
            continue
        cells = np.floor(1024 * law(degrees).cdf(values))
        np.testing.assert_array_equal(np.sort(cells), np.arange(1024))
        assert stats.kstest(values, law(degrees).cdf).statistic < 1 / 1024


def test_pairs_of_entries_fill_the_square(one_replicate):
    # The first two coordinates are a net in base 2: one point in each 32 by 32 cell.
    u = np.stack([law(k).cdf(x) for k, x in zip((P, Q), one_replicate.T, strict=False)])
    cells = np.floor(32 * u).astype(int)
    assert np.unique(32 * cells[0] + cells[1]).size == 1024


def test_replicates_are_independent():
    # First points of replicates: uniform in the cube, each by itself and with the others.
    count = 120
    entries = sobol_entries(1e9, 1e9, count, seed=SEED, num_replicates=count)
    center = np.where(np.array(degrees_of(1e9, 1e9)) < 0, 0, np.sqrt(1e9 - np.array(
        [0, 0, *[j for j in range(1, DIM + 1) for _ in range(3)]][:36]) - 0.5))  # fmt: skip
    scale = np.where(center == 0, 1, np.sqrt(0.5))
    u = stats.norm.cdf((entries - center) / scale)
    assert stats.kstest(u.ravel(), "uniform").pvalue > SMALLEST_P_VALUE
    correlation = np.corrcoef(u.T) - np.eye(36)
    assert np.abs(correlation).max() < SIGMAS / np.sqrt(count)
    # Neighbouring replicates, too.
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < SIGMAS / np.sqrt(u.size)


def test_another_seed_is_another_scramble():
    one, other = (sobol_entries(P, Q, 8, seed=seed) for seed in (SEED, SEED + 2**40))
    assert np.all((one != other)[:, np.array(degrees_of(P, Q)) != 0])


def test_points_depend_on_their_index_only():
    entries = sobol_entries(P, Q, 3000, seed=SEED)
    np.testing.assert_array_equal(entries[:700], sobol_entries(P, Q, 700, seed=SEED))
    for indices in (
        np.arange(1000, 1700),
        np.array([2999, 0, 17, 17, 2000, 16]),
        np.arange(5, 3000, 16, dtype=np.uint32),
    ):
        np.testing.assert_array_equal(sobol_entries(P, Q, indices, seed=SEED), entries[indices])
    # Far along a sequence, by jumps over what lies between.
    far = 16 * 30_000
    run = sobol_entries(P, Q, np.arange(far - 16 * 300, far + 1, 16), seed=SEED)
    np.testing.assert_array_equal(sobol_entries(P, Q, [0, far], seed=SEED)[1], run[-1])
    np.testing.assert_array_equal(sobol_entries(P, Q, [0, far], seed=SEED)[0], entries[0])


def test_widths_of_any_size_have_their_fluctuations():
    entries = sobol_entries(1e15, 1e12, 1024, seed=SEED, num_replicates=1)
    for column, width in ((0, 1e15), (1, 1e12)):
        normal = (entries[:, column] - np.sqrt(width)) * np.sqrt(2)
        # The spacing of numbers near 3e7 is 4e-9, far below.
        assert stats.kstest(normal, "norm").statistic < 1.1 / 1024


@functools.partial(jax.jit, static_argnames="num")
def drawn_entries(ensemble, keys, num):
    return jax.vmap(lambda key: leading_entries(ensemble.sample_reduced(key=key), num))(keys)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 5), (2, 5), (5, 2), (3, 5), (5, 3), (3, 3)])
def test_entries_end_where_those_of_the_ensemble_end(p, q):
    ensemble = jc.Gaussian(jnp.array(float(p)), jnp.array(float(q)))
    # Entries up to the eleventh diagonal one: the last ones of a state have no neighbours.
    drawn = np.asarray(drawn_entries(ensemble, jax.random.split(jax.random.key(1), 4), 36 - 2))
    entries = sobol_entries(p, q, 256, seed=SEED, num_replicates=1)
    np.testing.assert_array_equal(np.any(entries != 0, 0)[:34], np.any(drawn != 0, 0))
    for values, degrees in zip(entries.T, degrees_of(p, q), strict=True):
        if degrees:
            cells = np.floor(256 * law(degrees).cdf(values))
            np.testing.assert_array_equal(np.sort(cells), np.arange(256))


@pytest.mark.parametrize("dim", [8, DIM, WIDER])
def test_draws_are_the_ensembles_samples_with_these_entries(dim):
    indices, key = np.array([40, 3, 11]), jax.random.key(2)
    ensemble = jc.Gaussian(jnp.array(300.0), jnp.array(200.0), SCALES)
    entries = sobol_entries(300, 200, indices, seed=SEED)
    source = QuasiDraws(ensemble, key, jnp.asarray(indices), jnp.asarray(entries))
    assert source.truncated
    source = source.suited_to(jc.Series(dim=dim))
    positions = jnp.arange(3)
    state = jax.jit(jax.vmap(source))(positions)
    assert state.widths == (dim, dim)
    given = 3 * min(dim, DIM)
    scale = np.array([SCALES[0], SCALES[2], *[SCALES[1]] * 34])[:given]
    np.testing.assert_allclose(
        leading_entries(state, given), (scale * entries[:, :given]), rtol=4 * EPS
    )
    # What is not given: nothing beside the three diagonals, and the ensemble's beyond.
    i, j = np.indices((dim, dim))
    b = np.asarray(state.b)
    np.testing.assert_array_equal(b[:, abs(i - j) > 1], 0)
    if dim > DIM:
        keys = jax.vmap(lambda index: jc.sample_key(key, index))(jnp.asarray(indices))
        plain = jax.jit(jax.vmap(lambda k: ensemble.sample_reduced(key=k, dim=dim)))(keys)
        beyond = np.maximum(i, j) >= DIM
        np.testing.assert_allclose(b[:, beyond], plain.b[:, beyond], rtol=4 * EPS)


@pytest.fixture(scope="module")
def quasi_times():
    """Of the widest plan below: 4096 samples of width 200 in 16 replicates, at two seeds."""
    ensemble = jc.Gaussian(WIDTH, WIDTH)
    return [
        jc.blowup_times(ensemble.quasi(NUM, key=jax.random.key(seed), seed=seed), rtol=RTOL)
        for seed in (SEED, SEED + 1)
    ]


def mean_of(times):
    scaled = np.sqrt(WIDTH) * np.asarray(times)
    return replicated(by_replicate(scaled, np.arange(scaled.size) % 16, 16))


def test_the_mean_is_that_of_plain_sampling(quasi_times):
    ensemble = jc.Gaussian(jnp.array(float(WIDTH)), jnp.array(float(WIDTH)))
    plain = jc.blowup_times(ensemble.draws(20_000, key=jax.random.key(3)), rtol=RTOL)
    scaled = np.sqrt(WIDTH) * np.asarray(plain.time)
    error = scaled.std() / np.sqrt(scaled.size)
    expected = INFINITE_WIDTH + MEAN_SHIFT / WIDTH
    for times in quasi_times:
        assert times.counts()["converged"] == NUM
        found = mean_of(times.time)
        assert abs(found.mean - scaled.mean()) < SIGMAS * np.hypot(error, found.standard_error)
        # The expansion leaves out terms of order 1/m^2, with a factor below one.
        assert abs(found.mean - expected) < SIGMAS * found.standard_error + WIDTH**-2


def test_the_error_beats_a_hundred_thousand_plain_samples(quasi_times):
    plain = DEVIATION / np.sqrt(WIDTH) / np.sqrt(1e5)
    for times in quasi_times:
        # Measured over 40 seeds: 1.1e-5 to 2.6e-5, against 1.2e-4.
        assert mean_of(times.time).standard_error < plain / 3
    # And it is an honest error: seeds agree within it.
    one, other = (mean_of(times.time) for times in quasi_times)
    error = np.hypot(one.standard_error, other.standard_error)
    assert abs(one.mean - other.mean) < SIGMAS * error


def test_times_depend_on_their_index_only(quasi_times):
    ensemble, indices, counted = jc.Gaussian(WIDTH, WIDTH), [4000, 3, 16, 3], []
    samples = ensemble.quasi(indices, key=jax.random.key(SEED), seed=SEED)
    some = jc.blowup_times(samples, rtol=RTOL, progress=counted.append)
    np.testing.assert_allclose(some.time, quasi_times[0].time[np.array(indices)], rtol=REPRODUCED)
    assert sum(counted) == 4


def test_entries_have_their_names():
    assert entry_names() == ("|a|", "|c|", "T11", "T12", "T21", "T22", "T23", "T32")
    assert entry_names(1) == ("|a|",)
    assert entry_names(36)[-4:] == ("T11,11", "T11,12", "T12,11", "T12,12")


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 5), (P, Q), (5, 2)])
@pytest.mark.parametrize("num", [1, 2, 8, 36])
def test_moments_are_those_of_the_laws(p, q, num):
    means, variances = entry_moments(p, q, SCALES, num)
    scales = np.array([SCALES[0], SCALES[2], *[SCALES[1]] * 34])[:num]
    laws = [law(k) if k else stats.uniform(0, 0) for k in degrees_of(p, q, num)]
    expected = [(rule.mean(), rule.var()) if k else (0, 0) for k, rule in
                zip(degrees_of(p, q, num), laws, strict=True)]  # fmt: skip
    mean, variance = np.array(expected).T
    # SciPy takes the variance as a difference: digits are lost like the degrees of freedom.
    np.testing.assert_allclose(means, scales * mean, rtol=100 * EPS)
    np.testing.assert_allclose(variances, scales**2 * variance, rtol=1e4 * EPS)


def test_moments_are_those_of_the_points(one_replicate):
    means, variances = entry_moments(P, Q, num=36)
    # The error of a net of n points in one variable is of order 1/n; tails double it.
    np.testing.assert_allclose(one_replicate.mean(0), means, atol=4 / 1024)
    np.testing.assert_allclose(one_replicate.var(0), variances, atol=20 / 1024)


def test_leading_entries_are_read_off_a_state():
    b = np.arange(16.0).reshape(4, 4) + 1
    state = jc.State.from_vectors(np.eye(4)[0] * 50, b, np.eye(4)[0] * 60)
    np.testing.assert_array_equal(
        leading_entries(state, 11), [50, 60, 1, 2, 5, 6, 7, 10, 11, 12, 15]
    )
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), state)
    np.testing.assert_array_equal(leading_entries(batch), np.outer([1, 2], leading_entries(state)))
    assert leading_entries(state, 1).shape == (1,)


def test_leading_entries_need_a_state_that_has_them():
    state = jc.State.from_vectors(np.eye(2)[0], np.eye(2), np.eye(2)[0])
    assert leading_entries(state, 6).shape == (6,)
    with pytest.raises(ValueError, match=r"first 7 entries need widths of at least 3"):
        leading_entries(state, 7)
    with pytest.raises(ValueError, match="`num` must be positive, but is 0"):
        leading_entries(state, 0)
    higher = jc.State(jnp.ones((2, 4)), jnp.ones((4, 4)), jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match="rank 1, not 2"):
        leading_entries(higher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 0}, "`p` must be a positive whole number, but is 0"),
        ({"q": 2.5}, "`q` must be a positive whole number, but is 2.5"),
        ({"seed": -1}, "`seed` must lie between"),
        ({"num_replicates": 0}, "`num_replicates` must be positive, but is 0"),
        ({"dim": 0}, "`dim` must be positive, but is 0"),
        ({"indices": 0}, "`indices` must be a positive number of samples, but is 0"),
        ({"indices": [3, -1]}, "`indices` must not be negative, but holds -1"),
        ({"indices": np.array([0.5])}, "list of whole numbers"),
    ],
)
def test_arguments_out_of_range(change, message):
    arguments = {"p": P, "q": Q, "indices": 4, "seed": SEED} | change
    with pytest.raises(ValueError, match=message):
        sobol_entries(arguments.pop("p"), arguments.pop("q"), arguments.pop("indices"), **arguments)


def test_large_indices_need_large_integers(key):
    with jax.enable_x64(False), pytest.raises(ValueError, match="enable `jax_enable_x64`"):
        jc.Gaussian(9, 9).quasi([2**32], key=key, seed=SEED)
