"""What a command that computes sets up: double precision, and the cache of compiled programs."""

import argparse
import hashlib
import os
import platform
import time
import warnings
from pathlib import Path

import jax
import platformdirs

from ..._versions import versions
from .._common import err

# Bytes that the cache may hold; what was used least recently goes first.
_LARGEST_CACHE = 1 << 30
# Programs that compile faster than this are not worth a file, in seconds.
_WORTH_KEEPING = 0.05
# Seconds within which an entry may still be in the hands of another process.
_BEING_WRITTEN = 60


def begin(arguments: argparse.Namespace) -> None:
    """Before the first program: float64, and programs kept unless `--no-cache` is given."""
    jax.config.update("jax_enable_x64", True)
    if not arguments.no_cache:
        _use_cache()


def cache_folder() -> Path:
    """Where compiled programs are kept: `JAXCOND_CACHE_DIR`, or a folder of the user's caches.

    Each processor has a folder in it, as programs hold its instructions.
    """
    named = os.environ.get("JAXCOND_CACHE_DIR")
    folder = Path(named) if named else Path(platformdirs.user_cache_dir("jaxcond"))
    return folder / "programs" / f"{platform.machine()}-{_processor()}"


def environment() -> dict[str, str]:
    """What `jaxcond.show_versions` prints, and where compiled programs are kept."""
    return versions() | {"cache": str(cache_folder())}


def _processor() -> str:
    """A digest of what distinguishes this processor's instructions, where that is known."""
    described = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        described = "".join(sorted({line for line in lines if line.startswith(("flags", "Feat"))}))
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _use_cache() -> None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(folder))
        _remove_torn(folder)
    except OSError as error:
        err.print(
            f"Warning: compiled programs are not kept: {error.filename}: {error.strerror}",
            highlight=False,
            soft_wrap=True,
        )
        return
    # A program that cannot be read is compiled again: nothing that the user has to act on.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_torn(folder: Path) -> None:
    """Remove entries that a killed process, or a full disk, has left without their time of use.

    JAX writes an entry and then that time. An entry without one may be cut short, is never
    replaced, and keeps JAX from writing any other. What is being written now is left alone.
    """
    for entry in folder.glob("*-cache"):
        if entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
            continue
        if time.time() - entry.stat().st_mtime > _BEING_WRITTEN:
            entry.unlink(missing_ok=True)
