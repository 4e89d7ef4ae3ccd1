import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import EPS
from safetensors.numpy import save_file
from scipy import stats

import jaxcond as jc
from jaxcond._reduction import pad
from jaxcond.ensembles import (
    Balanced,
    FromFunction,
    LowRank,
    Orthogonal,
    Uniform,
    read_states,
)

# Keys are fixed, so these tests either always pass or always fail; a right sampler passes each of
# the roughly ninety comparisons of this file with this probability of being rejected by chance.
SMALLEST_P_VALUE = 1e-4
# Means are compared within so many standard errors.
SIGMAS = 5
# A dozen operations on numbers of the size of the result.
ROUNDING = 16 * EPS

NUM_DRAWS = 4000
SCALES = (0.8, 1.2, 0.5)
SHAPES = [(5, 5), (7, 4), (4, 7), (2, 2), (3, 2), (1, 1), (4, 1), (1, 4)]


@functools.cache
def keys(seed=3):
    return jax.random.split(jax.random.key(seed), NUM_DRAWS)


def layers_of(states):
    """The layers of rank-one states: `(n, p)`, `(n, p, q)`, `(n, q)`."""
    a, b, c = (np.asarray(layer) for layer in states.layers)
    return a[:, 0], b, c[:, 0]


def full(ensemble):
    return jax.jit(jax.vmap(lambda key: ensemble.sample(key=key)))(keys(4))


@functools.partial(jax.jit, static_argnames="dim")
def draw(ensemble, keys, dim=4):
    return jax.vmap(lambda key: ensemble.sample_reduced(key=key, dim=dim))(keys)


def as_arrays(p, q):
    """Widths as arrays: one program serves all of them."""
    return Orthogonal(
        jnp.asarray(float(p)), jnp.asarray(float(q)), tuple(jnp.asarray(s) for s in SCALES)
    )


@functools.cache
def reduced_orthogonal(p, q):
    return draw(as_arrays(p, q), keys())


@functools.cache
def full_orthogonal(p, q):
    return full(Orthogonal(p, q, SCALES))


def invariants(states):
    """Functions of a state that do not change under rotations, and of which T* is one."""
    a, b, c = layers_of(states)
    bc, ba = np.einsum("nij,nj->ni", b, c), np.einsum("nij,ni->nj", b, a)
    bba, bbc = np.einsum("nij,nj->ni", b, ba), np.einsum("nij,ni->nj", b, bc)
    return {
        "energy": np.sum(a * bc, -1),
        "|bc|": np.linalg.norm(bc, axis=-1),
        "|b^T a|": np.linalg.norm(ba, axis=-1),
        "|b b^T a|": np.linalg.norm(bba, axis=-1),
        "|b^T b c|": np.linalg.norm(bbc, axis=-1),
        "a b b^T b c": np.sum(bba * bc, -1),
    }


def same_law(found, expected, name=""):
    """Two samples of one law, of which either may be a constant up to rounding."""
    size = np.abs(expected).max()
    if np.ptp(expected) <= ROUNDING * size:
        np.testing.assert_allclose(found, expected[0], rtol=2 * ROUNDING, atol=0, err_msg=name)
    elif len(np.unique(np.round(np.abs(expected) / size, 12))) == 1:  # one of two signs
        np.testing.assert_allclose(np.abs(found), size, rtol=2 * ROUNDING, err_msg=name)
        error = 1 / np.sqrt(len(found))
        assert abs(np.mean(np.sign(found)) - np.mean(np.sign(expected))) < SIGMAS * 2**0.5 * error
    else:
        assert stats.ks_2samp(found, expected, method="asymp").pvalue > SMALLEST_P_VALUE, name


def matches(text):
    return f".*{re.escape(text)}"


# Uniform entries.


def test_uniform_entries_have_the_uniform_law():
    states = full(Uniform(3, 2, SCALES))
    for scale, layer in zip(SCALES, layers_of(states), strict=True):
        law = stats.uniform(-np.sqrt(3) * scale, 2 * np.sqrt(3) * scale)
        flat = layer.reshape(NUM_DRAWS, -1)
        assert stats.kstest(flat.ravel(), law.cdf).pvalue > SMALLEST_P_VALUE
        # Means, deviations and independence of the entries.
        assert abs(flat.std() / scale - 1) < SIGMAS / np.sqrt(flat.size)
    every = np.concatenate([layer.reshape(NUM_DRAWS, -1) for layer in layers_of(states)], axis=1)
    correlation = np.corrcoef(every.T) - np.eye(every.shape[1])
    assert np.abs(correlation).max() < SIGMAS / np.sqrt(NUM_DRAWS)


