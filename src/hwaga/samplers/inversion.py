"""DDIM inversion: from a picture to the noise that DDIM would paint it from (Song, Meng and Ermon 2021, section 5.4).

DDIM is Euler's method for an ODE, and an ODE can be walked both ways. One step down, in the frame in which flows are straight
(samplers/path.py), is

    z_to = z_at + (s_to - s_at) v(x_at)

so the step up asks for the x_at of which v is not known yet. Taking v where the walk stands (one evaluation) is the usual
inversion, off by the step's own error; solving the equation by repetition (Pan et al. 2023, eq. 9) undoes the step itself, so
that picture -> noise -> picture comes back as closely as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..interfaces import Callback, Denoise, Point
from .path import Log, place, scale, slope

EVALUATIONS = 5


def invert(
    denoise: Denoise,
    x: Tensor,
    grid: Sequence[Point],
    *,
    evaluations: int = EVALUATIONS,
    callback: Callback | None = None,
) -> Tensor:
    """What stands at the start of `grid` if x (n, ...) stands at its end; `ddim` (eta = 0) leads from there to x.

    grid: as samplers walk it, from noise to data. evaluations: of the denoiser a step.
    """
    up = [*reversed(grid)]
    tell = Log(up, callback)
    for i, (to, at) in enumerate(pairwise(up)):
        stands, length = x / scale(to, "straight"), place(at, "straight") - place(to, "straight")
        x = scale(at, "straight") * stands
        for _ in range(evaluations):
            x0 = denoise(x, at, to).x0
            x = scale(at, "straight") * (stands + length * slope(x, x0, at, "straight"))
        tell(i, x, x0)
    return x
