"""DPM-Solver++ and DPM-Solver: the linear part of the ODE is solved exactly, the rest by a polynomial in lambda.

With lambda = log(alpha / sigma) and h its length over a step, the exact solution is (Lu et al. 2022b, eq. 8)

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral over lambda of e^lambda x_0(lambda)

and x_0 is taken as a polynomial through the last predictions: one (DDIM), two (order 2) or three (order 3).

    multistep    the predictions are those of earlier steps: one evaluation a step       algorithm 2: 2M; order 3
    singlestep   the predictions are those of the steps of one group, which all begin    algorithm 1: 2S
                 where the group began
    stochastic   the same for the reverse SDE                                            SDE-DPM-Solver++, section 5
    noise        eps in place of x_0: DPM-Solver                                         Lu et al. 2022a

Both exponents have one form here: z = -h for x_0 and z = h for eps (`_weights`). solver_type says how the polynomial is
integrated: `heun` exactly, `midpoint` with half its slope. The published multistep form of order 3 (either type) takes half the
weight that the second difference should have, and so converges with order 2; `polynomial` takes all of it, and has order 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import level_of, noise_in
from .path import Log, held, ratio

Solver = Literal["midpoint", "heun", "polynomial"]
LEAST_ALPHA = 1e-6
"""lambda is -infinity where no data are left (the first point of a flow); alpha / sigma is held to this, as publicly done."""


def log_snr(point: Point) -> float:
    """lambda = log(alpha / sigma); infinite at the data."""
    if point.sigma == 0:
        return math.inf
    return math.log(max(point.alpha / point.sigma, LEAST_ALPHA))


def multistep(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    order: int = 2, solver_type: Solver = "midpoint", stochastic: bool = False, predicts: str = "x0",
    lower_order_final: bool = True, euler_at_final: bool = False, clip: float | None = None,
    threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`.

    order: 1, 2 or 3; lower at the first steps, at the step that ends at the data, and, with lower_order_final on grids of
    fewer than 15 steps, at the last two (diffusers' rule). predicts: what is interpolated, x0 (DPM-Solver++) or eps
    (DPM-Solver, which cannot end at sigma = 0).
    """
    tell, steps = Log(grid, callback), len(grid) - 1
    said: list[Tensor] = []  # newest last
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        said = [*said, x0 if predicts == "x0" else noise_in(x, x0, level_of(at))][-order:]
        left, short = steps - i, lower_order_final and steps < 15
        low = to.sigma == 0 or (left == 1 and (euler_at_final or short))
        now = 1 if low else min(len(said), 2 if left == 2 and short else order)
        x = step(x, said[-now:], grid[i - now + 1 : i + 1], at, to, solver_type, stochastic, predicts, noise)
        tell(i, x, x0)
    return x


def step(
    x: Tensor, said: Sequence[Tensor], points: Sequence[Point], at: Point, to: Point, solver_type: Solver,
    stochastic: bool, predicts: str, noise: Noise,
) -> Tensor:  # fmt: skip
    """From x at `at` to `to`, with the predictions `said` at `points` (newest last; one for each order)."""
    decay = ratio(to) / max(ratio(at), 0.0) if ratio(at) < math.inf else 0.0  # e^-h
    h = log_snr(to) - log_snr(at)
    if stochastic:
        carry, size, z = to.sigma / at.sigma * decay, to.alpha, -2 * h
    elif predicts == "x0":
        carry, size, z = to.sigma / at.sigma, to.alpha, -h
    else:
        carry, size, z = to.alpha / at.alpha, to.sigma, h
    grown = (decay**2 if stochastic else decay) - 1 if predicts == "x0" else math.expm1(z)  # e^z - 1
    newest = said[-1]
    x = carry * x - size * grown * newest
    if len(said) > 1:
        first, second = _weights(z, grown, solver_type, len(said))
        r0 = (log_snr(points[-1]) - log_snr(points[-2])) / h
        d0 = (newest - said[-2]) / r0
        if len(said) == 2:
            x = x - size * first * d0
        else:
            r1 = (log_snr(points[-2]) - log_snr(points[-3])) / h
            d1 = (said[-2] - said[-3]) / r1
            bend = (d0 - d1) / (r0 + r1)
            x = x - size * first * (d0 + r0 * bend) - size * second * bend * (2 if solver_type == "polynomial" else 1)
    if stochastic:
        x = x + to.sigma * math.sqrt(max(1 - decay**2, 0.0)) * noise("step_noise", tuple(x.shape))
    return x


