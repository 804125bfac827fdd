"""A progress bar for sampling: rate and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(title: str, batches: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Gives `advance(steps of a batch)`, to be called once a step."""
    if not (shown and sys.stderr.isatty()):
        yield lambda total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{title} paints", total=None)
        yield lambda total: bar.update(task, total=total * batches, advance=1)
