import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from helpers import EPS, aligned_state, from_reference, gaussian_states, pick
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcond as jc
from jaxcond._reduction import pad

# What every method must reach on the reference table and the closed forms, asked for 1e-13.
TARGET = 1e-12
TIGHT = 1e-12
# Between runs of one method on states that are equal but for rounding.
SAME = 1e-13
# What `blowup_times` begins with at widths (5, 4), so that tests share its program.
ONE_EXPANSION = jc.Series(order=36, dim=10, max_expansions=1)
METHODS = {"series": jc.Series(), "reduced": jc.Reduced(), "direct": jc.Direct()}


def stack(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def check(found, expected):
    """The time to the target, and all three promises: status, error and bracket."""
    times = np.array([float(t) for t in expected])
    np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, times, rtol=TARGET)
    half = 0.5 * EPS * times  # what rounding the expected times leaves open
    assert np.all(found.lower - half <= times)
    assert np.all(times <= found.upper + half)
    assert np.all((found.lower <= found.time) & (found.time <= found.upper))
    assert np.all(np.abs(np.asarray(found.time) - times) <= found.error + half)
    assert np.all(found.error <= TIGHT * np.asarray(found.time))
    # The error on either side, and the bracket of the state that was reached.
    assert np.all(np.asarray(found.upper - found.lower) <= 3.01 * TIGHT * times)


@pytest.fixture(scope="module")
def solved(reference):
    """Reference entries of rank one and aligned states, solved by each method where first asked.

    All of one shape, by units of zeros, which never move: one compilation a method.
    """
    entries = [entry for entry in reference if len(entry["a"]) == 1]
    states = [*map(from_reference, entries), *aligned_states()[0]]
    states = stack([pad(state, 16) for state in states])

    @functools.cache
    def by(name):
        found = jc.blowup_times(states, rtol=TIGHT, methods=[METHODS[name]])
        parts = (slice(0, len(entries)), slice(len(entries), None))
        return tuple(pick(found, part) for part in parts)

    return by


@pytest.mark.parametrize("name", METHODS)
def test_reference_table_rank_one(name, reference, solved):
    entries = [entry for entry in reference if len(entry["a"]) == 1]
    check(solved(name)[0], [entry["blowup_time"] for entry in entries])


@pytest.mark.parametrize("name", ["reduced", "direct"])
def test_reference_table_higher_rank(name, reference):
    entries = [entry for entry in reference if len(entry["a"]) > 1]
    for entry in entries:
        found = jc.blowup_time(from_reference(entry), METHODS[name], rtol=TIGHT)
        check(found, [entry["blowup_time"]])


@pytest.mark.slow
def test_reference_table_in_its_own_shapes(reference):
    """But for those of rank one whose widths are like others': these are of width 16."""
    for entry in reference:
        state = from_reference(entry)
        if state.rank == 1 and state.widths not in ((1, 1), (2, 2), (2, 6)):
            state = pad(state, 16)
        found = jc.blowup_time(state, rtol=TIGHT)
        check(found, [entry["blowup_time"]])


def aligned_states():
    """Aligned states of either sign with their times in closed form."""
    values = np.random.default_rng(5).uniform(0.2, 2, (24, 3))
    values[::2, 0] *= -1
    states = [aligned_state(*row, p=4, q=3, seed=i) for i, row in enumerate(values)]
    times = jax.vmap(jc.bounds.aligned_blowup_time)(*jnp.asarray(values.T))
    return states, np.asarray(times)


@pytest.mark.parametrize("name", METHODS)
def test_aligned_states_in_closed_form(name, solved):
    _, times = aligned_states()
    found = solved(name)[1]
    assert np.all(found.status == jc.Status.CONVERGED)
    # Near-balanced negative energies are ill-conditioned in themselves: no closer than `error`.
    allowance = np.maximum(TARGET, np.asarray(found.error) / times)
    assert np.all(np.abs(np.asarray(found.time) / times - 1) <= allowance)
    assert np.all(np.asarray(found.error) / times < 1e-11)


