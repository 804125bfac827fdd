"""The bar of a call of `sample`: on a terminal, or to a function that is handed in."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(title: str, batches: int, shown: bool | Callable[[int, int], None]) -> Iterator[Callable[[int], None]]:
    """Gives `advance(steps of a batch)`, to be called once a step."""
    if callable(shown):
        done = itertools.count(1)
        yield lambda total: shown(next(done), total * batches)
        return
    if not (shown and sys.stderr.isatty()):
        yield lambda total: None
        return
    with _bar(title, batches) as advance:
        yield advance


@contextmanager
def _bar(title: str, batches: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{title} paints", total=None)
        yield lambda total: bar.update(task, total=total * batches, advance=1)
