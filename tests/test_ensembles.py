import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS
from scipy import special, stats

import jaxcond as jc
from jaxcond.sampling import chi_of_key as _chi

# Keys are fixed, so these tests either always pass or always fail; a right sampler passes each of
# the roughly eighty comparisons of this file with this probability of being rejected by chance.
SMALLEST_P_VALUE = 1e-4
# Means and deviations are compared within so many standard errors.
SIGMAS = 5
# The same sample solved by another program: a few units of rounding, in a batch of thousands of
# which the worst has a blow-up time of condition 1e3.
REPRODUCED = 4e3 * EPS

INFINITE_WIDTH = 1.167972771072370061114301568
# At width m, unit scales: the mean and the deviation of sqrt(m) T* are, to leading order,
# INFINITE_WIDTH + MEAN_SHIFT / m and DEVIATION / sqrt(m).
MEAN_SHIFT = 0.61445
DEVIATION = 0.533812

NUM_DRAWS = 5000
DIM = 12
ONES = (1.0, 1.0, 1.0)
# Unequal widths and scales, for which every entry has another law.
P, Q = 20, 12
SCALES = (0.8, 1.2, 0.5)

# One cheap method and tolerance for all, so that the solver is compiled as seldom as possible. It
# settles nearly all states; what it makes of the others is a function of the state all the same.
METHODS = (jc.Series(order=20, dim=8, max_expansions=1),)
RTOL = 1e-3
SETTLED = 0.97
ONE_EXPANSION = jc.Series(dim=24, max_expansions=1)


def as_arrays(p, q, scales=ONES):
    """The ensemble with widths and scales as arrays: one program serves all of them."""
    return jc.Gaussian(
        jnp.asarray(float(p)), jnp.asarray(float(q)), tuple(jnp.asarray(s) for s in scales)
    )


@functools.partial(jax.jit, static_argnames="dim")
def draw(ensemble, keys, dim=DIM):
    return jax.vmap(lambda key: ensemble.sample_reduced(key=key, dim=dim))(keys)


@functools.cache
def keys(seed=11):
    return jax.random.split(jax.random.key(seed), NUM_DRAWS)


def entries(states):
    """The random entries of reduced states, by name."""
    a, b, c = (np.asarray(layer) for layer in states.layers)
    named = {"|a|": a[:, 0, 0], "|c|": c[:, 0, 0]}
    for i in range(3):
        named[f"T{i + 1}{i + 1}"] = b[:, i, i]
        named[f"T{i + 1}{i + 2}"] = b[:, i, i + 1]
        named[f"T{i + 2}{i + 1}"] = b[:, i + 1, i]
    return named


def laws(p, q, scales):
    """The distribution of each entry, from SciPy."""
    scale_a, scale_b, scale_c = scales
    named = {"|a|": stats.chi(p, scale=scale_a), "|c|": stats.chi(q, scale=scale_c)}
    for i in range(3):
        named[f"T{i + 1}{i + 1}"] = stats.norm(scale=scale_b)
        named[f"T{i + 1}{i + 2}"] = stats.chi(q - i - 1, scale=scale_b)
        named[f"T{i + 2}{i + 1}"] = stats.chi(p - i - 1, scale=scale_b)
    return named


def sampled(ensemble, indices, *, progress=None, **options):
    samples = ensemble.draws(indices, key=jax.random.key(5), **options)
    return jc.blowup_times(samples, rtol=RTOL, methods=METHODS, progress=progress)


@pytest.fixture(scope="module")
def full_states():
    """States at full width with the keys of samples 0, 1, 2, …"""
    ensemble = jc.Gaussian(P, Q, SCALES)

    @jax.jit
    @jax.vmap
    def sample(index):
        return ensemble.sample(key=jc.sample_key(jax.random.key(5), index))

    return sample(jnp.arange(NUM_DRAWS, dtype=jnp.uint32))


@pytest.fixture(scope="module")
def full_times(full_states):
    return jc.blowup_times(full_states, rtol=RTOL, methods=METHODS)


@pytest.fixture(scope="module")
def wide_times():
    """Many samples of width 200."""
    return sampled(as_arrays(200, 200), 20_000)


