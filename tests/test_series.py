"""The programs of the series method against plain recurrences, and what they compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, gaussian_states
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

import jaxcond as jc
from jaxcond._reduction import pad
from jaxcond.blowup.series._series import _solve
from jaxcond.blowup.series._taylor import derivatives, evaluate, expand_flow, flow_cotangents

SIZE, WIDTH, PADDED = 24, 3, 5


def plain_coefficients(matrix, point, order, sign=-1):
    """The recurrences of one state in 40 digits, term by term: a, tau, its sizes, N, and N_last.

    Of absolute values, and with the sign of tau's changed, they bound the sizes of all terms.
    """
    with mp.workdps(40):
        matrix = [[mpf(float(x)) for x in row] for row in matrix]
        a = [[mpf(float(x)) for x in row] for row in point]
        tau, sizes, norms, last = [mpf(1), mpf(0)], [mpf(1), mpf(0)], [], []
        for n in range(order - 1):
            products = [[a[j][i] * a[n - j][i] for i in range(WIDTH)] for j in range(n + 1)]
            norms.append(sum(sum(row) for row in products))
            last.append(sum(row[-1] for row in products))
            following = [
                sum(m * x for m, x in zip(row, a[n], strict=True))
                + 2 * sum(norms[j] * a[n - j][i] for j in range(n + 1))
                for i, row in enumerate(matrix)
            ]
            a.append([x / ((n + 1) * (n + 2)) for x in following])
            terms = [norms[j] / (j + 1) * tau[n - j] for j in range(n + 1)]
            tau.append(sign * sum(terms) / (n + 2))
            sizes.append(sum(abs(term) for term in terms) / (n + 2))
        return tuple(np.array(x, float) for x in (a, tau, sizes, norms, last))


def random_flow(seed, size=1.0):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((WIDTH, WIDTH))
    return matrix + matrix.T, size * rng.standard_normal((2, WIDTH))


def lanes(array, *, padded):
    """One lane, with zero units after the others."""
    sides = [(0, padded - WIDTH if length == WIDTH else 0) for length in array.shape]
    return jnp.asarray(np.pad(array, sides)[..., None])


@functools.cache
def compiled_expansion():
    return jax.jit(lambda *arguments: expand_flow(*arguments, SIZE))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-8, 1),
    order=st.integers(4, SIZE),
)
def test_coefficients_are_those_of_the_plain_recurrence(seed, exponent, order):
    matrix, point = random_flow(seed, 2.0**exponent)
    expected = plain_coefficients(matrix, point, order)
    bounds = plain_coefficients(np.abs(matrix), np.abs(point), order, sign=1)
    arguments = lanes(matrix, padded=PADDED), lanes(point, padded=PADDED)
    found = compiled_expansion()(*arguments, jnp.asarray(WIDTH), jnp.asarray(order))
    names = ("a", "tau", "sizes", "norms", "last")
    for name, values, bound in zip(names, expected, bounds, strict=True):
        computed = np.asarray(getattr(found, name))[..., 0]
        inside = tuple(slice(length) for length in values.shape)
        assert np.all(np.abs(computed[inside] - values) <= 20 * order * EPS * bound)
        # Nothing in the units that pad the state, nor beyond the order.
        assert np.count_nonzero(computed) <= values.size


@pytest.mark.parametrize("order", [4, 17, SIZE])
def test_cotangents_are_the_transpose_of_the_derivative(order):
    matrix, point = (lanes(x, padded=WIDTH) for x in random_flow(order))
    ways = [lanes(x, padded=WIDTH) for x in random_flow(order + 100)]

    def expand(matrix, point):
        return expand_flow(matrix, point, jnp.asarray(WIDTH), jnp.asarray(order), SIZE)

    taylor, change = jax.jvp(expand, (matrix, point), tuple(ways))
    rng = np.random.default_rng(order)
    of_a, of_norms = (
        jnp.asarray(rng.standard_normal(x.shape)).at[count:].set(0)
        for x, count in ((taylor.a, order + 1), (taylor.norms, order - 1))
    )
    forward = jnp.vdot(of_a, change.a) + jnp.vdot(of_norms, change.norms)
    of_matrix, of_point = flow_cotangents(matrix, taylor, of_a, of_norms)
    backward = jnp.vdot(of_matrix, ways[0]) + jnp.vdot(of_point, ways[1])
    np.testing.assert_allclose(backward, forward, rtol=1e-11)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(3, 70), x=st.floats(0, 3), zeros=st.booleans()
)
def test_polynomials_and_their_derivatives(seed, count, x, zeros):
    rng = np.random.default_rng(seed)
    coefficients = rng.standard_normal((count, 2)) / 2.0 ** np.arange(count)[:, None]
    if zeros:
        coefficients[count // 2 :] = 0
    table = derivatives(jnp.asarray(coefficients), 3)
    values = evaluate(table, jnp.full(2, x))
    for lane in range(2):
        polynomial = np.polynomial.Polynomial(coefficients[:, lane])
        sizes = np.polynomial.Polynomial(np.abs(coefficients[:, lane]))
        for i in range(4):
            expected = polynomial.deriv(i)(x)
            assert abs(values[i, lane] - expected) <= 100 * EPS * sizes.deriv(i)(x)


def test_powers_beyond_the_order_do_not_overflow():
    coefficients = np.zeros((41, 1), np.float32)
    coefficients[:3, 0] = 1, 0, -1e-10
    table = derivatives(jnp.asarray(coefficients), 2)
    values = evaluate(table, jnp.full(1, 1e6, jnp.float32))
    np.testing.assert_allclose(values[:, 0], [1 - 1e2, -2e-4, -2e-10], rtol=1e-6)


def solved(states, method, units, truncated):
    """By the program, with a number of zero units appended."""
    plan, width = method.plan(states), max(states.widths)
    states = jax.vmap(lambda state: pad(state, width + units))(states)
    return _solve(states, jnp.asarray(1e-10), jnp.asarray(truncated), plan, "")


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("max_expansions", [1, 128])
def test_results_do_not_depend_on_padding(max_expansions, truncated):
    method = jc.Series(max_expansions=max_expansions)
    states = gaussian_states(17, 6, 5, 4, scales=(1.0, 0.5, 0.01))
    expected = solved(states, method, 0, truncated)
    for units in (3, 12):
        got = solved(states, method, units, truncated)
        np.testing.assert_array_equal(got.status, expected.status)
        np.testing.assert_array_equal(got.num_steps, expected.num_steps)
        known = np.asarray(expected.status) == jc.Status.CONVERGED
        for name in ("time", "lower", "upper"):
            one, other = (np.asarray(getattr(x, name))[known] for x in (got, expected))
            error = np.asarray(expected.error)[known]
            assert np.all(np.abs(one - other) <= 100 * EPS * other + 2 * error)
        np.testing.assert_allclose(got.error[known], expected.error[known], rtol=0.3)


@pytest.fixture
def compilations():
    """The programs that have been compiled since, by their events."""
    events = []

    def record(name, seconds, **_):
        if "backend_compile" in name:
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(record)
    yield events
    jax.monitoring.unregister_event_duration_listener(record)


def test_widths_orders_and_tolerances_share_their_programs(compilations):
    def solve(width, method, rtol):
        states = gaussian_states(width, 2, width, width)
        del compilations[:]
        found = method.batch_solver(states)(states, rtol, False)
        assert np.all(np.asarray(found.status) != jc.Status.INVALID_INPUT)
        return len(compilations)

    for again in (1, 128):
        assert solve(5, jc.Series(max_expansions=again), 1e-10) > 0
        for width, order, rtol in ((7, 32, 1e-10), (12, 36, 1e-8), (2, 16, 1e-12), (9, 40, 1e-6)):
            assert solve(width, jc.Series(order=order, max_expansions=again), rtol) == 0
    assert solve(11, jc.Series(max_expansions=40), 1e-10) == 0


@pytest.mark.parametrize("order", [4, 24, 41, 64])
def test_any_order(order):
    states = gaussian_states(11, 2, 5, 4)
    method = jc.Series(order=order)
    found = solved(states, method, 0, False)
    expected = solved(states, jc.Series(), 0, False)
    reached = np.asarray(found.status) == jc.Status.CONVERGED
    assert order < 24 or np.all(reached)
    np.testing.assert_allclose(found.time[reached], expected.time[reached], rtol=1e-9)
    state = jax.tree.map(lambda x: x[0], states)
    gradient = method.gradient(state, expected.time[0], jnp.asarray(1e-10))
    if order >= 24:
        homogeneous = sum(
            jnp.vdot(x, y) for x, y in zip(gradient.layers, state.layers, strict=True)
        )
        np.testing.assert_allclose(homogeneous, -expected.time[0], rtol=1e-8)


def test_programs_hold_no_callbacks():
    state = jax.tree.map(lambda x: x[0], gaussian_states(11, 1, 5, 4))
    method = jc.Series()
    batch = jax.tree.map(lambda x: x[None], state)

    def both(batch, state):
        found = method.solve_by_program(batch, jnp.asarray(1e-10), jnp.zeros((), bool))
        return found, method.gradient(state, found.time[0], jnp.asarray(1e-10))

    text = jax.jit(both).lower(batch, state).as_text()
    assert "callback" not in text


def test_gradients_in_single_precision_where_higher_powers_overflow():
    """A time of 14 in units of the largest layer: its power 40 is beyond single precision."""
    size = 0.07
    a, b = jnp.array([size, 0], jnp.float32), jnp.diag(jnp.array([size, 1], jnp.float32))
    state = jc.State.from_vectors(a, b, a)
    found = jc.blowup_time(state, rtol=1e-4)
    gradient = jc.Series().gradient(state, found.time, jnp.asarray(1e-4, jnp.float32))
    np.testing.assert_allclose(found.time, 1 / size, rtol=1e-5)
    for layer in (gradient.a[0, 0], gradient.b[0, 0], gradient.c[0, 0]):
        np.testing.assert_allclose(layer, -1 / (3 * size**2), rtol=1e-5)
