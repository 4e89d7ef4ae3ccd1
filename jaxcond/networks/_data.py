r"""Training data: samples, or measurements of a matrix.

$$R = \frac1n \sum_{i=1}^n \ell(f_i, y_i),$$

where $f_i$ is $f(x_i)$, or $\langle W_L\cdots W_1, X_i\rangle$ for a linear network that factorises
a matrix. On the plateau only one matrix of the data matters, $V = \frac1n\sum_i g_i x_i^T$, or
$\frac1n\sum_i g_i X_i$, with the pulls $g_i = -\partial\ell(0, y_i)/\partial f$.

Source: Chen and Luo, eqs. (3.2), (3.7), (A.1).
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Integer, PRNGKeyArray

from ._losses import Loss, LossFunction, Squared, resolve_loss
from ._modules import MLP, linear


def _finite(name: str, value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if not isinstance(array, Tracer):
        bad = int(jnp.sum(~jnp.isfinite(array)))
        if bad:
            raise ValueError(
                f"Argument `{name}` must be finite, but holds {bad} entries that are not."
            )
    return array


class AbstractData(eqx.Module):
    """Training data of a network."""

    @property
    @abc.abstractmethod
    def num_samples(self) -> int | Array:
        """The number $n$ that the loss divides by."""

    @property
    @abc.abstractmethod
    def targets(self) -> Array:
        """The target outputs."""

    @abc.abstractmethod
    def prepared(self, network: MLP, loss: Loss) -> "AbstractData":
        """The data in the dtype of a network, with the targets in the form that the loss takes.

        **Raises:** `ValueError` if network, data and loss do not fit together.
        """

    @abc.abstractmethod
    def predict(self, network: MLP) -> Array:
        """Outputs of one network, of the shape of `targets`."""

    @abc.abstractmethod
    def predict_linear(self, matrix: Float[Array, "outputs features"], bias: bool | str) -> Array:
        r"""Outputs of the linear map $x \mapsto Mx$."""

    @abc.abstractmethod
    def moment(self, pull: np.ndarray, bias: bool | str) -> np.ndarray:
        r"""The matrix $V$, shape `(outputs, features)`, on the host in double precision."""

    @abc.abstractmethod
    def moment_scale(self, pull: np.ndarray, bias: bool | str) -> float:
        r"""The norm that $V$ would have if all samples pulled in the same direction."""

    @abc.abstractmethod
    def input_power(self, bias: bool | str) -> float:
        r"""The mean of $\|x_i\|^2$.

        It bounds the curvature of the loss of linear maps, in units of that of $\ell$.
        """

    @abc.abstractmethod
    def gram(self, bias: bool | str) -> np.ndarray | None:
        r"""$\frac1n\sum_i x_ix_i^T$, on the host in double precision, or `None`.

        It is the curvature of a squared loss of $x \mapsto Mx$ in each row of $M$. It exists for
        samples and for all entries of a matrix, but not for a part of the entries.
        """

    @abc.abstractmethod
    def take(self, indices: Integer[Array, " batch"]) -> "AbstractData":
        """Some of the samples, as a minibatch."""

    def loss_of(self, outputs: Array, loss: Loss) -> Float[Array, ""]:
        r"""$\frac1n\sum_i\ell(f_i, y_i)$ of given outputs."""
        return loss.total(outputs, self.targets) / self.num_samples

    def loss(
        self, network: MLP, loss: str | float | LossFunction | Loss = "half_mse"
    ) -> Float[Array, ""]:
        """The loss of one network on `prepared` data; `loss` as for `resolve_loss`."""
        return self.loss_of(self.predict(network), resolve_loss(loss))

    def astype(self, dtype: jnp.dtype) -> "AbstractData":
        """The same data in another floating dtype."""
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, self
        )


def check_trainable(network: object, data: object) -> None:
    """Check the types of a network and its data.

    **Raises:** `ValueError` for other types; the message says what to give instead.
    """
    if not isinstance(network, MLP):
        advice = ""
        if isinstance(network, eqx.Module):
            advice = (
                ": `from_arrays` takes the weights of an `eqx.nn.MLP`, and `predict_escape_of` any "
                "module"
            )
        kind = f"{type(network).__module__}.{type(network).__name__}"
        raise ValueError(
            "Argument `network` must be an `MLP` of jaxcond.networks, but is of type "
            f"{kind}{advice}."
        )
    if network.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"Networks are trained in float32 or float64, but this one has dtype {network.dtype}."
        )
    if not isinstance(data, AbstractData):
        advice = ""
        if hasattr(data, "__next__"):
            advice = (
                ": batches of an iterator go into `batches` of `gradient_descent`, and `data` are "
                "samples to look at"
            )
        raise ValueError(
            "Argument `data` must be `Regression`, `Entries` or `Sensing`, but is of type "
            f"{type(data).__name__}{advice}."
        )


class Regression(AbstractData):
    r"""Samples $(x_i, y_i)$.

    **Arguments:** `x` of shape `(n, inputs)` or `(n,)`; `y` of shape `(n, outputs)` or `(n,)`.

    **Raises:** `ValueError` for shapes that do not fit, no samples, or entries that are not finite.
    """

    x: Float[Array, "n inputs"]
    y: Float[Array, "n outputs"]

    def __init__(self, x: ArrayLike, y: ArrayLike):
        arrays = [_finite(name, value) for name, value in (("x", x), ("y", y))]
        dtype = jnp.result_type(*arrays)
        self.x, self.y = ((v[:, None] if v.ndim == 1 else v).astype(dtype) for v in arrays)

    def __check_init__(self):
        x, y = self.x.shape, self.y.shape
        if len(x) != 2 or len(y) != 2 or x[0] != y[0] or 0 in (*x, *y):
            raise ValueError(
                f"Arguments `x` (n, inputs) and `y` (n, outputs) do not fit: they have shapes {x} "
                f"and {y}."
            )

    @property
    def num_samples(self) -> int:
        return self.x.shape[0]

    @property
    def targets(self) -> Array:
        return self.y

    def prepared(self, network: MLP, loss: Loss) -> "Regression":
        if network.num_inputs != self.x.shape[1]:
            raise ValueError(
                f"The network has {network.num_inputs} inputs, but the data have {self.x.shape[1]}."
            )
        targets = loss.targets(self.y, network.num_outputs)
        return eqx.tree_at(lambda data: data.y, self, targets).astype(network.dtype)

    def predict(self, network: MLP) -> Array:
        return network.many(self.x)

    def _features(self, bias: bool | str) -> Array:
        return jnp.pad(self.x, ((0, 0), (0, int(bool(bias)))), constant_values=1)

    def predict_linear(self, matrix: Float[Array, "outputs features"], bias: bool | str) -> Array:
        return self._features(bias) @ matrix.T

    def moment(self, pull: np.ndarray, bias: bool | str) -> np.ndarray:
        return pull.T @ np.asarray(self._features(bias), np.float64) / self.num_samples

    def moment_scale(self, pull: np.ndarray, bias: bool | str) -> float:
        x = np.asarray(self._features(bias), np.float64)
        return float(np.mean(np.linalg.norm(x, axis=1) * np.linalg.norm(pull, axis=1)))

    def input_power(self, bias: bool | str) -> float:
        x = np.asarray(self._features(bias), np.float64)
        return float(np.mean(np.sum(x**2, axis=1)))

    def gram(self, bias: bool | str) -> np.ndarray:
        x = np.asarray(self._features(bias), np.float64)
        return x.T @ x / self.num_samples

    def take(self, indices: Integer[Array, " batch"]) -> "Regression":
        return eqx.tree_at(lambda d: (d.x, d.y), self, (self.x[indices], self.y[indices]))


class _AbstractMeasurements(AbstractData):
    """Measurements of a matrix, for linear networks without bias."""

    @property
    @abc.abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of the matrix."""

    @abc.abstractmethod
    def measure(self, matrix: Array) -> Array:
        """The measurements of a matrix, of the shape of `targets`."""

    def prepared(self, network: MLP, loss: Loss) -> "AbstractData":
        if not isinstance(loss, Squared):
            raise ValueError("Measurements of a matrix need a squared loss.")
        biased = network.bias or network.biases is not None
        if network.activation is not linear or biased:
            raise ValueError(
                "Measurements of a matrix are for linear networks without bias: "
                '`activation="linear"`.'
            )
        shape = (network.num_outputs, network.num_inputs)
        if shape != self.matrix_shape:
            raise ValueError(
                f"The product of the layers has shape {shape}, but the matrix {self.matrix_shape}."
            )
        return self.astype(network.dtype)

    def predict(self, network: MLP) -> Array:
        return self.measure(network.product)

    def predict_linear(self, matrix: Float[Array, "outputs features"], bias: bool | str) -> Array:
        del bias
        return self.measure(matrix)


