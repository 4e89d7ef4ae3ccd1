"""Rest proven by exact arithmetic: floating-point numbers are fractions."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Vector = list[Fraction]
_NEARLY = 1e-9


def _fractions(array: Any) -> list[Vector]:
    return [[Fraction(float(x)) for x in row] for row in np.atleast_2d(array)]


def _times(matrix: Sequence[Vector], vector: Vector) -> Vector:
    return [
        sum((x * y for x, y in zip(row, vector, strict=True) if x and y), Fraction(0))
        for row in matrix
    ]


def _transposed(matrix: Sequence[Vector]) -> list[Vector]:
    return [list(column) for column in zip(*matrix, strict=True)]


def _square(vector: Vector) -> Fraction:
    return sum((x * x for x in vector), Fraction(0))


def _parallel(x: Vector, y: Vector) -> bool:
    i = next((i for i, entry in enumerate(y) if entry), None)
    return i is None or all(entry * y[i] == x[i] * other for entry, other in zip(x, y, strict=True))


def chain_rests(layers: Sequence[Any], strength: float) -> bool:
    r"""Whether the flow of $E = \lambda W_L\cdots W_1$ provably comes to rest.

    With $x_0 = 1$ and $x_l = W_l x_{l-1}$, layers are aligned if every $W_l^T x_l$ is parallel to
    $x_{l-1}$. The flow keeps them aligned and moves $w_l = \pm|x_l|/|x_{l-1}|$ as scalar layers.
    All $w_l^2$ fall by the same amount as long as $E < 0$, and never vanish if the two smallest are
    equal. The flow is at rest if every $\partial E/\partial W_l$ is zero.

    **Arguments:** finite floating layers of shapes `(n_l, n_{l-1})`, the one next to the input
    first, with $n_0 = n_L = 1$.
    """
    if not strength or not _nearly_rests(layers):
        return not strength
    matrices = [_fractions(layer) for layer in layers]
    forward: list[Vector] = [[Fraction(1)]]
    for matrix in matrices:
        forward.append(_times(matrix, forward[-1]))
    backward: list[Vector] = [[Fraction(1)]]
    for matrix in reversed(matrices):
        backward.insert(0, _times(_transposed(matrix), backward[0]))
    # The gradient with respect to layer i + 1 is backward[i + 1] times forward[i].
    numbers = range(len(matrices))
    if all(not any(backward[i + 1]) or not any(forward[i]) for i in numbers):
        return True
    if forward[-1][0] * Fraction(float(strength)) >= 0:
        return False
    images = (_times(_transposed(matrices[i]), forward[i + 1]) for i in numbers)
    if not all(_parallel(image, forward[i]) for i, image in enumerate(images)):
        return False
    squares = sorted(_square(forward[i + 1]) / _square(forward[i]) for i in numbers)
    return squares[0] == squares[1]


def _nearly_rests(layers: Sequence[Any]) -> bool:
    """Whether exact arithmetic is worthwhile, decided in floating point with a wide margin."""
    with np.errstate(all="ignore"):
        x, sizes = np.ones(1), []
        for layer in (np.atleast_2d(np.asarray(layer, float)) for layer in layers):
            layer = layer / (np.max(np.abs(layer)) or 1)
            image = layer @ x
            size = np.linalg.norm(image)
            if size <= _NEARLY:
                return True
            back = layer.T @ image
            bent = np.linalg.norm(back - x * (x @ back))
            if bent > _NEARLY * np.linalg.norm(back):
                return False
            x = image / size
            sizes.append(size)
    return True


def may_rest(a: Any, b: Any, c: Any, strength: Any) -> np.ndarray:
    """Which states of a batch may rest, decided in floating point; `state_rests` proves it."""
    with np.errstate(all="ignore"):
        a, b, c = (np.asarray(x, float) for x in (a, b, c))
        scales = [np.max(np.abs(x), axis=(1, 2), keepdims=True) for x in (a, b, c)]
        a, b, c = (x / np.where(s > 0, s, 1) for x, s in zip((a, b, c), scales, strict=True))
        weights = np.sign(strength)[:, :, None]
        onto_a, onto_c = weights * (c @ np.swapaxes(b, 1, 2)), weights * (a @ b)
        still = np.max(np.abs(onto_a), (1, 2)) + np.max(np.abs(onto_c), (1, 2)) <= _NEARLY
        if a.shape[1] > 1:
            return still

        def bent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            x, y = x[:, 0], y[:, 0]
            sizes = [np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
            x, y = (z / np.where(n > 0, n, 1) for z, n in zip((x, y), sizes, strict=True))
            return np.linalg.norm(x - y * np.sum(x * y, 1, keepdims=True), axis=1)

        return still | (bent(onto_a, a) + bent(onto_c, c) <= _NEARLY) | ~np.any(strength, 1)


def state_rests(a: Any, b: Any, c: Any, strength: Any) -> bool:
    """Whether a state rests: by `chain_rests` at rank 1, by zero velocity at any rank."""
    arrays = [np.asarray(x, float) for x in (a, b, c, strength)]
    if not all(np.all(np.isfinite(x)) for x in arrays):
        return False
    a, b, c, strength = arrays
    if strength.size == 1:
        return chain_rests((c.reshape(-1, 1), b, a.reshape(1, -1)), float(strength[0]))
    if np.any(np.abs(strength[:, None] * (c @ b.T)) > _NEARLY * np.max(np.abs(b) + 1)):
        return False
    weights, left, middle, right = (
        [Fraction(float(x)) for x in strength],
        *map(_fractions, (a, b, c)),
    )
    components = range(len(weights))
    moved = any(any(_times(middle, right[i])) for i in components if weights[i])
    moved |= any(any(_times(_transposed(middle), left[i])) for i in components if weights[i])
    pairs = ((j, k) for j in range(b.shape[0]) for k in range(b.shape[1]))
    return not moved and not any(
        sum((weights[i] * left[i][j] * right[i][k] for i in components), Fraction(0))
        for j, k in pairs
    )
