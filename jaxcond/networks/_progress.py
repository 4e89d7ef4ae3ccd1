"""The bar of a training run: loss and time left, where there is a terminal to see it."""

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
    """A bar from one iteration, or time, to another; gives a function of it and the loss."""
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
