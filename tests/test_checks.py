import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS

import jaxcond as jc
from jaxcond._energy import squared_norms
from jaxcond.checks import (
    STATEMENTS,
    Statement,
    Verdict,
    gather,
    initial_states,
    judge,
    run_checks,
    start,
)
from jaxcond.checks import _run as checks_run
from jaxcond.checks._evidence import EXAMPLE, HIGHER, INITIAL, PARTIAL, RANK_1, RANK_2, SQUARE
from jaxcond.checks._run import _parts, _together
from jaxcond.checks._statement import NOT_TESTED

WIDTH, NUM_SAMPLES, SEED = 6, 8, 0
# A quarter as many of each ensemble but the square one.
FEW = NUM_SAMPLES // 4
NAMES = tuple(statement.name for statement in STATEMENTS)
BY_NAME = dict(zip(NAMES, STATEMENTS, strict=True))
DOCUMENTED = Path(__file__).parents[1] / "docs" / "paper.md"


def size(state):
    return jnp.sqrt(jnp.sum(squared_norms(state)))


def late(state):
    """A speed that is felt close to the blow-up only."""
    rising = jnp.maximum(jc.energy(state), 0)
    return size(state) * rising / (rising + 1e13)


def hasty(state):
    """All of the flow twice too fast: the same states at other times."""
    return jc.vector_field(state).scale(2)


def slow(state):
    """All of the flow at half its speed."""
    return jc.vector_field(state).scale(0.5)


def frozen(state):
    """One unit of the input layer does not move."""
    rates = jc.vector_field(state)
    return jc.State(rates.a, rates.b, rates.c.at[:, 0].set(0), rates.strength)


def turning(state):
    """Close to the blow-up, the units of the output layer mix."""
    rates = jc.vector_field(state)
    mixed = rates.a + late(state) * jnp.roll(state.a, 1, axis=-1)
    return jc.State(mixed, rates.b, rates.c, rates.strength)


def sinking(state):
    """Close to the blow-up, units of the outer layers fall."""
    rates = jc.vector_field(state)
    a, c = (
        rate - 1.5 * late(state) * jnp.roll(layer, 1, axis=-1)
        for rate, layer in ((rates.a, state.a), (rates.c, state.c))
    )
    return jc.State(a, rates.b, c, rates.strength)


def swelling(state):
    """All of the middle layer grows on its own, not only what the other two put into it."""
    rates = jc.vector_field(state)
    grown = rates.b + 0.4 * size(state) * state.b
    return jc.State(rates.a, grown, rates.c, rates.strength)


def never(evidence):
    """The true flow, but for the end that all methods of the package agree on."""
    return {
        name: dataclasses.replace(found, blow_up=np.full_like(found.blow_up, np.inf))
        for name, found in evidence.items()
    }


