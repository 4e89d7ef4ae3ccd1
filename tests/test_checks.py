import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS

import jaxcond as jc
from jaxcond._energy import squared_norms
from jaxcond.checks import STATEMENTS, Statement, Verdict, gather, judge, random_states, run_checks
from jaxcond.checks import _run as checks_run
from jaxcond.checks.statements import NOT_TESTED

WIDTH, NUM_SAMPLES, SEED = 6, 8, 0
NAMES = tuple(statement.name for statement in STATEMENTS)
BY_NAME = dict(zip(NAMES, STATEMENTS, strict=True))


def size(state):
    return jnp.sqrt(jnp.sum(squared_norms(state)))


def hasty(state):
    """All of the flow a tenth too fast: the same states at other times."""
    return jc.vector_field(state).scale(1.1)


def frozen(state):
    """One unit of the input layer does not move."""
    rates = jc.vector_field(state)
    return jc.State(rates.a, rates.b, rates.c.at[:, 0].set(0), rates.strength)


def turning(state):
    """Close to the blow-up, the units of the output layer mix."""
    rates = jc.vector_field(state)
    rising = jnp.maximum(jc.energy(state), 0)
    speed = size(state) * rising / (rising + 1e6)
    mixed = rates.a + speed * jnp.roll(state.a, 1, axis=-1)
    return jc.State(mixed, rates.b, rates.c, rates.strength)


def swelling(state):
    """All of the middle layer grows on its own, not only what the other two put into it."""
    rates = jc.vector_field(state)
    grown = rates.b + 0.4 * size(state) * state.b
    return jc.State(rates.a, grown, rates.c, rates.strength)


def never(evidence):
    """The true flow, but for the end that all methods of the package agree on."""
    times = jnp.full_like(evidence.blow_up, jnp.inf)
    return eqx.tree_at(lambda e: e.blow_up, evidence, times)


# What each statement rules out: every one has a flow on which it fails.
BROKEN_BY = {
    "conserved by unit": frozen,
    "norms grow at 2E": frozen,
    "A and C conserved": frozen,
    "E' ≥ 3E^(4/3)": frozen,
    "T* ≤ t + E^(-1/3)": hasty,
    "E → ∞ at T*": hasty,
    # About initial states and T* alone, which no field to follow can change.
    "blow-up guaranteed": never,
    "no blow-up": hasty,
    "stays once true": turning,
    "|a_k|, |c_l| do not fall": turning,
    "cos ξ → 1 on C₁": swelling,
    "|a'|/|c|², |a'|/|a|² → 1": swelling,
    "cos ψ → 1 on C₁": swelling,
    "cos ζ bounded from 0": turning,
    "E ≤ bound with C": hasty,
    "T* ≥ t + E^(-1/3)/C": frozen,
    "every |c_l| → ∞": frozen,
    "bracket holds T*": hasty,
    "T*(θ(t)) = T* - t": hasty,
    "∇T*·θ = -T*, ∇T*·θ' = -1": hasty,
    "reduced flow": frozen,
    "A and C conserved, rank 2": turning,
    "norms grow at 2E, rank 2": turning,
    "stays, rank 2": turning,
    "bracket holds T*, rank 2": turning,
}
# What the same flows leave as it is: statements fail for what they say, and for nothing else.
UNTOUCHED = {
    hasty: (
        "conserved by unit",
        "A and C conserved",
        "stays once true",
        "|a_k|, |c_l| do not fall",
        "cos ξ → 1 on C₁",
        "cos ψ → 1 on C₁",
        "cos ζ bounded from 0",
        "T* ≥ t + E^(-1/3)/C",
        "every |c_l| → ∞",
    ),
    frozen: ("T* ≤ t + E^(-1/3)", "stays once true", "|a'|/|c|², |a'|/|a|² → 1"),
}
SLOW = ("∇T*·θ = -T*, ∇T*·θ' = -1",)
# What the last points do not enter.
NOT_LAST = (
    "T* ≤ t + E^(-1/3)",
    "blow-up guaranteed",
    "no blow-up",
    "T*(θ(t)) = T* - t",
    "reduced flow",
)
every_statement = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)


