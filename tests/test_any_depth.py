"""Escapes of networks of any depth and any smooth loss, against descent written in NumPy."""

import jax
import numpy as np
import pytest

import jaxcond as jc
import jaxcond.networks as jn
from jaxcond.networks import EscapeStatus

N, INPUTS = 60, 4
RATE = 0.05
# What the prediction may be off by.
NEAR = 1e-3


def inputs(seed=0):
    return np.random.default_rng(seed).standard_normal((N, INPUTS))


def softmax(f):
    e = np.exp(f - f.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


X = inputs()
MAP = np.random.default_rng(1).standard_normal((INPUTS, 3))
CURVE = np.tanh(X @ MAP[:, :2])
LABELS = np.argmax(X @ MAP, axis=1)
SIGNS = np.sign(X @ MAP[:, 0])
ONE_HOT = np.eye(3)[LABELS]


def quartic(f, y):
    """A loss that is neither squared nor convex in the first order: its pull is y + y^3."""
    u = f - y
    return jax.numpy.sum(u**2 / 2 + u**4 / 4)


# Loss, targets, value and derivative at outputs (n, m) by NumPy, of the sum over samples.
LOSSES = {
    "half_mse": (
        "half_mse",
        CURVE,
        lambda f: np.sum((f - CURVE) ** 2) / 2,
        lambda f: f - CURVE,
    ),
    "softmax": (
        "softmax",
        LABELS,
        lambda f: -np.sum(np.log(softmax(f)[np.arange(N), LABELS])),
        lambda f: softmax(f) - ONE_HOT,
    ),
    "logistic": (
        "logistic",
        SIGNS,
        lambda f: np.sum(np.log1p(np.exp(-SIGNS[:, None] * f))),
        lambda f: -SIGNS[:, None] / (1 + np.exp(SIGNS[:, None] * f)),
    ),
    "custom": (
        quartic,
        CURVE,
        lambda f: np.sum((f - CURVE) ** 2 / 2 + (f - CURVE) ** 4 / 4),
        lambda f: (f - CURVE) + (f - CURVE) ** 3,
    ),
}
OUTPUTS = {"half_mse": 2, "softmax": 3, "logistic": 1, "custom": 2}


def descend(weights, value, slope, level, rate=RATE, linear=False):
    """Iterations of plain descent to the first loss below a share of the first one."""
    weights, first = [np.array(w) for w in weights], None
    for iteration in range(40_000):
        hidden = [X]
        for w in weights[:-1]:
            z = hidden[-1] @ w.T
            hidden.append(z if linear else np.tanh(z))
        f = hidden[-1] @ weights[-1].T
        loss = value(f) / N
        first = loss if first is None else first
        if loss < level * first:
            return iteration
        delta = slope(f) / N
        for k in reversed(range(len(weights))):
            gradient = delta.T @ hidden[k]
            delta = delta @ weights[k]
            if k and not linear:
                delta = delta * (1 - hidden[k] ** 2)
            weights[k] -= rate * gradient
    raise AssertionError("the plateau does not end")


def draw(depth, loss, std, width=30, activation="tanh", seed=0):
    sizes = (INPUTS, *(width,) * (depth - 1), OUTPUTS[loss])
    key = jax.random.key(seed)
    return jn.MLP.random(sizes, key=key, std=std, activation=activation)


@pytest.mark.parametrize(
    ("depth", "loss", "fraction", "std", "activation"),
    [
        (2, "half_mse", 0.9, 1e-3, "tanh"),
        (2, "softmax", 0.9, 1e-3, "tanh"),
        (3, "half_mse", 0.9, 1e-3, "tanh"),
        (3, "softmax", 0.9, 1e-3, "tanh"),
        (3, "logistic", 0.9, 1e-3, "tanh"),
        (3, "custom", 0.9, 1e-3, "tanh"),
        (4, "half_mse", 0.9, 1.6e-2, "linear"),
        (4, "softmax", 0.95, 1.6e-2, "tanh"),
        (5, "half_mse", 0.95, 5e-2, "linear"),
    ],
)
def test_escapes_are_those_of_plain_descent(depth, loss, fraction, std, activation):
    name, targets, value, slope = LOSSES[loss]
    network = draw(depth, loss, std, activation=activation)
    data = jn.Regression(X, targets)
    escape = jn.predict_escape(network, data, RATE, loss=name, fraction=fraction)
    assert escape.status == EscapeStatus.PREDICTED
    seen = descend(network.weights, value, slope, fraction, linear=activation == "linear")
    # Seen is the first whole iteration behind the crossing.
    assert abs(np.ceil(float(escape.crossing_iteration)) - seen) <= max(1, NEAR * seen)


def test_a_level_is_a_loss():
    network, data = draw(3, "half_mse", 1e-3), jn.Regression(X, CURVE)
    share = jn.predict_escape(network, data, RATE, fraction=0.8)
    level = 0.8 * float(data.loss(network))
    by_level = jn.predict_escape(network, data, RATE, level=level)
    np.testing.assert_allclose(by_level.crossing, share.crossing, 1e-9)
    np.testing.assert_allclose(by_level.level, level)


def test_a_level_that_is_not_below_the_initial_loss():
    network, data = draw(3, "half_mse", 1e-3), jn.Regression(X, CURVE)
    escape = jn.predict_escape(network, data, RATE, level=10.0)
    assert escape.status == EscapeStatus.ALREADY_BELOW
    assert "the initial loss is not above the level" in str(escape)
    with pytest.raises(ValueError, match=r"loss of the plateau is not positive.* give `level`"):
        jn.predict_escape(network, data, RATE, loss=lambda f, y: -jax.numpy.vdot(f, y) - 1)


def test_two_layers_in_single_precision():
    network, data = draw(2, "half_mse", 1e-3), jn.Regression(X, CURVE)
    single = jax.tree.map(lambda w: w.astype(np.float32), network)
    escape = jn.predict_escape(single, data, RATE)
    assert escape.status == EscapeStatus.PREDICTED
    exact = jn.predict_escape(network, data, RATE)
    np.testing.assert_allclose(escape.crossing, exact.crossing, 1e-4)


def test_two_layers_never_blow_up():
    network, data = draw(2, "half_mse", 1e-3), jn.Regression(X, CURVE)
    escape = jn.predict_escape(network, data, RATE)
    assert escape.blowup.status == jc.Status.NO_BLOW_UP
    assert np.all(np.isinf(escape.time_left))
    assert "T*" not in str(escape)
    skip = jn.skip_plateau(network, data, RATE)
    loss = float(data.loss(skip.network)) / float(data.loss(network))
    # To the whole iteration before it.
    np.testing.assert_allclose(loss, 0.99, atol=1e-3)
    with pytest.raises(ValueError, match="no blow-up time: give `drop`"):
        jn.skip_plateau(network, data, RATE, fraction=0.5)


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_labels_in_either_form_are_the_same(loss):
    network = draw(3, loss, 1e-2)
    other = ONE_HOT if loss == "softmax" else (SIGNS + 1) / 2
    name, targets, *_ = LOSSES[loss]
    first, second = (
        jn.effective_model(network, jn.Regression(X, y), name) for y in (targets, other)
    )
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(x, y)
    assert first.strength.shape == ((2,) if loss == "softmax" else (1,))


def test_skipping_a_plateau_of_softmax_saves_it():
    name, targets, value, slope = LOSSES["softmax"]
    network, data = draw(3, "softmax", 1e-3), jn.Regression(X, targets)
    seen = descend(network.weights, value, slope, 0.8)
    skip = jn.skip_plateau(network, data, RATE, loss=name)
    left = float(data.prepared(network, jn.resolve_loss(name)).loss(skip.network, name))
    run = jn.gradient_descent(
        skip.network,
        data,
        RATE,
        loss=name,
        num_steps=2000,
        first_iteration=int(skip.iteration),
        record=20,
        levels=(0.8 * np.log(3) / left,),
        progress=False,
    )
    assert abs(float(next(iter(run.crossings.values()))) / seen - 1) < NEAR
    assert run["norms"].shape == (20, 3)


def test_deep_networks_record_what_they_have():
    network, data = draw(4, "half_mse", 0.1), jn.Regression(X, CURVE)
    run = jn.gradient_descent(network, data, RATE, num_steps=10, record=3, progress=False)
    assert run["norms"].shape == (3, 4)
    with pytest.raises(ValueError, match=r"'positive_1' is one of three layers, .* has 4"):
        jn.gradient_descent(network, data, RATE, num_steps=10, observe=("positive_1",))


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        ("softmax", LABELS + 1, "from 0 to 2, as the network has 3 outputs"),
        ("softmax", LABELS + 0.5, "whole numbers"),
        ("softmax", 2 * ONE_HOT, "add up to 1"),
        ("logistic", LABELS, "-1 and 1, or 0 and 1, but there are 0, 1, 2"),
        (lambda f, y: f - y, CURVE, "one number for the output"),
        (
            lambda f, y: jax.numpy.sum(jax.numpy.abs(f)) + y[0] * f[0],
            CURVE,
            "a kink at zero output",
        ),
        # Small beside the curvature of another output.
        (lambda f, y: abs(f[0]) / 9 + 99 * f[1] ** 2 + y @ f, CURVE, "a kink at zero output"),
        ("softmax", np.zeros(N), "no target direction|only one class"),
    ],
)
def test_losses_that_do_not_fit_are_refused(loss, targets, message):
    network = draw(3, loss if isinstance(loss, str) else "custom", 1e-2)
    x = np.concatenate([X[: N // 2], -X[: N // 2]])
    with pytest.raises(ValueError, match=message):
        jn.effective_model(network, jn.Regression(x, targets), loss)
