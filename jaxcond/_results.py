"""What results share: short tables, and xarray datasets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def table(title: str, rows: Mapping[str, object]) -> str:
    """A title, and a line for each name and value, in aligned columns."""
    width = max((len(name) for name in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def spread(values: Any) -> str:
    """The median and the quartiles of the finite values, or the one value."""
    finite = np.asarray(values, float).ravel()
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return "none finite"
    low, median, high = np.percentile(finite, (25, 50, 75))
    return f"{median:.6g}" if finite.size == 1 else f"{median:.6g} ({low:.6g} to {high:.6g})"


def batch_dims(name: str, ndim: int) -> tuple[str, ...]:
    """Names for the leading axes of a result: `name`, or `name_0`, `name_1`, ..."""
    return (name,) * ndim if ndim < 2 else tuple(f"{name}_{i}" for i in range(ndim))


def dataset(
    variables: Mapping[str, tuple[tuple[str, ...], Any]],
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    **attributes: Any,
) -> "xr.Dataset":
    """A dataset of variables with their dimensions; `flags` describe the variables of codes."""
    import xarray as xr

    flags = flags or {}
    return xr.Dataset(
        {
            name: (dims, np.asarray(values), dict(flags.get(name, {})))
            for name, (dims, values) in variables.items()
        },
        attrs=attributes,
    )
