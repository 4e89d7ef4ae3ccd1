"""Networks with biases in every layer, and crossings beyond the effective model.

Plain descent in NumPy is the judge: it is written out here and shares nothing with the package.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcond.networks as jn
from jaxcond.networks import EscapeStatus, Limit

RATE, N, INPUTS, WIDTH = 0.05, 60, 3, 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, INPUTS)) + 0.3
LINEAR = X @ RNG.normal(size=(INPUTS, 2))
CURVE = (LINEAR - LINEAR.mean(0)) / LINEAR.std(0)
LABELS = np.argmax(X @ RNG.normal(size=(INPUTS, 3)) + np.array([0.4, 0, -0.4]), axis=1)


def draw(depth=3, outputs=1, std=1e-3, seed=1, bias=True, **options):
    sizes = (INPUTS, *[WIDTH] * (depth - 1), outputs)
    return jn.MLP.random(sizes, key=jax.random.key(seed), std=std, bias=bias, **options)


def output_slope(f, y, loss):
    """The loss of every sample, and its derivative with respect to the output."""
    if loss == "half_mse":
        return 0.5 * np.sum((f - y) ** 2, axis=1), f - y
    if loss == "softmax":
        one_hot = np.eye(3)[y]
        z = f - f.max(1, keepdims=True)
        log_sum = np.log(np.exp(z).sum(1, keepdims=True))
        return -np.sum(one_hot * (z - log_sum), axis=1), np.exp(z - log_sum) - one_hot
    if loss == "logistic":
        return np.log1p(np.exp(-y * f))[:, 0], -y / (1 + np.exp(y * f))
    raise AssertionError(loss)


# Activations, and their derivatives as functions of their values.
ACTIVATIONS = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "softsign": (lambda z: z / (1 + abs(z)), lambda h: (1 - abs(h)) ** 2),
}


def descend(network, x, y, loss, level, rate=RATE, stop=None, activation="tanh"):
    """Plain descent: the first iteration below a level, or the network at `stop`."""
    act, derivative = ACTIVATIONS[activation]
    weights = [np.array(w) for w in network.weights]
    no_bias = network.biases is None
    biases = [np.zeros(len(w)) if no_bias else np.array(b)
              for w, b in zip(weights, network.biases or weights, strict=True)]  # fmt: skip
    for iteration in range(60_000):
        layers = [x]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            layers.append(act(layers[-1] @ w.T + b))
        value, slope = output_slope(layers[-1] @ weights[-1].T + biases[-1], y, loss)
        if iteration == stop:
            return weights, biases
        if stop is None and value.mean() < level:
            return iteration
        slope = slope / len(x)
        for i in reversed(range(len(weights))):
            step, shift = slope.T @ layers[i], slope.sum(0)
            slope = (slope @ weights[i]) * derivative(layers[i])
            weights[i] -= rate * step
            biases[i] -= (not no_bias) * rate * shift
    raise AssertionError("descent did not arrive")


def crossed(escape, iteration):
    """Whether an iteration is the predicted one, rounded up, give or take one."""
    return abs(iteration - np.ceil(float(escape.crossing_iteration))) <= 1


@pytest.mark.parametrize(
    ("depth", "std", "loss", "y"),
    [
        (2, 1e-6, "half_mse", CURVE[:, :1] + 0.3),
        (3, 1e-3, "half_mse", CURVE[:, :1]),
        (3, 1e-3, "half_mse", CURVE[:, :1] + 0.9),
        (3, 1e-3, "half_mse", CURVE[:, :1] - 1.4),
        (3, 2e-3, "half_mse", CURVE + np.array([0.5, -1.0])),
        (3, 2e-3, "softmax", LABELS),
        (3, 2e-3, "logistic", np.sign(CURVE[:, :1] + 0.4)),
        (4, 2e-2, "half_mse", CURVE[:, :1] + 0.5),
    ],
)
def test_descent_crosses_when_predicted(depth, std, loss, y):
    outputs = 3 if loss == "softmax" else y.shape[1]
    network = draw(depth, outputs, std)
    escape = jn.predict_escape(network, jn.Regression(X, y), RATE, loss=loss)
    assert escape.status == EscapeStatus.PREDICTED
    np.testing.assert_allclose(escape.level, 0.9 * escape.plateau, 1e-12)
    assert crossed(escape, descend(network, X, y, loss, float(escape.level)))


def test_the_blow_up_comes_earlier_by_the_hyperbolic_cosine_of_the_mean():
    # Of the flow: steps of descent turn the weights by as much, but shorten them a little.
    network, mean = draw(std=1e-5), 1.2
    data = jn.Regression(X, CURVE[:, :1])
    shifted = jn.predict_escape(network, jn.Regression(X, CURVE[:, :1] + mean))
    *first, last = network.weights
    turned = network.replace((*first, np.cosh(mean) * last))
    # The output bias takes some units of training time, the plateau 2e4.
    alone = jn.predict_escape(turned, data)
    np.testing.assert_allclose(shifted.blowup.time, alone.blowup.time, 2e-4)
    plain = jn.predict_escape(network, data)
    assert plain.blowup.time > 1.1 * alone.blowup.time


@pytest.mark.parametrize("level", [0.55, 0.02])
def test_levels_above_the_plateau_and_far_below_it(level):
    network, y = draw(), CURVE[:, :1] + 0.5
    escape = jn.predict_escape(network, jn.Regression(X, y), RATE, level=level)
    assert escape.status == EscapeStatus.PREDICTED
    assert crossed(escape, descend(network, X, y, "half_mse", level))
    assert escape.limit == (Limit.LINEAR_PART if level < 0.1 else Limit.NONE)


def test_skipped_networks_are_those_of_descent():
    network, y = draw(), CURVE[:, :1] + 0.9
    skip = jn.skip_plateau(network, jn.Regression(X, y), RATE)
    weights, biases = descend(network, X, y, "half_mse", 0, stop=int(skip.iteration))
    for found, expected in zip(skip.network.weights, weights, strict=True):
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)
    np.testing.assert_allclose(skip.network.biases[-1], biases[-1], 1e-3)
    np.testing.assert_allclose(
        skip.network.many(jnp.asarray(X)),
        np.tanh(np.tanh(X @ weights[0].T + biases[0]) @ weights[1].T + biases[1]) @ weights[2].T
        + biases[2],
        atol=2e-3,
    )  # fmt: skip


def test_many_networks_are_each_alone():
    networks = [draw(seed=seed) for seed in (1, 2)]
    data = jn.Regression(X, CURVE[:, :1] + 0.9)
    together = jn.predict_escape(jax.tree.map(lambda *w: jnp.stack(w), *networks), data, RATE)
    alone = [jn.predict_escape(network, data, RATE) for network in networks]
    np.testing.assert_allclose(together.crossing, [e.crossing for e in alone], 1e-12)


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("weights", Limit.INITIAL_WEIGHTS),
        ("linear part", Limit.LINEAR_PART),
        ("inputs", Limit.INPUT_SCALES),
        ("targets", Limit.TARGET_SCALE),
        ("level", Limit.LEVEL),
    ],
)
def test_where_the_effective_model_ceases_to_hold_the_cause_is_named(case, limit):
    # Without biases: with them the first crossing by the own flow can come before the model begins.
    std, x, y, rate, options, activation = 3e-3, X, CURVE[:, :1], RATE, {}, "tanh"
    if case == "weights":
        std = 0.3
    if case == "linear part":
        y = X[:, :1] ** 3 - (np.mean(X[:, 0] ** 4) / np.mean(X[:, 0] ** 2) - 0.3) * X[:, :1]
    if case == "inputs":
        # The large one says nothing of the targets.
        x, std, rate = X * np.array([1, 1, 100]), 1e-2, 1e-4
    if case == "targets":
        y, rate, options = 150 * np.tanh(2 * CURVE[:, :1]), 2e-5, {"fraction": 0.3}
    if case == "level":
        y, options, activation = 2.9 * CURVE[:, :1], {"fraction": 0.5}, "softsign"
    network = draw(std=std, bias=False, activation=activation)
    escape = jn.predict_escape(network, jn.Regression(x, y), rate, **options)
    assert escape.limit == limit
    assert escape.status == EscapeStatus.PREDICTED
    assert limit.meaning in str(escape)
    seen = descend(network, x, y, "half_mse", float(escape.level), rate, activation=activation)
    assert abs(seen - escape.crossing_iteration) < 1 + 1e-3 * seen


def test_rates_beyond_stability():
    data = jn.Regression(X, CURVE[:, :1] + 0.5)
    for network in (draw(), draw(bias=False)):
        escape = jn.predict_escape(network, data, 30.0)
        assert escape.status == EscapeStatus.UNSTABLE
        assert "lower it" in str(escape)


def test_losses_of_any_size_are_crossed():
    # The tolerance of the root finder is absolute: with losses of 1e6 it asked for the impossible.
    network, data = draw(), jn.Regression(X, 1e3 * (CURVE[:, :1] + 0.5))
    escape = jn.predict_escape(network, data, 1e-5, level=4.5e5)
    assert escape.status == EscapeStatus.PREDICTED
    run = jn.gradient_flow(network, data, t1=1.0, until=0.4, levels=(0.5,), observe=[])
    assert np.isfinite(run.crossings[0.5])


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("softmax", np.zeros(N), "no sample is of class 1"),
        ("logistic", np.ones((N, 1)), "all samples of an output are of one class"),
        (lambda f, y: y[0] * f[0], CURVE[:, :1], "no constant output of least loss"),
        ("half_mse", np.full((N, 1), 0.3), "no target direction"),
    ],
)
def test_output_biases_without_a_rest_are_refused(loss, y, message):
    network = draw(outputs=3 if loss == "softmax" else 1)
    with pytest.raises(ValueError, match=message):
        jn.predict_escape(network, jn.Regression(X, y), RATE, loss=loss)


def test_custom_losses_rest_where_the_named_ones_do():
    network, y = draw(), jn.Regression(X, CURVE[:, :1] + 0.5)
    named = jn.predict_escape(network, y, RATE)
    custom = jn.predict_escape(network, y, RATE, loss=lambda f, y: 0.5 * jnp.sum((f - y) ** 2))
    np.testing.assert_allclose(custom.crossing, named.crossing, 1e-9)


def test_networks_that_are_not_finite():
    network = draw()
    spoilt = network.replace(network.weights, [b.at[0].set(np.nan) for b in network.biases])
    escape = jn.predict_escape(spoilt, jn.Regression(X, CURVE[:, :1]), RATE)
    assert escape.status == EscapeStatus.INVALID_INPUT


def test_outputs_with_biases():
    biases = [jnp.asarray(RNG.normal(size=n)) for n in (WIDTH, WIDTH, 2)]
    network = jn.MLP(draw(outputs=2, std=0.3).weights, biases)
    x = RNG.normal(size=INPUTS)
    h = np.asarray(x)
    for i, (w, b) in enumerate(zip(network.weights, biases, strict=True)):
        h = np.asarray(w) @ h + np.asarray(b)
        h = np.tanh(h) if i < 2 else h
    np.testing.assert_allclose(network(jnp.asarray(x)), h, 1e-12)


def test_linear_maps_have_no_biases():
    network = draw(activation="linear")
    with pytest.raises(ValueError, match="networks without biases"):
        jn.predict_steps(network, jn.Regression(X, CURVE[:, :1]))
    with pytest.raises(ValueError, match="linear networks without bias"):
        jn.predict_escape(network, jn.Entries(np.ones((1, INPUTS))))


@pytest.mark.parametrize(
    ("biases", "options", "message"),
    [
        ([np.zeros(WIDTH)] * 2, {}, "one vector for each layer"),
        ([np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(2)], {}, "one vector for each layer"),
        ([np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(1)], {"bias": "input"}, "leave out"),
        ([np.zeros(WIDTH, int)] * 3, {}, "must be real floating"),
    ],
)
def test_biases_that_do_not_fit_are_refused(biases, options, message):
    with pytest.raises(ValueError, match=message):
        jn.MLP(draw(bias=False).weights, [jnp.asarray(b) for b in biases], **options)


def test_four_layers_in_single_precision_are_followed_by_their_own_flow():
    network = draw(4, std=3e-2, bias=False)
    single = jax.tree.map(lambda w: w.astype(np.float32), network)
    data = jn.Regression(X, CURVE[:, :1])
    exact, found = (jn.predict_escape(n, data, RATE) for n in (network, single))
    assert exact.limit == Limit.NONE
    assert found.limit == Limit.TRAJECTORY
    np.testing.assert_allclose(found.crossing, exact.crossing, 1e-3)


def test_an_output_bias_that_does_not_settle_is_followed():
    # A class of 1e-5 of all targets: its output bias needs more steps than the flow may take.
    shares = np.tile([[0.5, 0.5, 0.0]], (N, 1)) + 0.4 * np.sign(CURVE[:, :1]) * [[1, -1, 0]]
    targets = (1 - 1e-5) * shares + 1e-5 * np.array([[0, 0, 1]])
    network, data, rate = draw(outputs=3, std=6e-5), jn.Regression(X, targets), 0.5
    escape = jn.predict_escape(network, data, rate, loss="softmax", level=0.6)
    assert escape.limit == Limit.OUTPUT_BIAS
    assert escape.status == EscapeStatus.PREDICTED
    run = jn.gradient_descent(
        network,
        data,
        rate,
        loss="softmax",
        num_steps=int(1.01 * escape.crossing_iteration),
        record=2,
        observe=[],
        levels=(0.6 / float(data.loss(network, "softmax")),),
        progress=False,
    )
    (seen,) = run.crossings.values()
    np.testing.assert_allclose(escape.crossing_iteration, seen, 1e-3)
