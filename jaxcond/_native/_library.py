"""Loads the kernel and wraps its functions for NumPy arrays."""

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = Path(__file__).parent / "libjaxcond.so"
FFI_TARGETS = tuple(
    f"jaxcond_ffi_{name}_{kind}"
    for name in ("series", "gradient", "pieces")
    for kind in ("f64", "f32")
)
# Must equal the version in library.cpp.
_VERSION = 4
_SUFFIXES = {np.dtype(np.float64): "f64", np.dtype(np.float32): "f32"}


class _Series(ctypes.Structure):
    """`JaxcondSeries` of kernel.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "p", "q")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "strength", "rtol", "truncated")),
        *((name, ctypes.c_int64) for name in ("rtol_stride", "truncated_stride")),
        *((name, ctypes.c_int32) for name in ("order", "dim", "max_expansions", "extended")),
        *((name, ctypes.c_void_p) for name in ("time", "lower", "upper", "error")),
        *((name, ctypes.c_void_p) for name in ("status", "num_steps")),
    )


class _Gradient(ctypes.Structure):
    """`JaxcondGradient` of kernel.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "p", "q")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "strength", "rtol")),
        *((name, ctypes.c_int32) for name in ("order", "dim", "max_expansions")),
        *((name, ctypes.c_void_p) for name in ("of_a", "of_b", "of_c")),
    )


class _Gaussian(ctypes.Structure):
    """`JaxcondGaussian` of kernel.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("indices", ctypes.c_void_p),
        ("p", ctypes.c_double),
        ("q", ctypes.c_double),
        ("scales", ctypes.c_double * 3),
        ("key", ctypes.c_uint32 * 2),
        ("dim", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
    )


class _Loaded(NamedTuple):
    """The library, or the reason why it is not in use."""

    library: ctypes.CDLL | None
    status: str


@functools.cache
def _load() -> _Loaded:
    asked = os.environ.get("JAXCOND_NATIVE", "1")
    if asked == "0":
        return _Loaded(None, "none: switched off by JAXCOND_NATIVE=0")
    if not FILE.exists():
        return _Loaded(None, "none: not built (no C++17 compiler at installation)")
    try:
        library = ctypes.CDLL(str(FILE))
        version = library.jaxcond_version()
        library.jaxcond_target.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        reason = str(error).removeprefix(f"{FILE}: ")
        return _Loaded(None, f"none: built for another machine ({reason})")
    if version != _VERSION:
        return _Loaded(None, "none: out of date, install the package again")
    if asked != "1" and library.jaxcond_choose(asked.encode()):
        return _Loaded(None, f"none: JAXCOND_NATIVE={asked} is not one that this machine runs")
    return _Loaded(library, f"native, {library.jaxcond_target().decode()}")


def status() -> str:
    """The kernel in use, or the reason why none is in use, in one line."""
    return _load().status


def instruction_set(name: str | None = None) -> str | None:
    """The instruction set in use; `name` selects another one first.

    **Returns:** the name of the instruction set, or `None` if no kernel is in use.

    **Raises:** `ValueError` for an instruction set that this machine does not support.
    """
    library = _load().library
    if library is None:
        return None
    if name is not None and library.jaxcond_choose(name.encode()):
        raise ValueError(f"Argument `name` is {name!r}, which this machine does not run.")
    return library.jaxcond_target().decode()


def handlers() -> dict[str, Any]:
    """The XLA handlers by name; empty if no kernel is in use."""
    library = _load().library
    return {} if library is None else {name: getattr(library, name) for name in FFI_TARGETS}


def _function(name: str, dtype: np.dtype) -> Callable[[Any], int] | None:
    library = _load().library
    if library is None or dtype not in _SUFFIXES:
        return None
    return getattr(library, f"{name}_{_SUFFIXES[dtype]}")


def _call(function: Callable[[Any], int], arguments: ctypes.Structure) -> None:
    # ctypes releases the GIL during the call, so that other threads can run the kernel too.
    if function(ctypes.byref(arguments)):
        raise MemoryError("There is not enough memory for the kernel's work space.")


def solve_series(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    strength: np.ndarray,
    rtol: float,
    truncated: bool,
    *,
    order: int,
    dim: int,
    max_expansions: int,
    extended: bool,
) -> dict[str, np.ndarray] | None:
    """Blow-up times of many states of rank 1: see `blowup.series.Series`.

    **Arguments:** `a` of shape `(n, p)`, `b` `(n, p, q)`, `c` `(n, q)`, `strength` `(n,)`, of one
    floating dtype.

    **Returns:** the fields of a `BlowUp`, each of shape `(n,)`; `None` without a kernel.
    """
    function = _function("jaxcond_series", b.dtype)
    if function is None:
        return None
    a, b, c, strength = (np.ascontiguousarray(x) for x in (a, b, c, strength))
    count, (p, q) = strength.size, b.shape[-2:]
    tolerance, flag = np.array(rtol, b.dtype), np.array(truncated, np.uint8)
    results = {name: np.empty(count, b.dtype) for name in ("time", "lower", "upper", "error")}
    results |= {name: np.empty(count, np.int32) for name in ("status", "num_steps")}
    inputs = [x.ctypes.data for x in (a, b, c, strength, tolerance, flag)]
    outputs = [x.ctypes.data for x in results.values()]
    sizes = (0, 0, order, dim, max_expansions, extended)
    _call(function, _Series(count, p, q, *inputs, *sizes, *outputs))
    return results


def series_gradient(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    strength: np.ndarray,
    rtol: np.ndarray,
    *,
    order: int,
    dim: int,
    max_expansions: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Derivatives of the blow-up times of many states of rank 1 by `a`, `b` and `c`.

    **Arguments:** as for `solve_series`, with one tolerance per state.

    **Returns:** three arrays, with NaN if a state does not reach the blow-up; `None` without a
    kernel.
    """
    function = _function("jaxcond_gradient", b.dtype)
    if function is None:
        return None
    inputs = [np.ascontiguousarray(x) for x in (a, b, c, strength, rtol)]
    results = tuple(np.empty(x.shape, b.dtype) for x in inputs[:3])
    sizes = (strength.size, *b.shape[-2:])
    pointers = [x.ctypes.data for x in inputs]
    outputs = [x.ctypes.data for x in results]
    _call(function, _Gradient(*sizes, *pointers, order, dim, max_expansions, *outputs))
    return results[0], results[1], results[2]


def draw_gaussian(
    indices: np.ndarray,
    key: np.ndarray,
    p: float,
    q: float,
    scales: tuple[float, float, float],
    dim: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Reduced Gaussian states by their global indices: see `ensembles.Gaussian.sample_reduced`.

    **Arguments:** `key`: the two words of a Threefry key.

    **Returns:** $a$ of shape `(n, dim)`, $b$ `(n, dim, dim)`, $c$ `(n, dim)`; `None` without a
    kernel.
    """
    function = _function("jaxcond_gaussian", dtype)
    if function is None:
        return None
    count, indices = indices.size, np.ascontiguousarray(indices, np.uint64)
    a, c = np.empty((count, dim), dtype), np.empty((count, dim), dtype)
    b = np.empty((count, dim, dim), dtype)
    words = (ctypes.c_uint32 * 2)(*(int(word) for word in key))
    factors = (ctypes.c_double * 3)(*scales)
    pointers = [x.ctypes.data for x in (a, b, c)]
    _call(function, _Gaussian(count, indices.ctypes.data, p, q, factors, words, dim, *pointers))
    return a, b, c
