"""Proven blow-up times."""

import json
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import from_reference, gaussian_states, pick

import jaxcond as jc
from jaxcond.checks.adversarial import adversarial_states

TABLES = Path(__file__).parent / "tables"


def holds(certificate, exact, digits=17):
    """Whether a decimal, known to some digits, may be in the enclosure."""
    exact = Fraction(exact)
    slack = exact * Fraction(1, 10**digits)
    return certificate.lower <= exact + slack and exact - slack <= certificate.upper


def test_the_reference_table(reference):
    for entry in reference:
        state = from_reference(entry)
        if max(state.widths) > 4:
            continue
        certificate = jc.certify(state, digits=12)
        assert certificate.outcome == "blows up"
        assert certificate.digits >= 12
        assert holds(certificate, str(entry["blowup_time"]), 15)
        assert float(jc.blowup_time(state).time) == pytest.approx(certificate.time, rel=1e-10)


@pytest.mark.parametrize("family", ["near rest", "unequal scales", "integers"])
def test_adversarial_states(family):
    table = json.loads((TABLES / "adversarial.json").read_text())["times"][family]
    for state, exact in list(zip(adversarial_states(family, 4), table, strict=False)):
        certificate = jc.certify(state, digits=10)
        assert holds(certificate, exact, 16)
        found = jc.blowup_time(state)
        assert float(found.lower) <= certificate.upper
        assert certificate.lower <= float(found.upper)


def test_chains_and_higher_rank():
    for family in ("chains", "rank 2 and 3"):
        table = json.loads((TABLES / "adversarial.json").read_text())["times"][family]
        certificate = jc.certify(adversarial_states(family, 1)[0], digits=8)
        assert certificate.outcome == "blows up"
        assert holds(certificate, table[0], 16)


def test_more_digits_are_inside_fewer():
    state = pick(gaussian_states(3, 1, 3, 2), 0)
    few, many = jc.certify(state, digits=4), jc.certify(state, digits=40)
    assert many.digits >= 40
    assert few.lower <= many.lower <= many.upper <= few.upper
    assert many.time in few
    assert few.time not in many
    assert "proven" in str(many)


def test_aligned_states_in_closed_form():
    certificate = jc.certify(jc.State.from_vectors(np.ones(1), np.ones((1, 1)), np.ones(1)))
    assert certificate.lower == certificate.upper == 1
    values = (1.0, -1.0000001, 2.0)
    state = jc.State.from_vectors(
        np.array(values[:1]), np.array([values[1:2]]), np.array(values[2:])
    )
    assert holds(jc.certify(state), "10.380291258943064", 14)


def test_rest():
    column = np.array([1.0, 0.0])
    rest = jc.certify(jc.State.from_vectors(column, np.diag(column), -column))
    assert rest.outcome == "comes to rest"
    assert rest.time == np.inf
    assert np.inf in rest
    assert "comes to rest" in str(rest)
    # At rest in the end for no reason that is checked: never a guess, and what is sure is said.
    state = jc.State.from_vectors(
        np.array([-2.0, 1]), np.array([[1.0, 2], [-1, -1]]), np.array([1.0, 2])
    )
    open_one = jc.certify(state, max_steps=20)
    assert open_one.outcome == "not decided"
    assert open_one.upper is None
    assert open_one.lower > 1
    assert "not decided" in str(open_one)


def test_bad_input():
    states = gaussian_states(3, 2, 3, 2)
    with pytest.raises(ValueError, match="batch"):
        jc.certify(states)
    state = pick(states, 0)
    with pytest.raises(ValueError, match="digits"):
        jc.certify(state, digits=0)
    with pytest.raises(ValueError, match="NaN"):
        jc.certify(jc.State(state.a * jnp.nan, state.b, state.c, state.strength))
    with pytest.raises(ValueError, match="3 layers"):
        jc.certify(jc.Chain((np.ones((2, 1)), np.ones((1, 2)))))
