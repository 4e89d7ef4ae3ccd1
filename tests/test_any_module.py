"""Any module, any loss, against plain gradient descent that does not use the package."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcond import networks as nn

# What the prediction may be off by; that it is exact to one iteration is not asked of it.
WITHIN = 5e-3


@eqx.filter_jit
def descend(loss_fn, params, learning_rate, level, first=0, last=100_000):
    """The parameters when the loss is first at or below a level, or so late, and the iteration."""

    def goes_on(carry):
        _, loss, iteration = carry
        return (loss > level) & (iteration < last)

    def step(carry):
        params, _, iteration = carry
        slope = eqx.filter_grad(loss_fn)(params)
        params = eqx.apply_updates(params, jax.tree.map(lambda g: -learning_rate * g, slope))
        return params, loss_fn(params), iteration + 1

    params, static = eqx.partition(params, eqx.is_inexact_array)
    start = (params, loss_fn(eqx.combine(params, static)), jnp.asarray(first))

    def step_arrays(carry):
        params, loss, iteration = carry
        params, loss, iteration = step((eqx.combine(params, static), loss, iteration))
        return eqx.filter(params, eqx.is_inexact_array), loss, iteration

    floats, _, iteration = lax.while_loop(goes_on, step_arrays, start)
    return eqx.combine(floats, static), iteration


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


X, TOKENS, IMAGES = normal(0, 30, 3), normal(1, 80, 6, 4), normal(2, 20, 1, 6, 6)
Y = jnp.tanh(X @ jnp.array([1.0, -0.5, 0.3])) + 0.2 * X[:, 0] ** 2
Y_CENTRED = Y - jnp.mean(Y)
Y_TOKENS = jnp.mean(TOKENS, axis=1) @ jnp.array([1.0, 2.0, -1.0, 0.5])
Y_IMAGES = jnp.mean(IMAGES[:, 0, :3], axis=(1, 2)) - IMAGES[:, 0, 4, 4]


class Convolutional(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __call__(self, image):
        hidden = jnp.tanh(self.second(jnp.tanh(self.first(image))))
        return self.out(hidden.reshape(-1))[0]


def convolutional():
    keys = jax.random.split(jax.random.key(0), 3)
    network = Convolutional(
        eqx.nn.Conv2d(1, 4, 3, use_bias=False, key=keys[0]),
        eqx.nn.Conv2d(4, 4, 3, use_bias=False, key=keys[1]),
        eqx.nn.Linear(16, 1, use_bias=False, key=keys[2]),
    )
    return jax.tree.map(lambda x: 0.02 * x if eqx.is_inexact_array(x) else x, network)


def convolutional_loss(network):
    return jnp.mean((jax.vmap(network)(IMAGES) - Y_IMAGES) ** 2)


def attention(std=2e-3):
    shapes = {"query": (4, 4), "key": (4, 4), "value": (4, 20), "out": (20, 20), "read": (20,)}
    return {name: std * normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def attention_loss(p):
    scores = (TOKENS @ p["query"]) @ jnp.swapaxes(TOKENS @ p["key"], 1, 2) / 2
    mixed = jax.nn.softmax(scores) @ (TOKENS @ p["value"])
    output = jnp.mean(jnp.tanh(mixed @ p["out"]) @ p["read"], axis=1)
    return jnp.mean((output - Y_TOKENS) ** 2) / 2


def three_layers(std, width=20):
    return [std * normal(5, width, 3), std * normal(6, width, width), std * normal(7, width)]


def three_layer_loss(activation):
    def loss(weights):
        first, second, third = weights
        output = activation(activation(X @ first.T) @ second.T) @ third
        return jnp.mean((output - Y_CENTRED) ** 2) / 2

    return loss


relu_loss, tanh_loss = three_layer_loss(jax.nn.relu), three_layer_loss(jnp.tanh)
z_tanh_loss = three_layer_loss(lambda z: z * jnp.tanh(z))


def residual_loss(weights):
    first, second, third = weights
    hidden = X @ first.T
    output = (hidden + jnp.tanh(hidden @ second.T)) @ third
    return jnp.mean((output - Y_CENTRED) ** 2) / 2


def with_biases():
    return {"weights": three_layers(1e-2), "biases": [jnp.zeros(20), jnp.zeros(20), jnp.zeros(())]}


def biased_loss(params):
    (first, second, third), (b, c, d) = params["weights"], params["biases"]
    hidden = jnp.tanh(X @ first.T + b[None])
    output = jnp.tanh(hidden @ second.T + c[None]) @ third + d
    return jnp.mean((output - Y) ** 2) / 2


# Module, loss, learning rate, fraction, degree, path.
CASES = {
    "convolutional": (convolutional, convolutional_loss, 0.05, 0.9, 3, "leading order"),
    "attention": (attention, attention_loss, 0.05, 0.9, 3, "leading order"),
    "z tanh(z)": (lambda: three_layers(0.15), z_tanh_loss, 0.05, 0.9, 7, "flow"),
    "residual": (lambda: three_layers(1e-4), residual_loss, 0.01, 0.9, 2, "flow"),
    "all biases": (with_biases, biased_loss, 0.05, None, 1, "flow"),
    "tanh": (lambda: three_layers(1e-2), tanh_loss, 0.05, 0.9, 3, "leading order"),
}


def setting(name):
    make, loss, rate, fraction, degree, path = CASES[name]
    params = make()
    # An output bias alone brings the loss down by the mean of the targets: the plateau is below.
    level = 0.9 * float(jnp.var(Y)) / 2 if fraction is None else fraction * float(loss(params))
    return params, loss, rate, level, degree, path


SLOW = ("convolutional", "attention", "z tanh(z)")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_crossing_is_that_of_descent(name):
    params, loss, rate, level, degree, path = setting(name)
    # Lower orders compile faster.
    max_order = 5 if degree < 5 else 8
    escape = nn.predict_escape_of(loss, params, rate, level=level, max_order=max_order)
    assert int(escape.status) == nn.PlateauStatus.PREDICTED, str(escape)
    assert (escape.path, escape.degree) == (path, degree)
    assert bool(escape.reason) == (path == "flow")
    _, seen = descend(loss, params, rate, level)
    assert 400 < seen < 20_000
    np.testing.assert_allclose(np.ceil(escape.crossing_iteration), seen, rtol=WITHIN)
    np.testing.assert_allclose(loss(escape.params), level, rtol=1e-6)
    assert f"by {path}" in str(escape)
    if path == "leading order":
        # The end of the plateau is a little before the blow-up.
        assert 0.9 < escape.crossing / escape.blowup_time < 1


def test_skip_goes_on_like_descent():
    params, loss, rate, level, *_ = setting("tanh")
    skip = nn.skip_plateau_of(loss, params, rate, max_order=5)
    assert int(skip.status) == nn.PlateauStatus.PREDICTED
    iteration = int(skip.iteration)
    there, _ = descend(loss, params, rate, -np.inf, 0, iteration)
    sizes = [float(jnp.linalg.norm(x)) for x in there]
    apart = [
        float(jnp.linalg.norm(x - y)) / size
        for x, y, size in zip(skip.params, there, sizes, strict=True)
    ]
    assert max(apart) < 0.02
    np.testing.assert_allclose(loss(skip.params), 0.99 * loss(params), rtol=1e-3)
    _, whole = descend(loss, params, rate, level)
    _, rest = descend(loss, skip.params, rate, level, iteration)
    assert 300 < iteration < rest
    np.testing.assert_allclose(rest, whole, atol=2)
    told = f"Skip to iteration {iteration} (t = {iteration * rate:.6g}), by leading order"
    assert str(skip) == told


def test_leading_order_of_three_layers():
    params = three_layers(0.1)
    order = nn.leading_order(tanh_loss, params, 5)
    assert (order.degree, order.homogeneous, order.reason) == (3, True, "")
    assert order.powers[:2] == (3, 5)
    assert order.moved == ("[0]", "[1]", "[2]")
    first, second, third = params
    closed = third @ second @ first @ (X.T @ Y_CENTRED) / len(X)
    np.testing.assert_allclose(order.energy(params), closed, rtol=1e-12)
    np.testing.assert_allclose(order.value, closed, rtol=1e-12)
    twice = jax.tree.map(lambda x: 2 * x, params)
    np.testing.assert_allclose(order.energy(twice), 8 * closed, rtol=1e-12)
    slope = jax.grad(order.energy)(params)[2]
    np.testing.assert_allclose(slope, second @ first @ (X.T @ Y_CENTRED) / len(X), rtol=1e-10)
    assert "degree 3" in str(order)


@pytest.mark.slow
def test_attention_is_uniform_at_leading_order():
    order = nn.leading_order(attention_loss, attention(), 4)
    assert (order.degree, order.homogeneous) == (3, True)
    assert order.moved == ("['out']", "['read']", "['value']")


def no_rule(z):
    """An operation that Taylor mode has no rule for."""
    return jax.lax.linalg.triangular_solve(jnp.eye(z.shape[-1]), z, left_side=False)


def test_operations_without_a_taylor_rule():
    def plain(p):
        return (1 - jnp.sum(jnp.tanh(p @ p))) ** 2

    def solved(p):
        return (1 - jnp.sum(no_rule(jnp.tanh(p @ p)))) ** 2

    params = normal(9, 3, 3)
    one, other = (nn.leading_order(f, params, 5) for f in (plain, solved))
    assert one.degree == other.degree == 2
    assert one.powers == other.powers == (2, 4)
    np.testing.assert_allclose(one.energy(params), other.energy(params), rtol=1e-12)


def test_relu_is_refused():
    params = three_layers(1e-2)
    order = nn.leading_order(relu_loss, params, 5)
    assert int(order.status) == nn.OrderStatus.KINK
    assert not order.homogeneous
    assert "kink" in str(order)
    with pytest.raises(ValueError, match="kink at zero parameters"):
        order.energy(params)
    escape = nn.predict_escape_of(relu_loss, params, 0.05, max_order=5)
    assert int(escape.status) == nn.PlateauStatus.NOT_SMOOTH
    assert np.isnan(escape.crossing)
    assert "ReLU" in str(escape)


def test_leaky_relu_has_a_kink_beside_its_polynomial():
    order = nn.leading_order(three_layer_loss(jax.nn.leaky_relu), three_layers(1e-2), 5)
    assert int(order.status) == nn.OrderStatus.KINK


def test_orders_that_are_not_used():
    flat = nn.leading_order(z_tanh_loss, three_layers(0.1), max_order=5)
    assert int(flat.status) == nn.OrderStatus.TOO_FLAT
    low = nn.leading_order(residual_loss, three_layers(0.1), max_order=5)
    assert int(low.status) == nn.OrderStatus.LOW_DEGREE
    assert low.degree == 2
    assert np.isfinite(low.energy(three_layers(0.1)))
    endless = nn.leading_order(lambda p: jnp.log(jnp.sum(p**2)), normal(0, 3), max_order=3)
    assert int(endless.status) == nn.OrderStatus.INVALID_INPUT


def outcome(params, rate=0.05, **options):
    escape = nn.predict_escape_of(tanh_loss, params, rate, path="flow", **options)
    status = nn.PlateauStatus(int(escape.status))
    if status != nn.PlateauStatus.PREDICTED:
        assert f"({status.name.lower()};" in str(escape)
    return status


def test_every_status():
    params, seen = three_layers(1e-2), nn.PlateauStatus
    assert outcome(params) == seen.PREDICTED
    assert outcome(params, rate=1e4) == seen.UNSTABLE
    assert outcome([0 * x for x in params]) == seen.AT_REST
    assert outcome([np.nan * x for x in params]) == seen.INVALID_INPUT
    assert outcome(params, max_steps=3) == seen.NOT_CONVERGED
    assert outcome(params, fraction=1e-3, max_iterations=2e3) == seen.NOT_CROSSED
    skip = nn.skip_plateau_of(tanh_loss, [0 * x for x in params], 0.05)
    assert int(skip.iteration) == 0
    assert str(skip).startswith("No skip. Escape (at_rest;")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": [1, "a"]}, "no array of floats"),
        ({"params": [jnp.ones(2) + 1j]}, "complex"),
        ({"loss_fn": lambda p: p[0]}, "one real number"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"fraction": 1.5}, "`fraction` must lie between 0 and 1"),
        ({"level": 1e3}, "`level` must be finite and below"),
        ({"path": "shortest"}, "`path` must be"),
        ({"max_order": 0}, "`max_order` must be at least 1"),
        ({"loss_fn": lambda p: jnp.sum(p[2]) - 1}, "needs a `level`"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"loss_fn": tanh_loss, "params": three_layers(1e-2), "learning_rate": 0.05}
    with pytest.raises(ValueError, match=message):
        nn.predict_escape_of(**arguments | change)


def test_numpy_weights():
    params = [np.asarray(x) for x in three_layers(1e-2)]
    assert outcome(params) == nn.PlateauStatus.PREDICTED
