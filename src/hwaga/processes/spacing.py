"""Grids: which points a sampler walks from noise to data.

On a table of T steps the public schedulers place n points by one of four rules, each with a spacing (Lin et al. 2024, table 2):

    indices   n whole indices                                                DDPM, DDIM, PNDM
    ratios    n indices, fractions where they fall so; sigma/alpha between   Euler, Heun, LMS
              two of the table is interpolated
    halves    n + 1 whole indices, the last one left out                     DPM-Solver++, UniPC
    student   n of the few indices that a student was distilled at           LCM

    leading   from 0 upwards in steps of T // n, plus an offset: does not reach the noise
    trailing  from T downwards in steps of T / n
    linspace  evenly from the first to the last

Then sigma / alpha may be respaced between its ends (karras, exponential), and the last point is the data or the lowest level of
the table. Processes in continuous time, and flows, have times in the place of indices. Each process's `grid` is the maker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import InputError, unknown
from ..interfaces import Point

if TYPE_CHECKING:
    from .process import Process

Rule = Literal["indices", "ratios", "halves", "student"]
SPACINGS = ("leading", "trailing", "linspace")


class Spaced(NamedTuple):
    """How the points of a grid lie.

    spacing: None is linspace on a table (leading for `indices`), trailing on a flow. offset: added on the leading grid (Stable
    Diffusion has 1). ends_at_data: False ends at the lowest level of the table. shift, terminal: of a flow's times (Esser
    et al. 2024, eq. 23; the last time before 0 is brought to `terminal`). times, sigmas: the points themselves, as times in
    (0, 1] or as sigma / alpha, falling, without the last one, which is the data.
    """

    rule: Rule = "indices"
    spacing: str | None = None
    offset: int = 0
    karras: bool = False
    exponential: bool = False
    ends_at_data: bool = True
    shift: float | None = None
    terminal: float | None = None
    student_steps: int = 50
    times: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None

    @property
    def respaced(self) -> bool:
        return self.karras or self.exponential

    def between(self, high: float, low: float, n: int) -> np.ndarray:
        """n values of sigma from high to low: even in sigma^(1/7) (Karras et al. 2022, eq. 5), or even in log sigma."""
        if self.karras and self.exponential:
            raise InputError("karras=True and exponential=True: a grid is respaced in one way")
        return karras(high, low, n) if self.karras else np.exp(np.linspace(math.log(high), math.log(low), n))


def karras(high: float, low: float, n: int, rho: float = 7.0) -> np.ndarray:
    """n values of sigma from high to low, even in sigma^(1/rho). Source: Karras et al. 2022, eq. 5."""
    ramp = np.linspace(0, 1, n)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def at_least_one(steps: int) -> None:
    if steps < 1:
        raise InputError(f"steps={steps}: at least 1 is needed")


def known(spacing: str) -> str:
    if spacing not in SPACINGS:
        raise unknown("spacing", spacing, SPACINGS)
    return spacing


def given(process: Process, how: Spaced) -> list[Point]:
    """The grid that a user wrote down. InputError for what does not fall from noise to data."""
    from .process import DATA, falling

    if how.times is not None and how.sigmas is not None:
        raise InputError("times= and sigmas= were both given; a grid is one or the other")
    name, values = ("times", how.times) if how.times is not None else ("sigmas", how.sigmas or ())
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) or not v > 0 for v in values):
        raise InputError(f"{name}={values!r}: a list of numbers above 0, falling from noise to data, is needed")
    if name == "times" and values[0] > 1:
        raise InputError(f"times={values!r}: times run from 1 (noise) to 0 (data)")
    points = [process.point(float(v)) if name == "times" else process.at_ratio(float(v)) for v in values]
    return falling([*points, DATA])


# ------------------------------------------------------------------------------------------------------------- on a table


def places(total: int, steps: int, how: Spaced) -> np.ndarray:
    """Indices of a table by the rules `ratios` and `halves`, highest first; float32 where they may be fractions, as public
    schedulers hold them."""
    spacing, extra = known(how.spacing or "linspace"), 1 if how.rule == "halves" else 0
    if spacing == "linspace":
        if steps + extra == 1:
            return np.array([total - 1.0])  # the public schedulers would begin, and end, at the data
        found: np.ndarray = np.linspace(0, total - 1, steps + extra)[::-1][:steps]
        found = found.round() if how.rule == "halves" else found.astype(np.float32).astype(float)
    elif spacing == "leading":
        found = (np.arange(steps + extra) * (total // (steps + extra)))[::-1][:steps] + float(how.offset)
    else:
        found = np.arange(total, 0, -total / steps).round()[:steps] - 1.0
    return found.clip(0, total - 1)


def student(total: int, steps: int, student_steps: int) -> list[int]:
    """Source: Luo et al. 2023, section 4.3; the choice among the student's steps is that of the public scheduler."""
    if not steps <= student_steps <= total:
        raise InputError(f"steps={steps}: this student knows {student_steps} steps; use 1 to that many")
    origin = (np.arange(1, student_steps + 1) * (total // student_steps) - 1)[::-1]
    return [int(origin[int(i)]) for i in np.floor(np.linspace(0, student_steps, steps, endpoint=False))]
