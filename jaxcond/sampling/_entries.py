"""The leading entries of the reduced Gaussian ensemble: names, laws, and places."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._state import State
from ..statistics import chi_mean, chi_variance
from ._widths import check_width


def entry_names(num: int = 8) -> tuple[str, ...]:
    """Names of the leading entries: `|a|`, `|c|`, `T11`, `T12`, `T21`, `T22`, …"""
    _check_num(num)
    pairs = [(f"{i},{j}" if j > 9 or i > 9 else f"{i}{j}") for i, j in _places(num)]
    return ("|a|", "|c|", *(f"T{pair}" for pair in pairs))[:num]


def _check_num(num: int) -> None:
    if num < 1:
        raise ValueError(f"Argument `num` must be positive, but is {num}.")


def _places(num: int) -> list[tuple[int, int]]:
    """Row and column, from 1, of the entries of $T$ among the first `num`."""
    steps = range(1, num // 3 + 2)
    return [place for j in steps for place in ((j, j), (j, j + 1), (j + 1, j))][: max(num - 2, 0)]


def degrees_of_entries(p: int | float, q: int | float, num: int) -> np.ndarray:
    """Degrees of freedom of the first `num` entries; -1 for normal ones and 0 for none.

    Entries beyond a width are zero, as in `Gaussian.sample_reduced`.
    """
    least = min(p, q)
    degrees = [p, q]
    for i, j in _places(num):
        if i == j:
            degrees.append(-1.0 if i <= least else 0.0)
        else:
            width = q if i < j else p
            degrees.append(max(width - min(i, j), 0) if min(i, j) <= least else 0.0)
    return np.array(degrees[:num], np.float64)


def entry_moments(
    p: int | float,
    q: int | float,
    scales: tuple[int | float, int | float, int | float] = (1.0, 1.0, 1.0),
    num: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Means and variances of the leading entries of the reduced Gaussian ensemble.

    $s\,E\chi_k$ and $s^2\operatorname{Var}\chi_k$ with the degrees of freedom $k$ of each entry;
    the means on the diagonal are zero. The entries are independent.

    **Arguments:** `p`, `q`, the widths; `scales`, $(s_a, s_b, s_c)$; `num`, how many entries.

    **Returns:** two arrays of shape `(num,)`, in the order of `entry_names`.

    **Raises:** `ValueError` for widths that are not positive whole numbers, or `num` below 1.
    """
    check_width("p", p)
    check_width("q", q)
    _check_num(num)
    degrees = degrees_of_entries(p, q, num)
    chi = np.maximum(degrees, 0)
    scale_a, scale_b, scale_c = scales
    scale = np.array([scale_a, scale_c, *[scale_b] * num], np.float64)[:num]
    return scale * chi_mean(chi), scale**2 * np.where(degrees < 0, 1.0, chi_variance(chi))


def leading_entries(state: State, num: int = 8) -> Float[Array, "*batch num"]:
    r"""The leading entries of reduced states, in the order of `entry_names`.

    **Arguments:** `state`, reduced: $a = \|a\|e_1$, $c = \|c\|e_1$, $b$ tridiagonal, with or
    without batch axes; `num`, how many entries.

    **Raises:** `ValueError` for a `num` below 1 or beyond the widths, or a rank above 1.
    """
    _check_num(num)
    if state.rank != 1:
        raise ValueError(f"Leading entries are those of states of rank 1, not {state.rank}.")
    places = _places(num)
    needed = max((max(place) for place in places), default=1)
    if min(state.widths) < needed:
        raise ValueError(
            f"The first {num} entries need widths of at least {needed}, but they are "
            f"{state.widths}."
        )
    entries = [state.a[..., 0, 0], state.c[..., 0, 0]]
    entries += [state.b[..., i - 1, j - 1] for i, j in places]
    return jnp.stack(entries[:num], axis=-1)
