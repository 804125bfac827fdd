"""What samplers share: where a point stands, in which frame a path is straight, how x_0 is held to its range.

A sampler integrates the probability-flow ODE, whose path from noise to data bends more or less with the frame in which it is
seen (Karras et al. 2022, section 3):

    ratio      z = x / alpha, place r = sigma / alpha:                 dz / dr = eps
    straight   z = x / (alpha + sigma), place s = sigma / (alpha + sigma):   dz / ds = eps - x_0, the velocity of a flow

Both hold for every process, so a sampler written in a frame works on all of them; only `ratio` needs alpha > 0, which the
first point of a rectified flow has not. Euler's step is the same in every frame: it keeps eps and x_0, which is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ..interfaces import Callback, Point, Step
from ..processes.process import held, level_of, noise_in

__all__ = ["Frame", "Log", "held", "onward", "place", "ratio", "scale", "slope"]

Frame = Literal["ratio", "straight"]


def ratio(point: Point) -> float:
    """sigma / alpha: 0 at the data, infinite where nothing of them is left."""
    return point.sigma / point.alpha if point.alpha > 0 else math.inf


def place(point: Point, frame: Frame) -> float:
    return ratio(point) if frame == "ratio" else point.sigma / (point.alpha + point.sigma)


def scale(point: Point, frame: Frame) -> float:
    return point.alpha if frame == "ratio" else point.alpha + point.sigma


def slope(x: Tensor, x0: Tensor, point: Point, frame: Frame) -> Tensor:
    """The derivative of the path, in a frame, at x."""
    eps = noise_in(x, x0, level_of(point))
    return eps if frame == "ratio" else eps - x0


def onward(x: Tensor, x0: Tensor, at: Point, to: Point, kept: Tensor | None = None) -> Tensor:
    """Euler's step: alpha' x_0 + sigma' eps with the eps that is in x now. kept: x_0 to go on with, where it was clipped."""
    if kept is not None:
        return to.alpha * kept + to.sigma * noise_in(x, x0, level_of(at))
    along = to.sigma / at.sigma
    return along * x + (to.alpha - along * at.alpha) * x0


class Log:
    """Tells a callback of each step."""

    def __init__(self, grid: Sequence[Point], callback: Callback | None) -> None:
        self.grid, self.callback = grid, callback

    def __call__(self, i: int, x: Tensor, x0: Tensor) -> None:
        if self.callback is not None:
            self.callback(Step(i, len(self.grid) - 1, self.grid[i], self.grid[i + 1], x, x0))
