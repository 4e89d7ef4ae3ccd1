"""The data of a figure: arrays, and the settings that determine them."""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..files import written_whole
from ..networks import Escape, EscapeStatus, Limit, Run, RunStatus

_SETTINGS = "settings"


@dataclass(frozen=True)
class Experiment:
    """The data of one figure.

    - `name`: name of the figure, such as `"2a"`.
    - `arrays`: arrays by name, documented by the function that computes them.
    - `settings`: plain values that determine the arrays.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        """An array by its name."""
        return self.arrays[name]

    def save(self, path: str | os.PathLike) -> None:
        """Write arrays and settings (as JSON in the array `settings`) to a file `.npz`.

        **Raises:** `OSError` if it cannot be written.
        """
        settings = {"figure": self.name, **self.settings, "jax": jax.__version__}
        arrays = {_SETTINGS: np.array(json.dumps(settings)), **self.arrays}
        with written_whole(Path(path)) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]


def require_sound(run: Run) -> None:
    """Raise `ValueError` if a run has diverged."""
    if np.any(run.status == RunStatus.DIVERGED):
        raise ValueError(
            "The training diverged: the learning rate is too large for this width and data."
        )


def require_effective_model(escape: Escape, std: float) -> None:
    """Raise `ValueError` unless the effective model holds until the plateau ends."""
    for codes, kind in ((escape.status, EscapeStatus), (escape.limit, Limit)):
        worst = kind(int(np.max(codes)))
        if worst:
            raise ValueError(
                f"At std {std:g} the effective model does not hold to the end of the plateau, "
                f"which this figure needs: {worst.meaning}."
            )


def read_experiment(path: str | os.PathLike) -> Experiment:
    """Read a file written by `Experiment.save`.

    **Raises:** `OSError` if the file cannot be opened, `ValueError` if it is damaged or
    holds something else.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            settings = json.loads(str(file[_SETTINGS]))
            arrays = {name: file[name] for name in file.files if name != _SETTINGS}
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"File {path} does not hold the data of a figure: {error}") from error
    return Experiment(settings.pop("figure"), arrays, settings)