def desingularised(p, q, a, b, c, stop):
    """Independent integration of the full state by scipy; returns T* from its own asymptotics."""

    def field(_, y):
        a, b, c = y[:p], y[p : p + p * q].reshape(p, q), y[p + p * q : -1]
        rate = 1 / np.sqrt((a**2).sum() + (b**2).sum() + (c**2).sum())
        return rate * np.concatenate([b @ c, np.outer(a, c).ravel(), b.T @ a, [1.0]])

    def blown(_, y):
        a, b, c = y[:p], y[p : p + p * q].reshape(p, q), y[p + p * q : -1]
        return a @ b @ c - stop

    blown.terminal = True
    start = np.concatenate([a, b.ravel(), c, [0.0]])
    run = scipy.integrate.solve_ivp(
        field, (0, 1e3), start, "DOP853", rtol=1e-13, atol=1e-15, events=blown
    )
    y = run.y[:, -1]
    return y[-1] + (y[:p] @ y[p : p + p * q].reshape(p, q) @ y[p + p * q : -1]) ** (-1 / 3)


def test_against_scipy_on_the_full_state():
    states = gaussian_states(11, 8, 5, 4)
    found = jc.blowup_times(states)
    for i in range(6):
        a, b, c = (np.asarray(x) for x in pick(states, i).layers)
        # Stopped where E^(-1/3) = 1e-5, of which the next order is about 1e-15.
        time = desingularised(5, 4, a[0], b, c[0], 1e15)
        assert float(found.time[i]) == pytest.approx(time, rel=1e-11)


def test_semigroup():
    """T* falls by as much time as passes, with the time passing in scipy."""
    state = pick(gaussian_states(11, 1, 5, 4), 0)
    a, b, c = (np.asarray(x) for x in state.layers)
    total = float(jc.blowup_time(state).time)

    def field(_, y):
        a, b, c = y[:5], y[5:25].reshape(5, 4), y[25:]
        return np.concatenate([b @ c, np.outer(a, c).ravel(), b.T @ a])

    start = np.concatenate([a[0], b.ravel(), c[0]])
    run = scipy.integrate.solve_ivp(field, (0, total / 2), start, "DOP853", rtol=1e-13, atol=1e-14)
    y = run.y[:, -1]
    later = jc.State.from_vectors(y[:5], y[5:25].reshape(5, 4), y[25:])
    assert float(jc.blowup_time(later).time) == pytest.approx(total / 2, rel=1e-11)


def alike(states, index):
    """One of the states alone, in a batch of as many."""
    return jax.tree.map(lambda x: jnp.stack([jnp.asarray(x[index])] * len(x)), states)


def test_every_outcome_in_one_batch():
    """Easy, hard, resting and invalid states together: each as if it were alone."""
    states = gaussian_states(2, 8, 5, 4)
    a, b, c, strength = (np.array(leaf) for leaf in (*states.layers, states.strength))
    a[1], c[1] = 0, 0
    b[2, 1, 1] = np.nan
    a[3, 0, 0] = np.inf
    a[4], b[4], c[4] = 0, 0, 0
    a[4, 0, 0], b[4, 0, 0], c[4, 0, 0] = 1, 1, -1
    a[5] = 0
    a[6] *= 1e-8
    c[6] *= 1e-8
    a[7], b[7], c[7] = 0, 0, 0
    mixed = jc.State(a, b, c, strength)
    found = jc.blowup_times(mixed)
    expected = [jc.Status.CONVERGED] * 8
    expected[1] = expected[4] = expected[7] = jc.Status.NO_BLOW_UP
    expected[2] = expected[3] = jc.Status.INVALID_INPUT
    np.testing.assert_array_equal(found.status, expected)
    assert np.all(np.isinf(found.time[np.array([1, 4, 7])]))
    assert np.all(np.isnan(found.time[np.array([2, 3])]))
    assert "3 no_blow_up" in str(found)
    alone = jc.blowup_times(alike(states, 0))
    assert float(found.time[0]) == pytest.approx(float(alone.time[0]), rel=SAME)
    direct = jc.blowup_times(mixed, methods=[jc.Direct()])
    np.testing.assert_array_equal(direct.status, expected)
    usable = np.array([0, 5, 6])
    np.testing.assert_allclose(direct.time[usable], found.time[usable], rtol=1e-9)
    tiny = jc.blowup_times(alike(mixed, 6), rtol=TIGHT, methods=[jc.Direct()])
    np.testing.assert_allclose(tiny.time[0], found.time[6], rtol=1e-11)


