"""What is said of states that are hard to solve: statuses, errors and brackets."""

import collections
import decimal
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import from_reference, pick
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcond as jc
from jaxcond.checks.adversarial import adversarial_states

TABLES = Path(__file__).parent / "tables"
SETTLED = (jc.Status.CONVERGED, jc.Status.ILL_CONDITIONED)


def stack(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def wrong_claims(found, truth):
    """Where something is said that is not so; `truth` holds decimals, or `None` for rest."""
    fields = (found.time, found.lower, found.upper, found.error, found.status)
    wrong = []
    for place, (exact, *claims) in enumerate(zip(truth, *map(np.asarray, fields), strict=True)):
        time, lower, upper, error = (decimal.Decimal(float(x)) for x in claims[:4])
        status = int(claims[4])
        if exact is None:
            holds = status != jc.Status.CONVERGED and upper == decimal.Decimal("inf")
            if status == jc.Status.ILL_CONDITIONED:
                holds &= error == decimal.Decimal("inf")
        else:
            exact = decimal.Decimal(exact)
            half = abs(exact) * decimal.Decimal("1e-17")  # of what the table leaves open
            holds = status != jc.Status.NO_BLOW_UP and lower - half <= exact <= upper + half
            if status in SETTLED:
                holds &= lower <= time <= upper or time.is_infinite()
                holds &= time.is_infinite() or abs(time - exact) <= error + half
        if not holds:
            wrong.append((place, exact, *map(float, (time, lower, upper, error)), status))
    return wrong


def tabulated(family, count):
    """The times of the first states of a family; `benchmarks/calibration.py` takes them all."""
    times = json.loads((TABLES / "adversarial.json").read_text())["times"][family][:count]
    assert len(times) == count
    return times


def filled_up(state, p, q):
    """With units that never move, so that many shapes share a batch."""
    (rows, columns), none = state.widths, (0, 0)
    right = (0, q - columns)
    return jc.State(
        np.pad(state.a, (none, (0, p - rows))),
        np.pad(state.b, ((0, p - rows), right)),
        np.pad(state.c, (none, right)),
        state.strength,
    )


FIRST = {"random": 400, "near rest": 600, "unequal scales": 400, "integers": 300}


@pytest.mark.parametrize("family", FIRST)
def test_adversarial_states_of_rank_1(family):
    table = tabulated(family, FIRST[family])
    states = adversarial_states(family, len(table))
    groups = collections.defaultdict(list)
    for place, state in enumerate(states):
        groups[state.widths].append(place)
    for places in groups.values():
        found = jc.blowup_times(stack([states[place] for place in places]))
        assert wrong_claims(found, [table[place] for place in places]) == []
        if family in ("random", "unequal scales"):
            np.testing.assert_array_equal(found.status, jc.Status.CONVERGED)


@pytest.mark.parametrize("factor", [1.0, 1e-15, 1e15])
def test_float32_gives_the_reference_table_at_any_scale(reference, factor):
    for entry in reference:
        if len(entry["a"]) > 1:
            continue
        state = filled_up(from_reference(entry).scale(factor), 16, 16)
        single = jax.tree.map(lambda x: x.astype(jnp.float32), state)
        exact = float(entry["blowup_time"]) / factor
        by_series = jc.blowup_time(single, jc.Series())
        assert float(by_series.time) == pytest.approx(exact, rel=1e-6)
        found = jc.blowup_time(single)
        assert int(found.status) == jc.Status.CONVERGED
        assert float(found.time) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("method", [jc.Series(), jc.Direct()])
def test_every_method_is_honest_near_rest(method):
    table = tabulated("near rest", 100)
    states = stack([filled_up(s, 4, 4) for s in adversarial_states("near rest", len(table))])
    found = jc.blowup_times(states, methods=[method])
    assert wrong_claims(found, table) == []
    assert np.sum(found.is_known()) > 20


def test_adversarial_states_of_higher_rank():
    table = tabulated("rank 2 and 3", 60)
    states = [filled_up(s, 4, 4) for s in adversarial_states("rank 2 and 3", len(table))]
    for rank in (2, 3):
        places = [place for place, state in enumerate(states) if state.rank == rank]
        found = jc.blowup_times(stack([states[place] for place in places]), methods=[jc.Direct()])
        assert wrong_claims(found, [table[place] for place in places]) == []
        assert np.sum(found.is_known()) > len(places) // 2


@pytest.mark.parametrize("depth", [4, 5])
def test_adversarial_chains(depth):
    table = tabulated("chains", 100)
    points, truth = [], []
    for chain, exact in zip(adversarial_states("chains", len(table)), table, strict=True):
        if chain.depth == depth:
            ends = [(1 if i == depth - 1 else 3, 1 if i == 0 else 3) for i in range(depth)]
            pads = [
                [(0, size - n) for n, size in zip(layer.shape, sizes, strict=True)]
                for layer, sizes in zip(chain.layers, ends, strict=True)
            ]
            layers = (np.pad(layer, pad) for layer, pad in zip(chain.layers, pads, strict=True))
            points.append(jc.Chain(tuple(layers)))
            truth.append(exact)
    found = jc.blowup_times(stack(points))
    assert wrong_claims(found, truth) == []
    assert np.sum(found.is_known()) > len(points) // 2


def test_all_states_of_width_1_with_small_entries():
    values = np.array(list(itertools.product(range(-2, 3), repeat=3)), float)
    found = jc.blowup_times(
        jc.State.from_vectors(values[:, :1], values[:, 1:2, None], values[:, 2:])
    )
    exact = jax.vmap(jc.bounds.aligned_blowup_time)(*values.T)
    truth = [f"{float(t):.17e}" if np.isfinite(t) else None for t in exact]
    rests = ~np.isfinite(np.asarray(exact))
    np.testing.assert_array_equal(np.asarray(found.status) == jc.Status.NO_BLOW_UP, rests)
    np.testing.assert_array_equal(found.status[~rests], jc.Status.CONVERGED)
    np.testing.assert_allclose(found.time[~rests], exact[~rests], rtol=1e-13)
    # The closed form itself is rounded.
    widened = jax.tree.map(lambda x: x, found)
    share = 1e-14 * np.where(rests, 0, exact)
    widened = jc.BlowUp(
        found.time, found.lower - share, found.upper + share, found.error + share,
        found.status, found.num_steps, found.stage, found.methods,
    )  # fmt: skip
    assert wrong_claims(widened, truth) == []


def images(entries):
    """What permutations of units, signs of units and transposition make of a state of width 2."""
    a, b, c = entries[:2], (entries[2:4], entries[4:6]), entries[6:]
    found = set()
    for x, y, z in ((a, b, c), (c, tuple(zip(*b, strict=True)), a)):
        for rows, columns in itertools.product(itertools.permutations(range(2)), repeat=2):
            for s, t in itertools.product(itertools.product((1, -1), repeat=2), repeat=2):
                middle = (s[i] * t[j] * y[rows[i]][columns[j]] for i in range(2) for j in range(2))
                found.add(
                    (
                        *(s[i] * x[rows[i]] for i in range(2)),
                        *middle,
                        *(t[j] * z[columns[j]] for j in range(2)),
                    )
                )
    return found


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_all_states_of_width_2_with_entries_up_to_1(dtype):
    truth = {}
    for entries, count, exact in json.loads((TABLES / "width_2.json").read_text())["states"]:
        alike = images(tuple(entries))
        assert len(alike) == count
        truth |= dict.fromkeys(alike, exact)
    assert len(truth) == 3**8
    values = np.array(list(truth), dtype)
    states = jc.State.from_vectors(values[:, :2], values[:, 2:6].reshape(-1, 2, 2), values[:, 6:])
    found = jc.blowup_times(states)
    assert wrong_claims(found, truth.values()) == []
    rests = np.array([exact is None for exact in truth.values()])
    assert np.sum(rests) == 289
    np.testing.assert_array_equal(np.asarray(found.status) == jc.Status.NO_BLOW_UP, rests)
    np.testing.assert_array_equal(found.status[~rests], jc.Status.CONVERGED)


def test_a_state_that_rests_for_no_simple_reason_is_never_converged():
    state = jc.State.from_vectors(
        np.array([-2.0, 1]), np.array([[1.0, 2], [-1, -1]]), np.array([1.0, 2])
    )
    limited = {jc.Status.ILL_CONDITIONED}
    # Whether the integrator sees the limit of rounding depends on rounding itself, so on the code
    # that LLVM makes.
    either = {jc.Status.ILL_CONDITIONED, jc.Status.NOT_CONVERGED}
    for method, statuses in ((None, limited), (jc.Series(), limited), (jc.Direct(), either)):
        found = jc.blowup_time(state, method)
        assert int(found.status) in statuses
        assert float(found.time) == float(found.error) == float(found.upper) == np.inf
        assert 0.4 < float(found.lower) < np.inf


def single_entries(*values):
    """A chain whose layers are zero but for one entry each."""
    count = len(values)
    shapes = [(1 if i == count - 1 else 2, 1 if i == 0 else 2) for i in range(count)]
    layers = [np.zeros(shape) for shape in shapes]
    for layer, value in zip(layers, values, strict=True):
        layer[0, 0] = value
    return jc.Chain(tuple(layers))


def test_rest_of_chains():
    for values in ((-1.0, 1.3, 1.0, 1.7), (-0.1, 0.3, 0.1, 0.2), (1e-3, -1e-3, 5.0, 7.0)):
        for solve in (jc.blowup_time, jax.jit(jc.blowup_time)):
            assert int(solve(single_entries(*values)).status) == jc.Status.NO_BLOW_UP
    off = jc.blowup_time(single_entries(-1.0, 1.3, 1.0 + 1e-3, 1.7))
    assert int(off.status) == jc.Status.CONVERGED
    # Aligned, but not along the units, with entries whose products are rounded.
    u, t = np.array([[3.0], [4.0]]), round(0.1 * 2**40) / 2**40
    chain = jc.Chain((7 * t * u, t * u @ u.T, t * u @ u.T, -7 * t * u.T))
    assert int(jc.blowup_time(chain).status) == jc.Status.NO_BLOW_UP


def test_rest_is_proven_exactly():
    """Not by squares that happen to be equal when rounded."""
    small = 1e-10
    column = np.array([1.0, small])
    # The squares are 1, 1 + small^2 and 1 + small^2: 2 R_F(0, small^2, small^2) - R_F(1, 1, 1).
    state = jc.State.from_vectors(column, column[:, None], np.array([-1.0]))
    found = jc.blowup_time(state)
    exact = np.pi / small - 1
    assert int(found.status) != jc.Status.NO_BLOW_UP
    assert float(found.lower) <= exact <= float(found.upper)
    for scale in (1.0, 0.1, 1 / 3, 1e200):
        unit = scale * np.array([1.0, 0.0])
        resting = jc.State.from_vectors(unit, np.diag(unit), -unit)
        assert int(jc.blowup_time(resting).status) == jc.Status.NO_BLOW_UP
    # Aligned and resting, with entries whose products are rounded.
    u, t = np.array([3.0, 4.0]), round(0.1 * 2**40) / 2**40
    exactly = jc.State.from_vectors(5 * t * u, t * np.outer(u, u), -7 * t * u)
    assert int(jc.blowup_time(exactly).status) == jc.Status.NO_BLOW_UP
    nearly = jc.State.from_vectors(5 * t * u, t * np.outer(u, u) * (1 + 1e-9), -7 * t * u)
    assert int(jc.blowup_time(nearly).status) != jc.Status.NO_BLOW_UP
    # Nor by what a reduction rounds.
    wide = np.zeros((40, 30))
    wide[0, 0], wide[1, 0] = 1, small
    state = jc.State.from_vectors(wide[:, 0], wide, -np.eye(30)[0])
    for method in (None, jc.Series(dim=8), jc.Reduced(dim=8)):
        assert int(jc.blowup_time(state, method).status) != jc.Status.NO_BLOW_UP
    # Layers that vanish beside the others have not vanished.
    tiny = jc.State.from_vectors(np.array([1e-300]), np.array([[1e100]]), np.array([1e-300]))
    assert int(jc.blowup_time(tiny, jc.Series()).status) != jc.Status.NO_BLOW_UP


def test_a_hard_state_is_not_overruled_by_a_weaker_estimate():
    state = jc.State.from_vectors(np.array([1, 1e-10]), np.diag([1.0, 0.0]), np.array([-1.0, 0.0]))
    exact = 262204.7554322073
    found = jc.blowup_time(state)
    assert abs(float(found.time) - exact) <= float(found.error)
    direct = jc.blowup_time(state, jc.Direct())
    assert int(direct.status) == jc.Status.ILL_CONDITIONED
    assert abs(float(direct.time) - exact) <= float(direct.error)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8),
    st.floats(1e-3, 1e3),
    st.sampled_from([0, 1, 2, 3]),
)
def test_symmetries_keep_the_promises(entries, factor, change):
    """A state and its image have one blow-up time up to scale: their brackets meet."""
    a, b, c = np.array(entries[:2]), np.array(entries[2:6]).reshape(2, 2), np.array(entries[6:])
    state = jc.State.from_vectors(a, b, c)
    factor = 2.0 ** round(np.log2(factor))
    image = [
        state.scale(factor), state.transpose(), jc.State.from_vectors(-a, -b, c),
        jc.State.from_vectors(a[::-1], b[::-1], c),
    ][change]  # fmt: skip
    factor = factor if change == 0 else 1.0
    found = jc.blowup_times(stack([state, image]))
    lower, upper = np.asarray(found.lower) * [1, factor], np.asarray(found.upper) * [1, factor]
    assert np.all((lower <= np.asarray(found.time) * [1, factor])
                  | (np.asarray(found.status) == jc.Status.NOT_CONVERGED))  # fmt: skip
    assert np.max(lower) <= np.min(upper) * (1 + 1e-15)


def test_what_is_odd_in_one_batch():
    good = pick(stack(adversarial_states("integers", 1)), 0)
    p, q = good.widths
    ones = np.ones((p, q))
    rows = [
        (good.a[0], good.b, good.c[0]),
        (np.full(p, np.nan), ones, ones[0]),
        (np.full(p, np.inf), ones, ones[0]),
        (1e300 * ones[:, 0], 1e300 * ones, 1e300 * ones[0]),
        (1e-300 * ones[:, 0], 1e-300 * ones, 1e-300 * ones[0]),
        (0 * ones[:, 0], 0 * ones, 0 * ones[0]),
        (5e-324 * ones[:, 0], ones, ones[0]),
    ]
    states = jc.State.from_vectors(*(np.stack(x) for x in zip(*rows, strict=True)))
    found = jc.blowup_times(states)
    names = [jc.Status(int(x)).name for x in found.status]
    assert names == [
        "CONVERGED", "INVALID_INPUT", "INVALID_INPUT", "CONVERGED", "CONVERGED", "NO_BLOW_UP",
        "CONVERGED",
    ]  # fmt: skip
    alone = jc.blowup_time(good)
    assert float(alone.time) == float(found.time[0])
