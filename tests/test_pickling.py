"""Whatever the package returns or takes can be pickled, copied and serialised."""

import copy
import io
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_states, pick

import jaxcond as jc
from jaxcond import networks, statistics


def _state():
    return pick(gaussian_states(0, 1, 4, 3), 0)


def _network(activation="tanh"):
    key = jax.random.key(0)
    return networks.MLP.random((2, 5, 4, 1), std=0.1, activation=activation, key=key)


def _data():
    return networks.Regression(np.eye(2), np.ones((2, 1)))


def _ensemble():
    return jc.Gaussian(p=30, q=20)


PUBLIC = {
    "state": _state,
    "blow-up": lambda: jc.blowup_time(_state()),
    "blow-ups": lambda: jc.blowup_times(gaussian_states(0, 3, 4, 3)),
    "methods": lambda: (jc.Series(), jc.ExtendedSeries(), jc.Reduced(), jc.Taylor(), jc.Direct()),
    "reduction": lambda: jc.reduce(_state(), 3),
    "trajectory": lambda: jc.trajectory(_state(), closeness=0.1),
    "onset": lambda: jc.trajectory(_state(), closeness=0.1).onset(),
    "chain": lambda: jc.Chain.from_state(_state()),
    "certificate": lambda: jc.certify(_state(), digits=3),
    "ensemble": _ensemble,
    "ensemble of chains": lambda: jc.GaussianChain((1, 4, 4, 1), 0.1),
    "samples": lambda: _ensemble().draws(5, key=jax.random.key(1)),
    "quasi-random samples": lambda: _ensemble().quasi(16, key=jax.random.key(1), seed=0),
    "final stage": lambda: jc.final_stage(_state()),
    "network": _network,
    "other network": lambda: _network(jax.nn.elu),
    "run": lambda: networks.gradient_descent(_network(), _data(), 0.01, num_steps=5, record=2),
    "effective model": lambda: networks.effective_model(_network(), _data()),
    "moments": lambda: statistics.Moments.of(np.arange(5.0)),
}


def _as_bytes(leaf):
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
    return np.asarray(leaf).tobytes() if isinstance(leaf, np.ndarray | float) else leaf


@pytest.mark.parametrize("name", PUBLIC)
def test_pickled_copied_and_serialised(name):
    value = PUBLIC[name]()
    leaves, structure = jax.tree.flatten(value)
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        other, same = jax.tree.flatten(again)
        assert type(again) is type(value)
        assert len(leaves) == len(other)
        if all(isinstance(leaf, jax.Array | np.ndarray | float | int) for leaf in leaves):
            assert structure == same
            assert [_as_bytes(x) for x in leaves] == [_as_bytes(x) for x in other]
    if isinstance(value, eqx.Module):
        buffer = io.BytesIO()
        eqx.tree_serialise_leaves(buffer, value)
        buffer.seek(0)
        again = jax.tree.leaves(eqx.tree_deserialise_leaves(buffer, value))
        assert [_as_bytes(x) for x in leaves] == [_as_bytes(x) for x in again]