def chi(degrees, num=20_000, dtype=np.float64, seed=3):
    flat = jnp.full(num, degrees, dtype)
    return np.asarray(jax.jit(_chi)(flat, key=jax.random.key(seed)), np.float64)


# 500 to 5000 is where the two forms of the acceptance test meet.
@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 100, 500, 1000, 5000])
def test_chi_has_the_chi_law(degrees):
    assert stats.kstest(chi(degrees), stats.chi(degrees).cdf).pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize("degrees", [1e6, 1e9, 1e12, 1e15])
def test_chi_keeps_its_fluctuations_at_huge_degrees(degrees):
    # chi_k tends to N(sqrt(k - 1/2), 1/2); the skewness left at k = 1e6 is 1e-3, far below what so
    # many samples resolve.
    sample = chi(degrees)
    normal = stats.norm(np.sqrt(degrees - 0.5), np.sqrt(0.5))
    assert stats.kstest(sample, normal.cdf).pvalue > SMALLEST_P_VALUE
    error = 1 / np.sqrt(sample.size)
    relative = sample / np.sqrt(degrees)
    expected = 1 / np.sqrt(2 * degrees)
    assert abs(relative.mean() - np.sqrt(1 - 0.5 / degrees)) < SIGMAS * expected * error
    assert abs(relative.std() / expected - 1) < SIGMAS * error / np.sqrt(2)


@pytest.mark.parametrize("degrees", [1, 5, 1000, 1e6])
def test_chi_in_single_precision(degrees):
    sample = chi(degrees, dtype=np.float32)
    assert stats.kstest(sample, stats.chi(degrees).cdf).pvalue > SMALLEST_P_VALUE


def test_chi_with_no_degrees_is_zero():
    np.testing.assert_array_equal(chi(0), 0)


def test_chi_of_mixed_degrees():
    # Each entry by its own degrees of freedom, whatever stands beside it.
    degrees = np.tile([0.0, 1.0, 4.0, 1e9], 5000)
    sample = np.asarray(jax.jit(_chi)(jnp.asarray(degrees), key=jax.random.key(8)))
    np.testing.assert_array_equal(sample[degrees == 0], 0)
    for k in (1, 4):
        assert stats.kstest(sample[degrees == k], stats.chi(k).cdf).pvalue > SMALLEST_P_VALUE
    normal = stats.norm(np.sqrt(1e9), np.sqrt(0.5))
    assert stats.kstest(sample[degrees == 1e9], normal.cdf).pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize(
    ("p", "q", "scales"),
    [(P, Q, SCALES), (50, 50, ONES), (4, 300, (2.0, 0.1, 1.0)), (300, 4, (1.0, 1.0, 3.0))],
)
def test_reduced_samples_have_the_exact_law(p, q, scales):
    found = entries(draw(as_arrays(p, q, scales), keys()))
    for name, law in laws(p, q, scales).items():
        assert stats.kstest(found[name], law.cdf).pvalue > SMALLEST_P_VALUE, name


def test_reduced_samples_have_the_law_of_full_samples_reduced(full_states):
    reduced = jax.jit(jax.vmap(lambda state: jc.reduce(state, 4).state))(full_states)
    from_full = entries(reduced)
    direct = entries(draw(as_arrays(P, Q, SCALES), keys()))
    for name, law in laws(P, Q, SCALES).items():
        assert stats.kstest(from_full[name], law.cdf).pvalue > SMALLEST_P_VALUE, name
        test = stats.ks_2samp(direct[name], from_full[name])
        assert test.pvalue > SMALLEST_P_VALUE, name


def test_entries_of_reduced_samples_are_uncorrelated():
    found = np.stack(list(entries(draw(as_arrays(P, Q, SCALES), keys())).values()))
    correlation = np.corrcoef(found) - np.eye(len(found))
    assert np.abs(correlation).max() < SIGMAS / np.sqrt(NUM_DRAWS)


def test_full_samples_are_independent_normal_entries(full_states):
    for scale, layer in zip(SCALES, full_states.layers, strict=True):
        flat = np.asarray(layer).ravel()[:100_000]
        assert stats.kstest(flat, stats.norm(scale=scale).cdf).pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize(("p", "q"), [(2, 3), (3, 2), (1, 1), (1, 5), (2, 2)])
