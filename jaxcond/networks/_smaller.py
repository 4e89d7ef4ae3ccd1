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

# Multiplications by the layers between the ends that are kept, by depth. Measured on three target
# directions, widths 40 to 60: times of the steps to 5e-6 at three layers, 2e-4 at four and 1e-3 at
# five.
_ROUNDS, _MORE_ROUNDS = {2: 1, 3: 9}, 7
# Directions of a vector below this share of it are taken for rounding.
_ROUNDING = 1e-10


class AbstractProblem(eqx.Module):
    """A loss of the product of the layers.

    - `rank`: how many singular values are followed; `settled`: what `left` is where all steps are
      done; `kept`: the shape of the part of $M$ that lies in the target directions.
    """

    rank: int = eqx.field(static=True)
    kept: tuple[int, int] = eqx.field(static=True)
    settled: Float[Array, ""]

    @abc.abstractmethod
    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """The loss of a product."""

    @abc.abstractmethod
    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        """What of the loss is still to fall, but for what only the initial weights put there."""

    @abc.abstractmethod
    def final(self) -> np.ndarray | None:
        """The singular values that the product ends with, where they are known beforehand."""


class Quadratic(AbstractProblem):
    r"""$R_\mathrm{min} + \frac12\operatorname{tr}((M-M_*)\operatorname{diag}(h)(M-M_*)^T)$.

    What of $M$ is not `kept` shrinks as slowly as it is small.
    """

    target: Float[Array, "outputs inputs"]
    metric: Float[Array, " inputs"]
    least: Float[Array, ""]

    def _above(self, matrix: Array) -> Array:
        return 0.5 * (matrix - self.target) ** 2 * self.metric[None]

    def loss(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        return self.least + jnp.sum(self._above(matrix))

    def left(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, ""]:
        p, q = self.kept
        return jnp.sum(self._above(matrix)[:p, :q])

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
    - `last`: for the first and the last layer, how many of their hidden units come from the last
      multiplication, so that there would be more; 0 where nothing is cut off.
    """

    weights: tuple[Float[Array, "..."], ...]
    problem: AbstractProblem
    last: tuple[int, int] = eqx.field(static=True)


class Ends(eqx.Module):
    """The directions at either end, one a row, and the loss in them.

    `metric` is $h$ of the inputs kept, `rest` of all others.
    """

    left: Float[np.ndarray, "p outputs"]
    right: Float[np.ndarray, "q features"]
    moment: Float[np.ndarray, "p q"]
    metric: Float[np.ndarray, " q"]
    rest: float


def _ends(
    network: MLP, data: AbstractData, loss: Squared, gram: np.ndarray, rank: int | None
) -> Ends:
    """The ends of data that are samples, or all entries of a matrix."""
    model = effective_model(network, data, loss)
    left, right = (np.asarray(x, np.float64) for x in (model.left, model.right))
    strength = float(model.rate) * np.asarray(model.strength, np.float64)
    values, vectors = np.linalg.eigh(2 * loss.factor * gram)
    negligible = float(jnp.finfo(network.dtype).eps) ** (2 / 3) * values[-1]
    if values[-1] - values[0] <= negligible:
        left, right, strength = left[:rank], right[:rank], strength[:rank]
        metric = np.full(len(right), values[-1])
        return Ends(left, right, np.diag(strength), metric, float(values[-1]))
    seen = vectors[:, values > negligible].T
    moment = strength[:, None] * (right @ seen.T)
    return Ends(left, seen, moment, values[values > negligible], 0.0)


def smaller(
    network: MLP, data: AbstractData, loss: Squared, rank: int | None, share: float
) -> Smaller:
    """The smaller network of one linear network; `data` as prepared for it.

    **Arguments:** `rank`: how many singular values are followed, by default all in which there is
    something to learn; `share`: of the height of the last step, or of the whole loss where heights
    are not known beforehand, that may be left where the steps are done.

    **Raises:** `ValueError` as `effective_model`.
    """
    gram = data.gram(network.bias)
    if gram is None:
        outputs, inputs = network.num_outputs, network.num_inputs
        whole = data.loss_of(jnp.zeros_like(data.targets), loss)
        most = min(rank or outputs, outputs, inputs)
        problem = Measured(most, (outputs, inputs), share * whole, data, loss)
        weights, last = _reduced(network, np.eye(outputs), np.eye(inputs))
        return Smaller(weights, problem, last)
    ends = _ends(network, data, loss, gram, rank)
    weights, last = _reduced(network, ends.left, ends.right)
    shape = weights[-1].shape[0], weights[0].shape[1]
    return Smaller(weights, _quadratic(ends, data, loss, rank, share, shape), last)


def _quadratic(
    ends: Ends,
    data: AbstractData,
    loss: Squared,
    rank: int | None,
    share: float,
    shape: tuple[int, int],
) -> Quadratic:
    heights = 0.5 * np.linalg.svd(ends.moment / np.sqrt(ends.metric), compute_uv=False) ** 2
    rank = min(rank or len(heights), len(heights))
    whole = float(data.loss_of(jnp.zeros_like(data.targets), loss))
    least = max(whole - float(np.sum(heights)), 0.0)
    (p, q), dtype = ends.moment.shape, data.targets.dtype
    target = np.pad(ends.moment / ends.metric, ((0, shape[0] - p), (0, shape[1] - q)))
    metric = np.pad(ends.metric, (0, shape[1] - q), constant_values=ends.rest)
    settled = float(np.sum(heights[rank:])) + share * heights[rank - 1]
    settled, target, metric, least = (
        jnp.asarray(x, dtype) for x in (settled, target, metric, least)
    )
    return Quadratic(
        rank=rank, settled=settled, target=target, metric=metric, least=least, kept=(p, q)
    )


def _reduced(
    network: MLP, left: np.ndarray, right: np.ndarray
) -> tuple[tuple[Array, ...], tuple[int, int]]:
    """The smaller weights, and how many directions of the outer hidden layers came last."""
    first, *middle, last = (np.asarray(w, np.float64) for w in network.weights)
    bases, new = _spaces([first @ right.T, *middle, left @ last])
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
