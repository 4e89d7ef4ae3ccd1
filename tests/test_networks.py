"""Modules, data and the effective model of real networks, against NumPy written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS
from scipy.special import erf

import jaxcond as jc
import jaxcond.networks as jn
from jaxcond.networks._modules import slope_at_zero

P, Q, N = 6, 5, 12
INPUTS, OUTPUTS = 3, 2
# Sums of a few dozen products of order one.
ROUNDING = 200 * EPS
# Standard deviations at which the leading order shows, and what the next order, a hundredth of it
# at the largest of them, adds to a slope.
STDS = (1e-2, 3e-3, 1e-3)
SLOPE = 0.05
ACTIVATIONS = {
    "tanh": (np.tanh, 1.0),
    "sin": (np.sin, 1.0),
    "arctan": (np.arctan, 1.0),
    "softsign": (lambda z: z / (1 + np.abs(z)), 1.0),
    "gelu": (lambda z: z * 0.5 * (1 + erf(z / 2**0.5)), 0.5),
    "silu": (lambda z: z / (1 + np.exp(-z)), 0.5),
    "z_tanh_z": (lambda z: z * np.tanh(z), 0.0),
    "linear": (lambda z: z, 1.0),
}
"""Activations by NumPy with their slope at zero."""


def samples(outputs=OUTPUTS, seed=0):
    """Data with a linear part and without symmetry."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, INPUTS))
    y = x @ rng.standard_normal((INPUTS, outputs)) + np.cos(x[:, :outputs]) + 0.3
    return x, y


def random_network(std, activation="tanh", bias=False, seed=0, inputs=INPUTS, outputs=OUTPUTS):
    """Weights drawn by NumPy; the same up to their scale for every `std`."""
    rng = np.random.default_rng(seed)
    shapes = ((Q, inputs + bias), (P, Q), (outputs, P))
    layers = [jnp.asarray(std * rng.standard_normal(shape)) for shape in shapes]
    return jn.MLP(layers, activation=activation, bias="input" if bias else False)


def as_numpy(network):
    return [np.asarray(w) for w in network.weights]


def with_ones(x, bias):
    return np.hstack([x, np.ones((len(x), 1))]) if bias else x


def effective_field(network, moment, slope, kappa):
    """Ascent of 2 kappa sigma'(0)^2 <W3 W2 W1, V>, in the weights (eqs. (3.8), (A.8))."""
    w1, w2, w3 = as_numpy(network)
    rate = 2 * kappa * slope**2
    return [rate * f for f in ((w3 @ w2).T @ moment, w3.T @ moment @ w1.T, moment @ (w2 @ w1).T)]


def difference(network, data, kappa, field):
    """Relative difference of the steepest descent of the loss and a vector field."""
    gradient = jax.grad(lambda n: data.loss(n, kappa))(network)
    wrong = sum(np.sum((g + f) ** 2) for g, f in zip(as_numpy(gradient), field, strict=True))
    return np.sqrt(wrong / sum(np.sum(f**2) for f in field))