# Orthogonal layers.


@pytest.mark.parametrize(("p", "q"), [(5, 5), (7, 4), (4, 7), (1, 4)])
def test_orthogonal_layers_are_orthogonal(p, q):
    a, b, c = layers_of(full_orthogonal(p, q))
    scale_a, scale_b, scale_c = SCALES
    small = b if p >= q else np.swapaxes(b, 1, 2)
    gram = np.einsum("nki,nkj->nij", small, small) / (scale_b**2 * max(p, q))
    np.testing.assert_allclose(gram - np.eye(min(p, q)), 0, atol=2 * ROUNDING)
    np.testing.assert_allclose(np.linalg.norm(a, axis=-1), scale_a * np.sqrt(p), rtol=ROUNDING)
    np.testing.assert_allclose(np.linalg.norm(c, axis=-1), scale_c * np.sqrt(q), rtol=ROUNDING)


def sphere_coordinate(size):
    """The law of a coordinate of a uniform unit vector."""
    half = (size - 1) / 2
    return stats.beta(half, half, loc=-1, scale=2)


@pytest.mark.parametrize(("p", "q"), [(5, 5), (7, 4), (4, 7)])
def test_orthogonal_layers_are_uniform(p, q):
    # Columns (rows) of a Haar matrix are uniform on the sphere, and so are a and c.
    states = full_orthogonal(p, q)
    a, b, c = layers_of(states)
    scale_a, scale_b, scale_c = SCALES
    for entry in ((0, 0), (p - 1, 0), (0, q - 1)):
        found = b[:, *entry] / (scale_b * np.sqrt(max(p, q)))
        law = sphere_coordinate(max(p, q))
        assert stats.kstest(found, law.cdf).pvalue > SMALLEST_P_VALUE
    for layer, norm in ((a, scale_a * np.sqrt(p)), (c, scale_c * np.sqrt(q))):
        law = sphere_coordinate(layer.shape[1])
        assert stats.kstest(layer[:, -1] / norm, law.cdf).pvalue > SMALLEST_P_VALUE
    if p == q:  # the trace of a Haar matrix has mean 0 and variance 1, without the signs of QR
        trace = np.trace(b, axis1=1, axis2=2) / (scale_b * np.sqrt(p))
        assert abs(trace.mean()) < SIGMAS / np.sqrt(NUM_DRAWS)
        assert abs(trace.var() - 1) < SIGMAS * np.sqrt(2 / NUM_DRAWS)


@pytest.mark.parametrize(("p", "q"), SHAPES)
def test_reduced_orthogonal_samples_have_the_law_of_full_ones(p, q):
    found = invariants(reduced_orthogonal(p, q))
    for name, expected in invariants(full_orthogonal(p, q)).items():
        same_law(found[name], expected, name)


@pytest.mark.parametrize(("p", "q"), [(5, 5), (7, 4), (4, 7), (3, 2)])
def test_reduced_orthogonal_samples_have_the_form_that_reduce_gives(p, q):
    reduced = jax.jit(jax.vmap(lambda state: jc.reduce(state, 4).state))(full_orthogonal(p, q))
    expected, found = layers_of(reduced), layers_of(reduced_orthogonal(p, q))
    for there, here in zip(expected, found, strict=True):
        for index in np.ndindex(there.shape[1:]):
            there_entry, here_entry = there[:, *index], here[:, *index]
            # Where one ends the other does; rounding is left by `reduce`, zeros are exact here.
            if np.abs(there_entry).max() < 1e3 * EPS:
                np.testing.assert_array_equal(here_entry, 0)
            elif np.ptp(there_entry) < 1e3 * EPS:
                np.testing.assert_allclose(here_entry, there_entry[0], rtol=ROUNDING)
            else:
                same_law(here_entry, there_entry, str(index))


@pytest.mark.parametrize("width", [40, 10**12])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (3, 1), (1, 3)])
def test_reduced_orthogonal_samples_are_orthogonal_at_any_width(width, alpha, beta):
    p, q = alpha * width, beta * width
    states = reduced_orthogonal(p, q)
    _, b, _ = layers_of(states)
    b = b / (SCALES[1] * np.sqrt(max(p, q)))
    small = b if p >= q else np.swapaxes(b, 1, 2)
    gram = np.einsum("nki,nkj->nij", small, small)
    np.testing.assert_allclose(gram, np.broadcast_to(np.diag([1.0, 1, 0, 0]), gram.shape), atol=EPS)
    first, largest, smallest = small[:, 0], max(p, q), min(p, q)
    if width > 1e6:  # the sphere's coordinates are normal to a relative 1 / width
        found = first[:, 0] * np.sqrt(largest)
        assert stats.kstest(found, stats.norm.cdf).pvalue > SMALLEST_P_VALUE
        return
    law = sphere_coordinate(largest)
    assert stats.kstest(first[:, 0], law.cdf).pvalue > SMALLEST_P_VALUE
    if p != q:  # the first row is all of Q^T u
        law = stats.beta(smallest / 2, (largest - smallest) / 2)
        assert stats.kstest(np.sum(first**2, -1), law.cdf).pvalue > SMALLEST_P_VALUE