# What each statement rules out: every one has a flow on which it fails.
BROKEN_BY = {
    "(3.10)": frozen,
    "Proposition 1, (3.11), units": frozen,
    "Proposition 1, (3.11), norms": frozen,
    "Assumption 1, (3.12)-(3.13)": frozen,
    "Theorem 1, identity": frozen,
    "(3.14)": frozen,
    "(3.15), energy": slow,
    "(3.15), T*": hasty,
    "(3.16)": frozen,
    "Theorem 1": hasty,
    "Corollary 1, (3.18)": hasty,
    "Example 1": hasty,
    "Assumption 2, Proposition 2": turning,
    "Proposition 2, proof": turning,
    "Proposition 3 (i), (4.3)": sinking,
    "Proposition 3 (i), C₂": slow,
    "Theorem 3, C₂": frozen,
    "Proposition 3 (ii), (4.4), (4.12)": swelling,
    "Proposition 3 (iii), (4.5)": hasty,
    "(4.14)-(4.16)": slow,
    "(4.6)-(4.9)": frozen,
    "(4.10)": frozen,
    "Corollary 2, (4.17)": swelling,
    "Proposition 4, (4.18)": turning,
    "Proposition 5, (4.19)": turning,
    "Proposition 5, (4.20)": hasty,
    "Theorem 2, (4.21)": hasty,
    "Theorem 2, (4.22)": frozen,
    # About initial states and T* alone, which no field to follow can change.
    "Theorem 2, (4.22) as printed": never,
    "Theorem 3, (4.26)": slow,
    "Theorem 3, (4.25), (4.27)": frozen,
    "Theorem 3, Definition 1": slow,
    "Theorem 3, rate": frozen,
    "(A.8)": turning,
    "(3.11), units, rank 2 and 3": turning,
    "(3.11), norms, rank 2 and 3": turning,
    "Assumptions 3, 4; Proposition 6": turning,
    "(A.10)": sinking,
    "(A.11), (A.12)": turning,
    "(A.13)": turning,
    "(A.14)": turning,
    "(A.11), (A.12) > 0": turning,
    "(A.13) > 0": turning,
    "(A.14) > 0": turning,
    "A and C conserved": frozen,
    "blow-up guaranteed": never,
    "bracket holds T*": hasty,
    "bracket holds T*, rank 2 and 3": hasty,
    "T*(θ(t)) = T* - t": hasty,
    "∇T*·θ = -T*, ∇T*·θ' = -1": hasty,
    "reduced flow": frozen,
}
# What the same flows leave as it is: statements fail for what they say, and for nothing else.
UNTOUCHED = {
    hasty: (
        "Proposition 1, (3.11), units",
        "Assumption 1, (3.12)-(3.13)",
        "(3.15), energy",
        "Assumption 2, Proposition 2",
        "Proposition 2, proof",
        "(4.10)",
        "Proposition 4, (4.18)",
        "Proposition 5, (4.19)",
        "Theorem 2, (4.22)",
        "(A.11), (A.12) > 0",
        "A and C conserved",
    ),
    slow: ("Proposition 1, (3.11), units", "(3.15), T*", "Theorem 2, (4.21)", "(4.10)"),
    frozen: ("Proposition 3 (i), (4.3)", "Proposition 4, (4.18)", "Proposition 5, (4.20)"),
    turning: ("(3.16)", "(4.6)-(4.9)", "(4.10)"),
}
SLOW = ("∇T*·θ = -T*, ∇T*·θ' = -1",)
# Products of four cosines, which are small.
SMALL = ("(A.10)",)
every_statement = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)


@pytest.fixture(scope="module")
def follow():
    """Evidence for a field, gathered where it is first asked for."""
    states, gathered = initial_states(WIDTH, NUM_SAMPLES, SEED), {}

    def evidence(field):
        if field is never:
            return never(evidence(jc.vector_field))
        if field not in gathered:
            gathered[field] = gather(states, field) | start(states[SQUARE], field)
        return gathered[field]

    return evidence


@pytest.fixture(scope="module")
def true(follow):
    return follow(jc.vector_field)


@pytest.fixture(scope="module")
def lost(true):
    """The true flow, but for one sample what a solver leaves that gives up: infinity."""
    evidence = true[SQUARE]
    middle = evidence.times.shape[1] // 2

    def cut(x):
        x = np.array(x)
        x[0, middle:] = np.inf
        return x

    def cut_layers(points):
        return {name: cut(getattr(points, name)) for name in "abc"}

    return dataclasses.replace(
        evidence,
        states=evidence.states._replace(**cut_layers(evidence.states)),
        rates=evidence.rates._replace(**cut_layers(evidence.rates)),
        times=cut(evidence.times),
    )


def test_names_are_unique():
    assert len(set(NAMES)) == len(STATEMENTS)


@every_statement
def test_statements_hold_on_the_true_flow(follow, name):
    statement = BY_NAME[name]
    verdict = judge(statement, follow(jc.vector_field))
    assert verdict.holds
    assert (verdict.worst > statement.limit) == statement.refuted
    # At this width every state reaches the final stage: nearly all statements test them all.
    most = sum(follow(jc.vector_field)[on].num_samples for on in statement.on)
    fewest = {"(3.16)": 3, "Theorem 3, (4.25), (4.27)": most - 2}.get(name, most)
    assert fewest <= verdict.num_tested <= most
    assert verdict.ensemble in statement.on
    assert 0 <= verdict.sample < NUM_SAMPLES