@pytest.fixture(scope="module")
def follow():
    """Evidence for a field at some rank, gathered where it is first asked for."""
    states, gathered = {}, {}

    def evidence(field, rank):
        if field is never:
            return never(evidence(jc.vector_field, rank))
        if rank not in states:
            states[rank] = random_states(WIDTH, NUM_SAMPLES, SEED, rank)
        if (field, rank) not in gathered:
            gathered[field, rank] = gather(states[rank], field)
        return gathered[field, rank]

    return evidence


@pytest.fixture(scope="module")
def true(follow):
    return follow(jc.vector_field, 1)


@pytest.fixture(scope="module")
def lost(true):
    """The true flow, but for one sample what a solver leaves that gives up: infinity."""
    middle = true.times.shape[1] // 2

    def cut(x):
        return x.at[0, middle:].set(jnp.inf)

    along = jc.State(*(cut(x) for x in true.states.layers), true.states.strength)
    stages = jax.vmap(jax.vmap(jc.final_stage))(along)
    return dataclasses.replace(
        true,
        states=along,
        rates=jax.vmap(jax.vmap(jc.vector_field))(along),
        times=cut(true.times),
        energies=jax.vmap(jax.vmap(jc.energy))(along),
        final=stages.holds,
        margin=stages.margin,
    )


def test_names_are_unique():
    assert len(set(NAMES)) == len(STATEMENTS)


@every_statement
def test_statements_hold_on_the_true_flow(follow, name):
    statement = BY_NAME[name]
    verdict = judge(statement, follow(jc.vector_field, statement.rank))
    assert verdict.holds
    assert verdict.worst <= statement.limit
    # At this width every state reaches the final stage: nearly all statements test them all.
    fewest = {"no blow-up": 1, "blow-up guaranteed": 2}.get(name, NUM_SAMPLES)
    assert fewest <= verdict.num_tested <= NUM_SAMPLES


@every_statement
def test_statements_fail_on_a_wrong_flow(follow, name):
    statement = BY_NAME[name]
    verdict = judge(statement, follow(BROKEN_BY[name], statement.rank))
    assert not verdict.holds
    # For what was found, not for want of samples.
    assert verdict.num_tested > NUM_SAMPLES / 2 or name in ("no blow-up", "blow-up guaranteed")
    assert verdict.num_tested > 0
    assert verdict.worst > max(10 * statement.limit, 1e-3) or name in (
        "cos ζ bounded from 0",
        "every |c_l| → ∞",
        "blow-up guaranteed",
    )
    assert np.isfinite(verdict.worst)


@pytest.mark.parametrize("field", UNTOUCHED, ids=lambda field: field.__name__)
def test_statements_hold_on_a_flow_that_is_wrong_in_other_ways(follow, field):
    for name in UNTOUCHED[field]:
        assert judge(BY_NAME[name], follow(field, 1)).holds, name


