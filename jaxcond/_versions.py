"""The versions and devices that a report of a fault should name."""

import platform
from importlib import metadata

import jax

from . import __version__, _native

_LIBRARIES = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "scipy", "xarray", "zarr")


def versions() -> dict[str, str]:
    """The versions of jaxcond, Python and the libraries, the devices, and the kernel in use."""
    values = {"jaxcond": __version__, "Python": platform.python_version()}
    values |= {"platform": platform.platform()}
    values |= {name: metadata.version(name) for name in _LIBRARIES}
    values["devices"] = ", ".join(str(device) for device in jax.devices())
    return values | {"kernel": _native.status()}


def show_versions() -> None:
    """Print the versions of the libraries, the devices, the kernel, and the precision of JAX."""
    wide = jax.config.read("jax_enable_x64")
    values = versions() | {"64-bit mode": "on" if wide else "off"}
    width = max(len(name) for name in values)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in values.items()))
