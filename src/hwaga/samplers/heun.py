"""Heun's method: Euler's step, a second look where it led, and the mean of both slopes (Karras et al. 2022, algorithm 2).

Of second order at two evaluations a step; the step that ends at the data has one, as no slope is known there. In the frame of
sigma / alpha this is the paper's sampler, in the straight one the usual Heun of rectified flows (samplers/path.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Process
from .euler import churned
from .path import Frame, Log, held, place, scale, slope


def heun(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    process: Process | None = None, frame: Frame = "ratio", churn: float = 0.0, churn_from: float = 0.0,
    churn_to: float = math.inf, churn_noise: float = 1.0, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`. Churn: as in samplers/euler.py; clip: before slopes are taken."""
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x, at = churned(x, at, len(grid) - 1, noise, process, churn, churn_from, churn_to, churn_noise)
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        first = slope(x, x0, at, frame)
        z, length = x / scale(at, frame), place(to, frame) - place(at, frame)
        x = scale(to, frame) * (z + length * first)
        if to.sigma > 0:
            x0 = held(denoise(x, to, to).x0, clip, threshold)
            x = scale(to, frame) * (z + length * 0.5 * (first + slope(x, x0, to, frame)))
        tell(i, x, x0)
    return x


flow_heun = partial(heun, frame="straight")