class Entries(_AbstractMeasurements):
    r"""All entries of a matrix, or those in a mask: $X_i = e_j e_k^T$.

    **Arguments:** `matrix` of shape `(outputs, inputs)`; `mask`, booleans of that shape, true for
    the known entries; by default all are known.

    **Raises:** `ValueError` for shapes that do not fit, known entries that are not finite, or none.
    """

    matrix: Float[Array, "outputs inputs"]
    mask: Float[Array, "outputs inputs"] | None

    def __init__(self, matrix: ArrayLike, mask: ArrayLike | None = None):
        matrix = jnp.asarray(matrix)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"Argument `matrix` must be a matrix, but has shape {matrix.shape}.")
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.dtype != bool or mask.shape != matrix.shape or not bool(jnp.any(mask)):
                raise ValueError(
                    "Argument `mask` must be booleans of the shape of `matrix`, some of them true, "
                    f"but has dtype {mask.dtype} and shape {mask.shape}."
                )
            matrix = jnp.where(mask, matrix, 0)
        self.matrix = _finite("matrix", matrix)
        self.mask = None if mask is None else mask.astype(self.matrix.dtype)

    @property
    def num_samples(self) -> int | Array:
        return self.matrix.size if self.mask is None else jnp.sum(self.mask)

    @property
    def targets(self) -> Array:
        return self.matrix

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def measure(self, matrix: Array) -> Array:
        return matrix if self.mask is None else matrix * self.mask

    def moment(self, pull: np.ndarray, bias: bool | str) -> np.ndarray:
        del bias
        return pull / float(self.num_samples)

    def moment_scale(self, pull: np.ndarray, bias: bool | str) -> float:
        return float(np.mean(np.abs(self.moment(pull, bias))))

    def input_power(self, bias: bool | str) -> float:
        del bias
        return 1 / float(self.num_samples)  # each entry counts once

    def gram(self, bias: bool | str) -> np.ndarray | None:
        del bias
        return np.eye(self.matrix_shape[1]) / self.matrix.size if self.mask is None else None

    def take(self, indices: Integer[Array, " batch"]) -> "Entries":
        raise ValueError("Entries of a matrix are used all at once: there are no minibatches.")


