"""DDIM: the same denoiser, fewer steps, and with eta = 0 none of them random (Song, Meng and Ermon 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point, Step
from ..processes.process import Level, noise_in, posterior


def ddim(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    eta: float = 0.0, clip: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`, from x at its start (eq. 12).

    eta: 0 is deterministic, 1 has the posterior's variance (eq. 16); every step draws then, the last one too. clip: x_0 is
    held to [-clip, clip] after eps is taken. On a rectified flow with eta = 0 this is Euler's method.
    """
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = denoise(x, at, to).x0
        eps = noise_in(x, x0, Level(at.alpha, at.sigma))
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if eta > 0:
            fresh = eta**2 * posterior(Level(at.alpha, at.sigma), Level(to.alpha, to.sigma)).small
            x = to.alpha * x0 + max(to.sigma**2 - fresh, 0.0) ** 0.5 * eps
            x = x + fresh**0.5 * noise("step_noise", tuple(x.shape))
        else:
            x = to.alpha * x0 + to.sigma * eps
        if callback:
            callback(Step(i, len(grid) - 1, at, to, x, x0))
    return x
