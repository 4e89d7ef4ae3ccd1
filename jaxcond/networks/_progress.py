"""The progress bar of a training run, with loss and time left, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def training_bar(
    first: float, last: float, shown: bool
) -> Iterator[Callable[[float, float], None]]:
    """A bar between two iterations or times; yields a function of the current one and the loss."""
    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    hidden = not shown or not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task("training", total=last, loss="")
        progress.update(task, completed=first)
        yield lambda iteration, loss: progress.update(task, completed=iteration, loss=f"{loss:.6g}")
