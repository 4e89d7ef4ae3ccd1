"""Training samples, read from files."""

import csv
import os
from pathlib import Path

import numpy as np

from .._arrays import read_arrays
from ._data import Regression


def read_samples(path: str | os.PathLike, num_targets: int = 1) -> Regression:
    """Read samples from a file.

    **Arguments:**

    - `path`: a file `.npz` or `.safetensors` with arrays `x` of shape `(n, inputs)` and `y` of
      shape `(n, outputs)` or `(n,)`; or a table `.csv` with one sample per line, with or without
      column names in its first line.
    - `num_targets`: for a table, the number of last columns that are targets.

    **Raises:** `OSError` if the file cannot be opened; `ValueError` if it is of another kind, is
    damaged, lacks an array, or holds entries that are not numbers.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        arrays = read_arrays(path, ("x", "y"))
        return Regression(arrays["x"], arrays["y"])
    if num_targets < 1:
        raise ValueError(f"Argument `num_targets` must be at least 1, but is {num_targets}.")
    with open(path, newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"File {path} holds no samples.")
    columns = len(rows[0])
    for number, row in enumerate(rows, 1):
        wrong = [cell for cell in row if not _is_number(cell)]
        if wrong or len(row) != columns:
            what = f"{wrong[0]!r} is no number" if wrong else f"{len(row)} columns for {columns}"
            raise ValueError(f"File {path}, sample {number}: {what}.")
    if columns <= num_targets:
        raise ValueError(
            f"File {path} has {columns} columns, too few for inputs and {num_targets} targets."
        )
    table = np.asarray(rows, np.float64)
    return Regression(table[:, :-num_targets], table[:, -num_targets:])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