def test_orthogonal_layers_of_one_unit():
    states = reduced_orthogonal(1, 1)
    a, b, c = layers_of(states)
    np.testing.assert_array_equal(np.abs(b[:, 0, 0]), SCALES[1])
    assert abs(np.mean(b[:, 0, 0] > 0) - 0.5) < SIGMAS / (2 * np.sqrt(NUM_DRAWS))
    assert np.count_nonzero(b) == NUM_DRAWS
    np.testing.assert_array_equal(a[:, 0], SCALES[0])
    np.testing.assert_array_equal(c[:, 0], SCALES[2])


def test_narrow_reduced_orthogonal_samples_end_where_the_matrix_ends():
    for p, q in SHAPES:
        _, b, _ = layers_of(reduced_orthogonal(p, q))
        assert np.all(np.isfinite(b))
        np.testing.assert_array_equal(b[:, p:], 0)
        np.testing.assert_array_equal(b[:, :, q:], 0)


def test_orthogonal_blowup_times_have_the_law_of_full_states():
    # Of one shape, so that they share a program.
    widened = jax.jit(jax.vmap(lambda state: pad(state, 7)))
    methods = (jc.Series(order=20, dim=8, max_expansions=1),)
    reduced, whole = (
        jc.blowup_times(widened(states), rtol=1e-3, methods=methods)
        for states in (reduced_orthogonal(7, 4), full_orthogonal(7, 4))
    )
    for found in (reduced, whole):
        assert found.counts()["converged"] > 0.95 * NUM_DRAWS
    test = stats.ks_2samp(reduced.time, whole.time, method="asymp")
    assert test.pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize("widths", [(5, 5), (7, 4), (4, 7)])
def test_dimensions_of_reduced_orthogonal_states(widths, key):
    ensemble = Orthogonal(*widths)
    least = 2 if widths == (5, 5) else 3
    short, long = (ensemble.sample_reduced(key=key, dim=dim) for dim in (least, 7))
    np.testing.assert_array_equal(pad(short, 7).b, long.b)
    with pytest.raises(ValueError, match=f"`dim` must be at least {least}, but is {least - 1}"):
        ensemble.sample_reduced(key=key, dim=least - 1)
    with pytest.raises(ValueError, match="`dim` must be at least 3, but is 2"):
        as_arrays(*widths).sample_reduced(key=key, dim=2)


# Balanced layers.


def test_balanced_layers_are_balanced():
    states = full(Balanced(5, 3, 0.7))
    a, _, c = layers_of(states)
    size = np.linalg.norm(a, axis=-1)
    kept = jax.vmap(jc.conserved)(states)
    for matrix in (kept.left, kept.right):
        assert np.all(np.abs(matrix) < ROUNDING * size[:, None, None] ** 2)
    assert np.all(np.abs(kept.balance[:, 0]) < ROUNDING * size**2)
    np.testing.assert_allclose(jax.vmap(jc.energy)(states), size**3, rtol=ROUNDING)
    for entry in a.T:
        assert stats.kstest(entry, stats.norm(scale=0.7).cdf).pvalue > SMALLEST_P_VALUE
    direction = c[:, 0] / size
    assert stats.kstest(direction, sphere_coordinate(3).cdf).pvalue > SMALLEST_P_VALUE


def test_balanced_blowup_times_are_known():
    for seed in range(3):
        state = Balanced(5, 3, 0.7).sample(key=jax.random.key(seed))
        found = jc.blowup_time(state)
        assert int(found.status) == jc.Status.CONVERGED
        expected = 1 / np.linalg.norm(state.a)
        assert abs(float(found.time) - expected) < ROUNDING * expected + float(found.error)
        assert found.lower <= expected * (1 + ROUNDING)
        assert found.upper >= expected * (1 - ROUNDING)


