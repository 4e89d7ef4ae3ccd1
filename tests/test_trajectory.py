"""Trajectories against scipy, naive counts, and the flow's own identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_states, pick, random_state
from scipy.integrate import solve_ivp

import jaxcond as jc

FRACTIONS = (0.5, 0.9, 0.99, 0.999)
UNORDERED = [0.9, 0.0, 0.3, 0.6]


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
        field, (0, times[-1]), start, "DOP853", np.asarray(times), rtol=1e-12, atol=1e-14
    )
    return [np.split(y, cuts) for y in solution.y.T]


def check_against_scipy(state, **options):
    trajectory = jc.trajectory(state, fractions=FRACTIONS, **options)
    expected = scipy_states(state, np.asarray(trajectory.times))
    for index, layers in enumerate(expected):
        for got, wanted in zip(trajectory.state(index).layers, layers, strict=True):
            error = np.linalg.norm(np.ravel(got) - wanted) / np.linalg.norm(wanted)
            assert error < 1e-9
    assert np.max(trajectory.drift) < 1e-10
    np.testing.assert_allclose(
        trajectory.time_left, trajectory.blow_up.time * (1 - np.array(FRACTIONS)), rtol=1e-9
    )


# One narrow and one wide state, and four points wherever a test asks for some of its own: so that
# tests share what is compiled.
@functools.cache
def narrow():
    return pick(gaussian_states(3, 1, 5, 4), 0)


@functools.cache
def wide():
    return pick(gaussian_states(12, 1, 28, 26), 0)


def widest():
    return pick(gaussian_states(200, 1, 200, 200), 0)


@pytest.mark.parametrize("state", [narrow, wide, pytest.param(widest, marks=pytest.mark.slow)])
def test_full_states_equal_those_of_scipy(state):
    check_against_scipy(state())


def test_rank_two_equals_scipy():
    check_against_scipy(random_state(jax.random.key(2), 2, 6, 4))


@functools.cache
def even():
    return jc.trajectory(narrow(), num=40, closeness=1e-6)


def test_energies_are_met_in_any_order():
    energies = np.array([1e9, 30.0, 1e4, 30.0])
    trajectory = jc.trajectory(narrow(), energies=energies)
    np.testing.assert_allclose(trajectory.energy, energies, rtol=1e-10)
    lifted = [float(jc.energy(trajectory.state(i))) for i in range(4)]
    np.testing.assert_allclose(lifted, energies, rtol=1e-10)
    assert trajectory.times[0] > trajectory.times[2] > trajectory.times[1] == trajectory.times[3]


def test_times_and_fractions_agree():
    by_fraction = jc.trajectory(narrow(), fractions=UNORDERED)
    by_time = jc.trajectory(narrow(), times=by_fraction.times)
    np.testing.assert_allclose(by_time.reduced.b, by_fraction.reduced.b, rtol=1e-12)
    np.testing.assert_allclose(by_fraction.state(1).b, narrow().b, rtol=1e-14)
    expected = np.array(UNORDERED) * float(jc.blowup_time(narrow()).time)
    np.testing.assert_allclose(by_fraction.times, expected, rtol=1e-11)


def test_even_points_reach_the_distance_asked_for():
    trajectory = even()
    left = np.asarray(trajectory.time_left / trajectory.blow_up.time)
    assert 0.5e-6 < left[-1] <= 1e-6
    assert left[0] == 1.0
    # Close to the blow-up the layers are equal in norm, 1/(T* - t), and ds = sqrt(3) dt/(T* - t).
    steps = np.diff(np.log(left[-20:]))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert "40 points, 40 reached" in str(trajectory)


def test_time_left_keeps_its_digits_close_to_the_blow_up():
    """E is (T* - t)^-3 to the fifth order there."""
    trajectory = even()
    np.testing.assert_allclose(
        trajectory.time_left[-5:], trajectory.energy[-5:] ** (-1 / 3), rtol=1e-12
    )


final_stages = jax.jit(jax.vmap(jc.final_stage))
all_angles = jax.jit(jax.vmap(jc.angles))


def check_conditions(trajectory):
    """Counts from the products against counts from the full states."""
    stage = final_stages(trajectory.states())
    for number, expected in ((1, stage.first), (2, stage.second), (3, stage.third)):
        condition = trajectory.condition(number)
        assert condition.total == expected.total
        open_ = np.asarray(condition.undecided)
        assert np.all(np.abs(condition.positive - expected.positive) <= open_)
        assert np.mean(open_ / condition.total) < 1e-3
    angles, ratios = trajectory.angles(), trajectory.ratios()
    full = all_angles(trajectory.states())
    np.testing.assert_allclose(angles.xi, full.xi, rtol=0, atol=1e-9)
    np.testing.assert_allclose(angles.psi, full.psi, rtol=0, atol=1e-9)
    np.testing.assert_allclose(angles.zeta, full.zeta, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ratios, jax.vmap(jc.ratios)(trajectory.states()), rtol=1e-9)


def test_indicators_without_forming_b():
    wide = pick(gaussian_states(9, 1, 28, 26), 0)
    trajectory = jc.trajectory(wide, num=12, closeness=1e-4)
    assert trajectory.reduction is not None
    assert np.max(trajectory.truncation) < 1e-12
    check_conditions(trajectory)
    check_conditions(even())


def test_small_middle_layer_keeps_its_gram_matrices():
    """Where b b^T is far below the rounding of a a^T."""
    wide = pick(gaussian_states(5, 1, 28, 26, scales=(1.0, 1e-8, 1.0)), 0)
    early = jc.trajectory(wide, num=12, closeness=0.9)
    assert 0.1 * early.blow_up.time <= early.times[-1] < 0.5 * early.blow_up.time
    check_conditions(early)


def test_what_a_truncation_leaves_out_is_undecided():
    wide = pick(gaussian_states(9, 1, 28, 26), 0)
    trajectory = jc.trajectory(wide, fractions=[0.0, 0.5, 0.99], method=jc.Reduced(dim=4))
    np.testing.assert_array_equal(trajectory.status, [jc.PointStatus.REACHED] + 2 * [1])
    undecided = np.asarray(trajectory.condition(1).undecided)
    assert undecided[0] == 0
    assert np.all(undecided[1:] > 0)


def test_counts_of_many_states():
    states = gaussian_states(11, 100, 30, 26)
    along = jax.vmap(lambda s: jc.trajectory(s, fractions=jnp.array([0.0, 0.5, 0.9, 0.99])))(states)
    assert np.all(along.status == jc.PointStatus.REACHED)
    condition = jax.vmap(lambda t: t.condition(1))(along)
    full = jax.vmap(lambda t: t.states())(along)
    a, b, c = (np.asarray(x) for x in full.layers)
    naive = np.sum(c[..., 0, :] * np.einsum("nkp,nkpq->nkq", a[..., 0, :], b) > 0, axis=-1)
    naive = naive + np.sum(a[..., 0, :] * np.einsum("nkpq,nkq->nkp", b, c[..., 0, :]) > 0, axis=-1)
    assert np.all(np.abs(condition.positive - naive) <= condition.undecided)
    assert np.sum(condition.undecided) <= 2


def test_bounds_of_the_theorems_hold_along_the_way():
    trajectory = even()
    lower, upper = trajectory.theorem_bounds()
    positive = np.asarray(trajectory.energy) > 0
    time = float(trajectory.blow_up.time)
    assert np.all(np.asarray(lower)[positive] <= time * (1 + 1e-12))
    assert np.all(np.asarray(upper)[positive] >= time * (1 - 1e-12))
    growth = np.asarray(trajectory.growth())[positive]
    assert np.all(np.diff(growth) <= 0)
    assert np.all(growth >= 1 - 1e-12)


def test_onset_of_reduced_and_direct_flow_agree():
    onset = jc.final_stage_time(wide())
    direct = jc.final_stage_time(wide(), method=jc.Direct())
    time = float(jc.trajectory(wide(), fractions=FRACTIONS).blow_up.time)
    assert onset.status == jc.OnsetStatus.FOUND
    assert bool(onset.stays)
    assert abs(float(onset.time - direct.time)) < 1e-8 * time
    # The last two points make as many as there are in other tests.
    fractions = float(onset.time) / time + np.array([-1e-8, 1e-8, 0.0, 0.0])
    around = jc.trajectory(wide(), fractions=fractions)
    before, after = around.state(0), around.state(1)
    assert not bool(jc.final_stage(before).holds)
    assert bool(jc.final_stage(after).holds)
    np.testing.assert_allclose(onset.time + onset.time_left, time, rtol=1e-12)


def test_onset_statuses():
    condensed = even().state(39)
    assert jc.final_stage_time(condensed).status == jc.OnsetStatus.FROM_START
    assert float(jc.final_stage_time(condensed).time) == 0.0
    late = jc.final_stage_time(narrow(), closeness=0.5)
    assert late.status == jc.OnsetStatus.NOT_REACHED
    assert np.isinf(late.time)
    first, second = jnp.eye(5)[0], jnp.eye(4)[0]
    rest = jc.State.from_vectors(first, jnp.outer(first, second), -second)
    assert jc.final_stage_time(rest).status == jc.OnsetStatus.NO_BLOW_UP
    broken = jc.final_stage_time(rest.scale(jnp.nan))
    assert broken.status == jc.OnsetStatus.INVALID_INPUT
    assert np.isnan(broken.time)


@functools.cache
def batched():
    """Nothing is known beforehand here: what cannot be reached is told by the status."""
    return jax.jit(jax.vmap(lambda s, fractions: jc.trajectory(s, fractions=fractions)))


def test_batch_equals_a_loop_and_keeps_bad_lanes_apart():
    states = gaussian_states(13, 4, 5, 4)
    first, second = jnp.eye(5)[0], jnp.eye(4)[0]
    a = states.a.at[1, 0].set(first).at[2, 0, 0].set(jnp.nan)
    b = states.b.at[1].set(jnp.outer(first, second))
    c = states.c.at[1, 0].set(-second)
    states = jc.State(a, b, c, states.strength)
    fractions = jnp.array([0.2, 0.8, 0.9, 1.0])
    batch = batched()(states, jnp.tile(fractions, (4, 1)))
    status = jc.PointStatus
    np.testing.assert_array_equal(batch.status[0], [status.REACHED] * 3 + [status.BEYOND_BLOW_UP])
    assert np.all(batch.status[1] == status.NEVER_REACHED)
    assert np.all(batch.status[2] == status.INVALID_INPUT)
    assert np.all(np.isnan(batch.times[1:3]))
    assert np.isnan(batch.times[0, 3])
    for index in (0, 3):
        alone = jc.trajectory(pick(states, index), fractions=[0.2, 0.8, 0.9, 0.0])
        got = pick(batch.reduced.b, index)[:3]
        np.testing.assert_allclose(got, alone.reduced.b[:3], rtol=1e-11)


def test_example_1_goes_on_for_ever():
    first, second = jnp.eye(5)[0], jnp.eye(4)[0]
    rest = jc.State.from_vectors(first, jnp.outer(first, second), -second)
    trajectory = jc.trajectory(rest, times=[0.0, 1.0, 3.0, 9.0])
    expected = -(np.array([1.0, 2.0, 4.0, 10.0]) ** -3.0)
    np.testing.assert_allclose(trajectory.energy, expected, rtol=1e-10)
    assert np.all(np.isinf(trajectory.time_left))
    assert "up to t = 9, no blow-up" in str(trajectory)
    with pytest.raises(ValueError, match="is never reached: the flow comes to rest"):
        jc.trajectory(rest, energies=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="end of the trajectory is never reached"):
        jc.trajectory(rest, num=40, closeness=1e-6)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale(scale):
    trajectory = jc.trajectory(narrow().scale(scale), fractions=UNORDERED)
    expected = jc.trajectory(narrow(), fractions=UNORDERED)
    np.testing.assert_allclose(trajectory.times * scale, expected.times, rtol=1e-11)
    np.testing.assert_allclose(trajectory.reduced.b / scale, expected.reduced.b, rtol=1e-10)
    np.testing.assert_allclose(trajectory.ratios(), expected.ratios(), rtol=1e-10)
    np.testing.assert_allclose(trajectory.growth(), expected.growth(), rtol=1e-10)
    bounds, unscaled = trajectory.theorem_bounds()[0], expected.theorem_bounds()[0]
    np.testing.assert_allclose(bounds * scale, unscaled, rtol=1e-10)


def test_points_out_of_reach_leave_the_others_alone():
    fractions = jnp.array([0.3, 0.0, 0.6, 1 - 1e-15])
    states = jax.tree.map(lambda x: jnp.stack([x] * 4), narrow())
    trajectory = pick(batched()(states, jnp.tile(fractions, (4, 1))), 0)
    assert np.all(trajectory.status[:3] == jc.PointStatus.REACHED)
    assert trajectory.status[3] == jc.PointStatus.NOT_CONVERGED
    expected = jc.trajectory(narrow(), fractions=UNORDERED)
    for index, same in ((0, 2), (2, 3)):
        np.testing.assert_allclose(
            trajectory.reduced.b[index], expected.reduced.b[same], rtol=1e-10
        )


def test_the_energy_of_the_state_itself_is_met():
    start = float(jc.energy(narrow()))
    trajectory = jc.trajectory(narrow(), energies=[start, 30.0, 1e4, start * (1 + 4e-16)])
    assert trajectory.times[0] == 0.0


def test_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), narrow())
    onset, exact = jc.final_stage_time(single), jc.final_stage_time(narrow())
    assert onset.status == jc.OnsetStatus.FOUND
    assert onset.time.dtype == jnp.float32
    np.testing.assert_allclose(onset.time, exact.time, rtol=1e-5)


def test_bad_input():
    time = float(jc.blowup_time(narrow()).time)
    for options, message in (
        (
            {"times": [0.1, time * 1.01, 0.2, 0.3]},
            r"`times`\[1\] = .* lies at or beyond the blow-up",
        ),
        ({"times": [-0.1, 0.1, 0.2, 0.3]}, r"`times`\[0\] = -0.1 lies before the start"),
        ({"times": [0.1, 0.2, float("nan"), 0.3]}, r"`times`\[2\] = nan is not a number"),
        ({"energies": [-1e9, 1.0, 2.0, 3.0]}, r"`energies`\[0\] = -1000000000 lies before"),
        ({"fractions": [0.5, 0.6, 1.0, 0.7]}, r"`fractions`\[2\] = 1 lies at or beyond"),
        ({"fractions": []}, "at least one number"),
        ({"fractions": 0.5}, "vector"),
        ({"fractions": [0.5], "num": 3}, "one of `times`"),
        ({"num": 1}, "`num` must be a whole number from 2 on, but is 1"),
        ({"closeness": 1.5}, "`closeness` must lie between 0 and 1, but is 1.5"),
        ({"rtol": 1e-20}, "`rtol` must lie between"),
        ({"fractions": [0.5], "closeness": 0.1}, "`closeness` goes with `num`, not `fractions`"),
        ({"method": jc.Series()}, "`method` must be a `Reduced` or a `Direct`, but is Series"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.trajectory(narrow(), **options)
    with pytest.raises(ValueError, match="takes one state, but got a batch"):
        jc.trajectory(gaussian_states(0, 2, 2, 2), num=3)
    with pytest.raises(ValueError, match="`number` must be 1, 2 or 3, but is 4"):
        even().condition(4)
    with pytest.raises(ValueError, match="some of 1, 2 and 3, but is"):
        jc.final_stage_time(narrow(), conditions=(0,))
    with pytest.raises(ValueError, match="`num` must be a whole number from 32 on, but is 3"):
        jc.final_stage_time(narrow(), num=3)
    with pytest.raises(IndexError, match="no point 40 in a trajectory of 40"):
        even().state(40)
    with pytest.raises(ValueError, match="at least the rank 3, but is 2"):
        jc.trajectory(random_state(jax.random.key(0), 3, 4, 4), method=jc.Reduced(dim=2))
