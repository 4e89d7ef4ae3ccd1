r"""The state of the effective dynamics: one data type for every room of the package.

A state of rank ``r`` is a triple of layers with a strength for each component,

$$E = \sum_{i=1}^r \lambda_i\, a_i^T b\, c_i .$$

Rank 1 with unit strength is the three-layer network with one output of Z.-A. Chen and T. Luo,
*On the dynamics of three-layer neural networks: initial condensation*, eq. (3.8); higher rank is
their matrix factorisation, eq. (A.8). A state may be drawn from an ensemble, reduced to a dozen
dimensions, or read off a real network; no function that takes it can tell the difference.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._precision import to_jax


def _as_floating(name: str, value: ArrayLike) -> Array:
    array = to_jax(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"Argument `{name}` must be a real floating-point array, but has dtype {array.dtype}."
        )
    return array


class State(eqx.Module):
    r"""A point in the phase space of the effective dynamics.

    **Arguments:**

    - `a`: output layer, shape `(rank, p)`.
    - `b`: middle layer, shape `(p, q)`.
    - `c`: input layer along the target directions, shape `(rank, q)`.
    - `strength`: $\lambda_i$, shape `(rank,)`, either sign.

    All quantities are dimensionless. A batch of states has the same leading axes on every field;
    functions of the package take one state and are batched by `jax.vmap`.

    **Raises:** `ValueError` for shapes that do not fit together or arrays that are not floating.
    """

    a: Float[Array, "*batch rank p"]
    b: Float[Array, "*batch p q"]
    c: Float[Array, "*batch rank q"]
    strength: Float[Array, "*batch rank"]

    def __init__(self, a: ArrayLike, b: ArrayLike, c: ArrayLike, strength: ArrayLike):
        fields = {"a": a, "b": b, "c": c, "strength": strength}
        arrays = {name: _as_floating(name, value) for name, value in fields.items()}
        dtype = jnp.result_type(*arrays.values())
        self.a, self.b, self.c, self.strength = (x.astype(dtype) for x in arrays.values())

    def __check_init__(self):
        shapes = {name: getattr(self, name).shape for name in ("a", "b", "c", "strength")}
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        if self.strength.ndim < 1 or self.a.ndim != self.strength.ndim + 1:
            raise ValueError(
                "A state is a (rank, p), b (p, q), c (rank, q), strength (rank,), "
                f"but has {listed}."
            )
        batch, rank = self.strength.shape[:-1], self.strength.shape[-1]
        p, q = self.a.shape[-1], self.c.shape[-1]
        expected = ((*batch, rank, p), (*batch, p, q), (*batch, rank, q), (*batch, rank))
        if tuple(shapes.values()) != expected:
            raise ValueError(
                "The shapes of a state must be a (rank, p), b (p, q), c (rank, q), "
                f"strength (rank,), but are {listed}."
            )
        if 0 in (rank, p, q):
            raise ValueError(
                f"The rank and the widths of a state must be positive, but the shapes are {listed}."
            )

    @classmethod
    def from_vectors(cls, a: ArrayLike, b: ArrayLike, c: ArrayLike) -> "State":
        """The rank-one state of a three-layer network with one output.

        **Arguments:** `a` of shape `(p,)`, `b` of shape `(p, q)`, `c` of shape `(q,)`; a batch has
        the same leading axes on all three.

        **Returns:** a `State` of rank 1 and strength 1.
        """
        a, b, c = _as_floating("a", a), _as_floating("b", b), _as_floating("c", c)
        if a.ndim < 1 or c.ndim < 1:
            raise ValueError(
                f"Arguments `a` and `c` must be vectors, but have shapes {a.shape} and {c.shape}."
            )
        return cls(a[..., None, :], b, c[..., None, :], jnp.ones((*a.shape[:-1], 1), b.dtype))

    @property
    def rank(self) -> int:
        """Number of components $r$."""
        return self.a.shape[-2]

    @property
    def widths(self) -> tuple[int, int]:
        """The widths $(p, q)$ of the two hidden layers."""
        return self.b.shape[-2], self.b.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; `()` for a single state."""
        return self.strength.shape[:-1]

    @property
    def dtype(self) -> jnp.dtype:
        """Floating dtype shared by all fields."""
        return self.b.dtype

    @property
    def layers(self) -> tuple[Array, Array, Array]:
        """The three layers `(a, b, c)`, without the strengths."""
        return self.a, self.b, self.c

    def transpose(self) -> "State":
        """The state read from the other end, $(c, b^T, a)$, which has the same blow-up time."""
        return State(self.c, jnp.swapaxes(self.b, -1, -2), self.a, self.strength)

    def scale(self, factor: ArrayLike) -> "State":
        """All three layers times `factor`; the blow-up time is divided by it."""
        a, b, c = jax.tree.map(lambda x: x * factor, self.layers)
        return State(a, b, c, self.strength)

    def unit_scale(self) -> tuple["State", Float[Array, ""]]:
        """Divide out a power of two so that the largest entry of the layers lies in [1/2, 1).

        Powers of two divide exactly, so nothing is rounded, and squares of the result neither
        overflow nor lose the largest layer. For one state.

        **Returns:** `(unit, scale)` with `unit.scale(scale)` equal to the state; `scale` is 1 for a
        state of zeros, and NaN or infinite entries are left in place.
        """
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(layer)) for layer in self.layers]))
        _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))
        scale = jnp.ldexp(jnp.ones((), self.dtype), exponent)
        a, b, c = (jnp.ldexp(layer, -exponent) for layer in self.layers)
        return State(a, b, c, self.strength), jnp.where(largest == 0, 1, scale)
