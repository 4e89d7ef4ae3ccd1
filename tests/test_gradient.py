"""Derivatives of the blow-up time against finite differences, identities and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import aligned_state, gaussian_states, random_state

import jaxcond as jc


def time(state, method=None):
    return jc.blowup_time(state, method, rtol=1e-12).time


def moved(state, direction, step):
    return jax.tree.map(lambda x, y: x + step * y, state, direction)


def inner(one, other):
    return sum(float(jnp.vdot(x, y)) for x, y in zip(one.layers, other.layers, strict=True))


def check_identities(state, gradient, rtol):
    """Homogeneity, and one unit of time less after one unit of time."""
    np.testing.assert_allclose(inner(gradient, state), -time(state), rtol=rtol)
    np.testing.assert_allclose(inner(gradient, jc.vector_field(state)), -1.0, rtol=rtol)
    strength = jnp.vdot(gradient.strength, state.strength)
    np.testing.assert_allclose(strength, -time(state), rtol=rtol)


def check_differences(state, gradient, seed, rtol):
    """Central differences along a random direction, all fields at once."""
    direction = random_state(jax.random.key(seed), state.rank, *state.widths)
    step = 1e-5
    difference = (time(moved(state, direction, step)) - time(moved(state, direction, -step))) / (
        2 * step
    )
    along = inner(gradient, direction) + float(jnp.vdot(gradient.strength, direction.strength))
    np.testing.assert_allclose(along, difference, rtol=rtol)
    return direction


@functools.cache
def wide_state():
    return jc.Gaussian(30, 28).sample(key=jax.random.key(3))


@functools.cache
def wide_second():
    """The gradient, and its and the time's derivatives along a direction: one program for all."""

    def both(state, direction):
        (_, gradient), (along, second) = jax.jvp(jax.value_and_grad(time), (state,), (direction,))
        return gradient, second, along

    return jax.jit(both)


def wide_gradient(state):
    return wide_second()(state, state)[0]


def test_wide_state_reduced():
    state = wide_state()
    gradient = wide_gradient(state)
    check_identities(state, gradient, 1e-11)
    direction = check_differences(state, gradient, 4, 1e-7)
    _, forward = jax.jvp(time, (state,), (direction,))
    along = inner(gradient, direction) + float(jnp.vdot(gradient.strength, direction.strength))
    np.testing.assert_allclose(forward, along, rtol=1e-12)


@pytest.mark.slow
def test_second_derivatives():
    state = wide_state()
    direction = random_state(jax.random.key(5), 1, 30, 28)
    gradient, second, along = wide_second()(state, direction)
    # The time is one thing with its derivatives, also where it is differentiated twice.
    strength = float(jnp.vdot(gradient.strength, direction.strength))
    np.testing.assert_allclose(along, inner(gradient, direction) + strength, rtol=1e-12)
    step = 1e-5
    difference = jax.tree.map(
        lambda x, y: (x - y) / (2 * step),
        wide_gradient(moved(state, direction, step)),
        wide_gradient(moved(state, direction, -step)),
    )
    for x, y in zip(jax.tree.leaves(second), jax.tree.leaves(difference), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-8 * float(jnp.max(jnp.abs(y))))


@pytest.mark.slow
def test_aligned_wide_state_has_first_derivatives_only():
    state = aligned_state(1.2, -0.7, 0.5, p=30, q=28)
    other = random_state(jax.random.key(5), 1, 30, 28)
    gradient, second, _ = wide_second()(state, other)
    expected = jax.grad(lambda v: jc.bounds.aligned_blowup_time(v[0], v[1], v[2]))(
        jnp.array([1.2, -0.7, 0.5])
    )
    np.testing.assert_allclose(gradient.a[0], expected[0] * state.a[0] / 1.2, rtol=1e-9)
    assert np.all(np.isnan(second.b))


@pytest.mark.slow
def test_second_derivatives_are_symmetric_and_homogeneous():
    state, hessian_times = wide_state(), wide_second()
    one, other = (random_state(jax.random.key(seed), 1, 30, 28) for seed in (8, 9))
    along_one, along_other = (hessian_times(state, way)[1] for way in (one, other))
    products = [
        sum(float(jnp.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in ((along_one, other), (along_other, one))
    ]
    np.testing.assert_allclose(products[0], products[1], rtol=1e-9)
    # The gradient by the layers is homogeneous of degree -2.
    ray = jc.State(*state.layers, jnp.zeros(1))
    gradient, along, _ = hessian_times(state, ray)
    for x, y in zip(along.layers, gradient.layers, strict=True):
        np.testing.assert_allclose(x, -2 * y, rtol=0, atol=1e-10 * float(jnp.max(jnp.abs(y))))


@functools.cache
def scalar_gradient():
    def of_vector(v):
        return time(jc.State.from_vectors(v[:1], v[1:2, None], v[2:]))

    return jax.jit(jax.grad(of_vector))


@pytest.mark.parametrize("scales", [(1.2, -0.7, 0.5), (0.8, 0.9, 1.1), (1e-3, 2.0, -1e-2)])
def test_closed_form_of_width_one(scales):
    """Either sign of the energy, and re-expansion where scales differ."""
    values = jnp.array(scales)
    got = scalar_gradient()(values)
    expected = jax.grad(lambda v: jc.bounds.aligned_blowup_time(v[0], v[1], v[2]))(values)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_vmap_equals_a_loop_and_spares_bad_lanes():
    good = jnp.array([1.2, -0.7, 0.5])
    never = jnp.array([1.0, 1.0, -1.0])
    broken = jnp.array([1.0, jnp.nan, 1.0])
    gradient = scalar_gradient()
    batch = jax.vmap(gradient)(jnp.stack([good, never, broken, 2 * good]))
    np.testing.assert_allclose(batch[0], gradient(good), rtol=1e-12)
    np.testing.assert_allclose(batch[3], gradient(good) / 4, rtol=1e-12)
    assert np.all(np.isnan(batch[1:3]))


@functools.cache
def rank_two_gradient():
    return jax.jit(jax.grad(time))


@pytest.mark.parametrize("strength", [(1.0, -1.0), (1.0, 1.0), (0.3, -2.0), (1e-8, 2e-8)])
def test_unequal_widths_and_higher_rank(strength):
    """With equal strengths, too, where no component dominates in the end."""
    a, b, c = random_state(jax.random.key(7), 2, 4, 3).layers
    state = jc.State(a, b, c, jnp.array(strength))
    gradient = rank_two_gradient()(state)
    check_identities(state, gradient, 1e-9)
    if max(strength) > 1e-3:
        check_differences(state, gradient, 8, 1e-6)


def test_one_expansion_has_a_gradient_wherever_it_has_a_time():
    method = jc.Series(max_expansions=1)
    states = gaussian_states(1, 16, 2, 2)

    def both(state):
        found = jc.blowup_time(state, method)
        return found, jax.grad(lambda s: jc.blowup_time(s, method).time)(state)

    found, gradient = jax.jit(jax.vmap(both))(states)
    known = np.asarray(found.status) == jc.Status.CONVERGED
    assert 4 <= known.sum() < 16
    homogeneous = sum(
        np.sum(np.asarray(x * y).reshape(16, -1), axis=1)
        for x, y in zip(gradient.layers, states.layers, strict=True)
    )
    np.testing.assert_allclose(homogeneous[known], -np.asarray(found.time)[known], rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale(scale):
    values = jnp.array([1.2, -0.7, 0.5])
    got = scalar_gradient()(values * scale) * scale * scale
    np.testing.assert_allclose(got, scalar_gradient()(values), rtol=1e-10)