def _weights(z: float, grown: float, solver_type: Solver, order: int) -> tuple[float, float]:
    """Of the first and second difference: integrals of e^z times a line and a parabola (midpoint: half the first's)."""
    if order == 2 and solver_type == "midpoint":
        return 0.5 * grown, 0.0
    return grown / z - 1, (grown - z) / z**2 - 0.5


def singlestep(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    order: int = 2, solver_type: Solver = "midpoint", stochastic: bool = False, clip: float | None = None,
    threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ in groups of `order` steps: the grid's own points are the places of a group's inner evaluations.

    The steps of a group have orders 1, 2 (, 3) and all begin at the group's first x; the last steps are of order 1.
    """
    tell = Log(grid, callback)
    said: list[Tensor] = []  # of the group, oldest first
    place, begun = 0, x
    for i, now in enumerate(orders(len(grid) - 1, order)):
        at, to = grid[i], grid[i + 1]
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        if now == 1:
            place, said, begun = i, [], x
        said.append(x0)
        now = 1 if to.sigma == 0 else now
        x = _group_step(begun, said, grid[place : i + 1], to, now, solver_type, stochastic, noise)
        tell(i, x, x0)
    return x


def orders(steps: int, order: int) -> list[int]:
    """The order of each step, such as 1, 2, 1, 2, ..., 1: the last one, which ends at the data, has order 1."""
    if order == 1:
        return [1] * steps
    if order == 2:
        return [1, 2] * (steps // 2 - 1) + [1, 1] if steps % 2 == 0 else [1, 2] * (steps // 2) + [1]
    tail = {0: [1, 2, 1], 1: [1], 2: [1, 2]}[steps % 3]
    found = [1, 2, 3] * ((steps - len(tail)) // 3) + tail
    return [*found[:-1], 1]


def _group_step(
    x: Tensor, said: Sequence[Tensor], points: Sequence[Point], to: Point, order: int, solver_type: Solver,
    stochastic: bool, noise: Noise,
) -> Tensor:  # fmt: skip
    """From x at points[0] to `to`, with predictions at all of `points`. Order 3: Lu et al. 2022a, algorithm 2 for x_0."""
    at = points[0]
    decay = ratio(to) / ratio(at) if ratio(at) < math.inf else 0.0
    h = log_snr(to) - log_snr(at)
    z, grown = (-2 * h, decay**2 - 1) if stochastic else (-h, decay - 1)
    base = said[0] if order > 1 else said[-1]
    x = to.sigma / at.sigma * (decay if stochastic else 1.0) * x - to.alpha * grown * base
    if order > 1:
        first, second = _weights(z, grown, solver_type, order)
        r0 = (log_snr(points[-1]) - log_snr(at)) / h
        d0 = (said[-1] - base) / r0
        if order == 3 and solver_type != "midpoint":
            r1 = (log_snr(points[1]) - log_snr(at)) / h
            d1 = (said[1] - base) / r1
            x = x - to.alpha * first * (r0 * d1 - r1 * d0) / (r0 - r1) - to.alpha * second * 2 * (d0 - d1) / (r0 - r1)
        else:
            x = x - to.alpha * first * d0
    if stochastic:
        x = x + to.sigma * math.sqrt(max(1 - decay**2, 0.0)) * noise("step_noise", tuple(x.shape))
    return x
