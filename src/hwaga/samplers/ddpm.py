"""Ancestral sampling of DDPM: one Gaussian step after the other (Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point, Step
from ..processes.process import Amount, held, level_of, posterior


def ddpm(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    variance: str = "fixed-large", clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`, from x at its start.

    variance: of each step: `fixed-large` (beta), `fixed-small` (that of the posterior: eq. 7), or `learned` (as the
    denoiser says). clip: x_0 is held to [-clip, clip] before it enters the step's mean; threshold: dynamic thresholding at
    this quantile instead (processes/process.py: held). The last step draws no noise.
    """
    for i, (at, to) in enumerate(pairwise(grid)):
        said = denoise(x, at, to)
        x0 = held(said.x0, clip, threshold)
        step = posterior(level_of(at), level_of(to))
        x = step.from_x * x + step.from_x0 * x0
        if i < len(grid) - 2:
            x = x + _deviation(variance, step.small, step.large, said.log_variance) * noise(
                "step_noise", tuple(x.shape)
            )
        if callback:
            callback(Step(i, len(grid) - 1, at, to, x, x0))
    return x


def _deviation(variance: str, small: Amount, large: Amount, log_variance: Tensor | None) -> Tensor | float:
    if variance == "learned":
        if log_variance is None:
            raise ValueError(
                "variance='learned', but this network does not predict one: use fixed-small or fixed-large"
            )
        return torch.exp(0.5 * log_variance)
    if variance not in ("fixed-small", "fixed-large"):
        raise ValueError(f"variance={variance!r}: one of fixed-small, fixed-large, learned")
    return max(float(small if variance == "fixed-small" else large), 1e-20) ** 0.5
