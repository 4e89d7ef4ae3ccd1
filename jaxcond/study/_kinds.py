"""Ensembles by name, from the keys of a configuration."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._state import State
from ..blowup import ChainSamples, Samples
from ..ensembles import (
    AbstractEnsemble,
    Balanced,
    FromFunction,
    Gaussian,
    GaussianChain,
    LowRank,
    Orthogonal,
    Uniform,
    read_states,
)
from ._axes import AXES
from ._checks import known, real, sequence, whole, wrong
from ._escapes import ESCAPE_KEYS, Training, read_training
from ._functions import check_function, load_function
from ._quantity import BLOWUP, CHAIN_BLOWUP, ESCAPE, Quantity

WIDTH_KEYS = ("width", "aspect", "p", "q")
SCALE_KEYS = ("scales", "scale", "scale_a", "scale_b", "scale_c")
_LARGEST_WIDTH = int(AXES["width"].most)


@dataclass(frozen=True)
class Settings:
    """The checked settings of one sweep point: widths, scales and the other keys of its kind."""

    p: int
    q: int
    scales: tuple[float, float, float]
    rank: int
    noise: float
    function: Callable | str | None
    depth: int = 3
    training: Training | None = None

    @property
    def entries(self) -> int:
        """Number of entries of a full state."""
        return self.p * self.q * (self.depth - 2) + self.p + self.q

    @property
    def form(self) -> str:
        """The shape of a full state in words."""
        return f"{self.p}x{self.q}" + ("" if self.depth == 3 else f", {self.depth} layers")

    @property
    def rescaling(self) -> float:
        r"""$q^{L/2-1}$ makes blow-up times of order one at any width; 1 for iterations."""
        if self.training is not None:
            return 1.0
        return math.sqrt(self.q) ** (self.depth - 2)

    def widths(self, arrays: bool) -> tuple[Any, Any]:
        """The widths; as arrays, so that a sweep over widths compiles once, if `arrays` is true."""
        if arrays:
            return jnp.asarray(float(self.p)), jnp.asarray(float(self.q))
        return self.p, self.q

    def layer_scales(self) -> tuple[Any, Any, Any]:
        """The scales as arrays, so that a sweep over scales compiles once."""
        a, b, c = (jnp.asarray(scale) for scale in self.scales)
        return a, b, c


Draw = Callable[[Settings, np.ndarray, PRNGKeyArray, bool], Samples | ChainSamples]


@dataclass(frozen=True)
class Kind:
    """An ensemble: its keys, and the function that draws samples from it.

    - `draw`: draws samples from the settings, the indices, a random key and whether to reduce;
      `None` for networks, whose escape is predicted.
    - `exact_reduction`: whether reduced samples cost the same at any width.
    - `quantity`: the quantity that a study of this ensemble computes.
    """

    keys: tuple[str, ...]
    draw: Draw | None
    exact_reduction: bool = False
    quantity: Quantity = BLOWUP


def _states(
    ensemble: type[AbstractEnsemble],
    keys: tuple[str, ...],
    build: Callable[[Settings, bool], AbstractEnsemble],
) -> Kind:
    """A kind whose samples are states, from the function that builds its ensemble."""

    def draw(settings: Settings, indices: np.ndarray, key: PRNGKeyArray, reduced: bool) -> Samples:
        return build(settings, reduced).draws(indices, key=key, reduced=reduced)

    return Kind(keys, draw, exact_reduction=ensemble.exact_reduction)


def gaussian(settings: Settings, arrays: bool) -> Gaussian:
    """The ensemble of the kind `gaussian`."""
    return Gaussian(*settings.widths(arrays), settings.layer_scales())


def _function(settings: Settings, arrays: bool) -> AbstractEnsemble:
    del arrays
    assert callable(settings.function)
    return FromFunction(settings.function, settings.p, settings.q)


def _chains(
    settings: Settings, indices: np.ndarray, key: PRNGKeyArray, reduced: bool
) -> ChainSamples:
    del reduced
    widths = (1, *(settings.q,) * (settings.depth - 1), 1)
    return GaussianChain(widths, settings.layer_scales()[0]).draws(indices, key=key)


KINDS: dict[str, Kind] = {
    "gaussian": _states(Gaussian, WIDTH_KEYS + SCALE_KEYS, gaussian),
    "uniform": _states(
        Uniform,
        WIDTH_KEYS + SCALE_KEYS,
        lambda s, arrays: Uniform(s.p, s.q, s.layer_scales()),
    ),
    "orthogonal": _states(
        Orthogonal,
        WIDTH_KEYS + SCALE_KEYS,
        lambda s, arrays: Orthogonal(*s.widths(arrays), s.layer_scales()),
    ),
    "balanced": _states(
        Balanced,
        (*WIDTH_KEYS, "scale"),
        lambda s, arrays: Balanced(*s.widths(arrays), s.layer_scales()[0]),
    ),
    "low_rank": _states(
        LowRank,
        (*WIDTH_KEYS, *SCALE_KEYS, "rank", "noise"),
        lambda s, arrays: LowRank(s.p, s.q, s.rank, jnp.asarray(s.noise), s.layer_scales()),
    ),
    "chain": Kind(("width", "depth", "scale"), _chains, quantity=CHAIN_BLOWUP),
    "escape": Kind(ESCAPE_KEYS, None, quantity=ESCAPE),
    "function": _states(FromFunction, (*WIDTH_KEYS, "function"), _function),
}
FILE_KEYS = ("path", "names", "layers", "direction")
NAMES = AXES["kind"].words


def keys_of(kind: str) -> tuple[str, ...]:
    """The keys that a kind of ensemble takes, besides `kind` and `reduced`."""
    return FILE_KEYS if kind == "file" else KINDS[kind].keys


def _widths(keys: Mapping[str, Any], where: Callable[[str], str]) -> tuple[int, int]:
    given = {name: keys[name] for name in WIDTH_KEYS if name in keys}
    for name in ("width", "p", "q"):
        if name in given:
            given[name] = AXES[name].check(where(name), given[name])
    if "width" in given and ("p" in given or "q" in given):
        raise ValueError(
            f"Key `{where('width')}` gives both widths: `p` and `q` cannot be given as well."
        )
    if "p" in given or "q" in given:
        missing = [name for name in ("p", "q") if name not in given]
        if "aspect" in given:
            raise ValueError(f"Key `{where('aspect')}` goes with `width`, not with `p` and `q`.")
        if missing:
            raise ValueError(f"Key `ensemble.{missing[0]}` is missing: `p` and `q` go together.")
        return given["p"], given["q"]
    width = given.get("width", 200)
    aspect = AXES["aspect"].check(where("aspect"), given.get("aspect", 1.0))
    p = width if aspect == 1 else aspect * width
    if not 1 <= round(min(p, 2 * _LARGEST_WIDTH)) <= _LARGEST_WIDTH:
        raise ValueError(
            f"Key `{where('aspect')}` times the width {width} gives p = {p:g}, which is no width."
        )
    return round(p), width


def plain_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an ensemble with its numbers in the types of their keys: 200.0 becomes 200."""
    plain = dict(keys)
    plain |= {name: AXES[name].type(keys[name]) for name in AXES if name in keys}
    if "data" in keys:
        plain["data"] = str(Path(keys["data"]).absolute())
    if "scales" in keys:
        plain["scales"] = [float(scale) for scale in keys["scales"]]
    return plain