@pytest.mark.parametrize("p", [1, 5, 10**9])
def test_reduced_balanced_samples_have_the_law_of_full_ones(p):
    states = draw(Balanced(jnp.asarray(float(p)), jnp.asarray(3.0), jnp.asarray(0.7)), keys())
    a, b, c = layers_of(states)
    assert stats.kstest(a[:, 0], stats.chi(p, scale=0.7).cdf).pvalue > SMALLEST_P_VALUE
    for layer in (a, b, c):
        assert np.count_nonzero(layer) == NUM_DRAWS
        np.testing.assert_array_equal(layer.reshape(NUM_DRAWS, -1)[:, 0], a[:, 0])


def test_reduced_balanced_states_in_any_dimension(key):
    ensemble = Balanced(4, 2)
    short, long = (ensemble.sample_reduced(key=key, dim=dim) for dim in (1, 6))
    np.testing.assert_array_equal(pad(short, 6).b, long.b)
    np.testing.assert_array_equal(pad(short, 6).c, long.c)
    with pytest.raises(ValueError, match="`dim` must be at least 1, but is 0"):
        ensemble.sample_reduced(key=key, dim=0)


# Middle layers of low rank.


def low_rank(noise):
    """One program for every noise."""
    ensemble = LowRank(6, 5, 2, noise=jnp.asarray(noise), scales=SCALES)
    return layers_of(_low_rank(ensemble, keys()))


@jax.jit
def _low_rank(ensemble, keys):
    return jax.vmap(lambda key: ensemble.sample(key=key))(keys)


def test_middle_layers_have_the_rank():
    _, b, _ = low_rank(0.0)
    values = np.linalg.svd(b, compute_uv=False)
    assert np.all(values[:, 2:] < ROUNDING * values[:, :1])
    assert np.median(values[:, 1] / values[:, 0]) > 0.1
    assert np.all(np.linalg.matrix_rank(b) == 2)


@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_low_rank_entries_have_their_moments(noise):
    a, b, c = low_rank(noise)
    scale_a, scale_b, scale_c = SCALES
    for layer, scale in ((a, scale_a), (c, scale_c)):
        flat = layer.ravel()
        assert stats.kstest(flat, stats.norm(scale=scale).cdf).pvalue > SMALLEST_P_VALUE
    # Products of normal numbers: E b^4 = 3 + 6 (1 - noise^2)^2 / rank in units of the scale.
    for entry in (b[:, 0, 0], b[:, 5, 4], b[:, 2, 3]):
        for power, expected in ((1, 0), (2, 1), (4, 3 + 3 * (1 - noise**2) ** 2)):
            sample = (entry / scale_b) ** power
            error = sample.std() / np.sqrt(NUM_DRAWS)
            assert abs(sample.mean() - expected) < SIGMAS * error
    products = np.stack([b[:, 0, 0], b[:, 0, 1], b[:, 1, 0], a[:, 0], c[:, 0]])
    correlation = np.corrcoef(products) - np.eye(len(products))
    assert np.abs(correlation).max() < SIGMAS / np.sqrt(NUM_DRAWS)
    if noise == 1:
        law = stats.norm(scale=scale_b)
        assert stats.kstest(b[:, 0].ravel(), law.cdf).pvalue > SMALLEST_P_VALUE


# Functions.


def as_layers(key, p, q):
    keys = jax.random.split(key, 3)
    return (
        jax.random.rademacher(keys[0], (p,)),
        jax.random.laplace(keys[1], (p, q), jnp.float32),
        jax.random.normal(keys[2], (q,)),
    )


def as_state(key, p, q):
    a, b, c = as_layers(key, p, q)
    return jc.State(jnp.ones((2, p)), b, jnp.stack([c, 2 * c]), jnp.array([1.0, -2.0]) * a[0])


