"""The predicted end of the plateau and the skip of it, against descents that go through it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS
from scipy.integrate import solve_ivp
from scipy.special import elliprf

import jaxcond.networks as jn
from jaxcond.networks import EscapeStatus, Limit

P, Q, N = 36, 32, 24
INPUTS, OUTPUTS = 3, 2
STD = 1e-3
# The rates of a descent of about 13,000 iterations, a step of which is no more than 0.3 % of the
# time in which the loss falls by half.
RATES = {0: 0.03, 6_000: 0.022}
# What was asked of the prediction: with the network's clock, and of the effective model alone,
# which leaves out terms of order STD**2 in the field and of order STD in the time.
CLOCK, EFFECTIVE = 1e-3, 1e-2
# Of the loss after a skip: the second-order terms of the model where it has fallen by 1 %.
SKIPPED = 0.02


def samples(linear=0.3):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, INPUTS))
    return x, np.tanh(x @ rng.standard_normal((INPUTS, OUTPUTS))) + linear * x[:, :OUTPUTS]


DATA = jn.Regression(*samples())


def draw(seed=0, std=STD):
    key = jax.random.key(seed)
    return jn.MLP.random((INPUTS, Q, P, OUTPUTS), key=key, std=std)


def predict(network, data=DATA, **options):
    return jn.predict_escape(network, data, RATES, **options)


def together(networks):
    return jax.tree.map(lambda *w: jnp.stack(w), *networks)


@pytest.fixture(scope="module")
def full():
    """Descent from the initial weights until the loss has halved."""
    stops = np.concatenate([[0], np.arange(12_000, 14_000, 10)])
    return jn.gradient_descent(
        draw(),
        DATA,
        RATES,
        num_steps=14_000,
        until=0.45,
        record=stops,
        observe=[],
        levels=(0.95, 0.9, 0.75, 0.5),
    )


@pytest.fixture(scope="module")
def escape():
    return predict(draw())


def test_descent_leaves_the_plateau_when_predicted(escape, full):
    observed = full.crossings[0.9]
    assert observed > 10_000
    assert escape.status == EscapeStatus.PREDICTED
    assert abs(escape.crossing_iteration / observed - 1) < CLOCK
    assert abs(escape.iterations(escape.effective_crossing) / observed - 1) < EFFECTIVE
    np.testing.assert_allclose(escape.correction, escape.effective_crossing / escape.crossing - 1)
    assert f"iteration {float(escape.crossing_iteration):,.0f} " in str(escape)


def test_other_fractions_are_predicted(full):
    for fraction in (0.95, 0.75):
        escape = predict(draw(), fraction=fraction)
        assert abs(escape.crossing_iteration / full.crossings[fraction] - 1) < CLOCK
    # Halfway down the network moves at less than half of the speed of the model.
    escape = predict(draw(), fraction=0.5)
    assert escape.limit == Limit.LINEAR_PART
    assert abs(escape.crossing_iteration / full.crossings[0.5] - 1) < CLOCK


def test_blow_up_in_iterations(escape):
    expected = 6_000 + (float(escape.blowup.time) - 6_000 * RATES[0]) / RATES[6_000]
    np.testing.assert_allclose(escape.iteration, expected, 10 * EPS)
    lower, upper = escape.iteration_bracket
    assert lower <= escape.iteration <= upper
    assert upper - lower < 1


def test_losses_along_the_trajectory_are_those_of_numpy(escape):
    """The effective model by scipy in the weights, and the losses there by NumPy."""
    x, y = samples()
    moment = y.T @ x / N
    start = [np.asarray(w) for w in draw().weights]
    cuts = np.cumsum([w.size for w in start])[:-1]

    def unpack(z):
        return [part.reshape(w.shape) for part, w in zip(np.split(z, cuts), start, strict=True)]

    def field(_, z):
        w1, w2, w3 = unpack(z)
        moves = (w3 @ w2).T @ moment, w3.T @ moment @ w1.T, moment @ (w2 @ w1).T
        return np.concatenate([m.ravel() for m in moves])

    # The last one where the loss has fallen by a little more than a tenth.
    fallen = np.flatnonzero(escape.effective_loss < 0.9 * escape.effective_loss[0])[0]
    chosen = np.array([0, 100, fallen // 2, fallen])
    times = escape.times[chosen]
    z0 = np.concatenate([w.ravel() for w in start])
    found = solve_ivp(field, (0, times[-1]), z0, "DOP853", times, rtol=1e-10, atol=1e-14).y.T
    linear, real = [], []
    for z in found:
        w1, w2, w3 = unpack(z)
        linear.append(np.sum((x @ (w3 @ w2 @ w1).T - y) ** 2) / (2 * N))
        outputs = (w3 @ np.tanh(w2 @ np.tanh(w1 @ x.T))).T
        real.append(np.sum((outputs - y) ** 2) / (2 * N))
    # Errors of 1e-10 of either solver grow by the ratio of T* and the time left.
    tolerance = 1e-10 * 100 * escape.times[-1] / (float(escape.blowup.time) - escape.times[-1])
    np.testing.assert_allclose(escape.effective_loss[chosen], linear, tolerance)
    np.testing.assert_allclose(escape.network_loss[chosen], real, tolerance)
    assert linear[-1] < 0.9 * linear[0]
    # The blow-up time is between the bounds at the last of these states.
    w1, w2, w3 = unpack(found[-1])
    left, values, right = np.linalg.svd(moment, full_matrices=False)
    norms = [np.sum(w**2) for w in (left.T @ w3, w2, w1 @ right.T)]
    lower = times[-1] + elliprf(*norms) / values[0]
    upper = times[-1] + np.sum(norms) / (3 * np.sum((w3 @ w2 @ w1) * moment))
    assert upper - lower < 1e-3 * upper
    assert lower <= escape.blowup.time <= upper


def spoilt(value):
    network = draw(1)
    return eqx.tree_at(lambda n: n.weights[1], network, network.weights[1].at[3, 2].set(value))


def test_many_networks_are_each_alone_with_every_status(escape):
    networks = [draw(), draw(1), draw(std=1.0), spoilt(np.nan), spoilt(np.inf)]
    escapes = predict(together(networks))
    assert escapes.status.tolist() == [
        EscapeStatus.PREDICTED,
        EscapeStatus.PREDICTED,
        EscapeStatus.PREDICTED,
        EscapeStatus.INVALID_INPUT,
        EscapeStatus.INVALID_INPUT,
    ]
    for name in ("crossing", "effective_crossing", "times", "clock", "network_loss", "speed"):
        np.testing.assert_array_equal(getattr(escapes, name)[0], getattr(escape, name))
    assert escapes.limit.tolist()[:3] == [Limit.NONE, Limit.NONE, Limit.INITIAL_WEIGHTS]
    assert np.all(np.isnan(escapes.crossing[3:]))
    assert str(escapes).startswith("Escape of 5 networks: 3 predicted, 2 invalid_input")


def test_networks_at_rest():
    escape = predict(draw(std=0.0))
    assert escape.status == EscapeStatus.NO_BLOW_UP
    assert np.isinf(escape.iteration)
    assert str(escape) == "Escape (no_blow_up): the effective model comes to rest"


@pytest.mark.slow
def test_networks_that_come_to_rest():
    # Example 1 of the paper, times a power of two: its balance is exact, or else it would tip over.
    w1, w2, w3 = jnp.zeros((2, 1)), jnp.zeros((3, 2)), jnp.zeros((1, 3))
    w1, w2, w3 = w1.at[0, 0].set(-0.125), w2.at[0, 0].set(0.125), w3.at[0, 0].set(0.125)
    network = jn.MLP([w1, w2, w3], activation="linear")
    data = jn.Regression(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert jn.predict_escape(network, data).status == EscapeStatus.NO_BLOW_UP
    with pytest.raises(ValueError, match=r"cannot be skipped: .*comes to rest"):
        jn.skip_plateau(network, data)


def test_targets_with_a_small_linear_part_are_not_predicted():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N // 2, INPUTS))
    x = np.concatenate([x, -x])
    y = np.cos(2 * x[:, :OUTPUTS]) + 0.05 * x[:, :OUTPUTS]
    escape = predict(draw(), jn.Regression(x, y))
    assert escape.status == EscapeStatus.NOT_CROSSED
    assert np.isfinite(escape.blowup.time)
    assert np.isnan(escape.crossing)
    assert str(escape).startswith("Escape (not_crossed): ")


def test_times_need_no_learning_rate(escape):
    flow = jn.predict_escape(draw(), DATA)
    # The clock of the flow differs by what a descent lags behind it.
    lag = (escape.crossing - flow.crossing) / RATES[0]
    assert 0 < lag < 10
    with pytest.raises(ValueError, match="Iterations need a learning rate"):
        _ = flow.crossing_iteration


@pytest.mark.parametrize("drop", [0.01, 0.03])
def test_training_goes_on_after_the_skip_as_it_would_have(full, drop):
    skip = jn.skip_plateau(draw(), DATA, RATES, drop=drop)
    first = int(skip.iteration)
    assert 12_000 < first < full.crossings[0.9]
    np.testing.assert_allclose(skip.time, 6_000 * 0.03 + (first - 6_000) * 0.022, 10 * EPS)
    halved = int(full.crossings[0.5])
    stops = full.iterations[(full.iterations > first) & (full.iterations < halved)]
    rest = jn.gradient_descent(
        skip.network, DATA, RATES, num_steps=halved - first, first_iteration=first,
        record=stops, observe=[],
    )  # fmt: skip
    expected = full.loss[np.isin(full.iterations, stops)]
    found = rest.loss[np.isin(rest.iterations, stops)]
    assert found.size > 10
    np.testing.assert_allclose(found, expected, SKIPPED)
    assert abs(rest.loss[0] / full.loss[0] - (1 - drop)) < 0.1 * drop


def test_skips_of_a_share_of_the_blow_up_time_and_of_many(escape):
    skips = jn.skip_plateau(together([draw(), draw(1)]), DATA, fraction=0.5)
    assert skips.iteration.tolist() == [-1, -1]
    np.testing.assert_allclose(skips.effective_time[0], escape.blowup.time / 2, 1e-9)
    alone = jn.skip_plateau(draw(), DATA, fraction=0.5)
    np.testing.assert_array_equal(alone.network.weights[1], skips.network.weights[1][0])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: draw(std=0.0), "comes to rest"),
        (lambda: spoilt(np.nan), "not finite"),
    ],
)
def test_plateaus_that_cannot_be_skipped(network, message):
    with pytest.raises(ValueError, match=f"cannot be skipped: .*{message}"):
        jn.skip_plateau(network(), DATA, RATES)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (jn.predict_escape, {"fraction": 1.0}, "`fraction` .* is 1.0"),
        (jn.predict_escape, {"num": 8}, "`num` must be at least 16, but is 8"),
        (jn.predict_escape, {"loss": "rmse"}, "`loss` .* 'rmse'"),
        (jn.predict_escape, {"learning_rate": -1.0}, "`learning_rate` must be positive"),
        (jn.skip_plateau, {"drop": 0.0}, "`drop` .* is 0.0"),
        (jn.skip_plateau, {"fraction": 1.5}, "`fraction` .* is 1.5"),
    ],
)
def test_bad_input_is_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(draw(), DATA, **options)


@pytest.mark.parametrize("function", [jn.predict_escape, jn.skip_plateau])
def test_activations_without_a_slope_are_refused(function):
    network = jn.MLP(draw().weights, activation="z_tanh_z")
    with pytest.raises(ValueError, match="slope at zero does not vanish"):
        function(network, DATA)
