r"""The Gaussian ensemble, at full width and in its exact reduced form.

For layers with independent normal entries, rotation invariance gives the *exact* law of the
reduced state: its entries are independent,

$$\|a\| = s_a\chi_p, \quad \|c\| = s_c\chi_q, \quad T_{jj} = s_b N(0,1), \quad
  T_{j,j+1} = s_b\chi_{q-j}, \quad T_{j+1,j} = s_b\chi_{p-j} \qquad (j = 1, 2, \dots),$$

as the orthogonal tridiagonalisation conditions each step on a direction that is independent of
what is left of $b$. So a state of any width is drawn from a few dozen random numbers, without
ever forming $b$.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, Real

from .._state import State
from ._arguments import as_dtype, check_scales, check_width, default_dtype, full_widths
from ._chi import chi as _chi
from ._ensemble import AbstractEnsemble

# The random numbers of a reduced state come in blocks of so many steps, each from its own key, so
# that a state drawn in more dimensions continues the one drawn in fewer.
_BLOCK = 4


class Gaussian(AbstractEnsemble):
    """Layers with independent normal entries of mean zero.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers of any size; for `sample_reduced` they may be
      arrays, so that a sweep over widths compiles once.
    - `scales`: standard deviations $(s_a, s_b, s_c)$ of the entries of $a$, $b$, $c$, positive or
      zero.
    """

    exact_reduction: ClassVar[bool] = True

    p: Real[Array, ""] | int | float
    q: Real[Array, ""] | int | float
    scales: tuple[Real[Array, ""] | float, Real[Array, ""] | float, Real[Array, ""] | float] = (
        1.0,
        1.0,
        1.0,
    )

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
        keys = jax.random.split(key, 3)
        shapes = ((p,), (p, q), (q,))
        a, b, c = (
            scale * jax.random.normal(k, shape, dtype)
            for scale, k, shape in zip(as_dtype(self.scales, dtype), keys, shapes, strict=True)
        )
        return State.from_vectors(a, b, c)

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        """One state of widths `(dim, dim)` with the exact law of a reduced full state.

        The cost does not depend on the widths. Where a width is smaller than `dim`, what lies
        beyond it is zero, as in the matrix itself. A state drawn with the same key in more
        dimensions continues this one. Same law as `reduce(self.sample(...), dim)`, not the same
        numbers.

        **Raises:** `ValueError` if `dim` is smaller than 2.
        """
        if dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {dim}.")
        dtype = jnp.result_type(float) if dtype is None else dtype
        scale_a, scale_b, scale_c = (jnp.asarray(scale, dtype) for scale in self.scales)
        p, q = jnp.asarray(self.p, dtype), jnp.asarray(self.q, dtype)

        def block(start: Array) -> tuple[Array, Array, Array]:
            steps = (start * _BLOCK + jnp.arange(_BLOCK)).astype(dtype)
            normal_key, chi_key = jax.random.split(jax.random.fold_in(key, start))
            normal = jax.random.normal(normal_key, (_BLOCK,), dtype)
            normal = jnp.where(steps < jnp.minimum(p, q), normal, 0)
            # An off-diagonal entry needs its row as well as its column to exist.
            exists = steps <= jnp.minimum(p, q)
            degrees = jnp.concatenate([p - steps, q - steps])
            degrees = jnp.where(jnp.tile(exists, 2), jnp.maximum(degrees, 0), 0)
            chi = _chi(degrees, key=chi_key)
            return normal, chi[:_BLOCK], chi[_BLOCK:]

        draws = jax.vmap(block)(jnp.arange(-(-dim // _BLOCK)))
        normal, chi_p, chi_q = (draw.reshape(-1)[:dim] for draw in draws)
        return _tridiagonal_state(
            scale_a * chi_p[0],
            scale_c * chi_q[0],
            scale_b * normal,
            scale_b * chi_q[1:],
            scale_b * chi_p[1:],
        )


def _tridiagonal_state(
    norm_a: Array, norm_c: Array, diagonal: Array, upper: Array, lower: Array
) -> State:
    first = jnp.zeros_like(diagonal).at[0].set(1)
    b = jnp.diag(diagonal) + jnp.diag(upper, 1) + jnp.diag(lower, -1)
    return State.from_vectors(norm_a * first, b, norm_c * first)


def infinite_width(
    *,
    aspect: float | Array = 1.0,
    scales: tuple[float | Array, float | Array, float | Array] = (1.0, 1.0, 1.0),
    dim: int = 16,
    dtype: jnp.dtype | None = None,
) -> State:
    r"""The state to which reduced Gaussian states of growing width converge.

    With $p = \alpha m$ and $q = m$, everything divided by $\sqrt m$, fluctuations vanish as
    $1/\sqrt m$: $\|a\| = s_a\sqrt\alpha$, $\|c\| = s_c$, $T_{jj} = 0$, $T_{j,j+1} = s_b$,
    $T_{j+1,j} = s_b\sqrt\alpha$. So $\sqrt m\,T^*$ of a wide random state tends to the blow-up time
    of this one; for equal widths and unit scales that is 1.167972771072370….

    **Arguments:** `aspect`, the ratio $\alpha = p/q$; `scales`, the standard deviations
    $(s_a, s_b, s_c)$; `dim`, the dimension kept (16 is exact to rounding for scales alike; take
    more when they are not).

    **Returns:** a deterministic `State` of widths `(dim, dim)`.

    **Raises:** `ValueError` for a `dim` smaller than 2, or an aspect that is not positive.
    """
    if dim < 2:
        raise ValueError(f"Argument `dim` must be at least 2, but is {dim}.")
    if isinstance(aspect, (int, float)) and not 0 < aspect < math.inf:
        raise ValueError(f"Argument `aspect` must be positive and finite, but is {aspect}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    scale_a, scale_b, scale_c = (jnp.asarray(scale, dtype) for scale in scales)
    root = jnp.sqrt(jnp.asarray(aspect, dtype))
    ones = jnp.ones(dim - 1, dtype)
    return _tridiagonal_state(
        scale_a * root, scale_c, jnp.zeros(dim, dtype), scale_b * ones, scale_b * root * ones
    )
