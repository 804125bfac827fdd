"""Two functions measured fairly: alternating in one process, rounds disturbed by other processes left out, ratios quoted.

Seconds are worth little on another day and another machine; the median of the ratios of neighbouring measurements is.
A share of the machine's rate says how near the work is to what the processor can do: the arithmetic of the direct
algorithm, over the time, over the rate of a 2048^3 matrix product measured in the same rounds. Above 1, less arithmetic is done.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

DISTURBED = 0.10  # of one core's time, taken by others during a round
CLOSE = 1e-4  # largest difference of outputs that counts as the same work
clock: Callable[[], float] = time.perf_counter  # or `cpu_seconds`: with one thread, on a machine that others use too
quick = False  # one round of everything, to see that it runs: no figure is worth anything


@dataclass
class Row:
    """One comparison. Times in seconds; `ratio` is ours over theirs, the median over the rounds that count."""

    group: str
    name: str
    peer: str
    ratio: float
    low: float  # smallest and largest ratio among the rounds that count
    high: float
    ours: float  # medians
    theirs: float
    rounds: int
    left_out: int  # rounds that were disturbed
    aim: float | None = None  # the ratio that was asked for
    gflop: float | None = None  # of the direct algorithm
    share: float | None = None  # of the machine's rate, ours
    peer_share: float | None = None
    difference: float | None = None  # largest, of the outputs
    note: str = ""
    disturbed: bool = False  # too few quiet rounds: the quietest were taken
    other: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in asdict(self).items()}


class Disturbance:
    """The share of one core that other processes (and the machine's host) took between start and stop."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.start = self._now()

    def _now(self) -> tuple[float, float, float]:
        whole = psutil.cpu_times()
        busy = whole.user + whole.system + sum(getattr(whole, x, 0.0) for x in ("nice", "irq", "softirq", "steal"))
        own = self.process.cpu_times()
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system

    def share(self) -> float:
        now = self._now()
        wall, busy, own = (b - a for a, b in zip(self.start, now, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9)


def cpu_seconds() -> float:
    """What this process and those that it waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def rate(seconds: float = 0.3) -> float:
    """Flop/s of the product of two 2048 x 2048 float32 matrices, the best of some."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    out = torch.empty(2048, 2048)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, timed(lambda: torch.mm(a, b, out=out)))
    return 2 * 2048**3 / best


def gflop(function: Callable[[], Any]) -> float:
    """The arithmetic of what `function` calls, as the library counts it (matrix products, convolutions, attention)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def timed(function: Callable[[], Any]) -> float:
    start = clock()
    function()
    return clock() - start


def _repetitions(function: Callable[[], Any], least: float) -> int:
    """How often a round calls it; the first call, which sets things up, says little of a short one."""
    seconds = timed(function)
    if seconds < 4 * least:
        seconds = min(seconds, timed(function))
    return max(1, round(least / max(seconds, 1e-7)))


def compare(
    group: str, name: str, peer: str, ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int = 9,
    patience: float = 60.0, least: float = 0.25, aim: float | None = None, gflop: float | None = None,
    difference: float | None = None, note: str = "",
) -> Row:  # fmt: skip
    """Measures until `rounds` quiet rounds are there, or `patience` seconds are over.

    A round runs each side for at least `least` seconds in turn, the one that begins alternating. With too few quiet rounds
    the quietest are taken and the row says so.
    """
    if quick:
        rounds, patience, least = 1, 0.0, 0.0
    counts = [_repetitions(function, least) for function in (ours, theirs)]
    found: list[tuple[float, float, float, float]] = []  # disturbance, ours, theirs, rate
    end, number, quiet = time.perf_counter() + patience, 0, 0
    while quiet < rounds and (number < (1 if quick else 3) or time.perf_counter() < end):
        gc.collect()
        watch = Disturbance()
        times = [0.0, 0.0]
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            function = (ours, theirs)[side]
            times[side] = timed(lambda f=function, n=counts[side]: [f() for _ in range(n)]) / counts[side]
        disturbance = watch.share() if clock is time.perf_counter else 0.0
        found.append((disturbance, times[0], times[1], rate(0.05) if gflop else 0.0))
        number += 1
        quiet += disturbance < DISTURBED
    clean = [one for one in found if one[0] < DISTURBED]
    disturbed = len(clean) < 3
    kept = sorted(found)[: max(3, len(clean))] if disturbed else clean
    ratios = sorted(a / b for _, a, b, _ in kept)
    row = Row(
        group, name, peer, statistics.median(ratios), ratios[0], ratios[-1], statistics.median(k[1] for k in kept),
        statistics.median(k[2] for k in kept), len(kept), len(found) - len(kept), aim, gflop, difference=difference,
        note=note, disturbed=disturbed,
    )  # fmt: skip
    if gflop:
        machine = max(k[3] for k in kept)
        row.share, row.peer_share = gflop * 1e9 / row.ours / machine, gflop * 1e9 / row.theirs / machine
        row.other["machine_gflops"] = machine / 1e9
    if difference is not None and not difference <= CLOSE:
        row.note = f"outputs differ by {difference:.1e}: not the same work; {row.note}".rstrip("; ")
    return row
