"""Indicators against what plain NumPy loops make of the definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pick, random_state

import jaxcond as jc
from jaxcond import indicators
from jaxcond.indicators import CONDITIONS, LEAST_SIDES, WEAKEST, Products


def random_states(seed, count, rank, p, q):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: random_state(key, rank, p, q))(keys)


def naive_first(a, b, c, strength):
    values = []
    for i in range(a.shape[0]):
        values += [strength[i] * c[i, m] * (a[i] @ b[:, m]) for m in range(b.shape[1])]
        values += [strength[i] * a[i, k] * (b[k] @ c[i]) for k in range(b.shape[0])]
    return np.array(values)


def naive_second(a, b, c):
    values = []
    for i in range(a.shape[0]):
        columns, rows = b * c[i], b * a[i][:, None]
        values += [(columns.T @ columns).ravel(), (rows @ rows.T).ravel()]
    return np.concatenate(values)


def naive_third(a, c, strength):
    rank = a.shape[0]
    values = [
        strength[i] * strength[j] * np.outer(a[i] * a[j], c[i] * c[j]).ravel()
        for i in range(rank)
        for j in range(rank)
    ]
    return np.concatenate(values)


@pytest.mark.parametrize(("rank", "p", "q", "count"), [(1, 6, 5, 1000), (2, 3, 4, 200)])
def test_counts_equal_naive_ones(rank, p, q, count):
    states = random_states(rank, count, rank, p, q)
    stage = jax.vmap(jc.final_stage)(states)
    layers = [np.asarray(x) for x in (*states.layers, states.strength)]
    for i in range(count):
        a, b, c, strength = (x[i] for x in layers)
        for condition, values in (
            (stage.first, naive_first(a, b, c, strength)),
            (stage.second, naive_second(a, b, c)),
            (stage.third, naive_third(a, c, strength)),
        ):
            assert condition.total == values.size
            assert condition.positive[i] == np.sum(values > 0)
            assert condition.undecided[i] == 0
            assert (condition.margin[i] > 0) == np.all(values > 0)


@pytest.mark.parametrize(("rank", "p", "q"), [(1, 4, 3), (2, 3, 2), (1, 2, 1)])
def test_the_weakest_units_have_the_sign_of_all(rank, p, q):
    """Some states are made to satisfy the conditions, since few random ones do."""
    states = random_states(5 + rank, 400, rank, p, q)
    pull = jnp.einsum("nik,nil->nkl", jnp.abs(states.a), jnp.abs(states.c))
    b = states.b.at[:300].add(jnp.linspace(0, 3, 300)[:, None, None] * pull[:300])
    a, c = (x.at[:300].set(jnp.abs(x[:300])) for x in (states.a, states.c))
    states = jc.State(a, b, c, jnp.abs(states.strength))

    def signs(state, number):
        products = Products.of(state)
        units = WEAKEST[number](products)
        margin = CONDITIONS[number](products, jnp.zeros(())).margin
        return jnp.sign(margin), jnp.sign(LEAST_SIDES[number](products.only(units)))

    for number in CONDITIONS:
        of_all, of_units = jax.vmap(functools.partial(signs, number=number))(states)
        # Squares are no pairs of two units.
        compared = np.asarray(of_all == -1) if number == 2 else np.full(400, True)
        np.testing.assert_array_equal(of_units[compared], of_all[compared])
        assert np.sum(of_all == 1) > 20
        assert (number == 3 and rank == 1) or q == 1 or np.sum(of_all == -1) > 20


def condensed_state(p=4, q=5, left=1e-6, seed=0):
    """Close to blow-up: rank one over the time left, and a part that stays."""
    rng = np.random.default_rng(seed)
    u, w = rng.uniform(0.5, 1.0, p), rng.uniform(0.5, 1.0, q)
    u, w = u / np.linalg.norm(u), w / np.linalg.norm(w)
    b = np.outer(u, w) / left + rng.standard_normal((p, q))
    return jc.State.from_vectors(u / left, b, w / left)


def test_final_stage_holds_for_a_condensed_state():
    stage = jc.final_stage(condensed_state())
    assert bool(stage.holds)
    assert float(stage.margin) > 0.0
    worse = condensed_state()
    worse = jc.State(worse.a.at[0, 0].multiply(-1), worse.b, worse.c, worse.strength)
    assert not bool(jc.final_stage(worse).holds)
    assert float(jc.final_stage(worse).margin) < 0.0


def test_entries_within_rounding_of_zero_are_undecided():
    state = condensed_state()
    tiny = jc.State(state.a, state.b, state.c.at[0, 2].set(1e-14), state.strength)
    stage = jc.final_stage(tiny)
    # One inequality of the first condition, and all pairs with that unit, of either order.
    assert int(stage.first.undecided) == 1
    assert int(stage.second.undecided) == 2 * 5 - 1
    assert int(stage.third.undecided) == 4
    assert not bool(stage.holds)
    exact = jc.final_stage(tiny, tolerance=0.0)
    assert int(exact.first.undecided) == 0
    zero = jc.State(state.a, state.b, state.c.at[0, 2].set(0.0), state.strength)
    assert int(jc.final_stage(zero, tolerance=0.0).first.undecided) == 1


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_final_stage_does_not_depend_on_the_scale(scale, key):
    state = random_state(key, 2, 4, 3)
    one, other = jc.final_stage(state), jc.final_stage(state.scale(scale))
    for x, y in ((one.first, other.first), (one.second, other.second), (one.third, other.third)):
        assert int(x.positive) == int(y.positive)
        assert int(y.undecided) == 0
        np.testing.assert_allclose(y.margin, x.margin, rtol=1e-12)


def test_signs_flipped_in_pairs_change_no_count(key):
    state = random_state(key, 1, 5, 4)
    sign = jnp.array([1.0, -1.0, 1.0, -1.0, -1.0])
    flipped = jc.State(state.a * sign[None], sign[:, None] * state.b, state.c, state.strength)
    one, other = jc.final_stage(state), jc.final_stage(flipped)
    assert int(one.first.positive) == int(other.first.positive)
    assert int(one.second.positive) == int(other.second.positive)
    np.testing.assert_allclose(one.margin, other.margin, rtol=1e-12)


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def test_angles_by_their_definition(key):
    state = random_state(key, 2, 4, 3)
    angles = jc.angles(state)
    a, b, c, strength = (np.asarray(x) for x in (*state.layers, state.strength))
    for i in range(2):
        columns = [strength[i] * c[i, m] * b[:, m] for m in range(3)]
        velocity = strength[i] * b @ c[i]
        for m in range(3):
            np.testing.assert_allclose(angles.psi[i, m], cosine(velocity, columns[m]), rtol=1e-12)
            np.testing.assert_allclose(angles.phi[i, m], cosine(a[i], columns[m]), rtol=1e-12)
            for n in range(3):
                expected = cosine(columns[m], columns[n])
                np.testing.assert_allclose(angles.xi[i, m, n], expected, rtol=1e-12)
        np.testing.assert_allclose(angles.zeta[i], cosine(a[i], velocity), rtol=1e-12)


def test_angle_with_a_vector_that_vanishes_is_nan(key):
    state = random_state(key, 1, 4, 3)
    angles = jc.angles(jc.State(state.a, state.b, state.c.at[0, 1].set(0.0), state.strength))
    assert np.isnan(angles.psi[0, 1])
    assert np.all(np.isnan(angles.xi[0, 1]))
    assert np.all(np.isfinite(angles.psi[0, ::2]))


def test_ratios_of_components_that_share_the_lead():
    share, u, w = np.array([0.6, 0.8]), np.full(4, 0.5), np.full(9, 1 / 3)
    a, b, c = np.outer(share, u), np.outer(u, w), np.outer(share, w)
    ratios = indicators.ratios(jc.State(a, b, c, np.array([1.0, -1.0])).scale(1e6))
    np.testing.assert_allclose(ratios, [1 / share, 1 / share], rtol=1e-13)


def test_ratios_and_condensed_set_of_a_condensed_state():
    state = condensed_state()
    np.testing.assert_allclose(indicators.ratios(state), 1.0, atol=1e-5)
    assert np.all(indicators.condensed_set(state))
    assert bool(indicators.condensed(state))
    bounded = jc.State(state.a, state.b, state.c.at[0, 1].set(1.0), state.strength)
    np.testing.assert_array_equal(
        indicators.condensed_set(bounded)[0], [True, False, True, True, True]
    )
    assert not bool(indicators.condensed(bounded))
    assert not bool(indicators.condensed(random_state(jax.random.key(1), 1, 4, 5)))


def test_cosine_similarity_and_alignment():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 3))
    rows[2] = 0.0
    similarity = np.asarray(indicators.cosine_similarity(jnp.array(rows)))
    assert np.all(np.isnan(similarity[2]))
    assert np.all(np.isnan(similarity[:, 2]))
    np.testing.assert_allclose(similarity[0, 1], cosine(rows[0], rows[1]), rtol=1e-12)
    np.testing.assert_allclose(similarity[4, 4], 1.0, rtol=1e-12)
    direction = np.array([1.0, 2.0, -1.0])
    aligned = np.asarray(jc.alignment(jnp.array(rows), jnp.array(direction)))
    np.testing.assert_allclose(aligned[5], cosine(rows[5], direction), rtol=1e-12)
    assert np.isnan(aligned[2])
    stack = jnp.array([direction, -3 * direction, [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert float(indicators.share_within(stack, jnp.array(direction), 0.01)) == 0.5


def test_singular_values_and_effective_rank():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((5, 4))
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(indicators.singular_values(jnp.array(matrix)), expected, rtol=1e-12)
    np.testing.assert_allclose(
        indicators.singular_values(jnp.array(matrix), 2), expected[:2], rtol=1e-12
    )
    np.testing.assert_allclose(indicators.effective_rank(jnp.eye(4)), 4.0, rtol=1e-12)
    np.testing.assert_allclose(indicators.effective_rank(jnp.ones((3, 5))), 1.0, rtol=1e-10)
    shares = expected / expected.sum()
    entropy = -np.sum(shares * np.log(shares))
    np.testing.assert_allclose(
        indicators.effective_rank(jnp.array(matrix)), np.exp(entropy), rtol=1e-12
    )


def test_product_holds_the_energy_on_its_diagonal(key):
    state = random_state(key, 3, 4, 5)
    diagonal = jnp.diagonal(indicators.product(state))
    np.testing.assert_allclose(jnp.sum(state.strength * diagonal), jc.energy(state), rtol=1e-12)
    expected = pick(state.a, 0) @ state.b @ pick(state.c, 2)
    np.testing.assert_allclose(indicators.product(state)[0, 2], expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_alignment_and_condensed_set_do_not_depend_on_the_scale(scale):
    rows = jax.random.normal(jax.random.key(0), (5, 3))
    direction = jnp.array([1.0, 2.0, -1.0])
    expected = indicators.cosine_similarity(rows)
    np.testing.assert_allclose(indicators.cosine_similarity(rows * scale), expected, rtol=1e-12)
    expected = jc.alignment(rows, direction)
    np.testing.assert_allclose(jc.alignment(rows * scale, direction * scale), expected, rtol=1e-12)
    assert bool(indicators.condensed(condensed_state().scale(scale)))
