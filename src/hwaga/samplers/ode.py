"""The probability-flow ODE as such: the deterministic path that has the same distribution at every time as the noisy one.

Seen in the straight frame (samplers/path.py) it is dz / ds = eps - x_0, from s = 1 to 0, for every process; for the processes of
Song et al. 2021 it is their eq. 13.

    rk4         the classical Runge-Kutta method, a step between two points of the grid
    integrate   Dormand and Prince's pair with steps as long as a tolerance allows, for likelihoods and for comparison
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Process
from .path import Log, held, place, scale, slope

Derivative = Callable[[Tensor, float], Tensor]


def velocity(
    denoise: Denoise, process: Process, clip: float | None = None, threshold: float | None = None
) -> Derivative:
    """dz / ds at z (n, ...) and s in (0, 1]: z = x / (alpha + sigma), s = sigma / (alpha + sigma)."""

    def derivative(z: Tensor, s: float) -> Tensor:
        at = at_place(process, s)
        x = scale(at, "straight") * z
        return slope(x, held(denoise(x, at, at).x0, clip, threshold), at, "straight")

    return derivative


def at_place(process: Process, s: float) -> Point:
    """The point of a process at sigma / (alpha + sigma) = s."""
    last = process.point(1.0)
    return last if s >= place(last, "straight") else process.at_ratio(s / (1 - s))


def rk4(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    process: Process | None = None, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`; the step that ends at the data is Euler's."""
    if process is None:
        raise ValueError("rk4 needs the process, of which it asks the points between those of the grid")
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        first = slope(x, x0, at, "straight")
        z, s, h = x / scale(at, "straight"), place(at, "straight"), place(to, "straight") - place(at, "straight")
        total = first
        if to.sigma > 0:
            f = velocity(denoise, process, clip, threshold)
            second = f(z + h / 2 * first, s + h / 2)
            third = f(z + h / 2 * second, s + h / 2)
            total = (first + 2 * second + 2 * third + f(z + h * third, s + h)) / 6
        x = scale(to, "straight") * (z + h * total)
        tell(i, x, x0)
    return x


NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ROWS: tuple[tuple[float, ...], ...] = (
    (), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9), (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656), (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)  # fmt: skip
FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
"""Dormand and Prince 1980, table 2: the last of ROWS is the solution of fifth order, FOURTH the one it is held against."""


def integrate(
    derivative: Derivative, y: Tensor, start: float, end: float, rtol: float = 1e-5, atol: float = 1e-5,
    most: int = 10_000,
) -> tuple[Tensor, int]:  # fmt: skip
    """y at `end`, and how often the derivative was asked. Steps are as long as the tolerances allow for the whole batch.

    RuntimeError where more than `most` evaluations would be needed (a path that is not smooth).
    """
    s, h, asked = start, (end - start) / 20, 0
    slopes = [derivative(y, s)]
    while (end - s) * (end - start) > 0:
        h = math.copysign(min(abs(h), abs(end - s)), end - start)
        for node, row in zip(NODES[1:], ROWS[1:], strict=True):
            step = sum((weight * k for weight, k in zip(row, slopes, strict=True)), torch.zeros_like(y))
            slopes.append(derivative(y + h * step, s + node * h))
        asked += 6
        better = y + h * step
        other = sum((weight * k for weight, k in zip(FOURTH, slopes, strict=True)), torch.zeros_like(y))
        allowed = atol + rtol * torch.maximum(y.abs(), better.abs())
        error = float((h * (step - other) / allowed).square().mean().sqrt())
        if error <= 1:
            y, s, slopes = better, s + h, [slopes[-1]]
        else:
            slopes = slopes[:1]
        h *= min(5.0, max(0.2, 0.9 * error**-0.2)) if error > 0 else 5.0
        if asked > most or not math.isfinite(error):
            raise RuntimeError(f"the path could not be followed within {most} evaluations (error {error:g} at {s:g})")
    return y, asked + 1
