"""The layout of the store of a study."""

from collections.abc import Mapping
from typing import Any

from ...blowup import Status
from .._axes import AXES
from .._config import Study
from .._observables import OBSERVABLES, Field, entry_labels
from ._layout import Coordinate, Layout, Variable

_TIME_FIELDS = (
    Field("blowup_time", "blow-up time T*"),
    Field("lower", "lower end of the bracket of T*"),
    Field("upper", "upper end of the bracket of T*"),
    Field("error", "estimate of the numerical error of T*"),
    Field(
        "status",
        "outcome of the sample",
        "int8",
        flags=tuple(status.name.lower() for status in Status),
    ),
    Field("num_steps", "Taylor expansions or solver steps", "int32"),
    Field("stage", "which of the methods settled the sample", "int8"),
)
GROWING = "growing"
_TIMES = ("blowup_time", "lower", "upper", "error", "onset", "onset_time_left")


def fields_of(study: Study) -> tuple[Field, ...]:
    """The variables of a study's store."""
    return _TIME_FIELDS + observed_fields(study)


def observed_fields(study: Study) -> tuple[Field, ...]:
    """The variables of the observables that a study asks for."""
    return tuple(f for name in study.observables for f in OBSERVABLES[name].fields)


def layout_of(study: Study, attributes: Mapping[str, Any]) -> Layout:
    """The layout of the store of a study with these attributes."""
    return Layout(
        identity=attributes["configuration_hash"],
        dims=study.dims,
        samples=attributes["samples"],
        chunk=attributes["chunk"],
        variables=tuple(_variable(field, study) for field in fields_of(study)),
        coordinates=tuple(_coordinates(study)),
        name_of=study.name,
        growing=GROWING in attributes,
    )


def coordinate_names(study: Study) -> list[str]:
    """The coordinates of a study's store."""
    return [coordinate.name for coordinate in _coordinates(study)]


def _variable(field: Field, study: Study) -> Variable:
    sizes = {"entry": len(entry_labels()), "fraction": len(study.fractions)}
    attributes: dict[str, Any] = {"long_name": field.long_name}
    if field.flags:
        attributes["flag_values"] = list(range(-1, len(field.flags)))
        attributes["flag_meanings"] = " ".join(("not_run", *field.flags))
    elif field.dtype == "float":
        attributes["units"] = study.time_unit if field.name in _TIMES else "1"
    return Variable(
        name=field.name,
        dtype=study.precision if field.dtype == "float" else field.dtype,
        attributes=attributes,
        num_codes=len(field.flags),
        dims={} if field.dim is None else {field.dim: sizes[field.dim]},
    )


def _coordinates(study: Study) -> list[Coordinate]:
    found = [
        Coordinate(name, "point" if study.combine == "zip" else name, list(values), AXES[name].help)
        for name, values in study.axes.items()
    ]
    if "counts" in study.observables:
        found.append(Coordinate("fraction", "fraction", list(study.fractions), "fraction of T*"))
    if "entries" in study.observables:
        found.append(
            Coordinate("entry", "entry", list(entry_labels()), "entry of the reduced state")
        )
    return found