@every_statement
def test_statements_fail_on_a_wrong_flow(follow, name):
    statement = BY_NAME[name]
    verdict = judge(statement, follow(BROKEN_BY[name]))
    assert not verdict.holds
    if statement.refuted:
        # The sentence is wrong, and no flow makes it right.
        assert verdict.num_tested == 0
        return
    # For what was found, not for want of samples.
    assert verdict.num_tested > 0
    assert verdict.worst > (
        10 * statement.limit if name in SMALL else max(10 * statement.limit, 1e-3)
    )
    assert np.isfinite(verdict.worst)


@pytest.mark.parametrize("field", UNTOUCHED, ids=lambda field: field.__name__)
def test_statements_hold_on_a_flow_that_is_wrong_in_other_ways(follow, field):
    for name in UNTOUCHED[field]:
        assert judge(BY_NAME[name], follow(field)).holds, name


def test_what_the_paper_prints_of_the_lower_bound_is_wrong_where_the_energy_passes_zero(true):
    verdict = judge(BY_NAME["Theorem 2, (4.22) as printed"], true)
    found, i = true[verdict.ensemble], verdict.sample
    # C is 4/3 at least, and all but that where the condition holds early on the way.
    point = np.argmax(found.energies[i] > 0)
    state = jc.State(*(x[i, point] for x in found.states))
    assert point < found.onset[i]
    bound = found.times[i, point] + float(jc.bounds.theorem_2_lower(state, jnp.asarray(1.4)))
    assert bound > found.blow_up[i] + 0.3 * float(jc.bounds.theorem_1_upper(state))


def test_evidence_leads_from_the_initial_states_to_the_blow_up(true):
    for name, states in initial_states(WIDTH, NUM_SAMPLES, SEED).items():
        found = true[name]
        assert found.num_samples == (NUM_SAMPLES if name == SQUARE else FEW)
        for layer, expected in zip(found.initial.layers, states.layers, strict=True):
            np.testing.assert_array_equal(layer, expected)
        np.testing.assert_array_equal(found.times[:, 0], 0)
        assert np.all(np.diff(found.times) > 0)
        assert np.all(np.diff(found.energies) > 0)
        left = 1 - found.times[:, -1] / found.blow_up
        assert np.all((left > 1e-8) & (left < 1e-5))
    # Both signs of the energy at first.
    assert np.ptp(np.sign(true[SQUARE].energies[:, 0])) == 2
    for name in (*RANK_1, RANK_2):
        known = jc.blowup_times(initial_states(WIDTH, NUM_SAMPLES, SEED)[name], rtol=1e-10)
        np.testing.assert_allclose(true[name].blow_up, known.time, rtol=1e-9)


def test_evidence_agrees_with_the_functions_of_the_package(true):
    for name in (SQUARE, *HIGHER):
        found = true[name]
        some = jc.State(*(x[:2, ::9] for x in found.states))
        each = jax.jit(jax.vmap(jax.vmap(lambda s: (jc.energy(s), jc.final_stage(s)))))
        energies, stages = each(some)
        scale = found.size[:2, ::9] ** 3
        np.testing.assert_allclose(found.energies[:2, ::9] / scale, energies / scale, atol=8 * EPS)
        np.testing.assert_array_equal(found.final[:2, ::9], stages.holds)
        np.testing.assert_allclose(found.margin[:2, ::9], stages.margin, rtol=0, atol=64 * EPS)
        for rate, gradient in zip(found.rates.layers, found.gradient.layers, strict=True):
            np.testing.assert_allclose(rate, gradient, rtol=1e-12, atol=1e-12 * np.max(gradient))