def _scales(keys: Mapping[str, Any], where: Callable[[str], str]) -> tuple[float, float, float]:
    if "scales" in keys:
        if "scale" in keys:
            raise ValueError(f"Key `{where('scale')}` and `scales` cannot be given together.")
        values = sequence(where("scales"), keys["scales"], "three numbers, of a, b and c")
        if len(values) != 3:
            raise wrong(where("scales"), keys["scales"], "three numbers, of a, b and c")
        scales = [real(where("scales"), value, strict=False) for value in values]
    else:
        scales = [AXES["scale"].check(where("scale"), keys.get("scale", 1.0))] * 3
    for place, name in enumerate(("scale_a", "scale_b", "scale_c")):
        if name in keys:
            scales[place] = AXES[name].check(where(name), keys[name])
    return scales[0], scales[1], scales[2]


def read_settings(
    keys: Mapping[str, Any], swept: Mapping[str, Any], *, load: bool = True
) -> tuple[str, Settings]:
    """The kind and the settings of one sweep point.

    **Arguments:** `keys`: keys of the ensemble; `swept`: axis values at the point, which override
    `keys`; `load`: whether to import a function given by name.

    **Raises:** `ValueError` that names the key.
    """

    def where(name: str) -> str:
        return f"sweep.{name}" if name in swept else f"ensemble.{name}"

    joined = {**keys, **swept}
    kind = AXES["kind"].check(where("kind"), joined.pop("kind", "gaussian"))
    joined.pop("reduced", None)
    for name in joined:
        if name not in keys_of(kind):
            takes, article = ", ".join(keys_of(kind)), "an" if kind[0] in "aeo" else "a"
            raise ValueError(
                f"Key `{where(name)}` is not one that {article} {kind} ensemble takes; "
                f"it takes {takes}."
            )
    if kind == "file":
        return kind, Settings(1, 1, (1.0, 1.0, 1.0), 1, 0.0, None)
    if kind == "escape":
        training = read_training(joined, where)
        width, depth = training.width, training.depth
        return kind, Settings(width, width, (1.0, 1.0, 1.0), 1, 0.0, None, depth, training)
    p, q = _widths(joined, where)
    function = joined.get("function")
    if kind == "function":
        take = load_function if load else check_function
        function = take(where("function"), function)
    return kind, Settings(
        p,
        q,
        _scales(joined, where),
        whole(where("rank"), joined.get("rank", 1), 1, min(p, q)),
        AXES["noise"].check(where("noise"), joined.get("noise", 0.1)),
        function,
        AXES["depth"].check(where("depth"), joined.get("depth", 3)),
    )


