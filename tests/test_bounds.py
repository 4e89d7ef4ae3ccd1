import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from helpers import EPS, aligned_state, gaussian_states, random_state

import jaxcond as jc
from jaxcond import bounds

# Carlson's algorithm adds up a dozen roundings; the derivative of a sum of roots a few more.
RF_TOLERANCE = 16 * EPS


@pytest.mark.parametrize("decades", [1, 10, 150])
def test_carlson_rf_agrees_with_scipy(decades):
    x = 10 ** np.random.default_rng(0).uniform(-decades, decades, (3, 2000))
    ours = bounds.carlson_rf(*jnp.asarray(x))
    np.testing.assert_allclose(ours, scipy.special.elliprf(*x), rtol=RF_TOLERANCE)


def test_carlson_rf_with_one_zero_agrees_with_scipy():
    x = 10 ** np.random.default_rng(1).uniform(-5, 5, (3, 500))
    x[0] = 0
    np.testing.assert_allclose(
        bounds.carlson_rf(*jnp.asarray(x)), scipy.special.elliprf(*x), rtol=RF_TOLERANCE
    )


def test_carlson_rf_in_float32():
    x = 10 ** np.random.default_rng(2).uniform(-5, 5, (3, 500)).astype(np.float32)
    ours = bounds.carlson_rf(*(jnp.asarray(v, jnp.float32) for v in x))
    assert ours.dtype == jnp.float32
    expected = scipy.special.elliprf(*x.astype(np.float64))
    np.testing.assert_allclose(ours, expected, rtol=16 * np.finfo(np.float32).eps)


def test_carlson_rf_special_values():
    zero, one = jnp.zeros(()), jnp.ones(())
    assert bounds.carlson_rf(zero, zero, one) == jnp.inf
    assert jnp.isnan(bounds.carlson_rf(-one, one, one))
    assert bounds.carlson_rf(4 * one, 4 * one, 4 * one) == pytest.approx(0.5, rel=RF_TOLERANCE)


def test_derivative_of_carlson_rf_is_carlson_rd():
    x, y, z = 0.3, 1.7, 5.0
    ours = jax.grad(bounds.carlson_rf, argnums=2)(x, y, z)
    assert float(ours) == pytest.approx(-scipy.special.elliprd(x, y, z) / 6, rel=RF_TOLERANCE)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, -1, 1)])
def test_aligned_blowup_time_solves_the_scalar_equation(signs):
    """Against direct quadrature of dN/dt = 2E with E^2 = N (N + k1) (N + k2)."""
    alpha, beta, gamma = np.array([0.7, 1.1, 1.9]) * signs
    small, middle, large = np.sort([alpha**2, beta**2, gamma**2])

    # N is the smallest square; E^2 = N (N + middle - small) (N + large - small).
    def time_from(lower):
        def integrand(x):
            n = lower + x * x
            return x / np.sqrt(n * (n + middle - small) * (n + large - small))

        return scipy.integrate.quad(integrand, 0, np.inf, epsabs=0, epsrel=1e-12, limit=400)[0]

    up = time_from(small)
    expected = up if alpha * beta * gamma > 0 else 2 * time_from(0.0) - up
    ours = bounds.aligned_blowup_time(*(jnp.asarray(x) for x in (alpha, beta, gamma)))
    assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_aligned_blowup_time_of_the_reference_scalar(reference):
    for entry in reference[:2]:
        values = (jnp.asarray(entry[name]).reshape(()) for name in ("a", "b", "c"))
        ours = float(bounds.aligned_blowup_time(*values))
        assert ours == pytest.approx(float(entry["blowup_time"]), rel=RF_TOLERANCE)


def test_aligned_blowup_time_is_infinite_only_where_two_smallest_squares_meet():
    one = jnp.ones(())
    assert bounds.aligned_blowup_time(one, one, -2 * one) == jnp.inf
    assert bounds.aligned_blowup_time(one, one, 2 * one) < jnp.inf
    assert bounds.aligned_blowup_time(one, 2 * one, -2 * one) < jnp.inf


def test_bracket_contains_every_reference_time(reference):
    for entry in reference:
        state = jc.State(*(jnp.array(entry[name]) for name in ("a", "b", "c", "strength")))
        lower, upper = jc.bracket(state)
        assert float(lower) <= float(entry["blowup_time"]) * (1 + RF_TOLERANCE)
        assert float(upper) >= float(entry["blowup_time"]) * (1 - RF_TOLERANCE)


@pytest.mark.parametrize("factor", [1e-100, 1.0, 1e100])
def test_bracket_scales_without_overflow(factor, key):
    state = aligned_state(0.5, 0.8, 1.3)
    lower, upper = jc.bracket(state)
    scaled = jc.bracket(state.scale(factor))
    assert float(scaled[0]) * factor == pytest.approx(float(lower), rel=1e-13)
    assert float(scaled[1]) * factor == pytest.approx(float(upper), rel=1e-13)


