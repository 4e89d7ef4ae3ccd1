"""Any module, any loss, against plain gradient descent that does not use the package."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcond import networks as nn

# What issue 14 asks of the general path.
WITHIN = 5e-3


@eqx.filter_jit
def descend(loss_fn, params, learning_rate, level, first=0):
    """The first iteration at which the loss is at or below a level."""

    def goes_on(carry):
        _, loss, iteration = carry
        return (loss > level) & (iteration < 100_000)

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

    return lax.while_loop(goes_on, step_arrays, start)[2]


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
    "z tanh(z)": (lambda: three_layers(0.15), z_tanh_loss, 0.05, 0.9, 7, None),
    "residual": (lambda: three_layers(1e-4), residual_loss, 0.01, 0.9, 2, "flow"),
    "all biases": (with_biases, biased_loss, 0.05, None, 1, "flow"),
    "ReLU": (lambda: three_layers(1e-2), relu_loss, 0.05, 0.9, 0, "flow"),
    "tanh": (lambda: three_layers(1e-2), tanh_loss, 0.05, 0.9, 3, None),
}


def setting(name):
    make, loss, rate, fraction, degree, path = CASES[name]
    params = make()
    # An output bias alone brings the loss down by the mean of the targets: the plateau is below.
    level = 0.9 * float(jnp.var(Y)) / 2 if fraction is None else fraction * float(loss(params))
    return params, loss, rate, level, degree, path
