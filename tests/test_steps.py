"""Every step of the loss of linear networks, against descent written in NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcond.networks as jn
from jaxcond import plotting
from jaxcond.networks import StepsStatus
from jaxcond.networks._smaller import smaller

RATE = 0.05
# What the iteration of half height may be off by: descent is followed to second order.
NEAR = 0.15
# Of what spaces that are cut off, of four layers and more, make of the time of a step.
CUT_OFF = 3e-4


def draw(sizes, std, seed=0):
    rng = np.random.default_rng(seed)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return jn.MLP([jnp.asarray(std * rng.standard_normal(s)) for s in shapes], activation="linear")


def descend(network, gradient, value, final, rates=(RATE,), changes=(), most=20_000):
    """Plain descent until all singular values have half of `final`: iterations, and the losses.

    `gradient` and `value` are those of the loss by the product of the layers.
    """
    weights = [np.array(w) for w in network.weights]
    half, losses, last = np.full(len(final), np.nan), [], None
    for iteration in range(most):
        forward = [np.eye(weights[0].shape[1])]
        for w in weights:
            forward.append(w @ forward[-1])
        losses.append(value(forward[-1]))
        values = np.linalg.svd(forward[-1], compute_uv=False)[: len(final)]
        if last is not None:
            new = np.isnan(half) & (last < final / 2) & (values >= final / 2)
            share = (final / 2 - last) / np.where(new, values - last, 1)
            half = np.where(new, iteration - 1 + share, half)
        if not np.any(np.isnan(half)):
            return half, np.asarray(losses)
        last, back = values, gradient(forward[-1])
        rate = rates[np.searchsorted(changes, iteration, side="right")]
        for k in reversed(range(len(weights))):
            slope = back @ forward[k].T
            back = weights[k].T @ back
            weights[k] -= rate * slope
    raise AssertionError(f"not all singular values rise: {half}")


def matrix(outputs, inputs, values, seed=1):
    """A matrix with some singular values."""
    rng = np.random.default_rng(seed)
    left, right = (
        np.linalg.qr(rng.standard_normal((n, len(values))))[0] for n in (outputs, inputs)
    )
    return left @ np.diag(values) @ right.T


VALUES = (1.0, 0.7, 0.45)


@pytest.mark.parametrize(
    ("depth", "std", "near"),
    [(2, 1e-3, 0.0), (3, 1e-2, 0.0), (4, 4e-2, CUT_OFF)],
)
def test_the_steps_of_all_entries_are_those_of_plain_descent(depth, std, near):
    target = matrix(30, 24, VALUES)
    network = draw((24, *(40,) * (depth - 1), 30), std)
    # A factor by which the loss is half the square of the distance.
    steps = jn.predict_steps(network, jn.Entries(target), RATE, loss=target.size / 2)
    assert steps.status == StepsStatus.COMPLETE
    np.testing.assert_allclose(steps.final, VALUES, 1e-12)
    half, losses = descend(
        network, lambda m: m - target, lambda m: np.sum((m - target) ** 2) / 2, steps.final
    )
    assert np.all(np.abs(steps.rise_iteration - half) < NEAR + near * half)
    iterations = steps.iterations(steps.times)
    seen = np.interp(iterations, np.arange(len(losses)), losses)[iterations < half[-1]]
    # A loss that falls by a third of its height in a dozen iterations.
    np.testing.assert_allclose(
        steps.loss[iterations < half[-1]], seen, atol=(0.02 + near * half[-1] / 12) * losses[0]
    )


def test_plateaus_are_those_of_the_best_maps_of_their_rank():
    target, network = matrix(12, 10, VALUES), draw((10, 30, 30, 12), 1e-4)
    steps = jn.predict_steps(network, jn.Entries(target), RATE, loss=60.0)
    heights = 0.5 * np.square(VALUES)
    np.testing.assert_allclose(steps.levels, [np.sum(heights[k:]) for k in range(4)], atol=2e-3)


@pytest.mark.parametrize("bias", [False, "input"])
def test_inputs_that_are_not_white(bias):
    rng = np.random.default_rng(2)
    # More inputs than samples span, and unlike each other.
    x = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 6))
    y = x @ rng.standard_normal((6, 2)) + 0.3 * rng.standard_normal((40, 2)) + 0.5
    x, y = x / 4, y / 4
    features = np.hstack([x, np.ones((40, 1))]) if bias else x
    weights = draw((features.shape[1], 30, 25, 2), 1e-2).weights
    network = jn.MLP(weights, activation="linear", bias=bias)
    steps = jn.predict_steps(network, jn.Regression(x, y), RATE, loss="mse")
    assert steps.status == StepsStatus.COMPLETE
    solution = np.linalg.lstsq(features, y, rcond=None)[0].T
    np.testing.assert_allclose(steps.final, np.linalg.svd(solution, compute_uv=False), 1e-9)
    half, _ = descend(
        network,
        lambda m: 2 * (features @ m.T - y).T @ features / 40,
        lambda m: np.sum((features @ m.T - y) ** 2) / 40,
        steps.final,
    )
    assert np.all(np.abs(steps.rise_iteration - half) < NEAR)
    least = np.sum((features @ solution.T - y) ** 2) / 40
    np.testing.assert_allclose(steps.levels[-1], least, atol=5e-3 * steps.levels[0])


@pytest.mark.parametrize("kind", ["mask", "sensing"])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_steps_of_measurements_are_those_of_plain_descent(kind, depth):
    rng = np.random.default_rng(3)
    target = matrix(9, 8, (1.0, 0.6))
    if kind == "mask":
        mask = rng.random(target.shape) < 0.7
        data = jn.Entries(np.where(mask, target, np.nan), mask)
        n = mask.sum()
        operators = None
    else:
        operators, n, mask = rng.standard_normal((50, 9, 8)), 50, None
        data = jn.Sensing(operators, np.tensordot(operators, target, 2))

    def gradient(m):
        if mask is not None:
            return mask * (m - target)
        return np.tensordot(np.tensordot(operators, m - target, 2), operators, 1) / n

    def value(m):
        if mask is not None:
            return np.sum((mask * (m - target)) ** 2) / 2
        return np.sum(np.tensordot(operators, m - target, 2) ** 2) / (2 * n)

    network = draw((8, *(20,) * (depth - 1), 9), 1e-2 if depth == 3 else 1e-3)
    loss = n / 2 if kind == "mask" else 0.5
    steps = jn.predict_steps(network, data, RATE, loss=loss, rank=2)
    assert steps.status == StepsStatus.COMPLETE
    half, losses = descend(network, gradient, value, steps.final)
    assert np.all(np.abs(steps.rise_iteration - half) < NEAR)
    iterations = steps.iterations(steps.times)
    known = iterations < half[-1]
    seen = np.interp(iterations[known], np.arange(len(losses)), losses)
    np.testing.assert_allclose(steps.loss[known], seen, atol=0.02 * losses[0])


def test_aligned_layers_rise_by_the_logistic_curve():
    # u' = 2 u (mu - h u) for the product u of two equal numbers, with h = 1 and mu = u_end.
    ends, start = np.asarray([1.0, 0.4]), np.asarray([1e-4, 3e-4])
    first = np.zeros((7, 5))
    first[[0, 1], [0, 1]] = np.sqrt(start)
    network = jn.MLP([jnp.asarray(first), jnp.asarray(first[:, :4].T)], activation="linear")
    target = np.zeros((4, 5))
    target[[0, 1], [0, 1]] = ends
    steps = jn.predict_steps(network, jn.Entries(target), loss=10.0)
    np.testing.assert_allclose(steps.rise, np.log(ends / start - 1) / (2 * ends), 1e-5)
    with pytest.raises(ValueError, match="Iterations need a learning rate"):
        _ = steps.rise_iteration
    curve = ends / (1 + (ends / start - 1) * np.exp(-2 * ends * steps.times[:, None]))
    np.testing.assert_allclose(steps.singular_values, -np.sort(-curve, axis=1), atol=1e-4)


def test_the_smaller_network_trains_as_the_large_one():
    # Spaces that fill their layers: nothing is cut off, whatever the weights.
    target, sizes = matrix(20, 30, (1.0, 0.7)), (30, 5, 6, 20)
    network, loss = draw(sizes, 0.3), jn.resolve_loss(target.size / 2)
    data = jn.Entries(target)
    small = smaller(network, data, loss, None, (1e-3, 1e-4))
    assert [w.shape for w in small.weights] == [(5, 7), (6, 5), (8, 6)]
    assert small.last == (0, 0)

    def of_small(weights):
        return small.problem.loss(weights[2] @ weights[1] @ weights[0])

    def of_large(weights):
        return data.loss(network.replace(weights), loss)

    pairs = [(of_small, small.weights), (of_large, network.weights)]
    losses = []
    for value, weights in pairs:
        slope, course = jax.jit(jax.value_and_grad(value)), []
        for _ in range(40):
            here, step = slope(weights)
            weights = jax.tree.map(lambda w, g: w - RATE * g, weights, step)
            course.append(float(here))
        losses.append(course)
    assert losses[0][-1] < 0.5 * losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-11)


def test_a_learning_rate_that_changes():
    target = matrix(8, 8, (1.0, 0.5))
    network = draw((8, 20, 20, 8), 1e-2)
    first = jn.predict_steps(network, jn.Entries(target), RATE, loss=32.0)
    change = int(first.rise_iteration[0] + 100)
    rates = {0: RATE, change: 3 * RATE}
    steps = jn.predict_steps(network, jn.Entries(target), rates, loss=32.0)
    half, _ = descend(
        network,
        lambda m: m - target,
        lambda m: np.sum((m - target) ** 2) / 2,
        steps.final,
        (RATE, 3 * RATE),
        (change,),
    )
    assert np.all(np.abs(steps.rise_iteration - half) < NEAR)
    assert steps.rise_iteration[1] < first.rise_iteration[1] - 50


def test_few_of_many_directions():
    target = matrix(12, 12, (1.0, 0.7, 0.1, 0.05))
    network = draw((12, 20, 20, 12), 1e-2)
    steps = jn.predict_steps(network, jn.Entries(target), RATE, loss=72.0, rank=2)
    assert steps.status == StepsStatus.COMPLETE
    half, _ = descend(
        network, lambda m: m - target, lambda m: np.sum((m - target) ** 2) / 2, steps.final
    )
    assert steps.rise.shape == (2,)
    assert np.all(np.abs(steps.rise_iteration - half) < NEAR)


def test_many_networks_are_each_their_own():
    data = jn.Entries(matrix(6, 6, (1.0, 0.6)))
    singles = [draw((6, 12, 12, 6), 1e-2, seed) for seed in (0, 1)]
    batch = jax.tree.map(lambda *w: jnp.stack(w), *singles)
    steps = jn.predict_steps(batch, data, RATE, loss=18.0, num=50)
    assert steps.rise.shape == (2, 2)
    assert steps.singular_values.shape == (2, 50, 2)
    for i, single in enumerate(singles):
        alone = jn.predict_steps(single, data, RATE, loss=18.0, num=50)
        np.testing.assert_allclose(steps.rise[i], alone.rise, 1e-12)
        np.testing.assert_allclose(steps.loss[i], alone.loss, 1e-9)
    assert str(steps) == "Steps of 2 networks (complete)"


def test_how_far_the_steps_are_known():
    target = matrix(6, 6, (1.0, 0.5))
    network, data = draw((6, 12, 12, 6), 1e-2), jn.Entries(target)

    def predict(rate=RATE, **kwargs):
        return jn.predict_steps(network, data, rate, loss=18.0, **kwargs)

    whole = predict()
    cut = predict(max_time=float(np.mean(whole.rise)))
    assert cut.status == StepsStatus.CUT_SHORT
    np.testing.assert_allclose(cut.rise[0], whole.rise[0], 1e-6)
    assert np.isnan(cut.rise[1])
    assert np.isnan(cut.levels[1])
    assert predict(max_steps=16).status == StepsStatus.NOT_CONVERGED
    # Three layers that end in a singular value 1 are stable below 2/3.
    assert predict(0.6).status == StepsStatus.COMPLETE
    assert predict(0.72).status == StepsStatus.UNSTABLE
    assert "unstable" in str(predict(0.72))


def test_two_thirds_is_where_descent_ceases_to_settle():
    target = matrix(6, 6, (1.0, 0.5))
    network = draw((6, 12, 12, 6), 1e-2)
    ends = []
    for rate in (0.6, 0.72):
        weights = [np.array(w) for w in network.weights]
        for _ in range(4000):
            a, b, c = weights
            error = c @ b @ a - target
            slopes = (c @ b).T @ error, c.T @ error @ a.T, error @ (b @ a).T
            weights = [w - rate * g for w, g in zip(weights, slopes, strict=True)]
        ends.append(np.abs(error).max())
    assert ends[0] < 1e-4 < 1e-2 < ends[1]


def test_single_precision():
    data = jn.Entries(matrix(6, 6, (1.0, 0.6)))
    network = draw((6, 12, 12, 6), 1e-2)
    single = jax.tree.map(lambda w: w.astype(jnp.float32), network)
    steps, exact = (jn.predict_steps(n, data, RATE, loss=18.0) for n in (single, network))
    assert steps.status == StepsStatus.COMPLETE
    np.testing.assert_allclose(steps.rise, exact.rise, 1e-3)


def test_what_is_told_of_the_steps():
    network = draw((6, 12, 12, 6), 1e-2)
    steps = jn.predict_steps(network, jn.Entries(matrix(6, 6, (1.0, 0.6))), RATE, loss=18.0)
    first, *rows = str(steps).splitlines()
    assert first == "Steps (complete):"
    assert len(rows) == 2
    assert f"iteration {float(steps.rise_iteration[1]):,.6g}" in rows[1]
    assert "on its way to 0.6" in rows[1]
    figure = plotting.loss_steps(steps)
    loss, values = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), steps.loss)
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), steps.iterations(steps.times))
    np.testing.assert_array_equal(values.lines[2].get_ydata(), steps.singular_values[:, 1])
    observed = plotting.loss_steps(steps, observed=([0, 100], [0.5, 0.4]))
    np.testing.assert_array_equal(observed.axes[0].lines[1].get_ydata(), [0.5, 0.4])
    batch = jax.tree.map(lambda w: jnp.stack([w, w]), network)
    many = jn.predict_steps(batch, jn.Entries(matrix(6, 6, (1.0, 0.6))), RATE, loss=18.0)
    with pytest.raises(ValueError, match="one network"):
        plotting.loss_steps(many)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, '`activation` must be "linear"'),
        ({"loss": "logistic"}, "those of squared losses"),
        ({"rank": 0}, "`rank` must be at least 1, but is 0"),
        ({"max_time": 0.0}, "`max_time` must be positive, but is 0.0"),
        ({"num": 3}, "`num` must be at least 16, but is 3"),
        ({"factor": np.nan}, "must have finite weights"),
    ],
)
def test_what_has_no_steps_is_refused(change, message):
    weights = [change.pop("factor", 1.0) * w for w in draw((4, 5, 4), 1e-2).weights]
    network = jn.MLP(weights, activation=change.pop("activation", "linear"))
    with pytest.raises(ValueError, match=message):
        jn.predict_steps(network, jn.Entries(np.eye(4)), RATE, **change)
