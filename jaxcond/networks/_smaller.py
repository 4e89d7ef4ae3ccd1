r"""A smaller linear network that trains like a given one.

The squared loss of a linear network is a quadratic function of $M = W_L\cdots W_1$ alone,

$$R = R_\mathrm{min} + \tfrac12\operatorname{tr}\bigl((M - M_*)H(M - M_*)^T\bigr), \qquad
  H = \tfrac{2\kappa}n\sum_i x_ix_i^T, \quad M_*H = V .$$

*Ends.* Let the rows of $P^T$ and $Q^T$ be orthonormal and span the directions of the outputs and
the inputs in which there is something to learn. If $H = hI$ on the other inputs, a rotation among
them makes $W_1Q_\perp$ a triangle with no more columns than $W_1$ has rows; the same holds for the
other outputs. This is exact, for flow and for descent. It applies if $H = hI$ on all inputs (all
entries of a matrix, whitened inputs), with the singular vectors of $V$ as $P$ and $Q$, and if $Q$
spans all samples, so that $h = 0$.

*Hidden layers.* $W_1Q$ and $W_L^TP$ generate a space under multiplication by the layers between
them and their transposes. The layers leave this space only by contributions of $Q_\perp$ and
$P_\perp$, which are of relative order $\varepsilon^2$ in the weights and change the loss by their
square. For two layers the dimension of the space is that of $P$ and $Q$ together. For more layers
the space is cut off after some multiplications, with an error that falls superexponentially with
their number at three layers. If the space fills the layer, nothing is cut off.

For masks and other measurements $P$ and $Q$ span everything, and only hidden layers wider than
inputs and outputs together can be reduced.

Derived here; for three layers the spaces are those of `jaxcond._reduction`.
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

# Number of multiplications by the layers between the ends, by depth. With three target directions
# at width 60, the cut-off moved the times of the steps by up to 3e-6 at three layers, 4e-4 at four
# and 2e-3 at five (`benchmarks/steps.py --part spaces`).
_ROUNDS, _MORE_ROUNDS = {2: 1, 3: 9}, 7
# A remainder below this share of a vector counts as rounding.
_ROUNDING = 1e-10


class AbstractProblem(eqx.Module):
    """A loss of the product of the layers.

    - `rank`: number of singular values that are followed; `settled`: the value of `left` at which
      all their steps are done.
    """

    rank: int = eqx.field(static=True)
    settled: Float[Array, ""]

    @abc.abstractmethod
    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """The loss of a product."""

    @abc.abstractmethod
    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """The remaining fall of the loss by the steps that are followed."""

    @abc.abstractmethod
    def final(self) -> np.ndarray | None:
        """The final singular values of the product, if they are known beforehand."""


class Quadratic(AbstractProblem):
    r"""$R_\mathrm{min} + \frac12\operatorname{tr}((M-M_*)\operatorname{diag}(h)(M-M_*)^T)$.

    The first rows are those of the steps, in order. The initial entries in the other rows are small
    and shrink slowly.
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
    """Measurements of a matrix, such as some of its entries."""

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

    - `weights`: one matrix per layer; `problem`: their loss.
    - `followed`: the numbers of first outputs and inputs that the hidden layers represent.
    - `last`: the numbers of units of the first and the last hidden layer from the last
      multiplication; 0 if nothing is cut off.
    """

    weights: tuple[Float[Array, "..."], ...]
    problem: AbstractProblem
    followed: tuple[int, int] = eqx.field(static=True)
    last: tuple[int, int] = eqx.field(static=True)


class Ends(eqx.Module):
    r"""The directions at either end, one per row, and the loss in them.

    `target` is $M_*$ in these directions, `metric` is $h$ for the inputs kept and `rest` for the
    others; `inputs` is the number of first inputs; `heights` are the falls of the loss in each
    step.
    """

    left: Float[np.ndarray, "p outputs"]
    right: Float[np.ndarray, "q features"]
    target: Float[np.ndarray, "p q"]
    metric: Float[np.ndarray, " q"]
    rest: float
    inputs: int
    heights: Float[np.ndarray, " p"]


def _ends(network: MLP, data: AbstractData, loss: Squared, gram: np.ndarray, rank: int) -> Ends:
    """The ends for samples, or for all entries of a matrix."""
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

    **Arguments:** `rank`: number of singular values to follow, by default all in which there is
    something to learn; `shares`: the shares of the height of the last step, and of the whole loss
    if heights are not known beforehand, at which the steps count as done.

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
    """The smaller weights, and the numbers of last directions of the outer hidden layers."""
    left, right = ends
    first, *middle, last = (np.asarray(w, np.float64) for w in network.weights)
    p, q = followed
    bases, new = _spaces([first @ right[:q].T, *middle, left[:p] @ last])
    middle = [bases[i + 1] @ w @ bases[i].T for i, w in enumerate(middle)]
    first, last = bases[0] @ first, last @ bases[-1].T
    inner, outer = [first @ right.T], [left @ last]
    # The parts of the ends outside these directions, rotated to a triangle.
    if len(right) < right.shape[1]:
        inner.append(_triangle((first - inner[0] @ right).T).T)
    if len(left) < left.shape[1]:
        outer.append(_triangle(last - left.T @ outer[0]))
    matrices = (np.hstack(inner), *middle, np.vstack(outer))
    return tuple(jnp.asarray(w, network.dtype) for w in matrices), new


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """A matrix whose rows are rotated into as few as possible."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _spaces(layers: Sequence[np.ndarray]) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Orthonormal bases of the spaces of the hidden layers, one vector per row.

    Also the numbers of directions that the last multiplication added to the first and the last of
    them; 0 if the space is complete.
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
    """An orthonormal basis of the parts of some rows outside a basis."""
    size = np.max(np.linalg.norm(rows, axis=1), initial=0.0)
    rows = rows - (rows @ basis.T) @ basis
    _, values, rows = np.linalg.svd(rows, full_matrices=False)
    rows = rows[values > _ROUNDING * size]
    # Repeated, since small remainders are not orthogonal to the basis to working precision.
    rows = rows - (rows @ basis.T) @ basis
    return np.linalg.qr(rows.T)[0].T
