"""`metrics.jsonl`: one row a line, appended and flushed as it comes; a resume cuts it back to its checkpoint.

    {"step": 10, "stage": "main", "denoising.loss": 0.21, "denoising.gradient": 0.8, "rate.main": 1e-3,
    "pictures_a_second": 80} {"step": 500, "stage": "main", "held_out.loss": 0.2, "held_out.loss t 0.0-0.2": 0.6}
    {"step": 500, "stage": "main", "score.fid": 12.0}
    {"step": 500, "stage": "main", "alarm": "loss_diverges", "says": "..."}

`step` counts the finished steps of the run over all stages. Numbers that are not finite are written as null.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO

from ..errors import WorkError
from ..files import write_text

Row = dict[str, Any]
Alarm = Callable[[Sequence[Mapping[str, float]]], str | None]


class Metrics:
    """The rows of a run. `rows` has them all, those read back at a resume too."""

    def __init__(self, path: Path, step: int = 0) -> None:
        """Opens the file and cuts off every row after `step`, and a last line that was only half written."""
        self.path = path
        self.rows = [row for row in read_rows(path) if row.get("step", 0) <= step]
        if path.exists():
            write_text(path, "".join(_line(row) for row in self.rows))
        self._file: TextIO | None = None
        self._sounding: set[tuple[str, str]] = set()
        self._numbers: dict[str, list[dict[str, float]]] = {}
        self._counted = 0  # rows that are in _numbers

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row. On the disk at once, so that a killed run has lost none."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.rows.append(dict(row))
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise WorkError(f"no space left while writing {self.path}; the last checkpoint is intact") from error
            raise

    def sync(self) -> None:
        """Past the operating system's memory too: before a checkpoint that counts on the rows."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def of_stage(self, stage: str) -> list[dict[str, float]]:
        """The numbers of a stage's newest rows (at most 5,000), oldest first: what alarms are asked with."""
        rows = self._numbers.setdefault(stage, [])
        for row in self.rows[self._counted :]:
            if "alarm" not in row:
                numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
                self._numbers.setdefault(row.get("stage", ""), []).append(numbers)
        self._counted = len(self.rows)
        return rows[-5000:]

    def ring(self, step: int, stage: str, alarms: Iterable[Alarm], silent: bool = False) -> list[str]:
        """Asks every alarm; one that begins to sound becomes a row and is returned, once until it has been silent
        again.

        With `silent` nothing is written: what sounds already (after a resume) is only remembered.
        """
        rows, heard = self.of_stage(stage), []
        for alarm in alarms:
            name = getattr(alarm, "__name__", type(alarm).__name__)
            says = alarm(rows)
            if says is None:
                self._sounding.discard((stage, name))
            elif (stage, name) not in self._sounding:
                self._sounding.add((stage, name))
                if not silent:
                    self.write({"step": step, "stage": stage, "alarm": name, "says": says})
                    heard.append(says)
        return heard


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file up to the first line that is not whole; [] if there is none."""
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return rows
    for line in lines[:-1]:  # what follows the last line break is not whole
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


# --------------------------------------------------------------------------------------------------------------- alarms


def loss_diverges(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A loss whose mean over the last 10 rows is more than three times its lowest mean over 10 rows before."""
    for name in _names(rows, ".loss", not_in="held_out."):
        values = [row[name] for row in rows if name in row]
        if len(values) < 30:
            continue
        sums = [0.0, *accumulate(values)]
        means = [(sums[i + 10] - sums[i]) / 10 for i in range(len(values) - 9)]
        low = min(means[:-10])
        if low > 0 and means[-1] > 3 * low:
            return (
                f"{name} diverges: {means[-1]:.4g} over the last 10 rows, {low:.4g} at its best; a lower "
                "training.learning_rate or a training.clip_norm may help"
            )
    return None


def gradient_spikes(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A gradient norm more than ten times the median of the 50 rows before."""
    for name in _names(rows, ".gradient"):
        values = [row[name] for row in rows if name in row]
        before = sorted(values[-51:-1])
        if len(before) >= 20 and values[-1] > 10 * before[len(before) // 2] > 0:
            return (
                f"{name} is {values[-1]:.4g}, ten times its median of {before[len(before) // 2]:.4g}; "
                f"training.clip_norm "
                "bounds it"
            )
    return None


def held_out_turns(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A held-out loss that has been above its lowest value for five measurements in a row, by 2 % at the last."""
    values = [(row["step"], row["held_out.loss"]) for row in rows if "held_out.loss" in row]
    if len(values) < 6:
        return None
    step, low = min(values, key=lambda pair: pair[1])
    later = [value for at, value in values if at > step]
    if len(later) >= 5 and later[-1] > low + 0.02 * abs(low):
        return (
            f"held-out loss has turned: lowest at step {step:.0f} ({low:.4g}), now {later[-1]:.4g}; best/ has the "
            "weights of that step"
        )
    return None


def loss_stands_still(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A loss that fell by less than 0.1 % between the two last spans of 100 rows (told once: it may be the end)."""
    for name in _names(rows, ".loss", not_in="held_out."):
        values = [row[name] for row in rows if name in row]
        if len(values) < 300:
            continue
        before, now = sum(values[-200:-100]) / 100, sum(values[-100:]) / 100
        if abs(before - now) < 1e-3 * abs(before):
            return f"{name} stands still at {now:.4g} over the last 200 rows; more steps will change little"
    return None


ALARMS: tuple[Alarm, ...] = (loss_diverges, gradient_spikes, held_out_turns, loss_stands_still)
"""What every stage is watched by, beside its own alarms."""

GAME_ALARMS: tuple[Alarm, ...] = (gradient_spikes,)
"""The same where objectives play against each other: one's loss rises when the other plays well."""


def _names(rows: Sequence[Mapping[str, float]], ending: str, not_in: str = "\x00") -> list[str]:
    recent = rows[-20:]
    return sorted({k for row in recent for k in row if k.endswith(ending) and not k.startswith(not_in)})