def test_near_miss_of_example_1_reports_how_well_it_knows():
    """s2 - s1 of a few units of rounding: late blow-up, known to a few digits at most."""
    gap = 4 * EPS
    layers = (jnp.array([1.0]), jnp.array([[1.0 + gap]]), jnp.array([-1.5]))
    found = jc.blowup_time(jc.State.from_vectors(*layers))
    exact = float(jc.bounds.aligned_blowup_time(layers[0][0], layers[1][0, 0], layers[2][0]))
    assert np.isfinite(exact)
    assert float(found.lower) <= exact <= float(found.upper)
    assert abs(float(found.time) - exact) <= float(found.error)
    by_doubles = jc.blowup_time(jc.State.from_vectors(*layers), jc.Series())
    assert int(by_doubles.status) == jc.Status.ILL_CONDITIONED
    assert float(by_doubles.lower) <= exact <= float(by_doubles.upper)
    assert float(by_doubles.error) > 1e-6


@pytest.mark.parametrize(("off", "exact"), [(1e-3, 81.926209881), (1e-8, 26219.5755729)])
def test_near_miss_of_example_1_in_another_direction(off, exact):
    """c = (-1, off): T* grows like off^(-1/2), and its condition with it.

    The times are those of Taylor steps of the full system in 50-digit arithmetic.
    """
    corner = jnp.diag(jnp.array([1.0, 0.0]))
    state = jc.State.from_vectors(corner[0], corner, jnp.array([-1.0, off]))
    half = 0.5 * 10.0 ** (math.floor(math.log10(exact)) - 10)
    for method in (None, jc.Series(), jc.Direct()):
        found = jc.blowup_time(state, method)
        assert float(found.lower) - half <= exact <= float(found.upper) + half
        if np.isfinite(float(found.time)):
            assert abs(float(found.time) - exact) <= float(found.error) + half
        if off < 1e-6 and method is not None:
            # Beyond what one unit of rounding in the squares of the layers leaves known.
            assert int(found.status) == jc.Status.ILL_CONDITIONED


def test_vanishing_outer_layer():
    """a is odd in time: every second term of its series vanishes."""
    state = pick(gaussian_states(21, 1, 5, 4), 0)
    no_first = jc.State(state.a, state.b, jnp.zeros_like(state.c), state.strength)
    no_last = jc.State(jnp.zeros_like(state.a), state.b, state.c, state.strength)
    for s in (no_first, no_last):
        found, direct = jc.blowup_time(s), jc.blowup_time(s, jc.Direct())
        assert int(found.status) == jc.Status.CONVERGED
        np.testing.assert_allclose(found.time, direct.time, rtol=1e-10)


@pytest.fixture(scope="module")
def one_expansion():
    """The method as a compiled function, and a list that grows whenever it is traced."""
    traces = []

    @jax.jit
    def solve(state, rtol):
        traces.append(1)
        return jc.blowup_time(state, ONE_EXPANSION, rtol=rtol)

    return solve, traces