def test_narrow_reduced_samples_end_where_the_matrix_ends(p, q):
    states = draw(as_arrays(p, q), keys())
    a, b, c = (np.asarray(layer) for layer in states.layers)
    assert b.shape == (NUM_DRAWS, DIM, DIM)
    inside = np.zeros((DIM, DIM), bool)
    for i in range(p):
        inside[i, max(0, i - 1) : min(i + 2, q)] = True
    np.testing.assert_array_equal(b[:, ~inside], 0)
    assert np.all(b[:, inside] != 0)
    np.testing.assert_array_equal(a[:, :, 1:], 0)
    np.testing.assert_array_equal(c[:, :, 1:], 0)
    found, expected = entries(states), laws(max(p, 4), max(q, 4), ONES)
    expected |= {"|a|": stats.chi(p), "|c|": stats.chi(q)}
    if q > 1:
        expected["T12"] = stats.chi(q - 1)
    if p > 1:
        expected["T21"] = stats.chi(p - 1)
    for name in ("|a|", "|c|", "T11", "T12", "T21"):
        if np.any(found[name]):
            assert stats.kstest(found[name], expected[name].cdf).pvalue > SMALLEST_P_VALUE, name


@pytest.mark.parametrize("dim", [5, 8])
def test_more_dimensions_continue_a_sample(dim):
    ensemble = as_arrays(P, Q, SCALES)
    short, long = draw(ensemble, keys(), dim), draw(ensemble, keys())
    np.testing.assert_array_equal(short.b, long.b[:, :dim, :dim])
    np.testing.assert_array_equal(short.a, long.a[:, :, :dim])
    np.testing.assert_array_equal(short.c, long.c[:, :, :dim])


def test_samples_have_the_dtype_asked_for(key):
    for dtype in (jnp.float32, jnp.float64):
        for sample in (jc.Gaussian(3, 4).sample, jc.Gaussian(3, 4).sample_reduced):
            shape = jax.eval_shape(functools.partial(sample, key=key, dtype=jnp.dtype(dtype)))
            assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype(dtype)}


def test_a_sweep_over_widths_compiles_once():
    traces = []

    @jax.jit
    def sweep(p, q, key):
        traces.append(None)
        return jc.Gaussian(p, q).sample_reduced(key=key, dim=2).b

    found = [sweep(jnp.asarray(m), jnp.asarray(2 * m), jax.random.key(0)) for m in (3, 50, 10**9)]
    assert len(traces) == 1
    # T21 is about sqrt(p) and T12 about sqrt(q), each with deviation sqrt(1/2).
    assert abs(found[-1][1, 0] - np.sqrt(1e9)) < SIGMAS
    assert abs(found[-1][0, 1] - np.sqrt(2e9)) < SIGMAS


def test_blowup_times_of_a_sweep_compile_once(wide_times, caplog):
    assert wide_times.time.size >= 20_000
    sampled(as_arrays(80, 100), 1500)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x + 1)(jnp.zeros(1))
        for width in (60, 90):
            sampled(as_arrays(width, 100), 1500)
    messages = [record.getMessage() for record in caplog.records]
    assert any("lambda" in message for message in messages)
    assert not any("_chunk" in message for message in messages)


def test_array_widths_give_the_same_numbers_as_integers():
    found = draw(as_arrays(P, Q, SCALES), keys())
    integers = jc.Gaussian(P, Q, SCALES)
    expected = jax.jit(lambda key: integers.sample_reduced(key=key, dim=2))(keys()[3])
    np.testing.assert_allclose(found.b[3, :2, :2], expected.b, rtol=4 * EPS)
    np.testing.assert_allclose(found.a[3, :, :2], expected.a, rtol=4 * EPS)


def test_blowup_times_have_the_law_of_full_states(full_times):
    reduced = sampled(as_arrays(P, Q, SCALES), NUM_DRAWS)
    for found in (reduced, full_times):
        assert found.counts()["converged"] > SETTLED * NUM_DRAWS
    # Not the same numbers, but the same law.
    assert not np.any(np.asarray(reduced.time) == np.asarray(full_times.time))
    assert stats.ks_2samp(reduced.time, full_times.time).pvalue > SMALLEST_P_VALUE


