"""Networks from weights that another library has trained or saved."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .._arrays import read_arrays
from .._precision import to_jax
from ._modules import MLP, Activation, resolve_activation

_PICKLED = (".pt", ".pth", ".ckpt", ".pkl")


def from_arrays(
    source: Mapping[str, Any] | eqx.nn.MLP | str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
    activation: str | Activation = "tanh",
    bias: Literal[False, "input"] = False,
    transpose: bool = False,
) -> MLP:
    r"""An `MLP` with the weights of a network of PyTorch, flax, equinox or NumPy.

        from_arrays(model.state_dict(), activation="tanh")
        from_arrays("weights.safetensors", names=("fc1.weight", "fc2.weight", "out.weight"))

    **Arguments:**

    - `source`: a mapping of names to arrays (a state dict; nested mappings, as flax has them, are
      joined by dots), an `eqx.nn.MLP`, or a file `.npz` or `.safetensors`.
    - `names`: which arrays are the weights, the layer next to the input first; by default all
      matrices, sorted by the numbers in their names.
    - `activation`, `bias`: as for `MLP`, since files do not store them. Biases of all layers are
      recognised by name, `fc1.bias` beside `fc1.weight`.
    - `transpose`: for weights of shapes `(inputs, outputs)`, as flax has them.

    **Returns:** an `MLP` in the dtype of the weights.

    **Raises:** `ValueError` for files that hold Python objects (`.pt`), for biases of
    some layers only, for missing names, and for shapes that do not fit together.
    `OSError` if a file cannot be opened.
    """
    arrays = _arrays(source)
    matrices = [name for name, array in arrays.items() if np.ndim(array) >= 2]
    if names is None:
        names = sorted(matrices, key=_by_number)
        if [n for n in matrices if not re.search(r"\d", n)]:
            names = matrices  # names without numbers say nothing about the order
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"There is no array {missing[0]!r}; there are {', '.join(arrays) or 'none'}."
        )
    biases = _biases(arrays, names)
    weights = [to_jax(arrays[name]) for name in names]
    if transpose:
        weights = [jnp.swapaxes(w, -1, -2) for w in weights]
    activation = resolve_activation(activation)
    try:
        return MLP(weights, biases, activation, bias=bias)
    except ValueError as error:
        shapes = ", ".join(f"{n} {w.shape}" for n, w in zip(names, weights, strict=True))
        raise ValueError(
            f"The arrays {shapes or 'of this source'} are no network: {error} Give `names` in the "
            "order of the layers, or `transpose=True` for shapes (inputs, outputs)."
        ) from error


def _arrays(source: Any) -> dict[str, ArrayLike]:
    if isinstance(source, eqx.nn.MLP):
        arrays = {}
        for number, layer in enumerate(source.layers):
            arrays[f"layers.{number}.weight"] = layer.weight
            if layer.bias is not None:
                arrays[f"layers.{number}.bias"] = layer.bias
        return arrays
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() in _PICKLED:
            raise ValueError(
                f"File {path} holds Python objects, which run code when they are read. Save the "
                "weights by `safetensors.torch.save_file(model.state_dict(), ...)`, or give "
                "`from_arrays` the state dict itself."
            )
        return dict(read_arrays(path))
    if isinstance(source, Mapping):
        return _flat(source, "")
    raise ValueError(
        "Argument `source` must be a mapping of names to arrays, an eqx.nn.MLP or a file, but is "
        f"of type {type(source).__name__}."
    )


def _flat(source: Mapping[str, Any], prefix: str) -> dict[str, ArrayLike]:
    """A nested mapping as a flat one, with PyTorch tensors as arrays."""
    arrays: dict[str, ArrayLike] = {}
    for name, value in source.items():
        if isinstance(value, Mapping):
            arrays.update(_flat(value, f"{prefix}{name}."))
        else:
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
            arrays[f"{prefix}{name}"] = array
    return arrays


def _by_number(name: str) -> list[Any]:
    """A sort key that puts `layers.10` after `layers.9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _biases(arrays: Mapping[str, ArrayLike], names: Sequence[str]) -> list[Array] | None:
    """The vectors beside the weights, `layers.3.bias` beside `layers.3.weight`.

    **Raises:** `ValueError` if only some layers have a bias, or one has several.
    """
    candidates = []
    for name in names:
        layer, rank = name.rpartition(".")[0], np.ndim(arrays[name]) - 1
        beside = [n for n in arrays if n.rpartition(".")[0] == layer and np.ndim(arrays[n]) == rank]
        # Without a common prefix it is not clear which vector belongs to which matrix.
        candidates.append(beside if layer or len(names) == 1 else [])
        if len(candidates[-1]) > 1:
            raise ValueError(f"Beside {name!r} there are several vectors: {', '.join(beside)}.")
    with_bias = [name for name, beside in zip(names, candidates, strict=True) if beside]
    if not with_bias:
        return None
    if len(with_bias) < len(names):
        without = next(name for name in names if name not in with_bias)
        raise ValueError(
            f"Layer {with_bias[0]!r} has a bias and {without!r} none, which `MLP` does not have. "
            "Follow such a network by `predict_escape_of` and `skip_plateau_of`."
        )
    return [jnp.asarray(arrays[beside[0]]) for beside in candidates]
