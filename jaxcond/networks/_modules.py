r"""Three-layer networks, nonlinear and linear.

$$f(x) = W^3\,\sigma(W^2\,\sigma(W^1 x)), \qquad \sigma(0) = 0 .$$

Source: Chen and Luo, eqs. (3.1), (3.3); the linear network of their appendix A is the case
$\sigma(z) = z$.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

Activation = Callable[[Array], Array]


def linear(z: Array) -> Array:
    """The activation of a linear network, $z$."""
    return z


def z_tanh_z(z: Array) -> Array:
    r"""$z\tanh z$: its slope vanishes at zero, so no effective model of this order applies."""
    return z * jnp.tanh(z)


def gelu(z: Array) -> Array:
    r"""$z\Phi(z)$ with the normal distribution function, not its approximation by tanh."""
    return jax.nn.gelu(z, approximate=False)


_PUBLIC_MODULES = ("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special")


@dataclasses.dataclass(frozen=True)
class _Public:
    """A function of JAX by its public name: jitted ones themselves cannot be pickled."""

    module: str
    name: str

    def __call__(self, z: Array) -> Array:
        return getattr(importlib.import_module(self.module), self.name)(z)


ACTIVATIONS: dict[str, Activation] = {
    "tanh": _Public("jax.numpy", "tanh"),
    "sin": _Public("jax.numpy", "sin"),
    "arctan": _Public("jax.numpy", "arctan"),
    "softsign": _Public("jax.nn", "soft_sign"),
    "gelu": gelu,
    "silu": _Public("jax.nn", "silu"),
    "z_tanh_z": z_tanh_z,
    "linear": linear,
}
"""Activations by name; any function of an array with $\\sigma(0) = 0$ may be given instead."""


def _resolve(activation: str | Activation) -> Activation:
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Argument `activation` must be a function or one of {', '.join(ACTIVATIONS)}, but "
                f"is {activation!r}."
            )
        return ACTIVATIONS[activation]
    name = getattr(activation, "__name__", "")
    for module in _PUBLIC_MODULES:
        if getattr(sys.modules.get(module), name, None) is activation:
            return _Public(module, name)
    return activation


class ThreeLayer(eqx.Module):
    r"""A network of three layers without biases of its own, acting on one sample.

    **Arguments:**

    - `w1`: $W^1$, shape `(q, inputs)`, or `(q, inputs + 1)` with `bias`.
    - `w2`: $W^2$, shape `(p, q)`.
    - `w3`: $W^3$, shape `(outputs, p)`.
    - `activation`: $\sigma$, a name of `ACTIVATIONS` or a function with $\sigma(0) = 0$.
    - `bias`: whether a constant 1 is appended to every input, $(x, 1)$, so that the last column of
      $W^1$ is the bias of the first layer. With one input and no bias the rows of $W^1$ are
      scalars, and the cosine similarity of two of them is $\pm1$ by definition.

    Many networks are one `ThreeLayer` whose weights have the same leading axis, as `jax.vmap` of
    `ThreeLayer.random` makes them; `network(x)` is for a single one.

    **Raises:** `ValueError` for shapes that do not fit, or $\sigma(0) \ne 0$.

    Source: Chen and Luo, eq. (3.1).
    """

    w1: Float[Array, "*batch q features"]
    w2: Float[Array, "*batch p q"]
    w3: Float[Array, "*batch outputs p"]
    activation: Activation = eqx.field(static=True, converter=_resolve, default="tanh")
    bias: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        first, middle, last = shapes = [weights.shape for weights in self.layers]
        if any(len(shape) < 2 or 0 in shape for shape in shapes):
            raise ValueError(f"The three layers must be matrices, but have shapes {shapes}.")
        fits = middle[-1] == first[-2] and last[-1] == middle[-2]
        if not fits or not first[:-2] == middle[:-2] == last[:-2]:
            raise ValueError(
                "The layers must have shapes w1 (q, features), w2 (p, q), w3 (outputs, p), but "
                f"have {first}, {middle}, {last}."
            )
        if self.bias and first[-1] < 2:
            raise ValueError(f"With a bias `w1` needs two columns or more, but has shape {first}.")
        with jax.ensure_compile_time_eval():
            at_zero = float(self.activation(jnp.zeros(())))
        if at_zero != 0:
            raise ValueError(
                f"Argument `activation` must vanish at zero, but is {at_zero:.6g} there."
            )

    @classmethod
    def random(
        cls,
        p: int,
        q: int,
        *,
        key: PRNGKeyArray,
        std: float | Sequence[float] | Float[Array, "..."],
        inputs: int = 1,
        outputs: int = 1,
        activation: str | Activation = "tanh",
        bias: bool = False,
        dtype: DTypeLike | None = None,
    ) -> "ThreeLayer":
        r"""A network with independent Gaussian weights, $W^l_{ij} \sim N(0, \varepsilon_l^2)$.

        **Arguments:**

        - `p`, `q`: widths of the hidden layers, `q` next to the input.
        - `key`: a JAX random key; `jax.vmap` over keys makes many networks.
        - `std`: the *standard deviation* $\varepsilon$ of the weights, or three of them, of $W^1$,
          $W^2$ and $W^3$. May be traced.
        - `inputs`, `outputs`, `activation`, `bias`: as of the class.
        - `dtype`: by default JAX's default precision.

        **Raises:** `ValueError` for sizes below 1, or standard deviations that are negative or not
        finite.

        Source: Chen and Luo, eq. (3.3).
        """
        sizes = {"p": p, "q": q, "inputs": inputs, "outputs": outputs}
        for name, size in sizes.items():
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"Argument `{name}` must be a positive integer, but is {size}.")
        dtype = jnp.result_type(float) if dtype is None else dtype
        deviations = jnp.asarray(std, dtype)
        if deviations.shape not in ((), (3,)):
            raise ValueError(
                f"Argument `std` must be a number or three, but has shape {deviations.shape}."
            )
        deviations = jnp.broadcast_to(deviations, (3,))
        if not isinstance(deviations, Tracer) and not bool(
            jnp.all((deviations >= 0) & jnp.isfinite(deviations))
        ):
            raise ValueError(f"Argument `std` must be finite and not negative, but is {std}.")
        shapes = ((q, inputs + bias), (p, q), (outputs, p))
        layers = [
            deviation * jax.random.normal(k, shape, dtype)
            for deviation, k, shape in zip(
                deviations, jax.random.split(key, 3), shapes, strict=True
            )
        ]
        return cls(*layers, activation=activation, bias=bias)

    @property
    def layers(self) -> tuple[Array, Array, Array]:
        """The weights $(W^1, W^2, W^3)$."""
        return self.w1, self.w2, self.w3

    @property
    def widths(self) -> tuple[int, int]:
        """The widths $(p, q)$ of the hidden layers."""
        return self.w2.shape[-2], self.w2.shape[-1]

    @property
    def num_inputs(self) -> int:
        """Length of an input, without the constant of a bias."""
        return self.w1.shape[-1] - self.bias

    @property
    def num_outputs(self) -> int:
        """Length of an output."""
        return self.w3.shape[-2]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; `()` for a single network."""
        return self.w2.shape[:-2]

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the weights."""
        return self.w2.dtype

    @property
    def product(self) -> Float[Array, "*batch outputs features"]:
        r"""The matrix $W^3W^2W^1$, which is what a linear network computes."""
        return self.w3 @ self.w2 @ self.w1

    def features(self, x: Float[Array, " inputs"]) -> Float[Array, " features"]:
        """One input as the first layer takes it: with a constant 1 behind it if there is a bias."""
        return jnp.append(x, jnp.ones((), x.dtype)) if self.bias else x

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """The output for one input."""
        hidden = self.activation(self.w1 @ self.features(x))
        return self.w3 @ self.activation(self.w2 @ hidden)

    def many(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """The outputs for many inputs, as of `jax.vmap(network)`.

        Written out, since with the samples as rows the products and their gradients are some 5 %
        faster on a CPU.
        """
        if self.bias:
            x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)
        return self.activation(self.activation(x @ self.w1.T) @ self.w2.T) @ self.w3.T

    def replace(self, w1: Array, w2: Array, w3: Array) -> "ThreeLayer":
        """The same network with other weights."""
        return ThreeLayer(w1=w1, w2=w2, w3=w3, activation=self.activation, bias=self.bias)


def slope_at_zero(activation: Activation) -> float:
    r"""$\sigma'(0)$, by which the effective model scales time.

    **Raises:** `ValueError` where it is zero or there is none: then the effective model does not
    apply.
    """
    step = 2.0**-10
    with jax.ensure_compile_time_eval():
        slope = float(jax.grad(activation)(jnp.zeros(())))
        ahead, behind = (float(activation(jnp.asarray(s))) / s for s in (step, -step))
    if not np.isfinite(slope) or abs(ahead - behind) > 0.1 * max(abs(ahead), abs(behind), 0.1):
        raise ValueError(
            "The effective model needs an activation with a derivative at zero, but the slopes to "
            f"the right and left of it are {ahead:.3g} and {behind:.3g}."
        )
    if abs(slope) < 1e-6:
        raise ValueError(
            "The effective model needs an activation whose slope at zero does not vanish: with "
            "one like z tanh(z) the energy is of higher order, and this model does not apply."
        )
    return slope
