r"""A middle layer of low rank with noise.

$$b = s_b\Bigl(\sqrt{1-\eta^2}\,\frac{1}{\sqrt r}\,LR^T + \eta\,G\Bigr), \qquad
  a = s_a N(0, I_p), \quad c = s_c N(0, I_q)$$

with $L$ ($p \times r$), $R$ ($q \times r$) and $G$ ($p \times q$) of independent standard normal
entries and $\eta$ the noise: every entry of $b$ has mean zero and standard deviation $s_b$, and
they are uncorrelated, for any rank and noise.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, Real

from .._state import State
from ..sampling import check_width
from ._arguments import Scales, as_dtype, check_scales, default_dtype, full_widths
from ._ensemble import AbstractEnsemble


class LowRank(AbstractEnsemble):
    r"""Gaussian $a$ and $c$ with a middle layer of low rank plus noise.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers.
    - `rank`: the rank $r$ of the middle layer without noise, from 1 to the smaller width.
    - `noise`: $\eta$ between 0, for a middle layer of rank $r$, and 1, for the law of `Gaussian`.
    - `scales`: standard deviations $(s_a, s_b, s_c)$ of the entries of $a$, $b$, $c$, positive or
      zero.

    **Raises:** `ValueError` for other arguments.
    """

    p: int | float = eqx.field(static=True)
    q: int | float = eqx.field(static=True)
    rank: int | float = eqx.field(static=True)
    noise: Real[Array, ""] | int | float = 0.0
    scales: Scales = (1.0, 1.0, 1.0)

    def __check_init__(self):
        check_width("p", self.p)
        check_width("q", self.q)
        check_width("rank", self.rank)
        if self.rank > min(self.p, self.q):
            raise ValueError(
                f"Argument `rank` must be at most the smaller width {min(self.p, self.q)}, "
                f"but is {self.rank}."
            )
        if isinstance(self.noise, (int, float)) and not 0 <= self.noise <= 1:
            raise ValueError(f"Argument `noise` must lie between 0 and 1, but is {self.noise}.")
        check_scales(self.scales)

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width: $a$ of shape `(1, p)`, $b$ `(p, q)`, $c$ `(1, q)`."""
        p, q = full_widths(self.p, self.q)
        rank, dtype = int(self.rank), default_dtype(dtype)
        scale_a, scale_b, scale_c, noise = as_dtype((*self.scales, self.noise), dtype)
        shapes = ((p,), (q,), (p, rank), (q, rank), (p, q))
        a, c, left, right, rest = (
            jax.random.normal(k, shape, dtype)
            for k, shape in zip(jax.random.split(key, 5), shapes, strict=True)
        )
        signal = jnp.sqrt((1 - noise) * (1 + noise) / rank)
        b = signal * (left @ right.T) + noise * rest
        return State.from_vectors(scale_a * a, scale_b * b, scale_c * c)
