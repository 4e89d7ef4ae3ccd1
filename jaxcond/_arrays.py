"""Arrays by name, read from files that other programs wrote."""

import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

# NumPy's errors for files that are cut off, damaged, of another kind, or hold Python objects.
_DAMAGED = (
    ValueError, EOFError, KeyError, OSError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# A file may unpack to this many bytes, or to this many times its own size. Weights hardly compress,
# so a file that compresses more was made to fill the memory.
_HARMLESS, _LARGEST_RATIO = 1 << 28, 20


def as_real(name: str, array: np.ndarray) -> np.ndarray:
    """Any real array as float64, which holds the values of all narrower dtypes."""
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"Array {name!r} must hold real numbers, but has dtype {array.dtype}.")
    return array.astype(np.float64)


def read_arrays(
    path: Path, wanted: tuple[str, ...] | None = None, optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Arrays of a file `.npz` or `.safetensors` by name, by default all in the order of the file.

    Other contents are not read.

    **Raises:** `OSError` if the file cannot be opened, `ValueError` if it is of another kind, is
    damaged, or lacks an array that is not optional.
    """
    readers = {".npz": _load_npz, ".safetensors": _load_safetensors}
    if path.suffix.lower() not in readers:
        raise ValueError(f"File {path} must end in {' or '.join(readers)}.")
    available, arrays = readers[path.suffix.lower()](path, wanted)
    missing = [name for name in wanted or () if name not in arrays and name not in optional]
    if missing:
        raise ValueError(
            f"File {path} lacks {', '.join(map(repr, missing))}; "
            f"it holds {', '.join(map(repr, available)) or 'nothing'}."
        )
    return {name: as_real(name, array) for name, array in arrays.items()}


def _load_npz(
    path: Path, wanted: tuple[str, ...] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    with open(path, "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:  # NumPy would read other formats, too
                _check_unpacked(path, archive, wanted)
                stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                names = file.files if wanted is None else wanted
                return file.files, {name: file[name] for name in names if name in file.files}
        except _DAMAGED as error:
            raise ValueError(f"File {path} cannot be read as .npz: {error}") from error


def _check_unpacked(path: Path, archive: zipfile.ZipFile, wanted: tuple[str, ...] | None) -> None:
    """Refuse, from its headers, an archive that is small and unpacks to what fills the memory."""
    members = [m for m in archive.infolist() if wanted is None or m.filename[:-4] in wanted]
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if unpacked > max(_HARMLESS, _LARGEST_RATIO * packed):
        raise ValueError(
            f"its {packed} bytes unpack to {unpacked}, more than {_LARGEST_RATIO} times as many"
        )


def _load_safetensors(
    path: Path, wanted: tuple[str, ...] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    with open(path, "rb"):  # says what is wrong with the path, where safetensors may not
        pass
    try:
        with safe_open(path, framework="np") as file:
            available = list(file.keys())
            names = available if wanted is None else wanted
            return available, {name: file.get_tensor(name) for name in names if name in available}
    except SafetensorError as error:
        raise ValueError(f"File {path} cannot be read as .safetensors: {error}") from error