def test_in_one_ensemble_a_unit_has_no_part_in_the_blow_up(true):
    found, whole = true[PARTIAL], true[SQUARE]
    assert found.num_samples == FEW
    # A rotation of the input units: the same energy, blow-up time and norms.
    np.testing.assert_allclose(found.energies[:, 0], whole.energies[:FEW, 0], rtol=1e-12)
    np.testing.assert_allclose(found.blow_up, whole.blow_up[:FEW], rtol=1e-12)
    grown = np.abs(found.states.c[:, -1, 0]) / np.abs(found.states.c[:, 0, 0])
    assert np.all(grown[:, 0] < 10)
    assert np.all(grown[:, 1:] > 1e3)


def test_evidence_is_about_the_field_that_it_was_given(follow):
    evidence = follow(turning)[SQUARE]
    rates = jax.vmap(jax.vmap(turning))(jc.State(*evidence.states))
    for found, expected in zip(evidence.rates.layers, rates.layers, strict=True):
        largest = jnp.max(jnp.abs(expected), axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=64 * EPS)
    np.testing.assert_array_equal(evidence.blow_up, follow(jc.vector_field)[SQUARE].blow_up)


def test_initial_states_depend_on_the_seed_and_the_index_alone():
    few, many = (initial_states(3, count, SEED) for count in (5, 17))
    for name, states in few.items():
        for one, other in zip(states.layers, many[name].layers, strict=True):
            np.testing.assert_array_equal(one, other[: len(one)])
    assert {name: (states.rank, states.widths) for name, states in few.items()} == {
        SQUARE: (1, (3, 3)),
        RANK_1[1]: (1, (3, 2)),
        RANK_2: (2, (3, 2)),
        HIGHER[1]: (3, (2, 3)),
    }
    # Every entry, sample, ensemble and seed is drawn anew.
    other = initial_states(3, 5, SEED + 1)
    drawn = [
        np.ravel(x) for each in (many, other) for states in each.values() for x in states.layers
    ]
    drawn = np.concatenate(drawn)
    assert np.unique(drawn).size == drawn.size
    # Strengths of equal and of mixed signs.
    signs = np.sign(many[RANK_2].strength)
    assert set(map(tuple, signs.tolist())) == {(1.0, -1.0), (1.0, 1.0), (-1.0, -1.0)}


def judged(values, limit=1.0, *, refuted=False):
    """The verdict on deviations that are given."""
    given = Statement(
        name="given",
        proven="given",
        observed="given",
        deviation=lambda evidence: evidence,
        limit=limit,
        on=("given",),
        refuted=refuted,
    )
    return judge(given, {"given": np.array(values)})


def test_verdicts_are_of_the_worst_sample_that_is_tested():
    verdict = judged([0.5, NOT_TESTED, 1.0, -3.0])
    assert (verdict.worst, verdict.num_tested, verdict.holds) == (1.0, 3, True)
    assert (verdict.ensemble, verdict.sample) == ("given", 2)
    verdict = judged([0.5, 1.0 + EPS])
    assert (verdict.num_tested, verdict.holds) == (2, False)
    assert judged([-math.inf, math.inf]).worst == math.inf
    assert not judged([-1.0, math.inf]).holds


def test_a_refuted_statement_needs_a_counter_example():
    assert judged([0.5, 1.0 + EPS], refuted=True).holds
    assert not judged([0.5, 1.0], refuted=True).holds
    assert not judged([NOT_TESTED], refuted=True).holds


def test_samples_are_checked_in_parts_where_states_are_wide(monkeypatch):
    states = initial_states(3, 10, SEED)
    ((whole, offsets),) = _parts(states)
    assert whole.keys() == states.keys()
    assert set(offsets.values()) == {0}
    monkeypatch.setattr(checks_run, "_MOST_ENTRIES", 9)
    # No part is without a sample of each ensemble, of which the smallest have three.
    parts = _parts(states)
    assert len(parts) == 3
    for name, batch in states.items():
        together = np.concatenate([part[name].b for part, _ in parts])
        np.testing.assert_array_equal(together, batch.b)
        starts = np.cumsum([0] + [len(part[name].strength) for part, _ in parts[:-1]])
        assert [offsets[name] for _, offsets in parts] == starts.tolist()


