"""Work on the threads of the host."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")
R = TypeVar("R")


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_device() -> Any:
    """The device that the caller set as JAX's default, or `None`."""
    return jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """A pool of threads that stays alive: starting one costs hundreds of blow-up times."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="jaxcond")


# Threads do not survive a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def map_on_threads(
    function: Callable[[T], R], pieces: Iterable[T], num_threads: int
) -> Iterable[R]:
    """Map a function over many pieces, in order, with the caller's JAX precision and device.

    JAX's configuration belongs to the thread if the caller set it by a context manager. The
    function must not call this one. If one piece fails, pieces that have not begun are cancelled.
    """
    wide_precision = jnp.result_type(float) == jnp.float64
    device = chosen_device()

    def run(piece: T) -> R:
        with jax.enable_x64(wide_precision), jax.default_device(device):
            return function(piece)

    pieces = list(pieces)
    if len(pieces) < 2:
        yield from map(function, pieces)
        return
    yield from _pool(num_threads).map(run, pieces)
