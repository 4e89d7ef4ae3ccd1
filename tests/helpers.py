import jax
import jax.numpy as jnp
import numpy as np

import jaxcond as jc

EPS = float(np.finfo(np.float64).eps)


def random_state(key, rank, p, q):
    keys = jax.random.split(key, 4)
    shapes = ((rank, p), (p, q), (rank, q), (rank,))
    return jc.State(*(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)))


def gaussian_states(seed, count, p, q, scales=(1.0, 1.0, 1.0)):
    """A batch of rank-one states drawn by NumPy, not by the package."""
    rng = np.random.default_rng(seed)
    shapes = ((count, p), (count, p, q), (count, q))
    layers = (s * rng.standard_normal(shape) for s, shape in zip(scales, shapes, strict=True))
    return jc.State.from_vectors(*layers)


def pick(states, index):
    return jax.tree.map(lambda leaf: leaf[index], states)


def aligned_state(alpha, beta, gamma, p=4, q=3, seed=0):
    """a = alpha u, b = beta u w^T, c = gamma w with random unit vectors."""
    rng = np.random.default_rng(seed)
    u, w = rng.standard_normal(p), rng.standard_normal(q)
    u, w = u / np.linalg.norm(u), w / np.linalg.norm(w)
    return jc.State.from_vectors(alpha * u, beta * np.outer(u, w), gamma * w)


def from_reference(entry):
    return jc.State(*(jnp.array(entry[name]) for name in ("a", "b", "c", "strength")))
