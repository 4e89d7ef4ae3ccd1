r"""The balanced initialisation.

$$bb^T = aa^T, \quad b^Tb = cc^T: \qquad a = su, \quad b = suw^T, \quad c = sw$$

with unit vectors $u$, $w$ and $s > 0$. The conserved matrices vanish, the energy is $s^3 > 0$, the
layers stay aligned, and $s' = s^2$: $T^* = 1/s$ exactly.

Source: S. Arora, N. Cohen, N. Golowich and W. Hu, *A convergence analysis of gradient descent for
deep linear neural networks* (ICLR 2019), procedure 1, with an end-to-end matrix of rank one.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, Real

from .._state import State
from ..sampling import check_width, chi_of_key
from ._arguments import Width, as_dtype, check_scale, default_dtype, full_widths
from ._ensemble import AbstractEnsemble
from ._sphere import on_sphere


class Balanced(AbstractEnsemble):
    r"""Balanced layers $a = su$, $b = suw^T$, $c = sw$ with blow-up time $1/s$.

    $a$ has independent normal entries, so that $s = \|a\|$ is `scale` times $\chi_p$, and $w$ is
    uniform on the unit sphere.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers of any size; for `sample_reduced` they may be
      arrays, so that a sweep over widths compiles once.
    - `scale`: standard deviation of the entries of $a$, positive or zero.

    **Raises:** `ValueError` for other widths or scales.
    """

    exact_reduction: ClassVar[bool] = True

    p: Width
    q: Width
    scale: Real[Array, ""] | float = 1.0

    def __check_init__(self):
        check_width("p", self.p)
        check_width("q", self.q)
        check_scale("scale", self.scale, self.scale)

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width: $a$ of shape `(1, p)`, $b$ `(p, q)`, $c$ `(1, q)`.

        **Raises:** `ValueError` if the widths are arrays: shapes must be known.
        """
        p, q = full_widths(self.p, self.q)
        dtype = default_dtype(dtype)
        (scale,) = as_dtype((self.scale,), dtype)
        key_a, key_w = jax.random.split(key)
        normal = jax.random.normal(key_a, (p,), dtype)
        w = on_sphere(q, dtype, key=key_w)
        a = scale * normal
        s = scale * jnp.sqrt(jnp.sum(normal * normal))
        return State.from_vectors(a, a[:, None] * w[None, :], s * w)

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        r"""One state of widths `(dim, dim)` with the exact law of a reduced full state.

        $a = se_1$, $b = se_1e_1^T$, $c = se_1$ with $s$ as `scale` times $\chi_p$, at a cost that
        does not depend on the widths. The law is that of `reduce(self.sample(...), dim)`, but the
        numbers differ.

        **Raises:** `ValueError` if `dim` is smaller than 1.
        """
        if dim < 1:
            raise ValueError(f"Argument `dim` must be at least 1, but is {dim}.")
        dtype = default_dtype(dtype)
        scale, p = as_dtype((self.scale, self.p), dtype)
        s = scale * chi_of_key(p, key=key)
        first = jnp.zeros(dim, dtype).at[0].set(s)
        return State.from_vectors(first, jnp.zeros((dim, dim), dtype).at[0, 0].set(s), first)

    def reduction_ends(self, dim: int) -> bool:
        """The reduction ends after one dimension."""
        return dim >= 1
