"""Calls of the kernel from traced programs, through the XLA FFI."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ._library import handlers


def only_cpus() -> bool:
    """Whether all devices of JAX are CPUs."""
    return all(device.platform == "cpu" for device in jax.devices())


@functools.cache
def _register() -> None:
    for name, handler in handlers().items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def native_call(
    name: str, dtype: Any, results: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Sequence[jax.Array]]:
    """A function of the kernel, by its name and the dtype of its arguments."""
    _register()
    target = f"jaxcond_ffi_{name}_f{8 * dtype.itemsize}"
    return jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")
