"""Linear multistep methods: the slope over a step is a polynomial through the last slopes (Adams and Bashforth).

lms     in the frame of sigma / alpha, on any grid: Lagrange's polynomial is integrated exactly over each step
pndm    with the constant weights of an even grid, each step carried out by DDIM's transfer (Liu et al. 2022, eq. 11, 12);
        it begins with Heun-like steps (PLMS), or with three steps of Runge-Kutta of fourth order (eq. 13)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..interfaces import Callback, Denoise, Noise, Point
from ..processes.process import Process, level_of, noise_in
from .path import Frame, Log, held, place, scale, slope

EVEN = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
"""Adams-Bashforth weights on an even grid by order, newest slope first."""


def lms(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    order: int = 4, frame: Frame = "ratio", clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`; lower order at the first steps."""
    tell = Log(grid, callback)
    slopes: list[Tensor] = []  # newest first
    for i, (at, to) in enumerate(pairwise(grid)):
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        slopes = [slope(x, x0, at, frame), *slopes][:order]
        places = tuple(place(p, frame) for p in reversed(grid[i + 1 - len(slopes) : i + 1]))
        z = x / scale(at, frame)
        for weight, value in zip(_weights(places, place(to, frame)), slopes, strict=True):
            z = z + weight * value
        x = scale(to, frame) * z
        tell(i, x, x0)
    return x


@lru_cache(maxsize=4096)
def _weights(places: tuple[float, ...], to: float) -> tuple[float, ...]:
    """Integrals from places[0] to `to` of the polynomials that are 1 at one place and 0 at the others."""
    found = []
    for k, here in enumerate(places):
        others = [(p - places[0]) for j, p in enumerate(places) if j != k]
        basis = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
        size = np.prod([here - p for j, p in enumerate(places) if j != k]) if others else 1.0
        found.append(float(basis.integ()(to - places[0]) / size))
    return tuple(found)


def pndm(
    denoise: Denoise, x: Tensor, grid: Sequence[Point], *, noise: Noise, callback: Callback | None = None,
    process: Process | None = None, runge_kutta: bool = False, clip: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """The picture (n, ...) at the end of `grid`, a grid of even times.

    runge_kutta: the first three steps have four evaluations each, at the points halfway too (of which `process` is asked);
    otherwise the first has two.
    """
    tell = Log(grid, callback)
    slopes: list[Tensor] = []  # newest first

    def ask(x: Tensor, at: Point, to: Point) -> tuple[Tensor, Tensor]:
        x0 = held(denoise(x, at, to).x0, clip, threshold)
        return noise_in(x, x0, level_of(at)), x0

    for i, (at, to) in enumerate(pairwise(grid)):
        eps, x0 = ask(x, at, to)
        slopes = [eps, *slopes][:4]
        if runge_kutta and i < 3 and to.sigma > 0:
            eps = _runge_kutta(ask, x, eps, at, _middle(process, at, to), to)
        elif i == 0 and not runge_kutta and to.sigma > 0:
            eps = (eps + ask(transfer(x, eps, at, to), to, to)[0]) / 2
        else:
            weights = EVEN[min(len(slopes), 4)]
            eps = sum(weight * value for weight, value in zip(weights, slopes, strict=True))  # type: ignore[assignment]
        x = transfer(x, eps, at, to)
        tell(i, x, x0)
    return x


def _middle(process: Process | None, at: Point, to: Point) -> Point:
    if process is None:
        raise ValueError("runge_kutta=True needs the process, to know the points halfway")
    return process.middle(at, to)


def _runge_kutta(ask, x: Tensor, first: Tensor, at: Point, middle: Point, to: Point) -> Tensor:  # type: ignore[no-untyped-def]
    second = ask(transfer(x, first, at, middle), middle, to)[0]
    third = ask(transfer(x, second, at, middle), middle, to)[0]
    fourth = ask(transfer(x, third, at, to), to, to)[0]
    return (first + 2 * second + 2 * third + fourth) / 6


def transfer(x: Tensor, eps: Tensor, at: Point, to: Point) -> Tensor:
    """Where a given eps leads: DDIM's step. Source: Liu et al. 2022, eq. 11."""
    along = to.alpha / at.alpha
    return along * x + (to.sigma - along * at.sigma) * eps