class Sensing(_AbstractMeasurements):
    r"""Linear measurements $y_i = \langle M, X_i\rangle$ of a matrix, as with random $X_i$.

    **Arguments:** `operators` $X_i$ of shape `(n, outputs, inputs)`; `y` of shape `(n,)`.

    **Raises:** `ValueError` for shapes that do not fit, no measurements, or entries that are not
    finite.
    """

    operators: Float[Array, "n outputs inputs"]
    y: Float[Array, " n"]

    @classmethod
    def random(
        cls, matrix: Float[ArrayLike, "outputs inputs"], num: int, *, key: PRNGKeyArray
    ) -> "Sensing":
        r"""Measurements of a matrix by `num` operators with independent standard normal entries.

        **Raises:** `ValueError` for `num` below 1 or a matrix that is not finite.
        """
        if num < 1:
            raise ValueError(f"Argument `num` must be at least 1, but is {num}.")
        known = Entries(matrix).matrix
        operators = jax.random.normal(key, (num, *known.shape), known.dtype)
        return cls(operators, operators.reshape(num, -1) @ known.ravel())

    def __init__(self, operators: ArrayLike, y: ArrayLike):
        arrays = [_finite("operators", operators), _finite("y", y)]
        dtype = jnp.result_type(*arrays)
        self.operators, self.y = (v.astype(dtype) for v in arrays)

    def __check_init__(self):
        operators, y = self.operators.shape, self.y.shape
        if len(operators) != 3 or y != operators[:1] or 0 in operators:
            raise ValueError(
                "Arguments `operators` (n, outputs, inputs) and `y` (n,) do not fit: they have "
                f"shapes {operators} and {y}."
            )

    @property
    def num_samples(self) -> int:
        return self.y.shape[0]

    @property
    def targets(self) -> Array:
        return self.y

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.operators.shape[1], self.operators.shape[2]

    def measure(self, matrix: Array) -> Array:
        return self.operators.reshape(self.num_samples, -1) @ matrix.ravel()

    def moment(self, pull: np.ndarray, bias: bool | str) -> np.ndarray:
        del bias
        return np.tensordot(pull, np.asarray(self.operators, np.float64), 1) / self.num_samples

    def moment_scale(self, pull: np.ndarray, bias: bool | str) -> float:
        del bias
        sizes = np.linalg.norm(np.asarray(self.operators, np.float64), axis=(1, 2))
        return float(np.mean(sizes * np.abs(pull)))

    def input_power(self, bias: bool | str) -> float:
        del bias
        return float(np.mean(np.sum(np.asarray(self.operators, np.float64) ** 2, axis=(1, 2))))

    def gram(self, bias: bool | str) -> None:
        del bias

    def take(self, indices: Integer[Array, " batch"]) -> "Sensing":
        some = (self.operators[indices], self.y[indices])
        return eqx.tree_at(lambda d: (d.operators, d.y), self, some)