def test_theorem_1_and_2(key):
    state = aligned_state(0.5, 0.8, 1.3)
    growth = bounds.energy_growth(state)
    assert float(growth) >= 1
    upper, lower = bounds.theorem_1_upper(state), bounds.theorem_2_lower(state, growth)
    energy = float(jc.energy(state))
    assert float(upper) == pytest.approx(energy ** (-1 / 3), rel=1e-14)
    assert float(lower) == pytest.approx(energy ** (-1 / 3) / float(growth), rel=1e-14)
    start = bounds.theorem_2_energy(jc.energy(state), jnp.zeros(()), growth)
    assert float(start) == pytest.approx(energy, rel=1e-14)
    assert bounds.theorem_2_energy(jc.energy(state), 2 * upper, growth) == jnp.inf
    assert bounds.theorem_1_upper(jc.State(-state.a, state.b, state.c, state.strength)) == jnp.inf


def test_energy_growth_is_at_least_one_and_exact_where_all_norms_agree():
    states = gaussian_states(0, 200, 4, 3)
    energies = jax.vmap(jc.energy)(states)
    growth = jax.vmap(bounds.energy_growth)(states)
    assert float(jnp.min(growth[energies > 0])) >= 1
    balanced = aligned_state(0.9, 0.9, 0.9)
    assert float(bounds.energy_growth(balanced)) == pytest.approx(1, rel=1e-13)


def test_blow_up_guaranteed_is_false_for_example_1_and_true_when_energy_is_positive(key):
    example = jc.State.from_vectors(
        jnp.array([1.0, 0.0]), jnp.diag(jnp.array([1.0, 0.0])), jnp.array([-1.0, 0.0])
    )
    assert not bool(bounds.blow_up_guaranteed(example))
    assert bool(bounds.blow_up_guaranteed(aligned_state(0.5, 0.8, 1.3)))
    wide = jc.State.from_vectors(jnp.ones(3), 0.01 * jnp.eye(3), -jnp.arange(1.0, 4.0))
    assert bool(bounds.blow_up_guaranteed(wide))
    assert float(jc.energy(wide)) < 0


def test_transposition_keeps_bounds(key):
    state = random_state(key, 1, 5, 3)
    for ours, other in zip(jc.bracket(state), jc.bracket(state.transpose()), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-13)


def assumed(a, b, c):
    """Assumption 1 as it is printed, in NumPy."""
    size_a, size_c = a @ a, c @ c
    speed_a, speed_c = b @ c, b.T @ a
    if size_a == size_c:
        return False
    smaller = size_c if size_a > size_c else size_a
    return speed_a @ speed_a - speed_c @ speed_c - smaller * (size_c - size_a) != 0


def test_assumption_1_is_that_of_the_paper():
    # Small whole numbers, in which nothing is rounded and many cases are equalities.
    rng = np.random.default_rng(0)
    layers = [rng.integers(-1, 2, (2000, *shape)).astype(float) for shape in ((3,), (3, 2), (2,))]
    found = jax.vmap(bounds.assumption_1)(jc.State.from_vectors(*layers))
    expected = [assumed(*point) for point in zip(*layers, strict=True)]
    np.testing.assert_array_equal(found, expected)
    assert 300 < np.sum(found) < 1700


def test_assumption_1_is_about_the_flow_and_not_its_coordinates(key):
    state = random_state(key, 1, 5, 3)
    assert bounds.assumption_1(state)
    for other in (state.transpose(), state.scale(1e-100), state.scale(1e100)):
        assert bounds.assumption_1(other)
    balanced = aligned_state(0.9, 0.4, 0.9)
    assert not bounds.assumption_1(balanced)
    assert not bounds.assumption_1(balanced.transpose().scale(1e100))
    # Rounding does not make a balanced state satisfy it.
    a, b, c = balanced.layers
    assert not bounds.assumption_1(jc.State(a * (1 + 4 * EPS), b, c, balanced.strength))
    assert bounds.assumption_1(jc.State(a * (1 + 1e-9), b, c, balanced.strength))


def test_assumption_1_fails_where_nothing_is_known_to_move(key):
    state = random_state(key, 1, 5, 3)
    assert not bounds.assumption_1(jc.State(*state.layers, jnp.zeros(1)))
    assert not bounds.assumption_1(state.scale(jnp.nan))
    assert bounds.assumption_1(jc.State(*state.layers, -state.strength))


def test_assumption_1_is_about_rank_one(key):
    with pytest.raises(ValueError, match="about rank 1, but the rank is 2"):
        bounds.assumption_1(random_state(key, 2, 5, 3))


def test_neither_condition_for_blow_up_implies_the_other():
    grid = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=8)))
    states = jc.State.from_vectors(grid[:, :2], grid[:, 2:6].reshape(-1, 2, 2), grid[:, 6:])
    ours = np.asarray(jax.vmap(bounds.blow_up_guaranteed)(states))
    theirs = np.asarray(jax.vmap(bounds.assumption_1)(states))
    assert (np.sum(theirs), np.sum(ours & theirs), np.sum(ours & ~theirs)) == (3104, 1216, 2720)
