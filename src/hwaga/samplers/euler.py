"""Euler's method for the probability-flow ODE, with churn (Karras et al. 2022, algorithm 2 without its second half).

Churn raises the noise a little before a step, r' = (1 + gamma) r, so that errors of earlier steps drown in fresh noise; the
network is asked at the raised level, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Process
from .path import Log, held, onward, ratio


def euler(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    process: Process | None = None, churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf,
    churn_noise: float = 1.0, stochastic: bool = False, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`.

    churn: S_churn of the paper, spread over the steps, for ratios sigma / alpha from churn_from to churn_to (S_tmin, S_tmax),
    with noise of standard deviation churn_noise (S_noise); it needs `process`, of which the raised level is asked.
    stochastic: every step noises x_0 anew instead of keeping eps (the last one, to no noise, draws too).
    """
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x, at = churned(x, at, len(grid) - 1, noise, process, churn, churn_from, churn_to, churn_noise)
        x0 = denoise(x, at, to).x0
        kept = held(x0, clip, threshold)
        if stochastic:
            x = to.alpha * kept + to.sigma * noise("step_noise", tuple(x.shape))
        else:
            x = onward(x, x0, at, to, None if kept is x0 else kept)
        tell(i, x, kept)
    return x


def churned(
    x: Tensor, at: Point, steps: int, noise: Noise, process: Process | None, churn: float, low: float, high: float,
    deviation: float,
) -> tuple[Tensor, Point]:  # fmt: skip
    """x and its point with the noise raised by gamma = min(churn / steps, sqrt(2) - 1). Source: algorithm 2, lines 4 to 6."""
    here = ratio(at)
    if churn <= 0 or not low <= here <= high or not math.isfinite(here):
        return x, at
    if process is None:
        raise ValueError("churn needs the process, to know the point of the raised noise")
    raised = process.at_ratio(here * (1 + min(churn / steps, math.sqrt(2) - 1)))
    added = math.sqrt(max(ratio(raised) ** 2 - here**2, 0.0))
    return raised.alpha * (x / at.alpha + deviation * added * noise("step_noise", tuple(x.shape))), raised