def test_functions_draw_states(key):
    found = FromFunction(as_layers, 3, 2).sample(key=key)
    for layer, expected in zip(found.layers, as_layers(key, 3, 2), strict=True):
        np.testing.assert_array_equal(layer.reshape(expected.shape), expected)
    np.testing.assert_array_equal(found.strength, [1.0])
    assert found.dtype == jnp.float64
    found, expected = FromFunction(as_state, 3, 2).sample(key=key), as_state(key, 3, 2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _wrong(returned):
    def custom(key, p, q):
        del key, p, q
        return returned

    return custom


ONE = np.ones
WRONG = {
    "nothing": (None, "an object of type NoneType"),
    "one array": (ONE((3, 2)), "one array of shape (3, 2)"),
    "two arrays": ((ONE(3), ONE((3, 2))), "a tuple of 2 (float64 (3,), float64 (3, 2))"),
    "swapped": (
        (ONE(2), ONE((3, 2)), ONE(3)),
        "a tuple of 3 (float64 (2,), float64 (3, 2), float64 (3,))",
    ),
    "no arrays": ([ONE(3), 1.0, "c"], "a list of 3 (float64 (3,), float, str)"),
    "complex": (
        (ONE(3), ONE((3, 2)), ONE(2, complex)),
        "a tuple of 3 (float64 (3,), float64 (3, 2), complex128 (2,))",
    ),
    "widths": (
        jc.State(ONE((1, 2)), ONE((2, 3)), ONE((1, 3)), ONE(1)),
        "a State with a (1, 2), b (2, 3), c (1, 3), strength (1,)",
    ),
    "batch": (
        jc.State.from_vectors(ONE((4, 3)), ONE((4, 3, 2)), ONE((4, 2))),
        "a State with a (4, 1, 3), b (4, 3, 2), c (4, 1, 2), strength (4, 1)",
    ),
}


@pytest.mark.parametrize("returned", WRONG)
def test_what_functions_may_return(returned, key):
    value, described = WRONG[returned]
    with pytest.raises(
        ValueError,
        match=r"Argument `function` must return a `State` of widths \(3, 2\) without leading axes,"
        r" or real arrays \(a, b, c\) of shapes \(3,\), \(3, 2\), \(2,\), but "
        + re.escape(f"_wrong.<locals>.custom returned {described}."),
    ):
        FromFunction(_wrong(value), 3, 2).sample(key=key)


# What all have in common.

FULL_ONLY = {
    "uniform": Uniform(5, 4, SCALES),
    "low rank": LowRank(5, 4, 2, 0.5, SCALES),
    "function": FromFunction(as_state, 5, 4),
}
EXACT = {
    "gaussian": jc.Gaussian(5, 4, SCALES),
    "orthogonal": Orthogonal(5, 4, SCALES),
    "balanced": Balanced(5, 4),
}


def test_ensembles_say_whether_their_reduced_law_is_known():
    assert all(ensemble.exact_reduction for ensemble in EXACT.values())
    assert not any(ensemble.exact_reduction for ensemble in FULL_ONLY.values())


@pytest.mark.parametrize("name", FULL_ONLY)
def test_other_ensembles_are_reduced_from_full_states(name, key):
    ensemble = FULL_ONLY[name]
    found = ensemble.sample_reduced(key=key, dim=3)
    assert found.widths == (3, 3)
    expected = jc.reduce(ensemble.sample(key=key), 3).state
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)
    # More dimensions continue it, up to the rounding of the products.
    longer = ensemble.sample_reduced(key=key, dim=6)
    np.testing.assert_allclose(longer.b[:3, :3], found.b, atol=1e3 * EPS)
    np.testing.assert_array_equal(np.asarray(longer.b)[5:], 0)


@pytest.mark.parametrize("name", FULL_ONLY | EXACT)
def test_samples_have_the_dtype_asked_for(name, key):
    ensemble = (FULL_ONLY | EXACT)[name]
    for dtype in (jnp.float32, jnp.float64):
        for sample in (ensemble.sample, ensemble.sample_reduced):
            shape = jax.eval_shape(functools.partial(sample, key=key, dtype=jnp.dtype(dtype)))
            assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype(dtype)}


def test_arrays_as_parameters_leave_the_dtype_asked_for(key):
    scales = tuple(jnp.asarray(s) for s in SCALES)
    ensembles = (
        Uniform(3, 2, scales),
        Orthogonal(3, 2, scales),
        Balanced(3, 2, scales[0]),
        LowRank(3, 2, 1, jnp.asarray(0.5), scales),
    )
    for ensemble in ensembles:
        for sample in (ensemble.sample, ensemble.sample_reduced):
            shape = jax.eval_shape(functools.partial(sample, key=key, dtype=jnp.dtype("float32")))
            assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype("float32")}


def test_orthogonal_samples_in_single_precision(key):
    # The widths are known only to rounding, the form is as orthogonal as single precision goes.
    ensemble = Orthogonal(1e6, 3e5)
    b = np.asarray(ensemble.sample_reduced(key=key, dtype=jnp.dtype("float32")).b, float) / 1e3
    np.testing.assert_allclose((b.T @ b)[:2, :2], np.eye(2), atol=4 * np.finfo(np.float32).eps)


