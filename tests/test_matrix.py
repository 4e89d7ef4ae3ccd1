"""Matrix completion: initial factors of a given scale, what is observed, and statements of use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcond.networks as jn
from jaxcond.indicators import nuclear_norm

EPS = 1e-12


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "identity"])
@pytest.mark.parametrize(("norm", "order"), [("frobenius", "fro"), ("spectral", 2)])
def test_the_product_has_the_scale(kind, norm, order, key):
    network = jn.matrix_factors((6, 8, 5, 7), 1e-3, key=key, kind=kind, norm=norm)
    assert network.sizes == (6, 8, 5, 7)
    a, b, c = (np.asarray(w) for w in network.weights)
    np.testing.assert_allclose(np.linalg.norm(c @ b @ a, order), 1e-3, EPS)
    if kind == "orthogonal":
        singular = [np.linalg.svd(w, compute_uv=False) for w in (a, b, c)]
        np.testing.assert_allclose(np.concatenate(singular), singular[0][0], EPS)


def test_square_factors_of_the_identity(key):
    network = jn.matrix_factors((4, 4, 4), 0.09, key=key, kind="identity", norm="spectral")
    np.testing.assert_allclose(network.weights, [0.3 * np.eye(4)] * 2, EPS)


def test_layers_are_of_one_size_and_seeds_differ(key):
    def draw(key):
        return jn.matrix_factors((5, 300, 5), 1e-2, key=key)

    many = jax.vmap(draw)(jax.random.split(key, 2))
    first, last = many.weights
    sizes = [float(jnp.sqrt(jnp.mean(w**2))) for w in (first[0], last[0])]
    np.testing.assert_allclose(sizes[0], sizes[1], 0.1)
    np.testing.assert_allclose(jnp.linalg.norm(many.product, axis=(1, 2)), 1e-2, EPS)
    assert float(jnp.max(jnp.abs(first[0] - first[1]))) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (4, 4)}, "three positive numbers"),
        ({"sizes": (4, 0, 4)}, "three positive numbers"),
        ({"kind": "xavier"}, "`kind` is not known: 'xavier'"),
        ({"norm": "nuclear"}, "frobenius, spectral, but is 'nuclear'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_factors_that_are_refused(change, message, key):
    arguments = {"sizes": (4, 4, 4), "scale": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        jn.matrix_factors(**arguments, key=key)


def completion(key):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 1)) @ rng.standard_normal((1, 7)) / 4
    mask = rng.random(matrix.shape) < 0.7
    return matrix, mask, jn.matrix_factors((7, 10, 10, 8), 1e-4, key=key)


def test_what_is_observed_of_the_entries_that_are_not_known(key):
    matrix, mask, network = completion(key)
    data = jn.Entries(np.where(mask, matrix, np.nan), mask)
    rate, loss, num = 0.1, mask.sum() / 2, 600
    options = {"loss": loss, "num_steps": num, "record": [0, 300, num], "progress": False}
    unseen = jn.gradient_descent(
        network, data, rate, observe={"unseen": jn.UnseenError(matrix, mask)}, **options
    )["unseen"]
    nuclear = jn.gradient_descent(network, data, rate, observe=("nuclear_norm",), **options)
    weights, seen = [np.array(w) for w in network.weights], []
    for i in range(num + 1):
        a, b, c = weights
        product = c @ b @ a
        if i in (0, 300, num):
            off = (~mask) * (product - matrix)
            size = np.linalg.norm((~mask) * matrix)
            values = np.linalg.svd(product, compute_uv=False)
            seen.append((np.linalg.norm(off) / size, values.sum()))
        error = mask * (product - matrix)
        slopes = (c @ b).T @ error, c.T @ error @ a.T, error @ (b @ a).T
        weights = [w - rate * g for w, g in zip(weights, slopes, strict=True)]
    np.testing.assert_allclose(np.stack([unseen, nuclear["nuclear_norm"]], 1), seen, 1e-8)
    # Rank one is found from two thirds of the entries.
    assert seen[0][0] > 0.9
    assert seen[-1][0] < 0.05


def test_the_nuclear_norm_is_the_sum_of_the_singular_values():
    np.testing.assert_allclose(nuclear_norm(jnp.diag(jnp.asarray([3.0, -4.0]))), 7.0, EPS)


@pytest.mark.parametrize(
    ("matrix", "mask", "message"),
    [
        (np.eye(3), np.ones((3, 3)), "booleans of the shape"),
        (np.eye(3), np.ones((2, 3), bool), "booleans of the shape"),
        (np.eye(3), np.ones((3, 3), bool), "not zero"),
        (np.full((3, 3), np.nan), np.eye(3, dtype=bool), "must be finite"),
    ],
)
def test_errors_that_cannot_be_observed(matrix, mask, message):
    with pytest.raises(ValueError, match=message):
        jn.UnseenError(matrix, mask)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("kind", ["mask", "sensing"])
def test_measurements_of_any_depth(depth, kind, key):
    """One iteration against the gradient by hand."""
    matrix, mask, _ = completion(key)
    network = jn.matrix_factors((7, *(9,) * (depth - 1), 8), 0.5, key=key)
    operators = np.random.default_rng(1).standard_normal((20, 8, 7))
    if kind == "mask":
        data = jn.Entries(matrix, mask)
    else:
        data = jn.Sensing(operators, np.tensordot(operators, matrix, 2))
    run = jn.gradient_descent(network, data, 0.1, num_steps=1, observe=[], progress=False)
    weights = [np.asarray(w) for w in network.weights]
    product = np.linalg.multi_dot(weights[::-1])
    if kind == "mask":
        pull = mask * (matrix - product) / mask.sum()
    else:
        pull = np.tensordot(np.tensordot(operators, matrix - product, 2), operators, 1) / 20
    for k, w in enumerate(run.network.weights):
        before, after = np.eye(7), np.eye(8)
        for x in weights[:k]:
            before = x @ before
        for x in weights[:k:-1]:
            after = after @ x
        np.testing.assert_allclose(w, weights[k] + 0.1 * after.T @ pull @ before.T, 1e-9, EPS)