def test_blowup_times_of_full_samples_are_those_of_the_states(full_times):
    # In any order, any company, and drawn where they are solved.
    indices = np.random.default_rng(0).permutation(NUM_DRAWS)[:1500]
    found = sampled(jc.Gaussian(P, Q, SCALES), indices, reduced=False)
    np.testing.assert_allclose(found.time, full_times.time[indices], rtol=REPRODUCED)


def test_samples_do_not_depend_on_their_number_or_order(wide_times):
    ensemble = as_arrays(200, 200)
    np.testing.assert_array_equal(sampled(ensemble, 1500).time, wide_times.time[:1500])
    order = np.random.default_rng(1).permutation(20_000)[:1300]
    np.testing.assert_array_equal(sampled(ensemble, order).time, wide_times.time[order])
    listed = [int(i) for i in order]
    np.testing.assert_array_equal(sampled(ensemble, listed).time, wide_times.time[order])


def test_indices_beyond_32_bits(wide_times):
    indices = [700, 2**32 + 3, 3, 2**33 + 3, 2**32, 0, 2**62 + 3]
    found = np.asarray(sampled(as_arrays(200, 200), indices).time)
    # All different, and those below 2^32 the same as among 32-bit indices and in another batch.
    assert len(set(found)) == len(indices)
    near = [i for i, index in enumerate(indices) if index < 2**32]
    expected = np.asarray(wide_times.time)[np.asarray(indices)[near]]
    np.testing.assert_allclose(found[near], expected, rtol=REPRODUCED)


def test_sample_keys_are_distinct_and_independent_of_the_integer(key):
    def data(index):
        return tuple(np.asarray(jax.random.key_data(jc.sample_key(key, index))).tolist())

    for index in (0, 7, 2**31 - 1):
        assert data(jnp.asarray(index, jnp.int64)) == data(jnp.asarray(index, jnp.uint32))
        assert data(jnp.asarray(index, jnp.int32)) == data(index)
    large = [jnp.asarray(i, jnp.int64) for i in (0, 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1)]
    assert len({data(index) for index in large}) == len(large)


def test_progress_adds_up_to_the_number_of_samples():
    finished = []
    sampled(as_arrays(200, 200), 1500, progress=finished.append)
    assert sum(finished) == 1500
    assert min(finished) > 0


def test_finite_width_approaches_the_limit_as_known(wide_times):
    times = np.sqrt(200) * np.asarray(wide_times.time)
    n, m = times.size, 200
    assert wide_times.counts()["converged"] == n
    error = times.std(ddof=1) / np.sqrt(n)
    # The solver's share is negligible.
    assert np.sqrt(m) * np.asarray(wide_times.error).mean() < 0.01 * error
    assert abs(times.mean() - (INFINITE_WIDTH + MEAN_SHIFT / m)) < SIGMAS * error
    # So many samples tell the correction from none.
    assert abs(times.mean() - INFINITE_WIDTH) > SIGMAS * error
    # The sampling error of a deviation, and a correction of relative order 1/m with constant 2.
    tolerance = SIGMAS / np.sqrt(2 * n) + 2 / m
    assert abs(times.std(ddof=1) * np.sqrt(m) / DEVIATION - 1) < tolerance


def limit_time(**options):
    found = jc.blowup_time(jc.infinite_width(dim=24, **options), ONE_EXPANSION)
    assert int(found.status) == jc.Status.CONVERGED
    return found


def test_infinite_width_blowup_time():
    found = limit_time()
    assert abs(float(found.time) / INFINITE_WIDTH - 1) < 1e-14
    assert found.lower <= INFINITE_WIDTH * (1 + 1e-14)
    assert found.upper >= INFINITE_WIDTH * (1 - 1e-14)


@pytest.mark.parametrize(("aspect", "scales"), [(1.0, (1.0, 0.5, 2.0)), (4.0, (1.0, 0.5, 2.0))])
def test_infinite_width_under_transposition(aspect, scales):
    # Read from the other end, aspect alpha and (s_a, s_b, s_c) become 1 / alpha and
    # (s_c, s_b, s_a), with everything multiplied by sqrt(alpha).
    there = limit_time(aspect=aspect, scales=scales)
    back = limit_time(aspect=1 / aspect, scales=scales[::-1])
    difference = abs(float(there.time - back.time / np.sqrt(aspect)))
    # Both within their own estimates, of which the second is in units of its own.
    assert difference <= float(there.error + back.error)
    assert difference <= 1e-13 * float(there.time)