def test_evidence_leads_from_the_initial_states_to_the_blow_up(true):
    expected = random_states(WIDTH, NUM_SAMPLES, SEED, 1)
    assert true.num_samples == NUM_SAMPLES
    initial = jax.tree.map(lambda x: x[:, 0], true.states)
    for found, layer in zip(initial.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(found, layer)
    np.testing.assert_array_equal(true.times[:, 0], 0)
    assert np.all(np.diff(true.times) > 0)
    assert np.all(np.diff(true.energies) > 0)
    # Both signs of the energy at first.
    assert np.ptp(np.sign(true.energies[:, 0])) == 2
    left = 1 - true.times[:, -1] / true.blow_up
    assert np.all((left > 1e-7) & (left < 1e-5))
    np.testing.assert_allclose(true.blow_up, jc.blowup_times(initial, rtol=1e-12).time)


def test_evidence_is_about_the_field_that_it_was_given(follow):
    evidence = follow(turning, 1)
    rates = jax.vmap(jax.vmap(turning))(evidence.states)
    for found, expected in zip(evidence.rates.layers, rates.layers, strict=True):
        largest = jnp.max(jnp.abs(expected), axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=64 * EPS)
    np.testing.assert_array_equal(evidence.blow_up, follow(jc.vector_field, 1).blow_up)


def test_random_states_depend_on_the_seed_and_the_index_alone():
    few, many = (random_states(3, count, SEED, rank=2) for count in (2, 5))
    for one, other in zip(few.layers, many.layers, strict=True):
        np.testing.assert_array_equal(one, other[:2])
    assert many.widths == (3, 2)
    np.testing.assert_array_equal(many.strength, np.tile([1.0, -1.0], (5, 1)))
    # Every entry, sample and seed is drawn anew.
    other = random_states(3, 2, SEED + 1, rank=2)
    drawn = [np.ravel(x) for states in (many, other) for x in states.layers]
    drawn = np.concatenate(drawn)
    assert np.unique(drawn).size == drawn.size


def judged(values, limit=1.0):
    """The verdict on deviations that are given."""
    deviation = jnp.array(values)
    return judge(Statement("given", "own", "given", lambda _: deviation, limit), None)


def test_verdicts_are_of_the_worst_sample_that_is_tested():
    verdict = judged([0.5, NOT_TESTED, 1.0, -3.0])
    assert (verdict.worst, verdict.num_tested, verdict.holds) == (1.0, 3, True)
    verdict = judged([0.5, 1.0 + EPS])
    assert (verdict.num_tested, verdict.holds) == (2, False)
    assert judged([-math.inf, math.inf]).worst == math.inf
    assert not judged([-1.0, math.inf]).holds


def test_what_is_not_a_number_is_no_agreement():
    assert not judged([0.0, math.nan]).holds
    assert not judged([math.nan]).holds


def test_a_statement_that_no_sample_tests_does_not_hold(true):
    verdict = judged([NOT_TESTED, NOT_TESTED])
    assert math.isnan(verdict.worst)
    assert (verdict.num_tested, verdict.holds) == (0, False)
    # The final stage is never reached.
    outside = dataclasses.replace(true, final=jnp.zeros_like(true.final))
    for name in (
        "stays once true",
        "|a_k|, |c_l| do not fall",
        "cos ζ bounded from 0",
        "every |c_l| → ∞",
    ):
        verdict = judge(BY_NAME[name], outside)
        assert (verdict.num_tested, verdict.holds) == (0, False), name


@pytest.mark.parametrize(
    "name", [name for name in NAMES if BY_NAME[name].rank == 1 and name not in (*SLOW, *NOT_LAST)]
)
def test_a_sample_that_was_lost_on_the_way_is_no_agreement(true, lost, name):
    statement = BY_NAME[name]
    deviation = np.asarray(statement.deviation(lost))
    assert deviation[0] > statement.limit or deviation[0] == NOT_TESTED
    assert np.all(deviation[1:] <= statement.limit)


def test_checks_are_verdicts_on_every_statement(monkeypatch):
    asked, told = [], []

    def remember(states, field):
        asked.append((states.rank, states.widths, states.batch_shape, field))
        return states.rank

    def agree(statement, evidence):
        assert evidence == statement.rank
        return Verdict(statement, 0.0, 1, True)

    monkeypatch.setattr(checks_run, "gather", remember)
    monkeypatch.setattr(checks_run, "judge", agree)
    verdicts = run_checks(3, 2, 1, field=hasty, progress=told.append)
    assert [verdict.statement for verdict in verdicts] == list(STATEMENTS)
    assert sorted(asked, key=lambda call: call[0]) == [
        (1, (3, 3), (2,), hasty),
        (2, (3, 2), (2,), hasty),
    ]
    assert set(NAMES) < set(told)
    assert len(told) == len(STATEMENTS) + 2


def test_checks_are_in_double_precision_wherever_it_was_asked_for(monkeypatch):
    used = []

    def remember(states, field):
        used.append(states.dtype)

    monkeypatch.setattr(checks_run, "gather", remember)
    monkeypatch.setattr(checks_run, "judge", lambda statement, _: Verdict(statement, 0.0, 1, True))
    # The precision may be a matter of this thread, and not of the process.
    jax.config.update("jax_enable_x64", False)
    try:
        with jax.enable_x64(True):
            run_checks(3, 2)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert used == [jnp.float64, jnp.float64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 1}, "`width` must be at least 2, but is 1"),
        ({"width": -3}, "`width` must be at least 2, but is -3"),
        ({"samples": 0}, "`samples` must be at least 1, but is 0"),
        ({"samples": -1}, "`samples` must be at least 1, but is -1"),
    ],
)
def test_checks_refuse_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_checks(**arguments)


def test_checks_refuse_single_precision():
    with jax.enable_x64(False), pytest.raises(ValueError, match="need 64-bit floats: call jax"):
        run_checks(3, 2)