def test_verdicts_on_parts_are_of_the_worst_of_all():
    some, none, worst = judged([0.5, 0.7]), judged([NOT_TESTED]), judged([2.0])
    together = _together([some, none, worst])
    assert (together.worst, together.num_tested, together.holds) == (2.0, 3, False)
    assert _together([none, some]).holds
    assert not _together([none, none]).holds
    assert _together([judged([0.5], refuted=True), judged([2.0], refuted=True)]).holds


def test_what_is_not_a_number_is_no_agreement():
    assert not judged([0.0, math.nan]).holds
    assert not judged([math.nan]).holds


def test_a_statement_that_no_sample_tests_does_not_hold(true):
    verdict = judged([NOT_TESTED, NOT_TESTED])
    assert math.isnan(verdict.worst)
    assert (verdict.num_tested, verdict.holds) == (0, False)
    # The final stage is never reached.
    outside = {name: dataclasses.replace(true[name]) for name in RANK_1}
    for found in outside.values():
        found.__dict__["final"] = np.zeros(found.times.shape, bool)
    for name in (
        "Assumption 2, Proposition 2",
        "Proposition 3 (i), (4.3)",
        "Proposition 5, (4.19)",
        "Theorem 2, (4.21)",
        "Theorem 3, Definition 1",
    ):
        verdict = judge(BY_NAME[name], outside)
        assert (verdict.num_tested, verdict.holds) == (0, False), name


@pytest.mark.parametrize(
    "name",
    [s.name for s in STATEMENTS if SQUARE in s.on and not s.refuted and "θ(t)" not in s.name],
)
def test_a_sample_that_was_lost_on_the_way_is_no_agreement(lost, name):
    statement = BY_NAME[name]
    deviations = statement.deviations(lost)
    assert deviations[0] > statement.limit or deviations[0] == NOT_TESTED
    assert np.all(deviations[1:] <= statement.limit)


def agreed(statement):
    return Verdict(
        statement=statement,
        worst=0.0,
        num_tested=1,
        holds=True,
        ensemble=statement.on[0],
        sample=0,
    )


def test_checks_are_verdicts_on_every_statement(monkeypatch):
    asked, told = [], []

    def remember(states, field):
        asked.append((sorted(states), states[SQUARE].batch_shape, field))
        return {}

    def begin(states, field):
        asked.append((states.widths, field))
        return {INITIAL: None}

    def agree(statement, evidence):
        assert (INITIAL in evidence) == (INITIAL in statement.on)
        return agreed(statement)

    monkeypatch.setattr(checks_run, "gather", remember)
    monkeypatch.setattr(checks_run, "start", begin)
    monkeypatch.setattr(checks_run, "judge", agree)
    verdicts = run_checks(3, 2, 1, field=hasty, progress=told.append)
    assert [verdict.statement for verdict in verdicts] == list(STATEMENTS)
    assert sorted(asked, key=len) == [
        ((3, 3), hasty),
        (sorted(initial_states(3, 1)), (2,), hasty),
    ]
    assert set(NAMES) < set(told)
    assert len(told) == len(STATEMENTS) + 1


def test_checks_are_in_double_precision_wherever_it_was_asked_for(monkeypatch):
    used = []

    def remember(states, field):
        used.append(states[SQUARE].dtype)
        return {}

    def begin(states, field):
        used.append(states.dtype)
        return {}

    monkeypatch.setattr(checks_run, "gather", remember)
    monkeypatch.setattr(checks_run, "start", begin)
    monkeypatch.setattr(checks_run, "judge", lambda statement, _: agreed(statement))
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


def test_the_documentation_has_every_row_of_the_table():
    rows = DOCUMENTED.read_text()
    for statement in STATEMENTS:
        assert statement.name in rows
        assert statement.proven in rows
        assert statement.observed in rows
    assert EXAMPLE in rows
