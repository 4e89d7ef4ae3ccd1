"""States that are hard to solve, for checks of errors, brackets and statuses.

They are drawn by Python's `random`, whose numbers are the same on every machine and in every
version, so that their blow-up times can be tabulated.
"""

import random
from collections.abc import Callable

import numpy as np

from .._chain import Chain
from .._state import State

# A state of rank 1 as (a, b, c), one of higher rank with its strengths, or a chain of matrices.
Layers = tuple[np.ndarray, ...]


def _array(rng: random.Random, *shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return np.array([2 * rng.random() - 1 for _ in range(count)]).reshape(shape)


def _widths(rng: random.Random, least: int = 1) -> tuple[int, int]:
    return rng.randint(least, 4), rng.randint(least, 4)


def _random(rng: random.Random) -> Layers:
    p, q = _widths(rng)
    return _array(rng, p), _array(rng, p, q), _array(rng, q)


def _near_rest(rng: random.Random) -> Layers:
    """An aligned state that comes to rest, and noise of a size from 1e-1 to 1e-14."""
    p, q = _widths(rng)
    equal, larger = 0.5 + rng.random(), 1.5 + rng.random()
    sizes = [equal, equal, rng.choice((equal, larger))]
    rng.shuffle(sizes)
    distance = 10 ** -rng.uniform(1, 14)
    a, b, c = (distance * _array(rng, *shape) for shape in ((p,), (p, q), (q,)))
    if rng.random() < 0.3:
        # The part of b outside the aligned directions does not matter at rest.
        b[1:, 1:] += _array(rng, p - 1, q - 1)
    a[0] += sizes[0]
    b[0, 0] += sizes[1]
    c[0] -= sizes[2]
    return a, b, c


def _unequal(rng: random.Random) -> Layers:
    """Layers of scales from 1e-8 to 1e8."""
    p, q = _widths(rng)
    scales = [10 ** rng.uniform(-8, 8) for _ in range(3)]
    return scales[0] * _array(rng, p), scales[1] * _array(rng, p, q), scales[2] * _array(rng, q)


def _integers(rng: random.Random) -> Layers:
    """Entries from -2 to 2, many of them zero."""
    p, q = rng.randint(2, 3), rng.randint(2, 3)

    def grid(*shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return np.array([float(rng.randint(-2, 2)) for _ in range(count)]).reshape(shape)

    return grid(p), grid(p, q), grid(q)


def _higher_rank(rng: random.Random) -> Layers:
    """Rank 2 or 3; every second state is near rest, with further small components."""
    rank = rng.randint(2, 3)
    p, q = _widths(rng, rank)
    strength = np.array([1.0, *(rng.uniform(0.2, 0.95) for _ in range(rank - 1))])
    a, b, c = _array(rng, rank, p), _array(rng, p, q), _array(rng, rank, q)
    if rng.random() < 0.5:
        distance = 10 ** -rng.uniform(1, 10)
        a, b, c = distance * a, distance * b, distance * c
        a[0, 0] += 1
        b[0, 0] += 1
        c[0, 0] -= 1
    return a, b, c, strength


def _chain(rng: random.Random) -> Layers:
    """Four or five layers with one input and one output; every second chain is near rest."""
    depth = rng.randint(4, 5)
    widths = [1, *(rng.randint(1, 3) for _ in range(depth - 1)), 1]
    shapes = [(widths[i + 1], widths[i]) for i in range(depth)]
    layers = [_array(rng, *shape) for shape in shapes]
    if rng.random() < 0.5:
        distance = 10 ** -rng.uniform(1, 10)
        layers = [distance * layer for layer in layers]
        sizes = [1.0, 1.0, *(1 + rng.random() for _ in range(depth - 2))]
        rng.shuffle(sizes)
        for layer, size in zip(layers, sizes, strict=True):
            layer[0, 0] += size
        layers[0][0, 0] -= 2 * sizes[0]
    return tuple(layers)


FAMILIES: dict[str, Callable[[random.Random], Layers]] = {
    "random": _random,
    "near rest": _near_rest,
    "unequal scales": _unequal,
    "integers": _integers,
    "rank 2 and 3": _higher_rank,
    "chains": _chain,
}


def adversarial_states(family: str, count: int, *, seed: int = 0) -> list[State | Chain]:
    """States of one of the `FAMILIES`, in JAX's default precision.

    **Returns:** `count` states. A larger `count` with the same seed begins with the same states.

    **Raises:** `KeyError` for another family.
    """
    draw, rng = FAMILIES[family], random.Random(seed)
    layers = [draw(rng) for _ in range(count)]
    if family == "chains":
        return [Chain(point) for point in layers]
    if family == "rank 2 and 3":
        return [State(*point) for point in layers]
    return [State.from_vectors(*point) for point in layers]
