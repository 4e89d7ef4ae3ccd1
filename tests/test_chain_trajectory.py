"""Trajectories of chains against quadruple precision, the closed form of two layers, and states."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_states, pick

import jaxcond as jc
from jaxcond import PointStatus

TABLE = json.loads((Path(__file__).parent / "tables" / "chain_trajectory.json").read_text())


def chain_of(case):
    return jc.Chain([np.array(layer) for layer in case["layers"]], np.array(case["target"]))


@functools.cache
def four_layers():
    return jc.trajectory(chain_of(TABLE[1]))


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["name"])
def test_chains_equal_those_in_quadruple_precision(case):
    path = jc.trajectory(chain_of(case))
    np.testing.assert_allclose(path.blowup.time, case["blowup_time"], rtol=1e-11)
    for point in case["points"]:
        found = path(point["time"])
        for layer, expected in zip(found.layers, point["layers"], strict=True):
            error = np.linalg.norm(np.asarray(layer) - np.array(expected))
            # A unit of rounding of the time itself is one over the time left in the layers.
            assert error < 1e-14 / point["left"] * np.linalg.norm(expected)


def test_three_layers_equal_their_state():
    state = pick(gaussian_states(3, 1, 5, 4), 0)
    of_state, of_chain = jc.trajectory(state), jc.trajectory(jc.Chain.from_state(state))
    assert of_state.blowup.time == of_chain.blowup.time
    times = of_state.times_of(fraction=np.array([0.3, 0.9, 0.999]))
    expected, found = of_state(times), of_chain(times)
    np.testing.assert_allclose(found.layers[1], expected.b, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(of_chain.energy(times), of_state.energy(times), rtol=1e-10)
    np.testing.assert_allclose(of_chain.norms(times)[:, ::-1], of_state.norms(times), rtol=1e-11)
    np.testing.assert_allclose(of_chain.time_left(times), of_state.time_left(times), rtol=1e-11)


def test_two_layers_follow_their_closed_form():
    rng = np.random.default_rng(0)
    c, a = rng.standard_normal((5, 1)), rng.standard_normal((1, 5))
    path = jc.trajectory(jc.Chain([c, a]))
    assert path.blowup.status == jc.Status.NO_BLOW_UP
    times = np.array([0.0, 1.0, 10.0, 100.0])
    found = path(times)
    for layer, expected in zip(
        (found.layers[1][:, 0], found.layers[0][:, :, 0]),
        jc.bounds.two_layer_flow(a[0], c[:, 0], times),
        strict=True,
    ):
        size = np.linalg.norm(expected, axis=-1)
        assert np.all(np.linalg.norm(layer - expected, axis=-1) < 1e-14 * size)
    assert np.all(np.isinf(path.time_left(times)))
    with pytest.raises(ValueError, match=r"`fraction` = 0\.5 is never reached"):
        path.times_of(fraction=0.5)


def test_energies_are_met_and_nothing_drifts():
    path = four_layers()
    energies = np.array([10.0, 1e4, 1e9])
    times = path.times_of(energy=energies)
    np.testing.assert_allclose(path.energy(times), energies, rtol=1e-11)
    assert np.all(np.asarray(path.drift(times)) < 1e-14)
    spread = path.spread(20)
    np.testing.assert_array_equal(spread[-1], path.end)
    left = np.asarray(path.time_left(spread) / path.blowup.time)
    assert 1e-9 < left[-1] <= 1e-8


def test_scale():
    case = TABLE[1]
    chain, factor = chain_of(case), 1e-40
    times = four_layers().times_of(fraction=np.array([0.5, 0.999]))
    other = jc.trajectory(chain.scale(factor))
    found = other(times / factor**2)
    for layer, expected in zip(found.layers, four_layers()(times).layers, strict=True):
        np.testing.assert_allclose(layer / factor, expected, rtol=1e-10)


def test_derivatives_equal_differences():
    chain = chain_of(TABLE[1])

    def of(step):
        layers = [layer * (1 + step * n) for n, layer in enumerate(chain.layers)]
        path = jc.trajectory(jc.Chain(layers, chain.target))
        return jnp.stack([path.times_of(energy=100.0), path(0.1).layers[1][0, 0], path.blowup.time])

    difference = (of(1e-5) - of(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.jacfwd(of))(0.0), difference, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(of))(0.0), difference, rtol=1e-6)


def test_a_batch_has_a_status_for_each():
    chain = chain_of(TABLE[1])
    batch = jax.tree.map(lambda x: jnp.stack([x, x * jnp.nan]), chain)
    times = jnp.array([0.5, 1.1]) * TABLE[1]["blowup_time"]

    @jax.jit
    @jax.vmap
    def along(chain):
        path = jc.trajectory(chain, closeness=1e-3)
        return path.status(times), path.energy(times)

    status, energies = along(batch)
    np.testing.assert_array_equal(
        status, [[PointStatus.REACHED, PointStatus.BEYOND_BLOW_UP], [PointStatus.INVALID_INPUT] * 2]
    )
    np.testing.assert_allclose(energies[0, 0], four_layers().energy(times[0]), rtol=1e-12)


def test_what_is_for_states_is_refused():
    path = four_layers()
    for call in (
        path.onset,
        path.plot,
        lambda: path.condition(1, 0.1),
        lambda: path.reduced(0.1),
        lambda: path.growth(0.1),
    ):
        with pytest.raises(ValueError, match="is for states"):
            call()
    with pytest.raises(ValueError, match="`dim` is for states, but got a chain of 4 layers"):
        jc.trajectory(path.initial, dim=3)
    with pytest.raises(ValueError, match=r"takes one chain, but got a batch of shape \(2,\)"):
        jc.trajectory(jax.tree.map(lambda x: jnp.stack([x, x]), path.initial))
    with pytest.raises(ValueError, match="lies at or beyond the blow-up time"):
        path(1e9)