def file_digest(path: str | Path) -> str:
    """A hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_file(keys: Mapping[str, Any]) -> State:
    """The states of a `file` ensemble.

    **Raises:** `ValueError` that names the key, `OSError` if the file cannot be read.
    """
    path, names, layers, direction = check_file(keys)
    return read_states(path, names=names, direction=direction, layers=layers)


def check_file(keys: Mapping[str, Any]) -> tuple[str | Path, Any, Any, Any]:
    """Path, names, layers and direction of a `file` ensemble, without opening the file.

    **Raises:** `ValueError` that names the key.
    """
    path = keys.get("path")
    if not isinstance(path, str | Path) or not str(path):
        raise wrong("ensemble.path", path, "the name of an .npz or .safetensors file")
    names, layers, direction = (keys.get(name) for name in ("names", "layers", "direction"))
    if names is not None:
        if not isinstance(names, Mapping):
            raise wrong("ensemble.names", names, "a table of array names for a, b, c, strength")
        known(list(names), ("a", "b", "c", "strength"), "ensemble.names")
        for name, value in names.items():
            if not isinstance(value, str):
                raise wrong(f"ensemble.names.{name}", value, "the name of an array")
    if layers is not None:
        layers = sequence("ensemble.layers", layers, "three names of weight matrices")
        if len(layers) != 3 or not all(isinstance(layer, str) for layer in layers):
            raise wrong("ensemble.layers", layers, "three names of weight matrices")
        layers = (layers[0], layers[1], layers[2])
    if direction is not None and not isinstance(direction, str):
        values = sequence("ensemble.direction", direction, "a list of numbers or an array's name")
        direction = [real("ensemble.direction", v, -math.inf, strict=False) for v in values]
        direction = jnp.asarray(direction)
    return path, None if names is None else dict(names), layers, direction
