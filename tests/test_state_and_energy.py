import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, random_state

import jaxcond as jc

ROUNDING = 50 * EPS


@pytest.mark.parametrize(("rank", "p", "q"), [(1, 1, 1), (1, 4, 3), (3, 5, 4), (2, 2, 6)])
def test_vector_field_is_the_gradient_of_the_energy(rank, p, q, key):
    state = random_state(key, rank, p, q)
    gradient = jax.grad(lambda layers: jc.energy(jc.State(*layers, state.strength)))(state.layers)
    for ours, expected in zip(jc.vector_field(state).layers, gradient, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=ROUNDING, atol=ROUNDING)


def test_energy_of_rank_one_is_the_paper_s(key):
    state = random_state(key, 1, 4, 3)
    a, b, c = (np.asarray(x) for x in state.layers)
    assert float(jc.energy(state)) == pytest.approx(
        a[0] @ b @ c[0] * float(state.strength[0]), rel=ROUNDING
    )


@pytest.mark.parametrize(("rank", "p", "q"), [(1, 4, 3), (3, 5, 4)])
def test_conserved_quantities_do_not_move_along_the_vector_field(rank, p, q, key):
    state = random_state(key, rank, p, q)
    _, drift = jax.jvp(jc.conserved, (state,), (jc.vector_field(state),))
    for value in jax.tree.leaves(drift):
        np.testing.assert_allclose(value, 0, atol=200 * EPS)


def test_conserved_vectors_are_the_diagonals(key):
    state = random_state(key, 2, 5, 4)
    conserved = jc.conserved(state)
    a, b, c = (np.asarray(x) for x in state.layers)
    np.testing.assert_allclose(conserved.left_units, (b**2).sum(1) - (a**2).sum(0), atol=ROUNDING)
    np.testing.assert_allclose(conserved.right_units, (b**2).sum(0) - (c**2).sum(0), atol=ROUNDING)


def test_a_conserved_quantity_moves_on_a_wrong_flow(key):
    state = random_state(key, 1, 4, 3)
    field = jc.vector_field(state)
    wrong = jc.State(field.a, 1.01 * field.b, field.c, field.strength)
    _, drift = jax.jvp(jc.conserved, (state,), (wrong,))
    assert float(jnp.max(jnp.abs(drift.left))) > 1e-3


def test_from_vectors_and_batches():
    state = jc.State.from_vectors(np.ones(3), np.ones((3, 2)), np.ones(2))
    assert state.rank == 1
    assert state.widths == (3, 2)
    assert state.batch_shape == ()
    batch = jc.State.from_vectors(np.ones((5, 3)), np.ones((5, 3, 2)), np.ones((5, 2)))
    assert batch.batch_shape == (5,)
    assert float(jc.energy(state)) == 6.0


def test_transpose_and_scale_keep_the_energy(key):
    state = random_state(key, 2, 5, 4)
    energy = float(jc.energy(state))
    assert float(jc.energy(state.transpose())) == pytest.approx(energy, rel=ROUNDING)
    assert float(jc.energy(state.scale(2.0))) == pytest.approx(8 * energy, rel=ROUNDING)


@pytest.mark.parametrize("exponent", [-900, -3, 0, 5, 900])
def test_unit_scale_divides_exactly(exponent, key):
    state = random_state(key, 1, 4, 3).scale(2.0**exponent)
    unit, scale = state.unit_scale()
    largest = max(float(jnp.max(jnp.abs(layer))) for layer in unit.layers)
    assert 0.5 <= largest < 1
    for ours, expected in zip(unit.scale(scale).layers, state.layers, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones(3, int), np.ones((3, 2)), np.ones(2)), "`a` must be a real floating-point"),
        ((np.ones(3), np.ones((3, 2), complex), np.ones(2)), "`b` must be a real floating-point"),
        ((np.ones(2), np.ones((3, 2)), np.ones(2)), "shapes of a state"),
        ((np.ones(3), np.ones((3, 2)), np.ones(3)), "shapes of a state"),
        ((np.ones(()), np.ones((3, 2)), np.ones(2)), "must be vectors"),
        ((np.ones(0), np.ones((0, 2)), np.ones(2)), "must be positive"),
    ],
)
def test_bad_arrays_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        jc.State.from_vectors(*arrays)


def test_bad_strengths_are_refused():
    with pytest.raises(ValueError, match="A state is a"):
        jc.State(np.ones(3), np.ones((3, 2)), np.ones(2), np.ones(1))


def test_first_integrals_are_conserved_and_vanish_at_rest():
    rng = np.random.default_rng(0)
    state = jc.State.from_vectors(*(rng.standard_normal(n) for n in (4, (4, 3), 3)))
    path = jc.trajectory(state)
    start = jc.first_integrals(state)
    for fraction in (0.5, 0.8):
        now = jc.first_integrals(path(path.times_of(fraction=fraction)))
        np.testing.assert_allclose(now.values, start.values, atol=1e-12 * float(now.sizes.max()))
    assert float(start.rest_distance) > 1e-2
    rests = jc.State.from_vectors(
        np.array([-2.0, 1]), np.array([[1.0, 2], [-1, -1]]), np.array([1.0, 2])
    )
    assert float(jc.first_integrals(rests).rest_distance) < 1e-14
    assert float(jc.first_integrals(rests.transpose()).rest_distance) < 1e-14
    with pytest.raises(ValueError, match="rank 1"):
        jc.first_integrals(jc.State(np.ones((2, 3)), np.ones((3, 3)), np.ones((2, 3)), np.ones(2)))
