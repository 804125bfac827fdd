"""What a person sees of long work: a bar with rate, time left and losses; plain lines where there is no terminal.

A line comes at least every few seconds while work goes on: a thread says so when a step, a sample grid or an evaluation
takes longer.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

QUIET_FOR = 8.0
"""Seconds after which something is said although nothing has come to an end."""


class Progress:
    """The progress of one run, written to `stream` (standard error). Use it as a context.

    `plain` asks for lines (`--quiet`); without a terminal they are lines anyway. `silent` says nothing at all.
    """

    def __init__(self, plain: bool = False, silent: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.silent = silent
        self.lines = plain or not self.stream.isatty()
        self.what = "starting"
        self._bar: Any = None
        self._task: Any = None
        self._said = self._began = time.monotonic()
        self._over = threading.Event()
        self._write = threading.Lock()
        self._beat: threading.Thread | None = None
        self._rate = _Rate()

    def __enter__(self) -> Progress:
        if self.silent:
            return self
        if self.lines:
            self._beat = threading.Thread(target=self._watch, daemon=True, name="hwaga-progress")
            self._beat.start()
        else:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left",
                TimeRemainingColumn(elapsed_when_finished=False), TextColumn("{task.fields[note]}"),
                console=Console(file=self.stream), refresh_per_second=4, transient=False,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._beat is not None:
            self._beat.join(timeout=1.0)
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if self.silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            return
        with self._write:
            print(text, file=self.stream, flush=True)
            self._said = time.monotonic()

    def stage(self, name: str, step: int, total: int) -> None:
        """Begins the bar of a stage that stands at `step` of `total`."""
        self.what = f"{name}"
        self._rate = _Rate()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, completed=step, note="")

    def step(self, step: int, total: int, pictures: int, losses: Mapping[str, float]) -> None:
        """One step is done: `losses` are the newest known (they may be those of some steps before)."""
        self._rate.add(step, pictures)
        if self.silent:
            return
        note = "  ".join([f"{self._rate.pictures:.0f} pictures/s", *(f"{k} {v:.4g}" for k, v in losses.items())])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._said >= QUIET_FOR / 2 or step == total:
            left = _clock(self._rate.seconds * (total - step))
            self.say(f"{self.what}: step {step}/{total}  {note}  {left} left")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Names what goes on between two steps (a sample grid, an evaluation, a checkpoint): not counted in the rate."""
        before, self.what = self.what, what
        self._began = time.monotonic()
        begun = time.perf_counter()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what)
        try:
            yield
        finally:
            self.what, self._began = before, time.monotonic()
            self._rate.pause(time.perf_counter() - begun)
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, description=before)

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            quiet = time.monotonic() - self._said
            if quiet >= QUIET_FOR:
                self.say(f"{self.what}: working ({time.monotonic() - self._began:.0f} s)")

    @property
    def pictures_a_second(self) -> float:
        return self._rate.pictures


class _Rate:
    """Seconds a step and pictures a second over the last 50 steps."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int, int]] = [(time.perf_counter(), -1, 0)]
        self.seconds = 0.0
        self.pictures = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves out time that was spent on something else than steps."""
        self.marks = [(at + seconds, step, pictures) for at, step, pictures in self.marks]

    def add(self, step: int, pictures: int) -> None:
        if self.marks[0][1] < 0:
            self.marks[0] = (self.marks[0][0], step - 1, 0)
        self.marks.append((time.perf_counter(), step, pictures))
        self.marks = self.marks[-51:]
        spent = self.marks[-1][0] - self.marks[0][0]
        count = self.marks[-1][1] - self.marks[0][1]
        if count > 0 and spent > 0:
            self.seconds = spent / count
            self.pictures = pictures * count / spent


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
