"""Writing figures to files."""

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from ..files import written_whole


def _kind(path: Path) -> str:
    return path.suffix.lstrip(".").lower() or "png"


def check_format(path: str | Path) -> None:
    """Raise `ValueError` unless figures can be written in the format of a file's suffix."""
    kind = _kind(Path(path))
    formats = FigureCanvasBase.get_supported_filetypes()
    if kind not in formats:
        raise ValueError(
            f"Figures cannot be written as .{kind}; known are {', '.join(sorted(formats))}."
        )


def save(figure: Figure, path: str | Path, mark: str = "") -> None:
    """Write a figure completely or not at all, in the format of the suffix (`.png` without one).

    **Arguments:** `mark`, a text that `.png`, `.pdf` and `.svg` files carry in their metadata,
    uncompressed.

    **Raises:** `OSError` if the file cannot be written, `ValueError` for an unknown format.
    """
    path = Path(path)
    kind = _kind(path)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=_metadata(kind, mark))


def _metadata(kind: str, mark: str) -> dict[str, str] | None:
    keys = {"png": "Study", "pdf": "Keywords", "svg": "Identifier"}
    return {keys[kind]: mark} if mark and kind in keys else None
