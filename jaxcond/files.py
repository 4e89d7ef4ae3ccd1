"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[str]:
    """A temporary file to write, which becomes `path` at the end, or is removed on failure."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def holds(path: Path, text: str) -> bool:
    """Whether a file holds a text, such as the mark of a figure."""
    return path.is_file() and text.encode() in path.read_bytes()
