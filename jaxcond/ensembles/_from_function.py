"""States drawn by a user's function."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._state import State
from ..sampling import check_width
from ._arguments import default_dtype, full_widths
from ._ensemble import AbstractEnsemble


class FromFunction(AbstractEnsemble):
    """The distribution of the states that a function returns for random keys.

    **Arguments:**

    - `function`: called as `function(key, p, q)` with a JAX random key and the widths, returns
      either one `State` of these widths or its layers $(a, b, c)$ of shapes `(p,)`, `(p, q)`,
      `(q,)`. It must be traceable by JAX and take its random numbers from the key only, so that a
      sample depends only on the seed and its index.
    - `p`, `q`: the widths, positive whole numbers.

    **Raises:** `ValueError` for other widths; `sample` raises it if the function returns something
    else.
    """

    function: Callable[[PRNGKeyArray, int, int], Any] = eqx.field(static=True)
    p: int | float = eqx.field(static=True)
    q: int | float = eqx.field(static=True)

    def __check_init__(self):
        check_width("p", self.p)
        check_width("q", self.q)

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """The state that the function returns, in the given dtype or JAX's default.

        **Raises:** `ValueError` if it is not a `State` of the widths or three arrays of the right
        shapes; it names the function and what it returned.
        """
        p, q = full_widths(self.p, self.q)
        dtype = default_dtype(dtype)
        returned = self.function(key, p, q)
        if isinstance(returned, State):
            right = returned.batch_shape == () and returned.widths == (p, q)
            fields = (*returned.layers, returned.strength)
        else:
            fields = tuple(returned) if isinstance(returned, (tuple, list)) else ()
            shapes = [getattr(field, "shape", None) for field in fields]
            right = shapes == [(p,), (p, q), (q,)] and all(map(_is_real, fields))
        if not right:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise ValueError(
                f"Argument `function` must return a `State` of widths {(p, q)} without leading "
                f"axes, or real arrays (a, b, c) of shapes {(p,)}, {(p, q)}, {(q,)}, but {name} "
                f"returned {_described(returned)}."
            )
        fields = tuple(jnp.asarray(field, dtype) for field in fields)
        return State(*fields) if len(fields) == 4 else State.from_vectors(*fields)


def _is_real(array: Any) -> bool:
    return any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _described(returned: Any) -> str:
    if isinstance(returned, State):
        fields = ("a", "b", "c", "strength")
        return f"a State with {', '.join(f'{n} {getattr(returned, n).shape}' for n in fields)}"
    if isinstance(returned, (tuple, list)):
        items = [
            f"{item.dtype} {item.shape}" if hasattr(item, "shape") else type(item).__name__
            for item in returned
        ]
        return f"a {type(returned).__name__} of {len(items)} ({', '.join(items)})"
    if hasattr(returned, "shape"):
        return f"one array of shape {returned.shape}"
    return f"an object of type {type(returned).__name__}"