def slope_of(differences):
    return np.polyfit(np.log(STDS), np.log(differences), 1)[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_losses_equal_numpy(name, bias):
    sigma, _ = ACTIVATIONS[name]
    (x, y), network = samples(), random_network(0.7, name, bias)
    w1, w2, w3 = as_numpy(network)
    outputs = (w3 @ sigma(w2 @ sigma(w1 @ with_ones(x, bias).T))).T
    data = jn.Regression(x, y)
    np.testing.assert_allclose(data.predict(network), outputs, ROUNDING, ROUNDING)
    np.testing.assert_allclose(network(jnp.asarray(x[0])), outputs[0], ROUNDING, ROUNDING)
    for loss, kappa in (("half_mse", 0.5), ("mse", 1.0), (0.25, 0.25)):
        expected = kappa * np.mean(np.sum((outputs - y) ** 2, axis=1))
        np.testing.assert_allclose(data.loss(network, jn.resolve_loss(loss)), expected, ROUNDING)
    assert network.sizes == (INPUTS, Q, P, OUTPUTS)
    assert (network.num_inputs, network.num_outputs) == (INPUTS, OUTPUTS)
    np.testing.assert_allclose(network.product, w3 @ w2 @ w1, ROUNDING, ROUNDING)


def test_weights_have_the_standard_deviations_asked_for(key):
    network = jn.MLP.random((60, 90, 80, 70), key=key, std=(1.0, 1e-3, 1e-6), bias="input")
    assert [w.shape for w in network.weights] == [(90, 61), (80, 90), (70, 80)]
    for weights, std in zip(network.weights, (1.0, 1e-3, 1e-6), strict=True):
        # Five standard errors of a standard deviation.
        assert abs(np.std(weights) / std - 1) < 5 / np.sqrt(2 * weights.size)
    many = jax.vmap(lambda k: jn.MLP.random((1, Q, P, 1), key=k, std=0.1))(jax.random.split(key, 4))
    assert many.batch_shape == (4,)
    assert len(np.unique(many.weights[1])) == many.weights[1].size
    assert jn.MLP.random((1, Q, P, 1), key=key, std=0.1, dtype=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("name", [n for n, (_, slope) in ACTIVATIONS.items() if slope])
@pytest.mark.parametrize(("bias", "outputs", "kappa"), [(False, 2, 0.5), (True, 1, 1.0)])
def test_small_networks_follow_the_effective_model(name, bias, outputs, kappa):
    # What is left out is sigma(z) - sigma'(0) z, of second order relative to z for odd functions
    # and of first order for those with a curvature at zero, and f beside y, of third order.
    order = {"gelu": 1, "silu": 1, "softsign": 1, "linear": 3}.get(name, 2)
    x, y = samples(outputs)
    slope, moment = ACTIVATIONS[name][1], y.T @ with_ones(x, bias) / N
    data, found = jn.Regression(x, y), []
    for std in STDS:
        network = random_network(std, name, bias, outputs=outputs)
        field = effective_field(network, moment, slope, kappa)
        found.append(difference(network, data, kappa, field))
        check_model_gives(field, network, data, kappa)
    assert found[-1] < 0.01
    assert abs(slope_of(found) - order) < SLOPE


def check_model_gives(field, network, data, kappa):
    """`vector_field` of the state at the model's rate, lifted to the weights, is the field."""
    model = jn.effective_model(network, data, kappa)
    state = jn.to_state(network, data, kappa)
    moving = jc.vector_field(state)
    here = jc.State(*(x + model.rate * y for x, y in zip(state.layers, moving.layers, strict=True)),
                    state.strength)  # fmt: skip
    after = model.lift(network, here)
    for new, old, expected in zip(as_numpy(after), as_numpy(network), field, strict=True):
        scale = np.max(np.abs(old)) + np.max(np.abs(expected))
        np.testing.assert_allclose(new - old, expected, atol=ROUNDING * scale, rtol=0)


def sensing():
    rng = np.random.default_rng(1)
    operators, y = rng.standard_normal((N, OUTPUTS, INPUTS)), rng.standard_normal(N) + 1
    return jn.Sensing(operators, y), np.einsum("n,nij->ij", y, operators) / N


def entries(mask):
    matrix = np.random.default_rng(2).standard_normal((OUTPUTS, INPUTS))
    if mask is None:
        return jn.Entries(matrix), matrix / matrix.size
    hidden = np.where(mask, matrix, np.nan)
    return jn.Entries(hidden, mask), np.where(mask, matrix, 0) / np.sum(mask)


MASK = np.array([[True, False, True], [True, True, False]])


@pytest.mark.parametrize("measured", [sensing(), entries(None), entries(MASK)])
@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_linear_networks_on_measurements_follow_the_effective_model(measured, kappa):
    data, moment = measured
    found = []
    for std in STDS:
        network = random_network(std, "linear")
        field = effective_field(network, moment, 1.0, kappa)
        found.append(difference(network, data, kappa, field))
        check_model_gives(field, network, data, kappa)
    assert abs(slope_of(found) - 3) < SLOPE
    model = jn.effective_model(random_network(1.0, "linear"), data)
    assert model.strength.size == np.linalg.matrix_rank(moment)


def test_losses_of_measurements_equal_numpy():
    network = random_network(1.0, "linear")
    w1, w2, w3 = as_numpy(network)
    data, _ = sensing()
    residual = np.einsum("ij,nij->n", w3 @ w2 @ w1, data.operators) - data.y
    np.testing.assert_allclose(data.loss(network, 0.5), np.mean(residual**2) / 2, ROUNDING)
    data, moment = entries(MASK)
    known = (w3 @ w2 @ w1)[MASK] - (moment * MASK.sum())[MASK]
    np.testing.assert_allclose(data.loss(network, 1.0), np.mean(known**2), ROUNDING)


@pytest.mark.parametrize("bias", [False, True])
def test_state_is_that_of_the_singular_vectors(bias):
    (x, y), network = samples(), random_network(0.3, bias=bias)
    moment = y.T @ with_ones(x, bias) / N
    data = jn.Regression(x, y)
    model, state = jn.effective_model(network, data), jn.to_state(network, data)
    values = np.linalg.svd(moment, compute_uv=False)
    np.testing.assert_allclose(model.strength, values / values[0], ROUNDING)
    np.testing.assert_allclose(model.rate, values[0], ROUNDING)
    left, right = np.asarray(model.left), np.asarray(model.right)
    np.testing.assert_allclose(left.T * values @ right, moment, ROUNDING, ROUNDING)
    np.testing.assert_allclose(left @ left.T, np.eye(2), atol=ROUNDING)
    np.testing.assert_allclose(right @ right.T, np.eye(2), atol=ROUNDING)
    w1, w2, w3 = as_numpy(network)
    np.testing.assert_allclose(state.a, (w3.T @ left.T).T, ROUNDING, ROUNDING)
    np.testing.assert_array_equal(state.b, w2)
    np.testing.assert_allclose(state.c, (w1 @ right.T).T, ROUNDING, ROUNDING)
    expected = np.sum((w3 @ w2 @ w1) * moment) / values[0]
    np.testing.assert_allclose(jc.energy(state), expected, ROUNDING, ROUNDING)


def test_one_output_has_the_direction_of_the_paper():
    x, y = samples(1)
    network = random_network(0.3, outputs=1)
    model = jn.effective_model(network, jn.Regression(x, -y), "mse")
    v = -(y.T @ x)[0]
    np.testing.assert_allclose(model.right, (v / np.linalg.norm(v))[None], ROUNDING)
    np.testing.assert_array_equal(model.left, [[1.0]])
    np.testing.assert_array_equal(model.strength, [1.0])
    np.testing.assert_allclose(model.rate, 2 * np.linalg.norm(v) / N, ROUNDING)


def test_rank_is_that_of_the_moment():
    x, _ = samples()
    y = np.outer(x @ [1.0, -2.0, 0.5], [3.0, 1.0])
    assert jn.to_state(random_network(0.1), jn.Regression(x, y)).rank == 1


def test_lift_is_the_inverse_and_keeps_the_rest():
    (x, y), network = samples(), random_network(0.3, bias=True, seed=1)
    data = jn.Regression(x, y)
    model = jn.effective_model(network, data)
    other = jn.to_state(random_network(0.5, bias=True, seed=2), data)
    lifted = model.lift(network, other)
    for found, expected in zip(model.to_state(lifted).layers, other.layers, strict=True):
        np.testing.assert_allclose(found, expected, ROUNDING, ROUNDING)
    right = np.asarray(model.right)
    outside = np.eye(INPUTS + 1) - right.T @ right
    change = np.asarray(lifted.weights[0] - network.weights[0]) @ outside
    np.testing.assert_allclose(change, 0, atol=ROUNDING)
    assert np.max(np.abs(np.asarray(network.weights[0]) @ outside)) > 0.1
    same = model.lift(network, model.to_state(network))
    for found, expected in zip(same.weights, network.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_states_of_many_networks_are_those_of_each(key):
    data = jn.Regression(*samples())
    many = jax.vmap(lambda k: jn.MLP.random((INPUTS, Q, P, OUTPUTS), key=k, std=0.1))(
        jax.random.split(key, 3)
    )
    states = jn.to_state(many, data)
    assert states.batch_shape == (3,)
    for index in range(3):
        state = jn.to_state(jax.tree.map(lambda w, i=index: w[i], many), data)
        for found, expected in zip(states.layers, state.layers, strict=True):
            np.testing.assert_allclose(found[index], expected, ROUNDING, ROUNDING)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_at_zero(name):
    if ACTIVATIONS[name][1]:
        np.testing.assert_allclose(slope_at_zero(jn.ACTIVATIONS[name]), ACTIVATIONS[name][1])
    else:
        with pytest.raises(ValueError, match="slope at zero does not vanish"):
            slope_at_zero(jn.ACTIVATIONS[name])


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.leaky_relu, jnp.abs])
def test_activations_without_a_derivative_at_zero_have_no_effective_model(function):
    network, data = random_network(0.1, function), jn.Regression(*samples())
    with pytest.raises(ValueError, match="derivative at zero"):
        jn.effective_model(network, data)


def test_learning_rates_add_up_to_training_time():
    table = {0: 0.5, 3: 0.25, 7: 1.0}
    rate = jn.LearningRate.of(table)
    rates = [table[max(k for k in table if k <= i)] for i in range(12)]
    times = np.concatenate([[0.0], np.cumsum(rates)])
    iterations = np.arange(13)
    np.testing.assert_array_equal([rate.at(jnp.asarray(i)) for i in range(12)], rates)
    np.testing.assert_array_equal(rate.time_of(iterations), times)
    np.testing.assert_array_equal(rate.iteration_of(times), iterations)
    np.testing.assert_array_equal(rate.rate_at(times[:-1]), rates)
    np.testing.assert_array_equal(rate.iteration_of(np.asarray(1.75)), 3 + 0.25 / 0.25)
    assert np.isinf(rate.iteration_of(np.asarray(np.inf)))


def test_records_can_be_evenly_spaced_in_the_logarithm():
    stops = jn.log_spaced(10_000, 20)
    assert stops[0] == 0
    assert stops[-1] == 10_000
    assert np.all(np.diff(stops) > 0)
    late = stops[stops > 100]
    # Rounded to whole iterations.
    np.testing.assert_allclose(late[1:] / late[:-1], 10_000 ** (1 / 19), rtol=1 / 100)


def constant(z):
    return z + 1.0


def matrices(q=Q, p=P, features=INPUTS, outputs=OUTPUTS, columns=Q):
    return jnp.ones((q, features)), jnp.ones((p, columns)), jnp.ones((outputs, p))


X, Y = samples()


def random_of(sizes, **options):
    return jn.MLP.random(sizes, key=jax.random.key(0), **options)


NOT_A_NUMBER = np.where(np.arange(N) == 3, np.nan, 1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: jn.MLP(matrices(columns=4)), r"shapes \(n_1, n_0\), \(n_2, n_1\)"),
        (lambda: jn.MLP([jnp.ones(3), jnp.ones((2, 3))]), "two matrices or more"),
        (lambda: jn.MLP(matrices(), activation=constant), "`activation` must vanish"),
        (lambda: jn.MLP(matrices(), activation="tanh2"), "`activation` .* 'tanh2'"),
        (lambda: jn.MLP(matrices(features=1), bias="input"), "With a bias at the input"),
        (lambda: random_of((1, 0, 3, 1), std=1.0), "`sizes` .* is"),
        (lambda: random_of((1, 3), std=1.0), "`sizes` must be"),
        (lambda: random_of((1, 3, 1)), "one of `std` and `exponent`"),
        (lambda: jn.MLP(jnp.ones((3, 3))), "`weights` must be a list"),
        (lambda: jn.MLP([jnp.ones((3, 3), int)] * 2), "must be real floating"),
        (lambda: random_of((1, 3, 3, 1), std=-1.0), "`std` .* -1"),
        (lambda: random_of((1, 3, 3, 1), std=np.nan), "`std` .* nan"),
        (lambda: random_of((1, 3, 3, 1), std=[1.0, 2.0]), "`std`.*one for each layer"),
        (lambda: jn.Regression(X, Y[:-1]), "`x` .* and `y` .* do not fit"),
        (lambda: jn.Regression(X, NOT_A_NUMBER), "`y` must be finite, but holds 1 "),
        (lambda: jn.Regression(X * np.inf, Y), "`x` must be finite"),
        (lambda: jn.Sensing(np.ones((4, 2, 3)), np.ones(5)), "`operators` .* and `y`"),
        (lambda: jn.Entries(np.ones(3)), "`matrix` must be a matrix"),
        (lambda: jn.Entries(np.full((2, 3), np.nan)), "`matrix` must be finite"),
        (lambda: jn.Entries(np.ones((2, 3)), np.zeros((2, 3), bool)), "`mask` must be booleans"),
        (lambda: jn.resolve_loss("rmse"), "`loss` .* 'rmse'"),
        (lambda: jn.resolve_loss(-1.0), "`loss` .* -1"),
        (lambda: jn.LearningRate.of({1: 0.1}), r"`learning_rate` .* \[1\]"),
        (lambda: jn.LearningRate.of({0: 0.1, 5: -0.1}), "`learning_rate` must be positive"),
        (lambda: jn.LearningRate.of(np.nan), "`learning_rate` must be positive and finite"),
        (lambda: jn.log_spaced(0), "`num_steps` must be positive"),
        (lambda: jn.to_state(random_network(1.0), jn.Regression(X, Y[:, :1])), "2 outputs"),
        (lambda: jn.to_state(random_network(1.0), sensing()[0]), '`activation="linear"`'),
        (lambda: jn.to_state(random_network(1.0, "linear", inputs=2), sensing()[0]), r"\(2, 3\)"),
    ],
)
def test_bad_input_is_named(build, message, unchecked):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("bias", [False, True])
def test_data_without_a_target_direction_are_refused(bias):
    x = np.concatenate([X, -X])
    even = np.cos(x) @ np.ones((INPUTS, OUTPUTS))
    y = even - np.mean(even, axis=0)
    network = random_network(0.1, bias=bias)
    with pytest.raises(ValueError, match="no target direction: the sum of y x"):
        jn.to_state(network, jn.Regression(x, y))
    assert jn.to_state(network, jn.Regression(x, y + 1e-3 * x[:, :2])).rank == 2
