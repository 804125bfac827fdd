"""The score as a force: sampling with noise in every step (Song and Ermon 2019; Song et al. 2021).

    reverse_sde          x' = x - (f x - g^2 score) dt + g sqrt(dt) z               Euler-Maruyama on eq. 6
    langevin             y' = y + (a / 2) score + sqrt(a) z, at one noise level     Song and Ermon 2019, algorithm 1
                         after the other, a = rate r^2, in the frame y = x / alpha
    predictor_corrector  an ancestral step, then Langevin steps where it led        algorithms 2 to 5

The score is -eps / sigma: a denoiser is all that they need (Vincent 2011; processes/process.py: score).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Process, level_of, noise_in, posterior
from .path import Log, held, ratio


def reverse_sde(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    process: Process | None = None, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`. The last step draws no noise."""
    if process is None:
        raise ValueError("the reverse SDE needs the process, whose rates it follows")
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        if to.sigma == 0:  # where the rates end: what is left of the noise is taken out at once
            x = to.alpha * x0
        else:
            f, g2 = (float(rate) for rate in process.rates(torch.tensor(at.t, dtype=torch.float64)))
            dt = at.t - to.t
            score = -noise_in(x, x0, level_of(at)) / at.sigma
            x = x - (f * x - g2 * score) * dt
            x = x + (g2 * dt) ** 0.5 * noise("step_noise", tuple(x.shape))
        tell(i, x, x0)
    return x


def langevin(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    corrections: int = 10, rate: float = 0.2, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`: `corrections` steps of Langevin dynamics at each point.

    rate: the step is rate r^2 at the ratio r = sigma / alpha (the paper's 2e-5 at sigma = 0.01 is 0.2). At the data the last
    prediction of x_0 is taken (Song and Ermon 2020 give the noise that is left to a last denoising too).
    """
    tell = Log(grid, callback)
    y = x / grid[0].alpha
    for i, (at, to) in enumerate(pairwise(grid)):
        r = ratio(at)
        for _ in range(corrections):
            x0 = held(denoise(at.alpha * y, at, to).x0, clip, threshold)
            y = y - 0.5 * rate * (y - x0) + rate**0.5 * r * noise("step_noise", tuple(y.shape))
        if to.sigma == 0:
            y = held(denoise(at.alpha * y, at, to).x0, clip, threshold)
        tell(i, to.alpha * y, x0)
    return grid[-1].alpha * y


def predictor_corrector(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    corrections: int = 1, snr: float = 0.16, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`: ancestral steps (eq. 47), each followed by `corrections` Langevin steps.

    snr: signal-to-noise ratio of a correction, which sets its length: 2 a (snr |z| / |score|)^2, a = alpha^2 of one step
    (algorithm 5), where |z| / |score| is taken at its expected value, sigma, so that no picture's steps depend on the others of
    its batch. The last step, which ends at the data, draws no noise and is not corrected.
    """
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        step = posterior(level_of(at), level_of(to))
        x = step.from_x * x + step.from_x0 * x0
        if to.sigma > 0:
            x = x + step.small**0.5 * noise("step_noise", tuple(x.shape))
            for _ in range(corrections):
                score = -noise_in(x, held(denoise(x, to, to).x0, clip, threshold), level_of(to)) / to.sigma
                length = 2 * (at.alpha / to.alpha) ** 2 * (snr * to.sigma) ** 2
                x = x + length * score + (2 * length) ** 0.5 * noise("step_noise", tuple(x.shape))
        tell(i, x, x0)
    return x