MAKE = {
    "Uniform": Uniform,
    "Orthogonal": Orthogonal,
    "Balanced": Balanced,
    "LowRank": lambda p, q, *scales: LowRank(p, q, 1, 0.5, *scales),
    "FromFunction": lambda p, q: FromFunction(as_layers, p, q),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("width", [0, -3, 2.5, float("nan"), float("inf")])
def test_widths_are_positive_whole_numbers(name, width):
    for argument, widths in (("p", (width, 4)), ("q", (4, width))):
        text = f"Argument `{argument}` must be a positive whole number, but is {width}."
        with pytest.raises(ValueError, match=matches(text)):
            MAKE[name](*widths)


@pytest.mark.parametrize("name", ["Uniform", "Orthogonal", "LowRank"])
@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_are_finite_and_not_negative(name, scale):
    for position in range(3):
        scales = [1.0, 1.0, 1.0]
        scales[position] = scale
        text = f"Argument `scales` must be finite and not negative, but is {tuple(scales)}."
        with pytest.raises(ValueError, match=matches(text)):
            MAKE[name](3, 4, tuple(scales))


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_the_scale_of_balanced_layers(scale):
    text = f"Argument `scale` must be finite and not negative, but is {scale}."
    with pytest.raises(ValueError, match=matches(text)):
        Balanced(3, 4, scale)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_noise_lies_between_0_and_1(noise):
    text = f"Argument `noise` must lie between 0 and 1, but is {noise}."
    with pytest.raises(ValueError, match=matches(text)):
        LowRank(3, 4, 1, noise)


def test_ranks_fit_the_widths():
    with pytest.raises(ValueError, match="`rank` must be at most the smaller width 3, but is 4"):
        LowRank(3, 5, 4)
    with pytest.raises(ValueError, match="`rank` must be a positive whole number, but is 0"):
        LowRank(3, 5, 0)


def test_full_samples_need_integer_widths(key):
    for ensemble in (as_arrays(3, 4), Balanced(jnp.asarray(3), jnp.asarray(4))):
        with pytest.raises(ValueError, match="widths that are Python integers"):
            ensemble.sample(key=key)


def test_a_sweep_over_widths_compiles_once():
    traces = []

    @jax.jit
    def sweep(p, q, key):
        traces.append(None)
        return Orthogonal(p, q).sample_reduced(key=key, dim=3).a[0, 0]

    for width in (3, 50, 10**9):
        found = sweep(jnp.asarray(width), jnp.asarray(2 * width), jax.random.key(0))
        assert abs(found / np.sqrt(width) - 1) < ROUNDING
    assert len(traces) == 1


# Files.

RNG = np.random.default_rng(0)
STATES = {
    "a": RNG.normal(size=(3, 4)),
    "b": RNG.normal(size=(3, 4, 2)),
    "c": RNG.normal(size=(3, 2)),
}
FORMATS = (".npz", ".safetensors")


def write(path, **arrays):
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"states{request.param}"


def equal(state, a, b, c, strength):
    for found, expected in zip((*state.layers, state.strength), (a, b, c, strength), strict=True):
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found, expected)


def test_states_are_read(path):
    a, b, c = STATES.values()
    ones = np.ones((3, 1))
    equal(read_states(write(path, **STATES)), a[:, None], b, c[:, None], ones)
    equal(read_states(str(path)), a[:, None], b, c[:, None], ones)
    single = {name: array[0] for name, array in STATES.items()}
    equal(read_states(write(path, **single)), a[:1, None], b[:1], c[:1, None], ones[:1])
    strength = np.array([1.0, -2.0, 3.0])
    found = read_states(write(path, **STATES, strength=strength))
    equal(found, a[:, None], b, c[:, None], strength[:, None])
    for same in (np.array(-2.0), np.array([-2.0])):
        found = read_states(write(path, **STATES, strength=same))
        equal(found, a[:, None], b, c[:, None], -2 * ones)


def test_states_of_several_components_are_read(path):
    a, c = RNG.normal(size=(3, 2, 4)), RNG.normal(size=(3, 2, 5))
    b, strength = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 2))
    equal(read_states(write(path, a=a, b=b, c=c)), a, b, c, np.ones((3, 2)))
    equal(read_states(write(path, a=a, b=b, c=c, strength=strength)), a, b, c, strength)
    found = read_states(write(path, a=a, b=b, c=c, strength=strength[0]))
    equal(found, a, b, c, np.broadcast_to(strength[0], (3, 2)))
    found = read_states(write(path, a=a[0], b=b[0], c=c[0], strength=strength[0]))
    equal(found, a[:1], b[:1], c[:1], strength[:1])


def test_arrays_may_have_other_names_and_company(path):
    a, b, c = STATES.values()
    write(path, out=a, b=b, c=c, lam=np.full(3, 2.0), a=np.ones(7), text=np.zeros(3, np.uint8))
    found = read_states(path, names={"a": "out", "strength": "lam"})
    equal(found, a[:, None], b, c[:, None], np.full((3, 1), 2.0))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int64])
