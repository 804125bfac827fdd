"""What long work shows, on stderr: a bar with time left on a terminal, plain lines elsewhere or with --quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..interfaces import Step

EVERY = 5.0  # seconds between two plain lines


class Progress:
    """A piece of work of known length; what takes long without telling how far it is says at least that it works.

    with Progress("painting") as bar:
        bar.update(3, 10, "batch 2")
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title = title
        self.terminal = sys.stderr.isatty() and not quiet
        self._bar: Any = None
        self._task: Any = None
        self._lines: Any = None
        self._rounds = 0
        self._total: int | None = None
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self._begun = self._said = time.monotonic()
        if not self.terminal:
            from ..training.progress import Progress as Lines

            self._lines = Lines(plain=True)
            self._lines.what = self.title
            self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.__exit__(kind, error, trace)
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, what: str = "") -> None:
        """`done` of `total` are done; `what` is shown beside it. With another `total` another piece of work begins."""
        now = time.monotonic()
        fresh, self._total = total != self._total, total
        if self.terminal:
            if self._bar is None:
                self._bar, self._task = _bar(self.title, total)
            elif fresh:
                self._bar.reset(self._task)
            self._bar.update(self._task, completed=done, total=total, what=what)
            return
        if fresh:
            self._begun = now
        if self._lines is not None and now - self._said >= EVERY:
            self._said = now
            spent = now - self._begun
            left = f", {spent / done * (total - done):.0f} s left" if done else ""
            self._lines.say(f"{self.title}: {done} of {total}{left}{f', {what}' if what else ''}")

    def step(self, step: Step) -> None:
        """The callback of `System.sample`. Pictures that do not fit one batch are painted in rounds of all steps."""
        if step.index == 0:
            self._rounds += 1
        self.update(step.index + 1, step.total, f"batch {self._rounds}" if self._rounds > 1 else "")


def _bar(title: str, total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bar = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        console=Console(stderr=True),
    )
    bar.start()
    return bar, bar.add_task(title, total=total, what="")


def terminal() -> bool:
    """True where stdout is a person's terminal and not a file or another program."""
    return sys.stdout.isatty()
