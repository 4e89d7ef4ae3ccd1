r"""States, or the weights of real networks, read from files.

Of a network $f(x) = W^3\sigma(W^2\sigma(W^1x))$ with one output, and a target direction $v$, the
unit vector along $\sum_i y_ix_i$,

$$a = (W^3)^T, \quad b = W^2, \quad c = W^1v, \qquad E = a^Tbc = W^3W^2W^1v .$$

Source: Chen and Luo, eqs. (3.1), (3.7), (3.8).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from .._arrays import as_real, read_arrays
from .._state import State

_FIELDS = ("a", "b", "c", "strength")
_STATES = "a (n, p), b (n, p, q), c (n, q), strength (n,), or with components as (n, rank, p)"
_NETWORK = "(q, d), (p, q), (1, p), or all with a leading axis"


def read_states(
    path: str | os.PathLike,
    *,
    names: Mapping[str, str] | None = None,
    direction: str | ArrayLike | Sequence[float | int] | None = None,
    layers: Sequence[str] | None = None,
) -> State:
    r"""Read a batch of states from a file.

    **Arguments:**

    - `path`: a file `.npz` (NumPy) or `.safetensors`. It holds either states, as arrays `a`, `b`,
      `c` of shapes `(n, p)`, `(n, p, q)`, `(n, q)`, or with components `(n, rank, p)`, `(n, p, q)`,
      `(n, rank, q)`, and optionally `strength`, in the shape of `a` without its last axis or
      `(rank,)` for all states (by default 1), or weights of networks. A single state or network may
      lack the leading axis.
    - `names`: for states, the names of the arrays in the file, where they differ:
      `{"a": "output"}`.
    - `layers`: for networks, the names of $W^1$ of shape `(q, d)`, $W^2$ `(p, q)` and $W^3$
      `(1, p)`, like `("fc1.weight", "fc2.weight", "fc3.weight")`; with a leading axis on all three
      for `n` networks.
    - `direction`: for networks, $\sum_i y_ix_i$ of shape `(d,)` and any length but zero, or the
      name of an array in the file.

    **Returns:** a `State` with one leading axis, in JAX's default precision. Entries that are not
    finite are kept: the blow-up time of such a state has the status `INVALID_INPUT`.

    **Raises:** `OSError` if the file cannot be opened. `ValueError` if it is damaged or lacks an
    array, if shapes do not fit, if it holds no state, or for arguments that do not go together.
    """
    path = Path(path)
    if layers is None:
        if direction is not None:
            raise ValueError("Argument `direction` needs argument `layers`, which is not given.")
        return _read_states(path, {} if names is None else names)
    if names is not None:
        raise ValueError("Arguments `names` and `layers` cannot be given together.")
    if isinstance(layers, str) or len(layers) != 3:
        raise ValueError(f"Argument `layers` must hold three names, but is {layers!r}.")
    if direction is None:
        raise ValueError("Argument `layers` needs argument `direction`, which is not given.")
    return _read_networks(path, layers, direction)


def _read_states(path: Path, names: Mapping[str, str]) -> State:
    unknown = [name for name in names if name not in _FIELDS]
    if unknown:
        raise ValueError(
            f"Argument `names` must have keys among {', '.join(_FIELDS)}, but has {unknown[0]!r}."
        )
    called = {field: names.get(field, field) for field in _FIELDS}
    optional = () if "strength" in names else ("strength",)
    arrays = read_arrays(path, tuple(called.values()), optional)
    a, b, c = (arrays[called[field]] for field in ("a", "b", "c"))
    strength = arrays.get(called["strength"])
    shapes = _listed({name: array.shape for name, array in arrays.items()})
    if b.ndim not in (2, 3) or a.ndim not in (b.ndim - 1, b.ndim) or c.ndim != a.ndim:
        raise _unfit(path, shapes, _STATES)
    strength = np.ones(()) if strength is None else strength
    if a.ndim == b.ndim - 1:
        a, c = a[..., None, :], c[..., None, :]
        strength = strength[..., None]
    try:
        strength = np.broadcast_to(strength, a.shape[:-1])
    except ValueError:
        raise _unfit(path, shapes, _STATES) from None
    if b.ndim == 2:
        a, b, c, strength = a[None], b[None], c[None], strength[None]
    return _state(path, (a, b, c, strength), shapes, _STATES)


def _read_networks(
    path: Path, layers: Sequence[str], direction: str | ArrayLike | Sequence[float | int]
) -> State:
    inside = (direction,) if isinstance(direction, str) else ()
    arrays = read_arrays(path, (*layers, *inside))
    first, middle, last = (arrays[name] for name in layers)
    shapes = _listed({name: array.shape for name, array in arrays.items()})
    vector = _unit(arrays[direction] if isinstance(direction, str) else np.asarray(direction))
    if middle.ndim not in (2, 3) or not first.ndim == middle.ndim == last.ndim:
        raise _unfit(path, shapes, _NETWORK)
    if last.shape[-2] != 1:
        raise ValueError(
            f"The last layer must have one output, but {layers[2]!r} of shape {last.shape} in file "
            f"{path} has {last.shape[-2]}."
        )
    if first.shape[-1] != vector.size:
        raise ValueError(
            f"Argument `direction` must have the length {first.shape[-1]} of the inputs of "
            f"{layers[0]!r} in file {path}, but has {vector.size}."
        )
    if middle.ndim == 2:
        first, middle, last = first[None], middle[None], last[None]
    with np.errstate(all="ignore"):  # entries that are not finite remain so
        c = (first @ vector)[:, None, :]
    return _state(path, (last, middle, c, np.ones((len(last), 1))), shapes, _NETWORK)


def _unit(direction: np.ndarray) -> np.ndarray:
    """The unit vector along a direction."""
    if direction.ndim != 1 or direction.size == 0:
        raise ValueError(
            f"Argument `direction` must be a vector, but has the shape {direction.shape}."
        )
    direction = as_real("direction", direction)
    largest = np.max(np.abs(direction))
    if not 0 < largest < np.inf:
        raise ValueError("Argument `direction` must be finite and not zero.")
    direction = direction / largest
    return direction / np.linalg.norm(direction)


def _state(path: Path, fields: tuple[np.ndarray, ...], shapes: str, expected: str) -> State:
    """A batch of states, if the shapes fit."""
    a, b, c, strength = fields
    n, rank, p, q = len(b), a.shape[1], a.shape[2], c.shape[2]
    if (a.shape, b.shape, c.shape, strength.shape) != (
        (n, rank, p),
        (n, p, q),
        (n, rank, q),
        (n, rank),
    ):
        raise _unfit(path, shapes, expected)
    if 0 in (n, rank, p, q):
        raise ValueError(f"File {path} holds no states: its arrays are {shapes}.")
    dtype = jnp.result_type(float)
    with np.errstate(all="ignore"):  # values beyond the range of single precision become infinite
        return State(*(jnp.asarray(field.astype(dtype)) for field in fields))


def _unfit(path: Path, shapes: str, expected: str) -> ValueError:
    return ValueError(f"Shapes in file {path} do not fit: {shapes}; they must be like {expected}.")


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