def test_any_real_numbers_are_read(dtype, tmp_path):
    arrays = {name: (4 * array).astype(dtype) for name, array in STATES.items()}
    found = read_states(write(tmp_path / "x.safetensors", **arrays))
    expected = (arrays["a"][:, None], arrays["b"], arrays["c"][:, None])
    equal(found, *(array.astype(float) for array in expected), np.ones((3, 1)))


def test_numbers_that_are_not_finite_are_kept(path):
    a = STATES["a"].copy()
    a[1, 2], a[2, 0] = np.nan, np.inf
    found = read_states(write(path, **STATES | {"a": a}))
    np.testing.assert_array_equal(found.a[:, 0], a)
    network = {"1": RNG.normal(size=(2, 6)), "2": STATES["b"][0], "3": STATES["a"][:1]}
    network["1"][0, 0], network["1"][1, 1] = np.nan, np.inf
    found = read_states(write(path, **network), layers=("1", "2", "3"), direction=np.ones(6))
    np.testing.assert_array_equal(found.c[0, 0], [np.nan, np.inf])


def test_single_precision_is_kept_in_single_precision(path):
    write(path, **STATES | {"a": np.full((3, 4), 1e300)})
    with jax.enable_x64(False):
        found = read_states(path)
    assert found.dtype == jnp.float32
    assert np.all(np.isinf(found.a))


LAYERS = ("fc1.weight", "fc2.weight", "fc3.weight")
WEIGHTS = dict(
    zip(
        LAYERS,
        (RNG.normal(size=(5, 2, 6)), RNG.normal(size=(5, 4, 2)), RNG.normal(size=(5, 1, 4))),
        strict=True,
    )
)
DIRECTION = RNG.normal(size=6)


def test_networks_are_read(path):
    write(path, **WEIGHTS, target=DIRECTION, bias=np.ones(4))
    first, middle, last = WEIGHTS.values()
    v = DIRECTION / np.linalg.norm(DIRECTION)
    for direction in (DIRECTION, "target", 1e200 * DIRECTION, list(DIRECTION / 1e200)):
        state = read_states(path, layers=LAYERS, direction=direction)
        # The energy is W3 W2 W1 v.
        expected = [(last[i] @ middle[i] @ first[i] @ v)[0] for i in range(5)]
        np.testing.assert_allclose(jax.vmap(jc.energy)(state), expected, rtol=1e3 * EPS)
        np.testing.assert_array_equal(state.a, last)
        np.testing.assert_array_equal(state.b, middle)
    one = read_states(
        write(path, **{name: w[2] for name, w in WEIGHTS.items()}),
        layers=list(LAYERS),
        direction=jnp.asarray(DIRECTION),
    )
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected[2:3], rtol=1e3 * EPS),
        one,
        state,
    )


def refuse(text, *arguments, **options):
    with pytest.raises(ValueError, match=matches(text)):
        read_states(*arguments, **options)


def test_weights_that_do_not_fit(path):
    options = {"layers": LAYERS, "direction": DIRECTION}
    first, middle, last = WEIGHTS.values()
    write(path, **WEIGHTS | {LAYERS[2]: np.ones((5, 3, 4))})
    refuse(
        "The last layer must have one output, but 'fc3.weight' of shape (5, 3, 4) in file "
        f"{path} has 3.",
        path,
        **options,
    )
    for name, wrong in (
        (LAYERS[0], first[:, :1]),
        (LAYERS[0], first[:4]),
        (LAYERS[0], first[0]),
        (LAYERS[1], np.swapaxes(middle, 1, 2)),
        (LAYERS[2], last[:, 0]),
        (LAYERS[2], np.swapaxes(last, 1, 2)[:, :1]),
    ):
        arrays = WEIGHTS | {name: wrong}
        listed = ", ".join(f"{n} {w.shape}" for n, w in sorted(arrays.items()))
        write(path, **arrays)
        refuse(
            f"Shapes in file {path} do not fit: {listed}; they must be like (q, d)", path, **options
        )
    write(path, **{name: w[:0] for name, w in WEIGHTS.items()})
    refuse(f"File {path} holds no states: its arrays are fc1.weight (0, 2, 6)", path, **options)