@pytest.mark.parametrize("aspect", [0.25, 1.0, 3.0])
def test_infinite_width_without_a_middle_layer_is_known_in_closed_form(aspect):
    # Layers that are aligned stay so, and their squared norms N solve N' = 2 sqrt(N_a N_b N_c).
    found = limit_time(aspect=aspect, scales=(0.7, 0.0, 1.3))
    expected = special.elliprf(aspect * 0.7**2, 0, 1.3**2)
    assert abs(float(found.time) - expected) <= float(found.error) < 2e-12


def test_wide_samples_tend_to_the_infinite_width_state():
    m = 1e12
    state = draw(as_arrays(3 * m, m, SCALES), keys())
    limit = jc.infinite_width(aspect=3.0, scales=SCALES, dim=DIM)
    for layer, expected, scale in zip(state.layers, limit.layers, SCALES, strict=True):
        # The largest of 2e5 normal numbers is hardly above 5; their deviation is at most `scale`.
        difference = np.abs(np.asarray(layer) / np.sqrt(m) - np.asarray(expected))
        assert difference.max() < 8 * scale / np.sqrt(m)


@pytest.mark.parametrize("width", [0, -3, 2.5, float("nan"), float("inf")])
def test_widths_are_positive_whole_numbers(width):
    for name, widths in (("p", (width, 4)), ("q", (4, width))):
        with pytest.raises(ValueError, match=f"Argument `{name}` must be a positive whole number"):
            jc.Gaussian(*widths)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_scales_are_finite_and_not_negative(scale, position):
    scales = [1.0, 1.0, 1.0]
    scales[position] = scale
    with pytest.raises(ValueError, match="Argument `scales` must be finite and not negative"):
        jc.Gaussian(3, 4, tuple(scales))


def test_dimensions_of_reduced_states(key):
    with pytest.raises(ValueError, match="Argument `dim` must be at least 2, but is 1"):
        jc.Gaussian(3, 4).sample_reduced(key=key, dim=1)
    with pytest.raises(ValueError, match="Argument `dim` must be at least 2, but is 1"):
        jc.infinite_width(dim=1)


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan"), float("inf")])
def test_aspects_are_positive_and_finite(aspect):
    with pytest.raises(ValueError, match="Argument `aspect` must be positive and finite"):
        jc.infinite_width(aspect=aspect)


def test_full_samples_need_integer_widths(key):
    with pytest.raises(ValueError, match="widths that are Python integers"):
        as_arrays(3, 4).sample(key=key)


@pytest.mark.parametrize("count", [0, -1])
def test_counts_are_positive(count):
    with pytest.raises(ValueError, match=f"positive number of samples, but is {count}"):
        sampled(jc.Gaussian(3, 4), count)


@pytest.mark.parametrize(
    "indices", [np.zeros((2, 2), int), np.zeros(0, int), np.ones(3), np.asarray(3)]
)
def test_indices_are_a_list_of_whole_numbers(indices):
    with pytest.raises(ValueError, match="a number of samples or a list of whole numbers"):
        sampled(jc.Gaussian(3, 4), indices)


def test_indices_are_not_negative():
    with pytest.raises(ValueError, match="must not be negative, but holds -2"):
        sampled(jc.Gaussian(3, 4), [0, -2, 5])


def test_large_indices_need_64_bit_integers(key):
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="above 4294967295 need 64-bit integers"),
    ):
        jc.Gaussian(3, 4).draws([2**32], key=key)


@pytest.mark.parametrize("rtol", [1e-20, -1.0, 0.0, 0.5, float("nan")])
def test_tolerances_lie_within_reach(rtol, key):
    with pytest.raises(ValueError, match="Argument `rtol` must lie between"):
        jc.blowup_times(jc.Gaussian(3, 4).draws(4, key=key), rtol=rtol)


def test_some_method_is_named(key):
    with pytest.raises(ValueError, match="at least one method"):
        jc.blowup_times(jc.Gaussian(3, 4).draws(4, key=key), methods=())