def test_one_expansion_that_does_not_reach_says_so(reference, one_expansion):
    entry = next(entry for entry in reference if entry["name"] == "scalar, negative energy")
    scalar = pad(from_reference(entry), 5)
    # As narrow as the states of other tests.
    state = jc.State(scalar.a, scalar.b[:, :4], scalar.c[:, :4], scalar.strength)
    solve, _ = one_expansion
    assert int(solve(state, jnp.asarray(1e-10)).status) == jc.Status.NOT_CONVERGED
    settled = jc.blowup_times(stack([state] * 8), methods=[ONE_EXPANSION, jc.Series()])
    assert np.all(settled.status == jc.Status.CONVERGED)
    assert np.all(settled.stage == 1)
    assert settled.settled_by() == {settled.methods[0]: 0, settled.methods[1]: 8}


def test_too_few_steps_say_so():
    state = pick(gaussian_states(11, 1, 5, 4), 0)
    found = jc.blowup_time(state, jc.Direct(max_steps=4))
    assert int(found.status) == jc.Status.NOT_CONVERGED
    assert float(found.lower) <= float(jc.blowup_time(state).time)


@pytest.mark.parametrize("factor", [1e-100, 1e100])
def test_scaling_by_a_hundred_decades(factor):
    state = pick(gaussian_states(11, 1, 5, 4), 0)
    found, scaled = jc.blowup_time(state), jc.blowup_time(state.scale(factor))
    assert int(scaled.status) == jc.Status.CONVERGED
    for name in ("time", "lower", "upper"):
        ours, expected = float(getattr(scaled, name)), float(getattr(found, name)) / factor
        assert ours == pytest.approx(expected, rel=1e-12)


def test_float32_gives_1e_minus_5_and_says_so():
    states = gaussian_states(7, 64, 12, 12)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), states)
    found = jc.blowup_times(single)
    double = jax.tree.map(lambda x: x.astype(jnp.float64), single)
    double = jc.blowup_times(double, methods=[jc.Series()])
    assert np.all(double.status == jc.Status.CONVERGED)
    assert found.time.dtype == jnp.float32
    assert np.all(found.status == jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, double.time, rtol=1e-5)
    assert np.all(found.error >= np.finfo(np.float32).eps * found.time)
    assert "float32" in str(found)


def test_tolerances_beyond_the_dtype_are_refused():
    state = pick(gaussian_states(11, 1, 5, 4), 0)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), state)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        jc.blowup_time(single, rtol=1e-10)
    for rtol in (1e-15, 0.0, -1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="`rtol` must lie between"):
            jc.blowup_time(state, rtol=rtol)


