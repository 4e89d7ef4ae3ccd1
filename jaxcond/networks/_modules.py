r"""Fully connected networks of any depth, nonlinear and linear.

$$f(x) = W_L\,\sigma(W_{L-1}\,\sigma(\cdots\sigma(W_1 x + b_1)\cdots) + b_{L-1}) + b_L,
  \qquad \sigma(0) = 0 ,$$

with or without biases $b_l$.

Source: Chen and Luo, eqs. (3.1), (3.3), which are the case $L = 3$; the linear network of their
appendix A is the case $\sigma(z) = z$.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._precision import to_jax

Activation = Callable[[Array], Array]


def linear(z: Array) -> Array:
    """The activation of a linear network, $z$."""
    return z


def z_tanh_z(z: Array) -> Array:
    r"""$z\tanh z$, whose slope vanishes at zero, so that the effective model does not apply."""
    return z * jnp.tanh(z)


def gelu(z: Array) -> Array:
    r"""$z\Phi(z)$ with the normal distribution function, not its approximation by tanh."""
    return jax.nn.gelu(z, approximate=False)


_PUBLIC_MODULES = ("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special")


@dataclasses.dataclass(frozen=True)
class _Public:
    """A JAX function by its public name, since jitted functions cannot be pickled."""

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


def resolve_activation(activation: str | Activation) -> Activation:
    """The activation of a name, or the function itself.

    **Raises:** `ValueError` for an unknown name.
    """
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


def _floats(name: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """The arrays of all layers as a tuple of floats."""
    if not isinstance(arrays, list | tuple):
        raise ValueError(
            f"Argument `{name}` must be a list of arrays, the one next to the input first, but is "
            f"of type {type(arrays).__name__}."
        )
    if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in arrays):
        return tuple(arrays)  # placeholders of tree transformations
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
        dtypes = [str(x.dtype) for x in arrays]
        raise ValueError(f"Argument `{name}` must be real floating, but has dtypes {dtypes}.")
    return tuple(to_jax(x) if isinstance(x, np.ndarray) else x for x in arrays)


def _matrices(weights: Sequence[Array]) -> tuple[Array, ...]:
    return _floats("weights", weights)


def _vectors(biases: Sequence[Array] | None) -> tuple[Array, ...] | None:
    return None if biases is None else _floats("biases", biases)


class MLP(eqx.Module):
    r"""A fully connected network of $L \ge 2$ layers, acting on one sample.

    $$f(x) = W_L\,\sigma(W_{L-1}\,\sigma(\cdots\sigma(W_1 x + b_1)\cdots) + b_{L-1}) + b_L$$

    **Arguments:**

    - `weights`: $(W_1, \dots, W_L)$, the one next to the input first, of shapes `(n_l, n_(l-1))`,
      as PyTorch's `Linear` and `eqx.nn.Linear` have them.
    - `biases`: $(b_1, \dots, b_L)$, of shapes `(n_l,)`, or `None` for no biases.
    - `activation`: $\sigma$, a name of `ACTIVATIONS` or a function with $\sigma(0) = 0$.
    - `bias`: `False`, or for a network without `biases` also `"input"`: a constant 1 is appended to
      every input, $(x, 1)$, and the last column of $W_1$ is the bias of the first layer. With one
      input and no bias the rows of $W_1$ are scalars, and the cosine similarity of two of them is
      $\pm1$ by definition.

    Many networks are one `MLP` whose weights have the same leading axis, as from `jax.vmap` of
    `MLP.random`; `network(x)` is for a single network.

    **Raises:** `ValueError` for shapes that do not fit, or $\sigma(0) \ne 0$.

    Source: Chen and Luo, eq. (3.1), with another number of layers.
    """

    weights: tuple[Float[Array, "..."], ...] = eqx.field(converter=_matrices)
    biases: tuple[Float[Array, "..."], ...] | None = eqx.field(converter=_vectors, default=None)
    activation: Activation = eqx.field(static=True, converter=resolve_activation, default="tanh")
    bias: Literal[False, "input"] = eqx.field(static=True, kw_only=True, default=False)

    def __check_init__(self):
        shapes = [weights.shape for weights in self.weights]
        fits = len(shapes) >= 2 and all(len(s) >= 2 and 0 not in s for s in shapes)
        fits = fits and all(s[:-2] == shapes[0][:-2] for s in shapes)
        if not fits or any(shapes[i + 1][-1] != s[-2] for i, s in enumerate(shapes[:-1])):
            raise ValueError(
                "Argument `weights` must be two matrices or more of shapes (n_1, n_0), "
                f"(n_2, n_1), ..., with the same leading axes, but has shapes {shapes}."
            )
        if self.bias not in (False, "input"):
            raise ValueError(f"Argument `bias` must be False or 'input', but is {self.bias!r}.")
        if self.biases is not None:
            wanted = [shape[:-1] for shape in shapes]
            bias_shapes = [bias.shape for bias in self.biases]
            if bias_shapes != wanted:
                raise ValueError(
                    "Argument `biases` must be one vector for each layer, of shapes (n_1,), "
                    f"(n_2,), ..., here {wanted}, but has shapes {bias_shapes}."
                )
            if self.bias:
                raise ValueError(
                    "With `biases` the first layer has one: leave out `bias='input'`, which is a "
                    "constant input in its place."
                )
        if self.bias and shapes[0][-1] < 2:
            raise ValueError(
                "With a bias at the input the first matrix needs two columns or more, but has "
                f"shape {shapes[0]}."
            )
        with jax.ensure_compile_time_eval():
            at_zero = float(self.activation(jnp.zeros(())))
        if at_zero != 0:
            raise ValueError(
                f"Argument `activation` must vanish at zero, but is {at_zero:.6g} there."
            )

    @classmethod
    def random(
        cls,
        sizes: Sequence[int],
        *,
        key: PRNGKeyArray,
        std: float | Sequence[float] | Float[Array, "..."] | None = None,
        exponent: float | None = None,
        activation: str | Activation = "tanh",
        bias: bool | Literal["input"] = False,
        dtype: DTypeLike | None = None,
    ) -> "MLP":
        r"""A network with independent Gaussian weights, $(W_l)_{ij} \sim N(0, \varepsilon_l^2)$.

            MLP.random((1, 200, 200, 1), key=key, exponent=2.0, bias="input")

        **Arguments:**

        - `sizes`: inputs, widths of the hidden layers, outputs; at least three numbers.
        - `key`: a JAX random key; `jax.vmap` over keys makes many networks.
        - `std`: the *standard deviation* $\varepsilon$ of the weights, or one for each layer. May
          be traced.
        - `exponent`: $\gamma$ in place of `std`: $\varepsilon = m^{-\gamma}$ with $m$ the width of
          the widest hidden layer.
        - `activation`: as for the class.
        - `bias`: `True` for biases in every layer, which start at 0; `"input"` as for the class.
        - `dtype`: by default JAX's default precision.

        **Raises:** `ValueError` for sizes below 1, standard deviations that are negative or not
        finite, or unless exactly one of `std` and `exponent` is given.

        Source: Chen and Luo, eq. (3.3).
        """
        sizes = tuple(sizes)
        if len(sizes) < 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in sizes):
            raise ValueError(
                "Argument `sizes` must be inputs, hidden widths and outputs, three positive whole "
                f"numbers or more, but is {sizes}."
            )
        if (std is None) == (exponent is None):
            raise ValueError("Give one of `std` and `exponent`.")
        depth, dtype = len(sizes) - 1, jnp.result_type(float) if dtype is None else dtype
        if exponent is not None:
            std = float(max(sizes[1:-1])) ** -exponent
        deviations = jnp.asarray(std, dtype)
        if deviations.shape not in ((), (depth,)):
            raise ValueError(
                f"Argument `std` must be a number or {depth}, one for each layer, but has shape "
                f"{deviations.shape}."
            )
        if not isinstance(deviations, Tracer) and not bool(
            jnp.all((deviations >= 0) & jnp.isfinite(deviations))
        ):
            raise ValueError(f"Argument `std` must be finite and not negative, but is {std}.")
        columns = (sizes[0] + (bias == "input"), *sizes[1:-1])
        weights = [
            deviation * jax.random.normal(k, (rows, n), dtype)
            for deviation, k, rows, n in zip(
                jnp.broadcast_to(deviations, (depth,)),
                jax.random.split(key, depth),
                sizes[1:],
                columns,
                strict=True,
            )
        ]
        if bias is True:
            biases = tuple(jnp.zeros((rows,), dtype) for rows in sizes[1:])
            return cls(weights, biases, activation)
        return cls(weights, activation=activation, bias=bias)

    @property
    def depth(self) -> int:
        """The number of layers $L$."""
        return len(self.weights)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs (without the constant of a bias), widths of the hidden layers, outputs."""
        return self.num_inputs, *(weights.shape[-2] for weights in self.weights)

    @property
    def num_inputs(self) -> int:
        """Length of an input, without the constant of a bias."""
        return self.weights[0].shape[-1] - (self.bias == "input")

    @property
    def num_outputs(self) -> int:
        """Length of an output."""
        return self.weights[-1].shape[-2]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; `()` for a single network."""
        return self.weights[0].shape[:-2]

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the weights."""
        return self.weights[0].dtype

    @property
    def product(self) -> Float[Array, "*batch outputs features"]:
        r"""The matrix $W_L\cdots W_1$, the map of a linear network without biases."""
        return reduce(lambda product, weights: weights @ product, self.weights)

    def features(self, x: Float[Array, " inputs"]) -> Float[Array, " features"]:
        """One input of the first layer, with a constant 1 appended for `bias`."""
        return jnp.append(x, jnp.ones((), x.dtype)) if self.bias else x

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """The output for one input."""
        return self.many(x[None])[0]

    def many(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """The outputs for many inputs, equal to `jax.vmap(network)`.

        Written out, since products with the samples as rows are about 5 % faster on a CPU.
        """
        if self.bias:
            x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)
        for layer in range(self.depth - 1):
            x = self.activation(self._affine(layer, x))
        return self._affine(self.depth - 1, x)

    def _affine(self, layer: int, h: Array) -> Array:
        """The output of a layer before its activation."""
        z = h @ self.weights[layer].T
        return z if self.biases is None else z + self.biases[layer][None]

    def replace(self, weights: Sequence[Array], biases: Sequence[Array] | None = None) -> "MLP":
        """The network with other weights, and optionally other biases."""
        biases = self.biases if biases is None else biases
        return MLP(weights, biases, self.activation, bias=self.bias)


def slope_at_zero(activation: Activation) -> float:
    r"""$\sigma'(0)$, which scales the time of the effective model.

    **Raises:** `ValueError` if it is zero or does not exist, so that the effective model does not
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
