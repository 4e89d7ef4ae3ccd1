"""Trajectories against scipy, naive counts, closed forms, and the flow's own identities."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_states, pick, random_state
from scipy.integrate import solve_ivp

import jaxcond as jc
from jaxcond import PointStatus, indicators

FRACTIONS = np.array([0.5, 0.9, 0.99, 0.999])
TABLE = json.loads((Path(__file__).parent / "tables" / "trajectory.json").read_text())


def scipy_states(state, times):
    """All unknowns by DOP853, as (num, size)."""
    a, b, c, strength = (np.asarray(x) for x in (*state.layers, state.strength))
    cuts = np.cumsum([a.size, b.size])

    def field(_, y):
        u, m, w = (x.reshape(z.shape) for x, z in zip(np.split(y, cuts), (a, b, c), strict=True))
        s = strength[:, None]
        return np.concatenate(
            [(s * (w @ m.T)).ravel(), ((s * u).T @ w).ravel(), (s * (u @ m)).ravel()]
        )

    start = np.concatenate([x.ravel() for x in (a, b, c)])
    solution = solve_ivp(
        field, (0, times[-1]), start, "DOP853", np.asarray(times), rtol=1e-13, atol=1e-300
    )
    return [np.split(y, cuts) for y in solution.y.T]


# DOP853 itself is off by about 1e-13 over the share of the time that is left.
def check_against_scipy(state, **options):
    path = jc.trajectory(state, **options)
    times = path.times_of(fraction=FRACTIONS)
    expected = scipy_states(state, np.asarray(times))
    found = path(times)
    for index, layers in enumerate(expected):
        for got, wanted in zip(pick(found, index).layers, layers, strict=True):
            error = np.linalg.norm(np.ravel(got) - wanted) / np.linalg.norm(wanted)
            assert error < 2e-13 / (1 - FRACTIONS[index])
    assert np.max(path.drift(times)) < 1e-13
    left = path.blowup.time * (1 - FRACTIONS)
    np.testing.assert_allclose(path.time_left(times), left, rtol=1e-11)


@functools.cache
def narrow():
    return pick(gaussian_states(3, 1, 5, 4), 0)


@functools.cache
def wide():
    return pick(gaussian_states(12, 1, 28, 26), 0)


@functools.cache
def path():
    return jc.trajectory(narrow())


@functools.cache
def wide_path():
    return jc.trajectory(wide())


def time():
    return float(path().blowup.time)


def example_1():
    first, second = jnp.eye(5)[0], jnp.eye(4)[0]
    return jc.State.from_vectors(first, jnp.outer(first, second), -second)


def widest():
    return pick(gaussian_states(200, 1, 200, 200), 0)


@pytest.mark.parametrize("state", [narrow, wide, pytest.param(widest, marks=pytest.mark.slow)])
def test_full_states_equal_those_of_scipy(state):
    check_against_scipy(state())


@pytest.mark.parametrize("rank", [2, 3])
def test_higher_ranks_equal_scipy(rank):
    check_against_scipy(random_state(jax.random.key(2), rank, 6, 4))


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["name"])
def test_states_close_to_the_blow_up_equal_those_in_quadruple_precision(case):
    state = jc.State(*(np.array(case[name]) for name in ("a", "b", "c", "strength")))
    path = jc.trajectory(state)
    np.testing.assert_allclose(path.blowup.time, case["blowup_time"], rtol=1e-13)
    for point in case["points"]:
        found = path(point["time"])
        for name in ("a", "b", "c"):
            wanted = np.array(point[name])
            error = np.linalg.norm(np.asarray(getattr(found, name)) - wanted)
            # A unit of rounding of the time itself is one over the time left in the state.
            assert error < 1e-14 / point["left"] * np.linalg.norm(wanted)


def test_nothing_depends_on_what_else_is_asked_for():
    times = np.linspace(0.01, 0.9, 77) * time()
    together, energies = path()(times), path().energy(times)
    for index in (0, 33, 76):
        np.testing.assert_array_equal(path()(times[index]).b, together.b[index])
        np.testing.assert_array_equal(path().energy(times[index]), energies[index])
    table = times[:6].reshape(2, 3)
    assert path()(table).b.shape == (2, 3, 5, 4)
    np.testing.assert_array_equal(path().energy(table).ravel(), energies[:6])
    assert path().energy([]).shape == (0,)


def test_energies_are_met():
    energies = np.array([[1e9, 30.0], [1e4, 30.0]])
    times = path().times_of(energy=energies)
    np.testing.assert_allclose(path().energy(times), energies, rtol=1e-12)
    lifted = jax.vmap(jc.energy)(path()(times.ravel()))
    np.testing.assert_allclose(lifted, energies.ravel(), rtol=1e-10)
    assert times[0, 0] > times[1, 0] > times[0, 1] == times[1, 1]


def test_the_energy_of_the_state_itself_is_met():
    start = float(jc.energy(narrow()))
    assert path().times_of(energy=start) == 0.0
    assert path().times_of(energy=start * (1 + 4e-16)) == 0.0


def test_spread_ends_where_asked():
    near = jc.trajectory(narrow(), closeness=1e-6)
    times = near.spread(40)
    left = np.asarray(near.time_left(times) / near.blowup.time)
    assert 0.6e-6 < left[-1] <= 1e-6
    np.testing.assert_allclose(left[0], 1.0, rtol=1e-15)
    np.testing.assert_array_equal(times[-1], near.end)
    # A piece takes one share of the time that is left.
    pieces = np.asarray(near.time_left(near.pieces.begin[25:31] / near.scale))
    np.testing.assert_allclose(pieces[1:] / pieces[:-1], pieces[1] / pieces[0], rtol=0.05)
    assert "pieces to t = " in str(near)


def test_time_left_keeps_its_digits_close_to_the_blow_up():
    """E is (T* - t)^-3 to the fifth order there."""
    times = path().spread(200)[-40:]
    np.testing.assert_allclose(
        path().time_left(times), path().energy(times) ** (-1 / 3), rtol=1e-12
    )


def test_norms_are_those_of_the_full_layers():
    times = wide_path().times_of(fraction=FRACTIONS)
    full = wide_path()(times)
    expected = [np.linalg.norm(np.asarray(x).reshape(4, -1), axis=1) for x in full.layers]
    np.testing.assert_allclose(wide_path().norms(times), np.transpose(expected), rtol=1e-13)


final_stages = jax.jit(jax.vmap(jc.final_stage))
all_angles = jax.jit(jax.vmap(jc.angles))


def check_conditions(path, times):
    """Counts from the products against counts from the full states."""
    states = path(times)
    stage = final_stages(states)
    for number, expected in ((1, stage.first), (2, stage.second), (3, stage.third)):
        condition = path.condition(number, times)
        assert condition.total == expected.total
        open_ = np.asarray(condition.undecided)
        assert np.all(np.abs(condition.positive - expected.positive) <= open_)
        assert np.mean(open_ / condition.total) < 1e-3
    angles, full = path.angles(times), all_angles(states)
    for name in ("xi", "psi", "phi", "zeta"):
        expected = getattr(full, name)
        np.testing.assert_allclose(getattr(angles, name), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(path.ratios(times), jax.vmap(indicators.ratios)(states), rtol=1e-9)


def test_indicators_without_forming_b():
    assert wide_path().reduction is not None
    times = wide_path().spread(32)
    assert np.max(wide_path().truncation(times)) < 1e-12
    check_conditions(wide_path(), times)
    check_conditions(path(), path().spread(32))


def test_small_middle_layer_keeps_its_gram_matrices():
    """Where b b^T is far below the rounding of a a^T."""
    state = pick(gaussian_states(5, 1, 28, 26, scales=(1.0, 1e-8, 1.0)), 0)
    early = jc.trajectory(state, closeness=0.5)
    fractions = np.concatenate([np.logspace(-10, -2, 16), np.linspace(0, 0.4, 16)])
    check_conditions(early, fractions * early.blowup.time)


def test_a_small_middle_layer_in_a_batch_changes_no_other_state():
    """The products of the others stay those of the conserved matrix."""
    usual = wide()
    small = jc.State(usual.a, 1e-8 * usual.b, usual.c, usual.strength)

    @jax.jit
    @jax.vmap
    def products(state):
        path = jc.trajectory(state, closeness=0.5)
        return path.map(lambda products: products, 1e-8 * path.blowup.time)

    pairs = [jax.tree.map(lambda *x: jnp.stack(x), usual, other) for other in (usual, small)]
    alone, together = (pick(products(pair), 0) for pair in pairs)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_a_truncation_leaves_out_is_undecided():
    short = jc.trajectory(wide(), dim=4)
    times = short.times_of(fraction=[0.0, 0.5, 0.99])
    truncated = PointStatus.TRUNCATED
    np.testing.assert_array_equal(short.status(times), [PointStatus.REACHED, truncated, truncated])
    undecided = np.asarray(short.condition(1, times).undecided)
    assert undecided[0] == 0
    assert np.all(undecided[1:] > 0)


def test_more_directions_change_nothing():
    all_of_them = jc.trajectory(wide(), dim=28)
    assert all_of_them.reduction is None
    times = wide_path().times_of(fraction=FRACTIONS)
    expected, found = all_of_them(times), wide_path()(times)
    for x, y in zip(found.layers, expected.layers, strict=True):
        assert np.max(np.abs(x - y)) < 1e-11 * np.max(np.abs(y))
    np.testing.assert_allclose(all_of_them.onset().time, wide_path().onset().time, rtol=1e-10)


def test_counts_of_many_states():
    states = gaussian_states(11, 20, 30, 26)

    @jax.jit
    @jax.vmap
    def counts(state):
        path = jc.trajectory(state, closeness=1e-3)
        times = path.blowup.time * jnp.array([0.0, 0.5, 0.9, 0.99])
        return path.status(times), path.condition(1, times), path(times)

    status, condition, full = counts(states)
    assert np.all(status == PointStatus.REACHED)
    a, b, c = (np.asarray(x) for x in full.layers)
    naive = np.sum(c[..., 0, :] * np.einsum("nkp,nkpq->nkq", a[..., 0, :], b) > 0, axis=-1)
    naive = naive + np.sum(a[..., 0, :] * np.einsum("nkpq,nkq->nkp", b, c[..., 0, :]) > 0, axis=-1)
    assert np.all(np.abs(condition.positive - naive) <= condition.undecided)
    assert np.sum(condition.undecided) <= 2


def test_bounds_of_the_theorems_hold_along_the_way():
    times = path().spread(60)
    lower, upper = path().theorem_bounds(times)
    positive = np.asarray(path().energy(times)) > 0
    assert np.all(np.asarray(lower)[positive] <= time() * (1 + 1e-12))
    assert np.all(np.asarray(upper)[positive] >= time() * (1 - 1e-12))
    growth = np.asarray(path().growth(times))[positive]
    assert np.all(np.diff(growth) <= 0)
    assert np.all(growth >= 1 - 1e-12)


def test_the_condition_begins_to_hold_at_the_onset():
    for path_ in (path(), wide_path()):
        onset, total = path_.onset(), float(path_.blowup.time)
        assert onset.status == jc.OnsetStatus.FOUND
        assert bool(onset.stays)
        around = path_(float(onset.time) + np.array([-1e-10, 1e-10]) * total)
        np.testing.assert_array_equal(final_stages(around).holds, [False, True])
        np.testing.assert_allclose(onset.time + onset.time_left, total, rtol=1e-12)


@pytest.mark.parametrize("conditions", [1, (2,), (1, 3), (1, 2)])
def test_onset_of_some_conditions(conditions):
    onset = path().onset(conditions)
    numbers = (conditions,) if isinstance(conditions, int) else conditions
    around = path()(float(onset.time) + np.array([-1e-10, 1e-10]) * time())
    stage = final_stages(around)
    parts = {1: stage.first, 2: stage.second, 3: stage.third}
    holds = np.all([np.asarray(parts[number].holds) for number in numbers], axis=0)
    np.testing.assert_array_equal(holds, [False, True])


def test_the_onset_of_a_wide_state_changes_as_at_full_width():
    layers = random_state(jax.random.key(9), 1, 28, 26).layers

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, argnums=0)
    def of(step, dim):
        moved = [x + step * y for x, y in zip(wide().layers, layers, strict=True)]
        path = jc.trajectory(jc.State(*moved, wide().strength), dim=dim, closeness=1e-6)
        return path.onset().time

    (time, slope), (whole, its_slope) = of(0.0, 24), of(0.0, 28)
    np.testing.assert_allclose(time, whole, rtol=1e-10)
    np.testing.assert_allclose(slope, its_slope, rtol=1e-7)


def test_onset_statuses():
    condensed = jc.trajectory(path()(0.9999 * time()))
    assert condensed.onset().status == jc.OnsetStatus.FROM_START
    assert float(condensed.onset().time) == 0.0
    assert "at t = 0 (from_start)" in str(condensed.onset())
    early = jc.trajectory(narrow(), closeness=0.5).onset()
    assert str(early).endswith("at t = inf (not_reached)")
    assert early.status == jc.OnsetStatus.NOT_REACHED
    assert np.isinf(early.time)
    assert jc.trajectory(example_1()).onset().status == jc.OnsetStatus.NO_BLOW_UP
    few = jc.trajectory(narrow(), max_pieces=4).onset()
    assert few.status == jc.OnsetStatus.NOT_CONVERGED
    broken = jc.trajectory(example_1().scale(jnp.nan)).onset()
    assert broken.status == jc.OnsetStatus.INVALID_INPUT
    assert np.isnan(broken.time)


# Derivatives.

SIX = np.random.default_rng(0)
BASE = jc.State.from_vectors(*(SIX.standard_normal(s) for s in (6, (6, 6), 6)))
DIRECTION = jc.State.from_vectors(*(SIX.standard_normal(s) for s in (6, (6, 6), 6)))


def moved(step):
    layers = [x + step * y for x, y in zip(BASE.layers, DIRECTION.layers, strict=True)]
    return jc.State(*layers, BASE.strength)


def everything(step):
    """The onset, times of an energy and of a fraction, a state, its energy, the time left."""
    path = jc.trajectory(moved(step))
    return jnp.stack(
        [
            path.onset().time,
            path.times_of(energy=100.0),
            path.times_of(fraction=0.3),
            path(0.1).b[1, 2],
            path.energy(0.1),
            path.time_left(0.1),
        ]
    )


def test_derivatives_equal_differences():
    step = 1e-5
    difference = (everything(step) - everything(-step)) / (2 * step)
    forward, backward = jax.jit(jax.jacfwd(everything))(0.0), jax.jit(jax.jacrev(everything))(0.0)
    np.testing.assert_allclose(forward, difference, rtol=1e-7)
    np.testing.assert_allclose(backward, forward, rtol=1e-9)
    np.testing.assert_allclose(forward[0], -0.0164, atol=1e-4)


@pytest.mark.parametrize("conditions", [(1, 2, 3), (1,)])
def test_the_onset_moves_with_the_entry_whose_sign_ends_it(conditions):
    """There the margin jumps, and no slope of it says how the time moves."""
    rng = np.random.default_rng([10, 6])
    layers, direction = ([rng.standard_normal(s) for s in ((1, 6), (6, 6), (1, 6))] for _ in "ab")

    @jax.jit
    def of(step):
        moved = [x + step * y for x, y in zip(layers, direction, strict=True)]
        path = jc.trajectory(jc.State(*moved, jnp.ones(1)), closeness=1e-4)
        onset = path.onset(conditions)
        return onset.time, path(onset.time)

    (time, slope), state = jax.jvp(lambda step: of(step)[0], (0.0,), (1.0,)), of(0.0)[1]
    least = min(np.min(np.abs(x)) for x in (state.a, state.c))
    assert least < 1e-14
    difference = (of(1e-6)[0] - of(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-7)
    assert 0 < time < 0.5


def test_second_derivatives_equal_differences():
    def of(step):
        return jc.trajectory(moved(step)).times_of(energy=100.0)

    step = 1e-4
    difference = (of(step) - 2 * of(0.0) + of(-step)) / step**2
    np.testing.assert_allclose(jax.jit(jax.hessian(of))(0.0), difference, rtol=1e-5)


def test_derivatives_by_time():
    slope = jax.grad(path().energy)(0.3 * time())
    field = jc.vector_field(path()(0.3 * time()))
    expected = sum(np.sum(np.asarray(x) ** 2) for x in field.layers)
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


def test_derivatives_through_the_reduction():
    keys = jax.random.split(jax.random.key(4))
    state, direction = (random_state(key, 1, 10, 30) for key in keys)

    def of(step):
        layers = [x + step * y for x, y in zip(state.layers, direction.layers, strict=True)]
        return jc.trajectory(jc.State(*layers, state.strength))(0.05).b[3, 4]

    difference = (of(1e-5) - of(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.jacfwd(of))(0.0), difference, rtol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.grad(of))(0.0), difference, rtol=1e-7)


def test_derivatives_are_refused_where_the_reduction_ends_early():
    """The bases hold the aligned state, but not what a change of it would need."""
    u = jnp.asarray(np.random.default_rng(1).standard_normal(30))
    aligned = jc.State.from_vectors(u, jnp.outer(u, u), 2 * u)
    slope = jax.grad(lambda s: jc.trajectory(s).energy(0.001))(aligned)
    assert np.all(np.isnan(slope.b))


# Batches, edges, and what is refused.


@functools.cache
def batched():
    """Nothing is known beforehand here: what cannot be reached is told by the status."""

    def along(state, times):
        path = jc.trajectory(state)
        return path.status(times), path.reduced(times), path.energy(times)

    return jax.jit(jax.vmap(along))


def test_batch_equals_a_loop_and_keeps_bad_lanes_apart():
    states = jax.tree.map(
        lambda *x: jnp.stack(x), narrow(), example_1(), narrow().scale(jnp.nan), narrow()
    )
    times = jnp.array([0.2, 0.9, 1 - 1e-10, 1.0]) * time()
    status, reduced, energies = batched()(states, jnp.tile(times, (4, 1)))
    reached = PointStatus.REACHED
    for lane in (0, 3):
        np.testing.assert_array_equal(
            status[lane], [reached, reached, PointStatus.TOO_CLOSE, PointStatus.BEYOND_BLOW_UP]
        )
        assert np.all(np.isnan(energies[lane, 2:]))
        alone = path().reduced(times[:2])
        np.testing.assert_allclose(reduced.b[lane, :2], alone.b, rtol=1e-12)
    assert np.all(status[1] == reached)
    np.testing.assert_allclose(energies[1], -((1 + times) ** -3.0), rtol=1e-12)
    assert np.all(status[2] == PointStatus.INVALID_INPUT)
    assert np.all(np.isnan(energies[2]))


def test_example_1_goes_on_for_ever():
    rest = jc.trajectory(example_1())
    times = np.array([0.0, 1.0, 3.0, 9.0, 1e4])
    np.testing.assert_allclose(rest.energy(times), -((1 + times) ** -3.0), rtol=1e-12)
    assert np.all(np.isinf(rest.time_left(times)))
    np.testing.assert_allclose(rest.times_of(energy=-1 / 8), 1.0, rtol=1e-13)
    assert "no blow-up" in str(rest)
    with pytest.raises(ValueError, match="`energy` = 1 is never reached: the flow comes to rest"):
        rest.times_of(energy=1.0)
    with pytest.raises(ValueError, match=r"`fraction` = 0\.5 is never reached"):
        rest.times_of(fraction=0.5)
    # Rounding grows like the square of the time, and the trajectory ends before it counts.
    assert 1e6 < rest.end < 1e8
    with pytest.raises(ValueError, match="does not come near a blow-up"):
        rest(1e9)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale(scale):
    other = jc.trajectory(narrow().scale(scale))
    times, expected = other.times_of(fraction=FRACTIONS), path().times_of(fraction=FRACTIONS)
    np.testing.assert_allclose(times * scale, expected, rtol=1e-13)
    np.testing.assert_allclose(other(times).b / scale, path()(expected).b, rtol=1e-10)
    np.testing.assert_allclose(other.ratios(times), path().ratios(expected), rtol=1e-10)
    np.testing.assert_allclose(other.growth(times), path().growth(expected), rtol=1e-10)
    bounds, unscaled = other.theorem_bounds(times)[0], path().theorem_bounds(expected)[0]
    np.testing.assert_allclose(bounds * scale, unscaled, rtol=1e-10)
    np.testing.assert_allclose(other.onset().time * scale, path().onset().time, rtol=1e-12)


def test_layers_of_unequal_scales_keep_their_digits():
    state = random_state(jax.random.key(5), 1, 6, 6)
    scales = (1e-8, 1.0, 1e-8)
    state = jc.State(*(x * s for x, s in zip(state.layers, scales, strict=True)), state.strength)
    check_against_scipy(state)


def test_strengths_of_any_scale():
    other = jc.State(*narrow().layers, 1e30 * narrow().strength)
    found = jc.trajectory(other)
    np.testing.assert_allclose(found.blowup.time * 1e30, time(), rtol=1e-13)
    expected = path()(0.9 * time())
    np.testing.assert_allclose(found(0.9 * found.blowup.time).b, expected.b, rtol=1e-11)


def test_zero_and_width_one():
    still = jc.trajectory(narrow().scale(0.0))
    assert np.all(still(1.0).a == 0)
    assert np.isinf(still.blowup.time)
    scalar = jc.trajectory(
        jc.State.from_vectors(jnp.ones(1), 2 * jnp.ones((1, 1)), 3 * jnp.ones(1))
    )
    assert scalar.onset().status == jc.OnsetStatus.FROM_START
    middle = scalar(0.5 * scalar.blowup.time)
    np.testing.assert_allclose(middle.b[0, 0] ** 2 - middle.a[0, 0] ** 2, 3.0, rtol=1e-13)


def test_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), narrow())
    found = jc.trajectory(single)
    onset, exact = found.onset(), path().onset()
    assert onset.status == jc.OnsetStatus.FOUND
    assert onset.time.dtype == jnp.float32
    np.testing.assert_allclose(onset.time, exact.time, rtol=1e-5)
    np.testing.assert_allclose(found(0.5 * time()).b, path()(0.5 * time()).b, rtol=1e-5)


def test_times_out_of_reach():
    for t, message in (
        ([0.1, time() * 1.01], r"`t`\[1\] = .* lies at or beyond the blow-up time"),
        (-0.1, r"`t` = -0.1 lies before the start"),
        ([[0.1, float("nan")]], r"`t`\[0, 1\] = nan is not finite"),
        (time() * (1 - 1e-9), "after the end .* smaller `closeness`"),
    ):
        with pytest.raises(ValueError, match=message):
            path()(t)
    for energy, message in (
        (-1e9, r"`energy` = -1000000000 lies before the start"),
        (1e60, r"`energy` = 1e\+60 lies after the end .* smaller `closeness`"),
        (float("inf"), "`energy` = inf is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            path().times_of(energy=energy)
    with pytest.raises(ValueError, match="`fraction` = 1 lies at or beyond"):
        path().times_of(fraction=1.0)
    with pytest.raises(ValueError, match="does not come near a blow-up: its `max_pieces`"):
        jc.trajectory(narrow(), max_pieces=3)(0.9 * time())


def test_bad_input():
    for options, message in (
        ({"closeness": 1.5}, "`closeness` must lie between 1.4e-14 and 1 .* but is 1.5"),
        ({"closeness": 1e-16}, "`closeness` must lie between"),
        ({"rtol": 1e-20}, "`rtol` must lie between"),
        ({"dim": 0}, "`dim` must be a whole number, at least the rank 1, but is 0"),
        ({"max_pieces": 0}, "`max_pieces` must be a whole number from 1 on, but is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.trajectory(narrow(), **options)
    with pytest.raises(ValueError, match="takes one state, but got a batch"):
        jc.trajectory(gaussian_states(0, 2, 2, 2))
    with pytest.raises(ValueError, match="`number` must be 1, 2 or 3, but is 4"):
        path().condition(4, 0.1)
    with pytest.raises(ValueError, match="some of 1, 2 and 3, but is"):
        path().onset((0,))
    with pytest.raises(ValueError, match="`num` must be a whole number from 2 on, but is 1"):
        path().spread(1)
    with pytest.raises(ValueError, match="one of `energy` and `fraction`"):
        path().times_of()
    with pytest.raises(ValueError, match="`growth` is of rank 1, but the rank is 2"):
        jc.trajectory(random_state(jax.random.key(0), 2, 4, 4)).growth(0.1)
    many = jax.vmap(jc.trajectory)(gaussian_states(0, 2, 4, 4))
    assert str(many) == "Trajectory of a batch of shape (2,)"
    with pytest.raises(ValueError, match=r"batch of trajectories of shape \(2,\): use `jax.vmap`"):
        many(0.1)
