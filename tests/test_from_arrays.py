"""Networks from the weights of other libraries."""

import itertools
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxcond.networks as jn

SIZES = (3, 5, 5, 4, 2)
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal((n, m)) for m, n in itertools.pairwise(SIZES)]
STATE_DICT = {f"net.{2 * i}.weight": w for i, w in enumerate(WEIGHTS)}


def assert_same(network):
    for found, expected in zip(network.weights, WEIGHTS, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert network.sizes == SIZES


@pytest.mark.parametrize("kind", ["dict", "npz", "safetensors", "nested", "flax", "names"])
def test_weights_are_taken_in_their_order(tmp_path, kind):
    # Names are counted by their numbers: 10 stands behind 9.
    wide = {f"layer_{9 + i}": {"kernel": w} for i, w in enumerate(WEIGHTS)}
    backwards = dict(reversed(wide.items()))
    path = tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **STATE_DICT)
    if kind == "safetensors":
        save_file(STATE_DICT, path)
    options = {}
    if kind == "names":
        options = {"names": list(STATE_DICT)}
    if kind == "flax":
        backwards = jax.tree.map(np.transpose, backwards)
        options = {"transpose": True}
    source = {"dict": STATE_DICT, "names": {"x": np.ones((7, 7)), **STATE_DICT}}.get(
        kind, backwards if kind in ("nested", "flax") else path
    )
    assert_same(jn.from_arrays(source, **options))


def test_vectors_of_other_layers_are_left_alone():
    others = {"norm.scale": np.ones(7), "head.weight": np.ones((9, 9)), "head.bias": np.ones(9)}
    assert_same(jn.from_arrays({**STATE_DICT, **others}, names=list(STATE_DICT)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_module_of_equinox_computes_the_same(bias):
    key = jax.random.key(0)
    module = eqx.nn.MLP(3, 2, 6, 2, jnp.sin, use_bias=bias, use_final_bias=bias, key=key)
    network = jn.from_arrays(module, activation="sin")
    assert (network.biases is not None) == bias
    x = jnp.asarray(RNG.standard_normal(3))
    np.testing.assert_allclose(network(x), module(x), 1e-12)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("weights.pt", {}, "Python objects, which run code"),
        ({**STATE_DICT, "net.0.bias": np.ones(5)}, {}, "'net.0.weight' has a bias and .* none"),
        (STATE_DICT, {"names": ["fc1"]}, "no array 'fc1'; there are net.0.weight"),
        (STATE_DICT, {"transpose": True}, "are no network: .* `transpose=True`"),
        ({}, {}, "are no network"),
        (3, {}, "mapping of names to arrays, an eqx.nn.MLP or a file, but is of type int"),
    ],
)
def test_what_is_no_network_is_refused(source, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        jn.from_arrays(source, **options)


@pytest.mark.parametrize(
    ("loss", "activation"), [("mse", "tanh"), ("softmax", "tanh"), ("logistic", "gelu")]
)
def test_the_plateau_of_a_training_in_pytorch_is_predicted(loss, activation):
    # State dicts as PyTorch names them, and where its own SGD crossed: `tests/tables/pytorch.py`.
    table = np.load(Path(__file__).parent / "tables" / f"pytorch_{loss}.npz")
    state_dict = {name: table[name] for name in table.files if name[0].isdigit()}
    network = jn.from_arrays(state_dict, activation=activation)
    data = jn.Regression(table["x"], table["y"])
    escape = jn.predict_escape(network, data, float(table["rate"]), loss=loss, fraction=0.9)
    observed = int(table["crossing"])
    np.testing.assert_allclose(escape.plateau, table["plateau"], 1e-4)
    assert abs(float(escape.crossing_iteration) - observed) <= max(1, 1e-3 * observed)


def test_an_activation_that_is_not_known_is_no_fault_of_the_arrays():
    with pytest.raises(ValueError, match=r"^Argument `activation` must be a function or one of"):
        jn.from_arrays(STATE_DICT, activation="relu")
