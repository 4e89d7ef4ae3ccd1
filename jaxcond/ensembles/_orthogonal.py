r"""Orthogonal initialisation of all layers, at full width and in its exact reduced form.

$$a = s_a\sqrt p\,u, \qquad b = s_b\sqrt{\max(p, q)}\,Q, \qquad c = s_c\sqrt q\,w$$

with $Q$ Haar-distributed with orthonormal columns ($p \ge q$) or rows ($p \le q$), $u$ and $w$
uniform on the unit spheres. For $p \ge q$ the coordinates of $u$ along $Qw$, in the rest of the
range of $Q$ and outside it are

$$(u_1, \|u_2\|, \|u_3\|) = (N, K, H)/R, \qquad N \sim N(0,1),\ K \sim \chi_{q-1},\
  H \sim \chi_{p-q}, \quad R^2 = N^2 + K^2 + H^2,$$

independent of $Q$ and $w$, since $u$ is uniform. The orthogonal tridiagonalisation of $Q$ from $u$
and $w$ has orthonormal columns and the first row $Q^Tu$, and ends with two columns:

$$T = \begin{pmatrix} N/R & K/R \\ S/R & -NK/(RS) \\ 0 & H/S \end{pmatrix},
  \qquad S^2 = K^2 + H^2 .$$

So a state of any width is drawn from three random numbers. For $p < q$ it is the transpose.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._state import State
from ..sampling import check_width, chi_of_key
from ._arguments import Scales, Width, as_dtype, check_scales, default_dtype, full_widths
from ._ensemble import AbstractEnsemble
from ._sphere import on_sphere

# Rows of the reduced form of a tall $Q$.
_ROWS = 3


def _core(wide: Array, narrow: Array, key: PRNGKeyArray) -> Float[Array, "3 3"]:
    """The reduced form of a tall $Q$, `wide` by `narrow`, with a column of zeros."""
    normal_key, chi_key = jax.random.split(key)
    n = jax.random.normal(normal_key, (), wide.dtype)
    k, h = chi_of_key(jnp.stack([narrow - 1, wide - narrow]), key=chi_key)
    s = jnp.hypot(k, h)
    r = jnp.hypot(n, s)
    # Widths of 1: without K there is no second column, without S no second row either.
    safe_s, safe_r = jnp.where(s > 0, s, 1), jnp.where(r > 0, r, 1)
    t11 = jnp.where(r > 0, n / safe_r, 1)
    t32 = jnp.where(k > 0, h / safe_s, 0)
    zero = jnp.zeros_like(n)
    rows = (
        (t11, k / safe_r, zero),
        (s / safe_r, -t11 * (k / safe_s), zero),
        (zero, t32, zero),
    )
    return jnp.stack([jnp.stack(row) for row in rows])


class Orthogonal(AbstractEnsemble):
    r"""Random orthogonal layers, as from orthogonal initialisation of all three layers.

    For a network $W^1$ ($q \times d$, $d \le q$), $W^2$, $W^3$ of semi-orthogonal matrices times
    $s\sqrt{\max(\text{rows}, \text{columns})}$, $c = W^1 v$ has the norm stated for any unit $v$.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers of any size; for `sample_reduced` they may be
      arrays, so that a sweep over widths compiles once.
    - `scales`: root mean squares $(s_a, s_b, s_c)$ of the entries of $a$, $b$, $c$, positive or
      zero: comparable with the standard deviations of `Gaussian`.

    **Raises:** `ValueError` for other widths or scales.
    """

    exact_reduction: ClassVar[bool] = True

    p: Width
    q: Width
    scales: Scales = (1.0, 1.0, 1.0)

    def __check_init__(self):
        check_width("p", self.p)
        check_width("q", self.q)
        check_scales(self.scales)

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width: $a$ of shape `(1, p)`, $b$ `(p, q)`, $c$ `(1, q)`.

        **Raises:** `ValueError` if the widths are arrays: shapes must be known.
        """
        p, q = full_widths(self.p, self.q)
        dtype = default_dtype(dtype)
        norm_a, norm_b, norm_c = self._norms(dtype)
        key_a, key_b, key_c = jax.random.split(key, 3)
        return State.from_vectors(
            norm_a * on_sphere(p, dtype, key=key_a),
            norm_b * jax.random.orthogonal(key_b, p, dtype=dtype, m=q),
            norm_c * on_sphere(q, dtype, key=key_c),
        )

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        """One state of widths `(dim, dim)` with the exact law of a reduced full state.

        The cost does not depend on the widths. All entries beyond the first three rows and columns
        (two, if $p = q$) are zero: the reduction ends there. A state drawn with the same key in
        more dimensions is this one with more zeros. The law is that of `reduce(self.sample(...),
        dim)`, but the numbers differ.

        **Raises:** `ValueError` if `dim` is smaller than 3, or smaller than 2 if the widths are
        equal integers.
        """
        known = all(isinstance(width, (int, float)) for width in (self.p, self.q))
        least = _ROWS - 1 if known and self.p == self.q else _ROWS
        if dim < least:
            raise ValueError(f"Argument `dim` must be at least {least}, but is {dim}.")
        dtype = default_dtype(dtype)
        norm_a, norm_b, norm_c = self._norms(dtype)
        p, q = as_dtype((self.p, self.q), dtype)
        tall = _core(jnp.maximum(p, q), jnp.minimum(p, q), key)
        core = jnp.where(p >= q, tall, tall.T)[:dim, :dim]
        first = jnp.zeros(dim, dtype).at[0].set(1)
        b = jnp.pad(core, (0, dim - len(core)))
        return State.from_vectors(norm_a * first, norm_b * b, norm_c * first)

    def reduction_ends(self, dim: int) -> bool:
        """The reduction ends after three dimensions."""
        return dim >= _ROWS

    def _norms(self, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
        r"""$\|a\|$, the largest singular value of $b$, and $\|c\|$."""
        p, q = as_dtype((self.p, self.q), dtype)
        scale_a, scale_b, scale_c = as_dtype(self.scales, dtype)
        return scale_a * jnp.sqrt(p), scale_b * jnp.sqrt(jnp.maximum(p, q)), scale_c * jnp.sqrt(q)
