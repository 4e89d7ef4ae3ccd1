"""Configuration of a study: ensemble, sweep, number of samples and accuracy; reads TOML."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from .._state import State
from ..blowup import resolve_rtol
from ..sampling import check_seed, seed_key
from ._axes import AXES
from ._checks import choice, known, real, sequence, whole, wrong
from ._functions import function_digest, function_name, load_function
from ._kinds import (
    KINDS,
    NAMES,
    Settings,
    check_file,
    file_digest,
    keys_of,
    load_file,
    plain_keys,
    read_settings,
)
from ._observables import OBSERVABLES
from ._quantity import BLOWUP, Quantity

LARGEST_POINTS, LARGEST_CHUNK = 1 << 17, 1 << 26
_TUPLES = ("observables", "fractions")
# Keys that may change between two runs on one store, since they do not affect finished samples.
_EXTENSIBLE = ("samples", "standard_error", "relative_error", "chunk")


@dataclass(frozen=True)
class Study:
    r"""A Monte Carlo study of the blow-up time $T^*$ and the indicators over random initial states.

    The seed, the sweep point and the index determine each sample. Chunks, devices, workers and
    interruptions affect only rounding.

    **Arguments:**

    - `samples`: number of samples per sweep point; a larger number extends a finished study.
    - `ensemble`: a table. `kind`, one of `gaussian` (default), `uniform`, `orthogonal`, `balanced`,
      `low_rank`, `chain`, `escape`, `function`, `file`; the widths as `width` (of both layers,
      default 200), `width` and `aspect` ($p/q$), or `p` and `q`; standard deviations of the entries
      of $a$, $b$, $c$ as `scales` (three numbers), `scale` (one) or `scale_a`, `scale_b`,
      `scale_c`; `rank` and `noise` of `low_rank`; `function`, a callable `(key, p, q) -> State` or
      its name as `module:name`;
      `path`, `names`, `layers`, `direction` of `file` (see `read_states`); `depth` of `chain` and
      `escape`; `data`, `targets`, `outputs`, `std` or `exponent`, `activation`, `bias`, `loss`,
      `learning_rate`, `fraction` of `escape` (see `networks.predict_escape`). `reduced`: whether
      samples are drawn in their exact reduced form, at a cost that does not depend on the width;
      true by default if the ensemble has such a form and no observable needs the full state.
    - `sweep`: axes by name (see `AXES`), each a list of values or a table `start`, `stop`, `num`,
      `spacing` (`"linear"` or `"log"`).
    - `combine`: `"product"` of the axes, or `"zip"` of axes of one length.
    - `seed`: between 0 and $2^{63}-1$.
    - `sampling`: `"random"`, or `"sobol"` for randomised quasi-Monte Carlo over the leading entries
      of the reduced Gaussian ensemble, in `replicates` independent scrambles.
    - `observables`: variables to record besides $T^*$ and its bracket; see `OBSERVABLES`.
    - `fractions`: fractions of $T^*$ at which `counts` is evaluated.
    - `rtol`: relative tolerance; by default 1e-10 for float64, 1e-5 for float32.
    - `precision`: `"float64"` or `"float32"`, independent of JAX's settings.
    - `standard_error`, `relative_error`: a sweep point ends early, at the end of a chunk, once the
      standard error of its mean $T^*$, absolute or relative to the mean, is at most this value.
    - `chunk`: samples computed and stored together; by default some seconds of work.
    - `load`: whether to import the function, or read the states, that `ensemble` names. A study
      from `open_store` does neither; `loaded` returns the same study after doing so.

    **Raises:** `ValueError` that names the key, `OSError` for states in a file that cannot be read.
    """

    samples: int = 10_000
    ensemble: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    combine: str = "product"
    seed: int = 0
    sampling: str = "random"
    replicates: int = 16
    observables: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (0.5, 0.9, 0.99)
    rtol: float | None = None
    precision: str = "float64"
    standard_error: float | None = None
    relative_error: float | None = None
    chunk: int | None = None
    load: InitVar[bool] = True
    _is_loaded = True  # without an annotation: no field

    def __post_init__(self, load: bool):
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("_is_loaded", load)
        put("seed", whole("seed", self.seed, 0, 2**63 - 1))
        check_seed(self.seed)
        put("replicates", whole("replicates", self.replicates, 2, 1024))
        if self.chunk is not None:
            put("chunk", whole("chunk", self.chunk, 1, LARGEST_CHUNK))
        for name, choices in (
            ("combine", ("product", "zip")),
            ("sampling", ("random", "sobol")),
            ("precision", ("float64", "float32")),
        ):
            choice(name, getattr(self, name), choices)
        # Indices are 32-bit integers where JAX has no others.
        most = 2**40 if self.precision == "float64" else 2**32
        put("samples", whole("samples", self.samples, 1, most))
        for name in ("standard_error", "relative_error"):
            if getattr(self, name) is not None:
                put(name, real(name, getattr(self, name)))
        if self.rtol is not None:
            put("rtol", real("rtol", self.rtol))
        with jax.enable_x64(self.precision == "float64"):
            try:
                resolve_rtol(self.rtol, np.dtype(self.precision))
            except ValueError as error:
                raise ValueError(f"Key `rtol`: {error}") from error
        put("observables", _observables(self.observables))
        put("fractions", _fractions(self.fractions))
        for name in ("ensemble", "sweep"):
            if not isinstance(getattr(self, name), Mapping):
                raise wrong(name, getattr(self, name), "a table")
        put("ensemble", dict(self.ensemble))
        put("sweep", {name: _axis(name, values) for name, values in self.sweep.items()})
        self._check_ensemble()
        put("ensemble", plain_keys(self.ensemble))

    def _check_ensemble(self) -> None:
        taken = {key for kind in NAMES for key in keys_of(kind)} | {"kind", "reduced"}
        known(list(self.ensemble), sorted(taken), "ensemble")
        choice("ensemble.kind", self.ensemble.get("kind", "gaussian"), NAMES)
        reduced = self.ensemble.get("reduced")
        if reduced is not None and not isinstance(reduced, bool):
            raise wrong("ensemble.reduced", reduced, "true or false")
        for name in self.sweep:
            if name in self.ensemble:
                raise ValueError(f"Key `{name}` stands in both `ensemble` and `sweep`.")
        if self.kinds == {"file"}:
            if self.sweep:
                raise ValueError(
                    f"Key `sweep.{next(iter(self.sweep))}`: states from a file are not swept."
                )
            check_file(self.ensemble)
            count = self.stored.batch_shape[0] if self._is_loaded else None
            if count is not None and self.samples > count:
                raise ValueError(
                    f"Key `samples` is {self.samples}, but {self.ensemble['path']} holds {count} "
                    "states."
                )
        elif "file" in self.kinds:
            raise ValueError("Key `sweep.kind`: `file` cannot be swept.")
        _ = self.settings
        self._check_chains()
        self._check_escapes()
        if reduced and not self._may_reduce:
            raise ValueError(f"Key `ensemble.reduced` cannot be true: {self._why_full}.")
        if self.sampling == "sobol" and (self.kinds != {"gaussian"} or not self.reduced):
            raise ValueError(
                "Key `sampling` can be 'sobol' for the reduced Gaussian ensemble only."
            )
        if "entries" in self.observables and (self.kinds != {"gaussian"} or not self.reduced):
            raise ValueError(
                "Key `observables`: `entries` are those of the reduced Gaussian ensemble."
            )
        if self.sampling == "sobol" and self.samples < 2 * self.replicates:
            raise ValueError(
                f"Key `samples` must be at least twice the {self.replicates} replicates of a "
                f"'sobol' study, but is {self.samples}."
            )
        if self.sampling == "sobol" and (self.standard_error or self.relative_error):
            raise ValueError(
                "Key `sampling`: a 'sobol' study cannot end early at a standard error, which is "
                "known only from all its replicates."
            )

    def _check_chains(self) -> None:
        if not self.takes_chains:
            return
        if len(self.kinds) > 1:
            raise ValueError(
                "Key `sweep.kind`: `chain` cannot be swept together with ensembles of states."
            )
        for name in self.observables:
            if not OBSERVABLES[name].takes_chains:
                can = ", ".join(n for n, o in OBSERVABLES.items() if o.takes_chains)
                raise ValueError(
                    f"Key `observables`: `{name}` is one of states; chains have {can}."
                )

    def _check_escapes(self) -> None:
        if not self.predicts_escapes and "escape" in self.observables:
            raise ValueError("Key `observables`: `escape` is what an escape ensemble has.")
        if not self.predicts_escapes:
            return
        for name in self.observables:
            if name != "escape":
                raise ValueError(
                    f"Key `observables`: `{name}` is one of states; networks have escape."
                )
        if self.rtol is not None:
            raise ValueError("Key `rtol`: predictions of an escape have a tolerance of their own.")
        object.__setattr__(self, "observables", ("escape",))
        if self._is_loaded:
            for _, settings in self.settings:
                assert settings.training is not None
                settings.training.samples()

    # Sweep points.

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values along each axis of the sweep."""
        return {name: tuple(values) for name, values in self.sweep.items()}

    @property
    def dims(self) -> dict[str, int]:
        """The sweep's dimensions in the store, with their sizes."""
        if not self.sweep:
            return {}
        if self.combine == "zip":
            return {"point": len(next(iter(self.sweep.values())))}
        return {name: len(values) for name, values in self.sweep.items()}

    @functools.cached_property
    def points(self) -> tuple[dict[str, Any], ...]:
        """The values of the swept keys at each point; the last axis varies fastest."""
        if self.combine == "zip":
            lengths = {name: len(values) for name, values in self.sweep.items()}
            if len(set(lengths.values())) > 1:
                listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
                raise ValueError(f"Key `sweep`: zipped axes differ in length: {listed}.")
            _check_points(max(lengths.values(), default=1))
            rows = list(zip(*self.sweep.values(), strict=True)) if self.sweep else [()]
        else:
            for name, values in self.sweep.items():
                if len(set(values)) < len(values):
                    raise ValueError(f"Key `sweep.{name}` holds a value twice.")
            _check_points(math.prod(map(len, self.sweep.values())))
            rows = itertools.product(*self.sweep.values())
        return tuple(dict(zip(self.sweep, row, strict=True)) for row in rows)

    def position(self, point: int) -> tuple[int, ...]:
        """The position of a sweep point along the dimensions of the store."""
        return tuple(int(i) for i in np.unravel_index(point, tuple(self.dims.values())))

    def name(self, point: int) -> str:
        """A sweep point in words."""
        values = (
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.points[point].items()
        )
        return ", ".join(values)

    @functools.cached_property
    def settings(self) -> tuple[tuple[str, Settings], ...]:
        """Kind and settings of the ensemble at each point."""
        load = self._is_loaded
        return tuple(read_settings(self.ensemble, point, load=load) for point in self.points)

    @property
    def kinds(self) -> set[str]:
        """The kinds of ensemble that the study samples."""
        return set(self.sweep.get("kind", (self.ensemble.get("kind", "gaussian"),)))

    @property
    def takes_chains(self) -> bool:
        """Whether samples are chains of any depth, not states."""
        return "chain" in self.kinds

    @property
    def predicts_escapes(self) -> bool:
        """Whether samples are networks, whose escape from the plateau is predicted."""
        return "escape" in self.kinds

    @property
    def time_unit(self) -> str:
        """The unit of the blow-up times."""
        return "training time" if self.predicts_escapes else "time of the effective model"

    @property
    def quantity(self) -> Quantity:
        """The quantity that the study computes."""
        return BLOWUP if self.kinds == {"file"} else KINDS[min(self.kinds)].quantity

    @functools.cached_property
    def stored(self) -> State:
        """The states of a `file` ensemble.

        **Raises:** `ValueError` for a study that is not loaded.
        """
        self._check_loaded()
        with jax.enable_x64(self.precision == "float64"):
            return load_file(self.ensemble)

    def loaded(self) -> "Study":
        """This study after importing the function or reading the states that it names.

        **Raises:** as `Study` does.
        """
        return self if self._is_loaded else dataclasses.replace(self)

    def _check_loaded(self) -> None:
        if not self._is_loaded:
            raise ValueError(
                "This study comes from a store, and its function or file is not loaded yet; "
                "`study.loaded()` loads it."
            )

    @property
    def _may_reduce(self) -> bool:
        return self._why_full is None

    @property
    def _why_full(self) -> str | None:
        for kind in sorted(self.kinds):
            if kind == "file" or not KINDS[kind].exact_reduction:
                return f"the {kind} ensemble has no reduced form at a cost independent of the width"
        for name in self.observables:
            if OBSERVABLES[name].needs_full:
                return f"the observable `{name}` needs the full state"
        return None

    @property
    def reduced(self) -> bool:
        """Whether samples are drawn in their exact reduced form."""
        given = self.ensemble.get("reduced")
        return self._may_reduce if given is None else given

    def key(self, point: int) -> PRNGKeyArray:
        """The random key of a sweep point; `sample_key` derives the key of each sample."""
        return jax.random.fold_in(seed_key(self.seed), point)

    # Forms.

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values for JSON or TOML, without keys that are None."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["ensemble"] = dict(self.ensemble)
        if "function" in self.ensemble:
            plain["ensemble"]["function"] = function_name(self.ensemble["function"])
        if "path" in self.ensemble:
            plain["ensemble"]["path"] = str(self.ensemble["path"])
        plain = {name: value for name, value in plain.items() if value is not None}
        return json.loads(json.dumps(plain, default=lambda value: value.tolist()))

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that determines the samples, without their number.

        **Raises:** `ValueError` for a study of a function or a file that is not loaded.
        """
        if not self.kinds.isdisjoint(("file", "function", "escape")):
            self._check_loaded()
        plain = self.to_dict()
        for name in _EXTENSIBLE:
            plain.pop(name, None)
        plain["ensemble"].pop("path", None)
        if self.predicts_escapes:
            for table in ("ensemble", "sweep"):
                if "data" in plain[table]:
                    given = plain[table]["data"]
                    plain[table]["data"] = (
                        file_digest(given)
                        if isinstance(given, str)
                        else list(map(file_digest, given))
                    )
        if self.kinds == {"file"}:
            plain["ensemble"]["content"] = file_digest(self.ensemble["path"])
        if "function" in self.ensemble:
            function = load_function("ensemble.function", self.ensemble["function"])
            plain["ensemble"]["source"] = function_digest(function)
        return plain

    def digest(self) -> str:
        """A hash of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any], *, load: bool = True) -> "Study":
        """A study from plain values; `load` as in `Study`.

        **Raises:** `ValueError` that names the key that is wrong or unknown.
        """
        known(list(keys), [f.name for f in dataclasses.fields(cls)], "")
        plain: dict[str, Any] = dict(keys)
        for name in _TUPLES:
            if isinstance(plain.get(name), list):  # files have lists only
                plain[name] = tuple(plain[name])
        return cls(**plain, load=load)

    @classmethod
    def from_toml(cls, path: str | Path) -> "Study":
        """A study from a TOML file; file names in it are relative to its folder.

        **Raises:** `OSError`, or `ValueError` that names the file and the key.
        """
        return cls.from_dict(read_toml(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file; file names in it are relative to its folder."""
    path = Path(path)
    with open(path, "rb") as file:
        try:
            keys = tomllib.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}") from error
    ensemble, sweep = keys.get("ensemble"), keys.get("sweep")
    for name in ("path", "data"):
        if isinstance(ensemble, dict) and isinstance(ensemble.get(name), str):
            ensemble[name] = str(path.parent / ensemble[name])
    if isinstance(sweep, dict) and isinstance(sweep.get("data"), list):
        sweep["data"] = [str(path.parent / x) if isinstance(x, str) else x for x in sweep["data"]]
    return keys


def _observables(value: Any) -> tuple[str, ...]:
    names = sequence("observables", value, f"a list of {', '.join(OBSERVABLES)}")
    for name in names:
        choice("observables", name, tuple(OBSERVABLES))
    return tuple(name for name in OBSERVABLES if name in names)


def _fractions(value: Any) -> tuple[float, ...]:
    wanted = "a list of numbers between 0 and 1, increasing"
    fractions = [real("fractions", f, strict=False) for f in sequence("fractions", value, wanted)]
    if not fractions or max(fractions) >= 1 or sorted(set(fractions)) != fractions:
        raise wrong("fractions", value, wanted)
    return tuple(fractions)


def _axis(name: str, value: Any) -> list[Any]:
    """The values of an axis, from a list or from a range."""
    known([name], list(AXES), "sweep")
    key, axis = f"sweep.{name}", AXES[name]
    if isinstance(value, Mapping) and axis.type is not str:
        value = _range(key, value, whole_numbers=axis.type is int)
    values = sequence(key, value, "a list of values, or a table with start, stop and num")
    if not values:
        raise ValueError(f"Key `{key}` is empty: an axis needs at least one value.")
    if name == "data":
        values = [str(Path(axis.check(key, v)).absolute()) for v in values]
    return [axis.check(key, v) for v in values]


def _check_points(count: int) -> None:
    if count > LARGEST_POINTS:
        raise ValueError(f"Key `sweep` gives {count} points, more than {LARGEST_POINTS}.")


def _range(key: str, table: Mapping[str, Any], *, whole_numbers: bool) -> list[Any]:
    known(list(table), ("start", "stop", "num", "spacing"), key)
    for part in ("start", "stop", "num"):
        if part not in table:
            raise ValueError(f"Key `{key}.{part}` is missing.")
    spacing = choice(f"{key}.spacing", table.get("spacing", "linear"), ("linear", "log"))
    num = whole(f"{key}.num", table["num"], 1, LARGEST_POINTS)
    ends = [
        real(f"{key}.{part}", table[part], strict=spacing == "log") for part in ("start", "stop")
    ]
    make = np.geomspace if spacing == "log" else np.linspace
    values = make(ends[0], ends[1], num)
    if whole_numbers:
        return [round(v) for v in dict.fromkeys(np.round(values).tolist())]
    return values.tolist()
