"""DDIM: the same denoiser, fewer steps, and with eta = 0 none of them random (Song, Meng and Ermon 2021).

With eta = 0 it is Euler's method for the probability-flow ODE, on any process, and on a rectified flow the plain step
x + (s - t) velocity. With eta = 1 each step has the variance of DDPM's posterior, which in the frame of sigma / alpha is the
"ancestral" Euler step: `euler_ancestral` is that, under the name by which it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point, Step
from ..processes.process import held, level_of, noise_in, posterior


def ddim(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    eta: float = 0.0, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`, from x at its start (eq. 12).

    eta: 0 is deterministic, 1 has the posterior's variance (eq. 16); every step draws then, the last one too. clip: x_0 is
    held to [-clip, clip] after eps is taken. threshold: dynamic thresholding at this quantile instead (processes/process.py: held).
    """
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = denoise(x, at, to).x0
        eps = noise_in(x, x0, level_of(at))
        x0 = held(x0, clip, threshold)
        if eta > 0:
            fresh = eta**2 * posterior(level_of(at), level_of(to)).small
            x = to.alpha * x0 + max(to.sigma**2 - fresh, 0.0) ** 0.5 * eps
            x = x + fresh**0.5 * noise("step_noise", tuple(x.shape))
        else:
            x = to.alpha * x0 + to.sigma * eps
        if callback:
            callback(Step(i, len(grid) - 1, at, to, x, x0))
    return x


euler_ancestral = partial(ddim, eta=1.0)