def test_misuse_is_refused(reference):
    states = gaussian_states(11, 3, 5, 4)
    with pytest.raises(ValueError, match="takes one state"):
        jc.blowup_time(states)
    with pytest.raises(ValueError, match="one batch axis"):
        jc.blowup_times(pick(states, 0))
    rank_two = from_reference(next(e for e in reference if len(e["a"]) == 2))
    with pytest.raises(ValueError, match="rank 1, but the rank is 2"):
        jc.blowup_time(rank_two, jc.Series())
    with pytest.raises(ValueError, match="at least one method"):
        jc.blowup_times(states, methods=[])
    for arguments, message in (
        ({"order": 2}, "`order` must be at least 4, but is 2"),
        ({"dim": 1}, "`dim` must be at least 2, but is 1"),
        ({"max_expansions": 0}, "`max_expansions` must be at least 1, but is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.Series(**arguments)
    with pytest.raises(ValueError, match="`dim` must be at least 2, but is 1"):
        jc.Reduced(dim=1)


def test_empty_batch():
    found = jc.blowup_times(pick(gaussian_states(11, 3, 5, 4), slice(0, 0)))
    assert found.time.shape == (0,)


def test_vmap_equals_a_loop_and_the_batch():
    states = gaussian_states(11, 8, 5, 4)
    batched = jax.jit(jax.vmap(jc.blowup_time))(states)
    for i in range(8):
        assert float(batched.time[i]) == pytest.approx(
            float(jc.blowup_time(pick(states, i)).time), rel=SAME
        )
    np.testing.assert_allclose(jc.blowup_times(states).time, batched.time, rtol=1e-10)


def test_a_sweep_compiles_once(one_expansion):
    solve, traces = one_expansion
    for seed, rtol in enumerate((1e-6, 1e-8, 1e-10)):
        solve(pick(gaussian_states(seed, 1, 5, 4), 0), jnp.asarray(rtol))
    assert len(traces) == 1


@pytest.fixture(scope="module")
def time_of():
    return jax.jit(lambda state: jc.blowup_time(state).time)


# Rounding of the transformation, times the condition of T*, which these states keep moderate.
INVARIANCE = 1e-9


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), sign=st.sampled_from([-1, 1]))
def test_invariances(time_of, seed, sign):
    state = pick(gaussian_states(seed, 1, 4, 4), 0)
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    expected = float(time_of(state))
    rotated = jc.State(
        sign * state.a @ left.T, sign * left @ state.b @ right.T, state.c @ right.T, state.strength
    )
    assert float(time_of(rotated)) == pytest.approx(expected, rel=INVARIANCE)
    assert float(time_of(state.transpose())) == pytest.approx(expected, rel=INVARIANCE)
    assert float(time_of(state.scale(2.5))) == pytest.approx(expected / 2.5, rel=INVARIANCE)
    stronger = jc.State(state.a, state.b, state.c, 3 * state.strength)
    assert float(time_of(stronger)) == pytest.approx(expected / 3, rel=INVARIANCE)
    flipped = jc.State(state.a, state.b, -state.c, -state.strength)
    assert float(time_of(flipped)) == pytest.approx(expected, rel=INVARIANCE)


def test_hard_states_agree_between_methods():
    """Layer scales from 1e-6 to 30 in any combination, either sign of the energy."""
    states = gaussian_states(3, 96, 6, 5)
    scales = np.exp(np.random.default_rng(4).uniform(np.log(1e-6), np.log(30), (3, 96)))
    states = jc.State(
        states.a * scales[0][:, None, None],
        states.b * scales[1][:, None, None],
        states.c * scales[2][:, None, None],
        states.strength,
    )
    energies = np.asarray(jax.vmap(jc.energy)(states))
    assert 20 < np.sum(energies < 0) < 76
    found = jc.blowup_times(states)
    reduced = jc.blowup_times(states, rtol=1e-11, methods=[jc.Reduced()])
    assert np.all(found.status == jc.Status.CONVERGED)
    assert np.all(reduced.status == jc.Status.CONVERGED)
    allowance = np.maximum(1e-9, np.asarray((found.error + reduced.error) / found.time))
    assert np.all(np.abs(np.asarray(found.time / reduced.time) - 1) <= allowance)
    assert np.all(found.error / found.time < 1e-9)


def test_wide_states_of_unequal_scales():
    states = gaussian_states(6, 4, 60, 40, scales=(1e-8, 1.0, 1e-8))
    found = jc.blowup_times(states)
    reduced = jc.blowup_times(states, rtol=1e-11, methods=[jc.Reduced(dim=40)])
    assert np.all(found.status == jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time, reduced.time, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Tsit5", "Kvaerno5", "KenCarp4"])
def test_any_diffrax_solver(name):
    import diffrax

    state = pick(gaussian_states(11, 1, 5, 4), 0)
    expected = float(jc.blowup_time(state).time)
    found = jc.blowup_time(state, jc.Direct(getattr(diffrax, name)()), rtol=1e-6)
    assert int(found.status) == jc.Status.CONVERGED
    assert abs(float(found.time) - expected) <= max(1e-6 * expected, 2 * float(found.error))


def test_results_print_a_summary():
    found = jc.blowup_time(pick(gaussian_states(11, 1, 5, 4), 0))
    assert str(found).startswith("T* = ")
    assert "converged" in str(found)
