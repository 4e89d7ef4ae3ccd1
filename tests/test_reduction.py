import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, aligned_state, gaussian_states, pick, random_state

import jaxcond as jc

ORTHOGONALITY = 100 * EPS


def orthonormal_or_zero(basis):
    gram = np.asarray(basis @ basis.T)
    kept = np.diag(gram) > 0.5
    np.testing.assert_allclose(gram, np.diag(kept.astype(float)), atol=ORTHOGONALITY)
    return int(kept.sum())


def test_rank_one_reduction_is_tridiagonal_with_orthonormal_bases():
    state = pick(gaussian_states(0, 1, 40, 30), 0)
    reduction = jc.reduce(state, 9)
    assert orthonormal_or_zero(reduction.left) == 9
    assert orthonormal_or_zero(reduction.right) == 9
    b = np.asarray(reduction.state.b)
    scale = np.linalg.norm(np.asarray(state.b), 2)
    np.testing.assert_allclose(np.triu(b, 2), 0, atol=50 * EPS * scale)
    np.testing.assert_allclose(np.tril(b, -2), 0, atol=50 * EPS * scale)
    np.testing.assert_allclose(
        b, reduction.left @ state.b @ reduction.right.T, atol=50 * EPS * scale
    )
    first = np.zeros(9)
    first[0] = np.linalg.norm(np.asarray(state.a))
    np.testing.assert_allclose(reduction.state.a[0], first, atol=50 * EPS * first[0])


@pytest.mark.parametrize(("rank", "p", "q", "dim"), [(1, 6, 4, 6), (2, 5, 7, 10), (3, 5, 4, 8)])
def test_full_reduction_keeps_everything(rank, p, q, dim, key):
    """With as many directions as the flow has, energy and its gradient survive, any rank."""
    state = random_state(key, rank, p, q)
    reduction = jc.reduce(state, dim)
    small = reduction.state
    assert float(jc.energy(small)) == pytest.approx(float(jc.energy(state)), rel=1e-13)
    field, lifted = jc.vector_field(state), jc.vector_field(small)
    np.testing.assert_allclose(lifted.a @ reduction.left, field.a, atol=1e-13)
    np.testing.assert_allclose(lifted.c @ reduction.right, field.c, atol=1e-13)
    np.testing.assert_allclose(reduction.left.T @ lifted.b @ reduction.right, field.b, atol=1e-13)


def test_lift_inverts_the_reduction(key):
    state = random_state(key, 2, 7, 5)
    reduction = jc.reduce(state, 4)
    lifted = reduction.lift(reduction.state, state)
    for ours, expected in zip(lifted.layers, state.layers, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-14 * 10)


def test_aligned_data_end_in_an_invariant_subspace():
    """A residual that is rounding error is not a direction: beyond it, exactly zero."""
    reduction = jc.reduce(aligned_state(0.5, 0.8, 1.3, p=9, q=8), 5)
    assert orthonormal_or_zero(reduction.left) == 1
    np.testing.assert_array_equal(np.asarray(reduction.state.b)[1:, :], 0)
    np.testing.assert_array_equal(np.asarray(reduction.state.b)[:, 1:], 0)
    assert float(reduction.state.b[0, 0]) == pytest.approx(0.8, rel=1e-14)


@pytest.mark.parametrize("missing", ["a", "c"])
def test_a_layer_of_zeros_still_spans(missing):
    """With a = 0 the flow starts along b c: the bases must grow from the other side."""
    state = pick(gaussian_states(3, 1, 6, 6), 0)
    state = jc.State(
        0 * state.a if missing == "a" else state.a,
        state.b,
        0 * state.c if missing == "c" else state.c,
        state.strength,
    )
    reduction = jc.reduce(state, 12)
    field, small = jc.vector_field(state), jc.vector_field(reduction.state)
    np.testing.assert_allclose(small.a @ reduction.left, field.a, atol=1e-13)
    np.testing.assert_allclose(small.c @ reduction.right, field.c, atol=1e-13)
    assert orthonormal_or_zero(reduction.left) == 6


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_reduction_at_extreme_scales(factor):
    state = pick(gaussian_states(0, 1, 20, 20), 0)
    small, scaled = jc.reduce(state, 5).state, jc.reduce(state.scale(factor), 5).state
    np.testing.assert_allclose(scaled.b / factor, small.b, atol=1e-12)


def test_truncation_falls_with_the_dimension():
    state = pick(gaussian_states(0, 1, 60, 60), 0)
    times = [
        float(jc.blowup_time(state, jc.Series(order=32, dim=dim, max_expansions=1)).time)
        for dim in (5, 7, 12)
    ]
    errors = np.abs(np.array(times[:-1]) / times[-1] - 1)
    assert errors[0] < 1e-4
    assert errors[1] < 1e-7
    assert errors[1] < errors[0] / 50


def test_too_few_directions_are_refused(key):
    with pytest.raises(ValueError, match="`dim` must be at least the rank 2, but is 1"):
        jc.reduce(random_state(key, 2, 4, 4), 1)


def test_reduction_compiles_once_for_a_batch():
    traces = []

    @jax.jit
    def small(state):
        traces.append(1)
        return jc.reduce(state, 3).state

    for seed in range(3):
        small(pick(gaussian_states(seed, 1, 5, 4), 0))
    assert len(traces) == 1
    assert jnp.all(jnp.isfinite(small(pick(gaussian_states(9, 1, 5, 4), 0)).b))
