r"""Layers with independent uniform entries.

$$a_k \sim U(-\sqrt3\,s_a,\ \sqrt3\,s_a)$$

and likewise for $b$ and $c$, with mean zero and standard deviations $(s_a, s_b, s_c)$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._state import State
from ..sampling import check_width
from ._arguments import Scales, as_dtype, check_scales, default_dtype, full_widths
from ._ensemble import AbstractEnsemble


class Uniform(AbstractEnsemble):
    r"""Layers with independent uniform entries of mean zero, $U(-\sqrt3 s, \sqrt3 s)$.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers.
    - `scales`: standard deviations $(s_a, s_b, s_c)$ of the entries of $a$, $b$, $c$, positive or
      zero. PyTorch's linear layers start as $U(-1/\sqrt n, 1/\sqrt n)$ with $n$ inputs, which is
      the scale $1/\sqrt{3n}$.

    **Raises:** `ValueError` for other widths or scales.
    """

    p: int | float = eqx.field(static=True)
    q: int | float = eqx.field(static=True)
    scales: Scales = (1.0, 1.0, 1.0)

    def __check_init__(self):
        check_width("p", self.p)
        check_width("q", self.q)
        check_scales(self.scales)

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width: $a$ of shape `(1, p)`, $b$ `(p, q)`, $c$ `(1, q)`."""
        p, q = full_widths(self.p, self.q)
        dtype = default_dtype(dtype)
        keys = jax.random.split(key, 3)
        bound = math.sqrt(3)
        a, b, c = (
            scale * jax.random.uniform(k, shape, dtype, -bound, bound)
            for scale, k, shape in zip(
                as_dtype(self.scales, dtype), keys, ((p,), (p, q), (q,)), strict=True
            )
        )
        return State.from_vectors(a, b, c)