def test_directions(path):
    write(path, **WEIGHTS, zero=np.zeros(6), text=np.ones(6, bool))
    read = functools.partial(refuse, path=path, layers=LAYERS)
    for direction in ("zero", np.zeros(6), [1.0, np.nan, 0, 0, 0, 0], [np.inf, 0, 0, 0, 0, 0]):
        read("Argument `direction` must be finite and not zero.", direction=direction)
    read("`direction` must have the length 6 of the inputs of 'fc1.weight'", direction=np.ones(5))
    read("must be a vector, but has the shape (1, 6)", direction=np.ones((1, 6)))
    read("must be a vector, but has the shape (0,)", direction=np.ones(0))
    read("'direction' must hold real numbers, but has dtype complex128", direction=1j * DIRECTION)
    read("Array 'text' must hold real numbers, but has dtype bool", direction="text")
    read(f"File {path} lacks 'target'; it holds ", direction="target")


def test_states_that_do_not_fit(path):
    a, b, c = STATES.values()
    for wrong in (
        {"a": a[:2]},
        {"a": a[:, :3]},
        {"a": a[0]},
        {"b": b[..., 0]},
        {"b": np.swapaxes(b, 1, 2)},
        {"b": b[None]},
        {"b": np.ones(3)},
        {"c": c[:, None]},
        {"c": np.ones((3, 5))},
        {"strength": np.ones(2)},
        {"strength": np.ones((3, 2))},
    ):
        arrays = STATES | wrong
        listed = ", ".join(f"{n} {array.shape}" for n, array in arrays.items())
        write(path, **arrays)
        refuse(f"Shapes in file {path} do not fit: {listed}; they must be like a (n, p)", path)
    write(path, **{name: array[:0] for name, array in STATES.items()})
    refuse(f"File {path} holds no states: its arrays are a (0, 4), b (0, 4, 2), c (0, 2).", path)
    write(path, a=np.ones((3, 0)), b=np.ones((3, 0, 2)), c=c)
    refuse(f"File {path} holds no states", path)


def test_arrays_that_are_missing_are_named(path):
    write(path, a=STATES["a"], extra=np.ones(2))
    refuse(f"File {path} lacks 'b', 'c'; it holds 'a', 'extra'.", path)
    write(path, **STATES)
    refuse("lacks 'lam'; it holds 'a', 'b', 'c'.", path, names={"strength": "lam"})
    refuse("lacks 'w1', 'w3'; it holds", path, layers=("w1", "b", "w3"), direction=DIRECTION)
    if path.suffix == ".npz":
        refuse(f"File {write(path)} lacks 'a', 'b', 'c'; it holds nothing.", path)


def test_arrays_hold_real_numbers(tmp_path):
    path = write(tmp_path / "states.npz", **STATES | {"c": 1j * STATES["c"]})
    refuse("Array 'c' must hold real numbers, but has dtype complex128", path)
    path = write(tmp_path / "states.npz", **STATES | {"c": np.array(["x", "y"])})
    refuse("Array 'c' must hold real numbers, but has dtype <U1", path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header"])
def test_damaged_files_are_refused(damage, path):
    content = write(path, **STATES).read_bytes()
    damaged = {
        "empty": b"",
        "text": b"a,b,c\n" * 9,
        "cut": content[:-40],
        "header": content[:90].replace(b"a", b"\xff") + content[90:],
    }
    path.write_bytes(damaged[damage])
    refuse(f"File {path} cannot be read as {path.suffix}", path)


def test_other_files_of_numpy_are_refused(tmp_path):
    path = tmp_path / "states.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    refuse(f"File {path} cannot be read as .npz", path)
    objects = np.array([None, 1], object)
    np.savez(path, allow_pickle=True, **STATES | {"a": objects})
    refuse(f"File {path} cannot be read as .npz: Object arrays", path)
    # An array that is not asked for does no harm.
    np.savez(path, allow_pickle=True, **STATES, notes=objects)
    assert read_states(path).batch_shape == (3,)


def test_files_that_cannot_be_opened(path):
    with pytest.raises(FileNotFoundError, match=matches(str(path))):
        read_states(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=matches(str(path))):
        read_states(path)


def test_arguments_for_files_go_together(path, tmp_path):
    write(path, **STATES)
    refuse(f"File {tmp_path / 'x.pt'} must end in .npz or .safetensors", tmp_path / "x.pt")
    refuse("`direction` needs argument `layers`", path, direction=DIRECTION)
    refuse("`layers` needs argument `direction`", path, layers=LAYERS)
    refuse("`names` and `layers` cannot be given together", path, names={}, layers=LAYERS)
    refuse("`layers` must hold three names, but is 'abc'", path, layers="abc")
    refuse("`layers` must hold three names, but is ('x', 'y')", path, layers=("x", "y"))
    refuse("keys among a, b, c, strength, but has 'd'", path, names={"d": "x"})
