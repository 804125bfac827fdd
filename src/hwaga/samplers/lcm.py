"""Sampling of consistency models: to the data at once, and back to a lower noise (Song et al. 2023, algorithm 1).

Latent consistency models (Luo et al. 2023) keep the boundary condition f(x, 0) = x by f = c_skip x + c_out x_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Amount
from .path import Log, held

DATA_DEVIATION = 0.5


def boundary(fed: Amount, timestep_scaling: float) -> tuple[Amount, Amount]:
    """c_skip and c_out at the number that the network is fed. Source: Luo et al. 2023, appendix; Karras et al. 2022, table 1."""
    t = fed * timestep_scaling
    return DATA_DEVIATION**2 / (t**2 + DATA_DEVIATION**2), t / (t**2 + DATA_DEVIATION**2) ** 0.5


def lcm(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    timestep_scaling: float | None = 10.0, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`; every step but the last draws.

    timestep_scaling: of the boundary condition; None where the denoiser keeps it itself.
    """
    tell = Log(grid, callback)
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        if timestep_scaling is not None:
            skip, out = boundary(at.fed, timestep_scaling)
            x0 = out * x0 + skip * x
        x = x0
        if i < len(grid) - 2:
            x = to.alpha * x0 + to.sigma * noise("step_noise", tuple(x0.shape))
        tell(i, x, x0)
    return x
