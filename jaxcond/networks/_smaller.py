r"""A smaller linear network that trains as a given one does.

The squared loss of a linear network is a quadratic function of $M = W_L\cdots W_1$ alone,

$$R = R_\mathrm{min} + \tfrac12\operatorname{tr}\bigl((M - M_*)H(M - M_*)^T\bigr), \qquad
  H = \tfrac{2\kappa}n\sum_i x_ix_i^T, \quad M_*H = V .$$

*Ends.* Let the rows of $P^T$ and $Q^T$ be orthonormal and span the directions at the outputs and at
the inputs in which there is something to learn. Where all other inputs are alike, $H = hI$ on them,
they may be rotated among each other, so that $W_1Q_\perp$ becomes a triangle with no more columns
than $W_1$ has rows; so may the other outputs. This is exact, for flow and for descent. All other
inputs are alike where $H = hI$ altogether (all entries of a matrix, whitened inputs), with the
singular vectors of $V$ for $P$ and $Q$, and where $Q$ spans all the samples, so that $h = 0$.

*Hidden layers.* The layers leave the space that $W_1Q$ and $W_L^TP$ span under the layers between
them and their transposes only by what $Q_\perp$ and $P_\perp$ contribute, which is of relative
order $\varepsilon^2$ in the weights and acts on the loss by its square. Of two layers the space has
as many dimensions as $P$ and $Q$ have together; of more layers it is cut off after some
multiplications, with an error that falls superexponentially with their number at three layers.
Nothing is cut off where it fills the layer.

For masks and other measurements no directions stand out: $P$ and $Q$ are everything, and only
hidden layers wider than inputs and outputs together can be made smaller.

Derived here; the spaces are those of `jaxcond._reduction`, which are of three layers.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._data import AbstractData
from ._effective import effective_model
from ._losses import Squared
from ._modules import MLP

# Multiplications by the layers between the ends that are kept, by depth. With three target
# directions at width 60, what is cut off moved the times of the steps by up to 3e-6 at three
# layers, 4e-4 at four and 2e-3 at five (`benchmarks/steps.py --part spaces`).
_ROUNDS, _MORE_ROUNDS = {2: 1, 3: 9}, 7
# Directions of a vector below this share of it are taken for rounding.
_ROUNDING = 1e-10


class AbstractProblem(eqx.Module):
    """A loss of the product of the layers.

    - `rank`: how many singular values are followed; `settled`: what `left` is where all their steps
      are done.
    """

    rank: int = eqx.field(static=True)
    settled: Float[Array, ""]

    @abc.abstractmethod
    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """The loss of a product."""

    @abc.abstractmethod
    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """How much the loss is still to fall by the steps that are followed."""

    @abc.abstractmethod
    def final(self) -> np.ndarray | None:
        """The singular values that the product ends with, where they are known beforehand."""


class Quadratic(AbstractProblem):
    r"""$R_\mathrm{min} + \frac12\operatorname{tr}((M-M_*)\operatorname{diag}(h)(M-M_*)^T)$.

    The first rows are those of the steps, in their order. What the initial weights put in the
    others shrinks as slowly as it is small.
    """

    target: Float[Array, "outputs inputs"]
    metric: Float[Array, " inputs"]
    least: Float[Array, ""]

    def _above(self, matrix: Array) -> Array:
        return 0.5 * (matrix - self.target) ** 2 * self.metric[None]

    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        return self.least + jnp.sum(self._above(matrix))

    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        return jnp.sum(self._above(matrix)[: self.rank])

    def final(self) -> np.ndarray:
        return np.linalg.svd(np.asarray(self.target), compute_uv=False)[: self.rank]


class Measured(AbstractProblem):
    """Measurements of a matrix, some of its entries for one."""

    data: AbstractData
    sample_loss: Squared = eqx.field(static=True)

    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        return self.data.loss_of(self.data.predict_linear(matrix, False), self.sample_loss)

    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        return self.loss(matrix)

    def final(self) -> None:
        return None


class Smaller(eqx.Module):
    """The smaller network and its loss.

    - `weights`: one matrix a layer; `problem`: their loss.
    - `followed`: how many outputs and inputs, the first ones, the hidden layers are made for.
    - `last`: how many units of the first and the last hidden layer come from the last
      multiplication; 0 where nothing is cut off.
    """

    weights: tuple[Float[Array, "..."], ...]
    problem: AbstractProblem
    followed: tuple[int, int] = eqx.field(static=True)
    last: tuple[int, int] = eqx.field(static=True)


class Ends(eqx.Module):
    r"""The directions at either end, one a row, and the loss in them.

    `target` is $M_*$ in them, `metric` is $h$ of the inputs kept, `rest` of all others; `inputs`,
    how many of the inputs come first; `heights`, by how much each step lowers the loss.
    """

    left: Float[np.ndarray, "p outputs"]
    right: Float[np.ndarray, "q features"]
    target: Float[np.ndarray, "p q"]
    metric: Float[np.ndarray, " q"]
    rest: float
    inputs: int
    heights: Float[np.ndarray, " p"]


def _ends(network: MLP, data: AbstractData, loss: Squared, gram: np.ndarray, rank: int) -> Ends:
    """The ends of data that are samples, or all entries of a matrix."""
    model = effective_model(network, data, loss)
    left, right = (np.asarray(x, np.float64) for x in (model.left, model.right))
    strength = float(model.rate) * np.asarray(model.strength, np.float64)
    values, vectors = np.linalg.eigh(2 * loss.factor * gram)
    negligible = float(jnp.finfo(network.dtype).eps) ** (2 / 3) * values[-1]
    if values[-1] - values[0] <= negligible:
        metric, rest = np.full(len(right), values[-1]), float(values[-1])
        target, heights = np.diag(strength / metric), 0.5 * strength**2 / metric
        return Ends(left, right, target, metric, rest, min(rank, len(right)), heights)
    metric, seen = values[values > negligible], vectors[:, values > negligible].T
    # Steps are those of the least squares solution in the metric of the samples.
    moment = (strength[:, None] * (right @ seen.T)) / np.sqrt(metric)
    turned, heights, moment = np.linalg.svd(moment, full_matrices=False)
    target = heights[:, None] * moment / np.sqrt(metric)
    return Ends(turned.T @ left, seen, target, metric, 0.0, len(seen), 0.5 * heights**2)


def smaller(
    network: MLP, data: AbstractData, loss: Squared, rank: int | None, shares: tuple[float, float]
) -> Smaller:
    """The smaller network of one linear network; `data` as prepared for it.

    **Arguments:** `rank`: how many singular values are followed, by default all in which there is
    something to learn; `shares`: of the height of the last step, and of the whole loss where
    heights are not known beforehand, that may be left where the steps are done.

    **Raises:** `ValueError` as `effective_model`.
    """
    outputs, inputs = network.num_outputs, network.weights[0].shape[1]
    rank = min(rank or outputs, outputs, inputs)
    whole = data.loss_of(jnp.zeros_like(data.targets), loss)
    gram = data.gram(network.bias)
    if gram is None:
        problem = Measured(rank, shares[1] * whole, data, loss)
        everything = np.eye(outputs), np.eye(inputs)
        weights, last = _reduced(network, everything, (outputs, inputs))
        return Smaller(weights, problem, (outputs, inputs), last)
    ends = _ends(network, data, loss, gram, rank)
    rank = min(rank, len(ends.heights))
    followed = rank, ends.inputs
    weights, last = _reduced(network, (ends.left, ends.right), followed)
    (p, q), dtype = ends.target.shape, network.dtype
    target = np.zeros((weights[-1].shape[0], weights[0].shape[1]))
    target[:p, :q] = ends.target
    metric = np.full(target.shape[1], ends.rest)
    metric[:q] = ends.metric
    problem = Quadratic(
        rank=rank,
        settled=jnp.asarray(shares[0] * ends.heights[rank - 1], dtype),
        target=jnp.asarray(target, dtype),
        metric=jnp.asarray(metric, dtype),
        least=jnp.maximum(whole - float(np.sum(ends.heights)), 0),
    )
    return Smaller(weights, problem, followed, last)


def _reduced(
    network: MLP, ends: tuple[np.ndarray, np.ndarray], followed: tuple[int, int]
) -> tuple[tuple[Array, ...], tuple[int, int]]:
    """The smaller weights, and how many directions of the outer hidden layers came last."""
    left, right = ends
    first, *middle, last = (np.asarray(w, np.float64) for w in network.weights)
    p, q = followed
    bases, new = _spaces([first @ right[:q].T, *middle, left[:p] @ last])
    middle = [bases[i + 1] @ w @ bases[i].T for i, w in enumerate(middle)]
    first, last = bases[0] @ first, last @ bases[-1].T
    inner, outer = [first @ right.T], [left @ last]
    # What the ends have beside these directions, rotated to a triangle.
    if len(right) < right.shape[1]:
        inner.append(_triangle((first - inner[0] @ right).T).T)
    if len(left) < left.shape[1]:
        outer.append(_triangle(last - left.T @ outer[0]))
    matrices = (np.hstack(inner), *middle, np.vstack(outer))
    return tuple(jnp.asarray(w, network.dtype) for w in matrices), new


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """What is left of a matrix when its rows are rotated to as few as possible."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _spaces(layers: Sequence[np.ndarray]) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Orthonormal bases of the spaces of the hidden layers, one vector a row.

    With them, how many directions of the first and the last of these came last; 0 where the space
    is whole.
    """
    first, *middle, last = layers
    bases = [np.zeros((0, len(w))) for w in layers[:-1]]
    new = [x.copy() for x in bases]
    new[0] = first.T
    new[-1] = np.vstack([new[-1], last])
    latest = new
    for _ in range(_ROUNDS.get(len(layers), _MORE_ROUNDS)):
        new = [_beside(basis, x) for basis, x in zip(bases, new, strict=True)]
        bases = [np.vstack(pair) for pair in zip(bases, new, strict=True)]
        latest, new = new, [x[:0] for x in new]
        for i, w in enumerate(middle):
            new[i] = np.vstack([new[i], latest[i + 1] @ w])
            new[i + 1] = np.vstack([new[i + 1], latest[i] @ w.T])
    counts = [
        len(x) if len(basis) < basis.shape[1] and middle else 0
        for basis, x in zip(bases, latest, strict=True)
    ]
    return bases, (counts[0], counts[-1])


def _beside(basis: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what some rows have outside of a basis."""
    size = np.max(np.linalg.norm(rows, axis=1), initial=0.0)
    rows = rows - (rows @ basis.T) @ basis
    _, values, rows = np.linalg.svd(rows, full_matrices=False)
    rows = rows[values > _ROUNDING * size]
    # Again, since small remainders are not orthogonal to the basis to working precision.
    rows = rows - (rows @ basis.T) @ basis
    return np.linalg.qr(rows.T)[0].T
