"""UniPC: a predictor and a corrector of one form; the corrector costs no evaluation (Zhao et al. 2023).

Step i first predicts x_t from earlier predictions (UniP, eq. 3); the network's answer at x_t, which the next step needs anyway,
then corrects that x_t (UniC, eq. 8) before it is left. Both are, with z = -h (x_0 is what is interpolated),

    x_t = (sigma_t / sigma_s) x - alpha_t (e^z - 1) m_0 - alpha_t B(h) sum_k rho_k (m_k - m_0) / r_k

where rho solves the order conditions R rho = b (appendix A); B(h) = z (bh1) or e^z - 1 (bh2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from .exponential import log_snr
from .path import Log, held, ratio


def unipc(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    order: int = 2, solver_type: Literal["bh1", "bh2"] = "bh2", lower_order_final: bool = True, corrector: bool = True,
    clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`. order: of the predictor; the corrector adds one. lower_order_final: the
    order falls over the last steps, so that the last one is of order 1 (a step to sigma = 0 always is)."""
    tell, steps = Log(grid, callback), len(grid) - 1
    said: list[Tensor] = []  # newest last
    left, used = x, 1  # where the last step began, and its order
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        if i > 0 and corrector:
            x = _update(left, said[-used:], grid[i - used : i], at, solver_type, x0)
        said = [*said, x0][-order:]
        used = min(order, len(said), steps - i if lower_order_final else order, 1 if to.sigma == 0 else order)
        left = x
        x = _update(x, said[-used:], grid[i - used + 1 : i + 1], to, solver_type)
        tell(i, x, x0)
    return x


def _update(
    x: Tensor, said: Sequence[Tensor], points: Sequence[Point], to: Point, solver_type: str, here: Tensor | None = None
) -> Tensor:  # fmt: skip
    """From x at points[-1] to `to`. here: the prediction at `to`, with which this is the corrector."""
    at, newest, order = points[-1], said[-1], len(said)
    h = log_snr(to) - log_snr(at)
    grown = (ratio(to) / ratio(at) if ratio(at) < math.inf else 0.0) - 1
    x = to.sigma / at.sigma * x - to.alpha * grown * newest
    size = -h if solver_type == "bh1" else grown
    r = [(log_snr(p) - log_snr(at)) / h for p in reversed(points[:-1])]
    differences = [(m - newest) / rk for m, rk in zip(reversed(said[:-1]), r, strict=True)]
    rho = _rho(-h, grown, size, [*r, 1.0], order, here is not None)
    if here is not None:
        differences.append(here - newest)
    for weight, difference in zip(rho, differences, strict=True):
        x = x - to.alpha * size * weight * difference
    return x


def _rho(z: float, grown: float, size: float, r: list[float], order: int, corrects: bool) -> list[float]:
    """Weights of the differences; order 1 has none without the corrector, whose own is then 1/2, as publicly done."""
    if order == 1:
        return [0.5] if corrects else []
    if order == 2 and not corrects:
        return [0.5]
    b, phi, factorial = [], grown / z - 1, 1.0
    for i in range(1, order + 1):
        b.append(phi * factorial / size)
        factorial *= i + 1
        phi = phi / z - 1 / factorial
    matrix = np.stack([np.array(r) ** i for i in range(order)])
    if not corrects:
        matrix, b = matrix[:-1, :-1], b[:-1]
    return [float(value) for value in np.linalg.solve(matrix, np.array(b))]
