"""Gaussian diffusion in T discrete steps: DDPM's process (Ho et al. 2020; Nichol and Dhariwal 2021).

A table of betas gives alpha_bar, its running product of 1 - beta; at index k a picture is
x = sqrt(alpha_bar_k) x_0 + sqrt(1 - alpha_bar_k) eps. Index k is the time t = (k + 1) / T; between indices log(sigma / alpha) is
interpolated. The tables are computed in float32 exactly as the public ones are.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..errors import InputError, unknown
from ..interfaces import Draw, Point, Prediction
from . import process
from .process import DATA, Level, Process
from .spacing import Spaced, places, student
from .times import TimesConfig, Weighting, quantile

Schedule = Literal["linear", "scaled-linear", "cosine"]
Spacing = Literal["leading", "trailing", "linspace"]
Variance = Literal["fixed-small", "fixed-large", "learned", "learned-range"]


LEAST_SIGNAL = 2.0**-24
"""alpha_bar where sigma / alpha must be finite although no signal is left (`zero_terminal_snr`), as public schedulers have it."""


class GaussianConfig(BaseModel, frozen=True, extra="forbid"):
    """The process of the paper by default."""

    kind: Literal["gaussian"] = "gaussian"
    timesteps: int = Field(1000, ge=2, le=1_000_000)
    schedule: Schedule = "linear"
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    predicts: Literal["eps", "v", "x0"] = "eps"
    variance: Variance = "fixed-large"
    times: TimesConfig = TimesConfig()
    weighting: Weighting = Field("simple", description="weight of a time in the loss")
    min_snr_gamma: float = Field(5.0, gt=0)
    data_deviation: float = Field(0.5, gt=0, description="for the weighting edm")
    zero_terminal_snr: bool = Field(False, description="the last step of the table is only noise")

    @model_validator(mode="after")
    def _rises(self) -> GaussianConfig:
        if self.schedule != "cosine" and self.beta_end < self.beta_start:
            raise ValueError(
                f"beta_end={self.beta_end} is below beta_start={self.beta_start}; betas rise from start to end"
            )
        return self

    @property
    def learns_variance(self) -> bool:
        return self.variance.startswith("learned")

    def build(self) -> GaussianDiffusion:
        return GaussianDiffusion(self)


def betas(config: GaussianConfig) -> Float[Tensor, " steps"]:
    """The table of noise variances, index 0 first. Sources: Ho et al. 2020, section 4 (linear); Rombach et al. 2022
    (scaled-linear: linear in the square root); Nichol and Dhariwal 2021, eq. 17 (cosine, s = 0.008, at most 0.999)."""
    n = config.timesteps
    if config.schedule == "linear":
        return torch.linspace(config.beta_start, config.beta_end, n, dtype=torch.float32)
    if config.schedule == "scaled-linear":
        return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, n, dtype=torch.float32) ** 2
    f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return torch.tensor([min(1 - f[i + 1] / f[i], 0.999) for i in range(n)], dtype=torch.float32)


def indices(timesteps: int, steps: int, spacing: str = "leading", offset: int = 0) -> list[int]:
    """Table indices, highest first, of a grid of `steps`, as public schedulers space them (Lin et al. 2024, table 2).

    InputError if steps is not in 1 ... timesteps. `offset` is added on the leading grid (Stable Diffusion has 1).
    """
    if not 1 <= steps <= timesteps:
        raise InputError(f"steps={steps}: this model was trained with {timesteps} steps; use 1 to {timesteps}")
    if spacing == "leading":
        found = np.arange(steps, dtype=float)[::-1] * (timesteps // steps) + offset
    elif spacing == "trailing":
        found = np.round(np.arange(timesteps, 0, -timesteps / steps)) - 1
    elif spacing == "linspace":
        found = np.linspace(0, timesteps - 1, steps).round()[::-1]
    else:
        raise unknown("spacing", spacing, ("leading", "trailing", "linspace"))
    return [int(k) for k in found[:steps].clip(0, timesteps - 1)]


class GaussianDiffusion(Process):
    """See the top of this file. Holds tables, no parameters."""

    def __init__(self, config: GaussianConfig) -> None:
        self.config = config
        self.betas = betas(config)
        if config.zero_terminal_snr:
            self.betas = _without_terminal_signal(self.betas)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)  # (T,) float32
        exact = self.alpha_bar.double().clamp(min=LEAST_SIGNAL)
        self._log_ratio = 0.5 * (torch.log1p(-exact) - exact.log())  # log(sigma / alpha) at each index
        first = process.posterior(self._level_at(1), self._level_at(0)).small
        self._least_log_variance = math.log(first)  # what a learned variance is held to where the true one is 0

    # ------------------------------------------------------------------------------------------------- times and levels

    def _level_at(self, k: int) -> Level:
        at = self.indexed(k)
        return Level(at.alpha, at.sigma)

    def indexed(self, k: int) -> Point:
        """Index k of the table (0 ... T - 1) as a point of a grid; the network is fed k."""
        bar = float(self.alpha_bar[k])
        return Point((k + 1) / self.config.timesteps, math.sqrt(bar), math.sqrt(1 - bar), float(k))

    def fed(self, t: Tensor) -> Tensor:
        return t * self.config.timesteps - 1

    def middle(self, at: Point, to: Point) -> Point:
        """Halfway between two indices, rounded down as in the public PNDM."""
        total = self.config.timesteps
        return self.indexed(math.floor((at.t - to.t) * total / 2 + 1e-6) + round(to.t * total) - 1)

    def at_ratio(self, ratio: float) -> Point:
        """The index may be a fraction: log(sigma / alpha) is interpolated, and held to what the table has."""
        return self._between(ratio, float(self.index(torch.tensor(ratio, dtype=torch.float64))))

    def index(self, ratio: Tensor) -> Tensor:
        """The index, a fraction in 0 ... T - 1 (float64), at which the table has sigma / alpha = `ratio`."""
        wanted = ratio.double().log()
        high = torch.searchsorted(self._log_ratio, wanted.contiguous()).clamp(1, self.config.timesteps - 1)
        below, above = self._log_ratio[high - 1], self._log_ratio[high]
        return high - 1 + ((wanted - below) / (above - below)).clamp(0, 1)

    def time(self, ratio: Tensor) -> Tensor:
        """Below the first index, where sigma / alpha falls linearly to 0, too."""
        first = float(self._log_ratio[0].exp())
        t = (self.index(ratio.clamp(min=first)) + 1) / self.config.timesteps
        return torch.where(ratio < first, ratio.double() / first / self.config.timesteps, t)

    def grid(self, steps: int, how: Spaced = Spaced()) -> list[Point]:
        """`steps` + 1 points from noise to data, as a public scheduler of the rule places them (spacing.py). The last one is the
        data (alpha = 1, sigma = 0), or, as `set_alpha_to_one: false` asks, the lowest level of the table."""
        total = self.config.timesteps
        if how.rule == "indices":
            walk = [self.indexed(k) for k in indices(total, steps, how.spacing or "leading", how.offset)]
        else:
            walk = self._walk(steps, how)
        return [*walk, DATA if how.ends_at_data else self.indexed(0)]

    def _walk(self, steps: int, how: Spaced) -> list[Point]:
        total = self.config.timesteps
        if not 1 <= steps <= total:
            raise InputError(f"steps={steps}: this model was trained with {total} steps; use 1 to {total}")
        if how.rule == "student":
            return [self.indexed(k) for k in student(total, steps, how.student_steps)]
        at = places(total, steps, how)
        bar = self.alpha_bar.double().clamp(min=LEAST_SIGNAL).numpy()
        table = np.sqrt((1 - bar) / bar)
        ratios = np.interp(at, np.arange(total), table)
        if not how.respaced:
            return [self._between(float(r), float(k)) for r, k in zip(ratios, at, strict=True)]
        ends = (ratios[0], ratios[-1]) if how.rule == "ratios" else (table[-1], table[0])
        return [
            self._between(r, self._fed_at(r, how)) for r in how.between(float(ends[0]), float(ends[1]), steps).tolist()
        ]

    def _between(self, ratio: float, k: float) -> Point:
        alpha = 1 / math.sqrt(1 + ratio**2)
        return Point((k + 1) / self.config.timesteps, alpha, ratio * alpha, k)

    def _fed_at(self, ratio: float, how: Spaced) -> float:
        """The index that a network is fed at a respaced sigma: as it is for Euler and its kin; whole for DPM-Solver++ and
        UniPC, rounded on Karras's grid of a table of betas, else cut."""
        k = self.at_ratio(ratio).fed
        if how.rule == "ratios":
            return k
        return float(round(k)) if how.karras and self.config.schedule != "cosine" else float(int(k))

    def start_scale(self, first: Point, how: Spaced) -> float:
        """1, as alpha^2 + sigma^2 = 1; but the public Euler, Heun and LMS begin with sigma on grids that reach the noise."""
        return first.sigma if how.rule == "ratios" and how.spacing in (None, "linspace", "trailing") else 1.0

    def level(self, t: Float[Tensor, " n"]) -> Level:
        """alpha and sigma (n,) float64 at times t in [0, 1]; below the first index sigma / alpha falls linearly to 0."""
        place = t.double() * self.config.timesteps - 1
        low = place.floor().clamp(0, self.config.timesteps - 2).long()
        between = place.clamp(min=0) - low
        log_ratio = torch.lerp(self._log_ratio[low], self._log_ratio[low + 1], between)
        ratio = log_ratio.exp() * (place + 1).clamp(0, 1)
        alpha = (1 + ratio**2).rsqrt()
        return Level(alpha, alpha * ratio)

    def index_at(self, t: Tensor) -> Int[Tensor, " n"]:
        """The index of the table that is nearest to times t (n,)."""
        return (t * self.config.timesteps).round().long().clamp(1, self.config.timesteps) - 1

    def levels(self, t: Float[Tensor, " n"], like: Tensor) -> Level:
        return self.levels_at(self.index_at(t), like)

    def levels_at(self, index: Int[Tensor, " n"], like: Tensor) -> Level:
        """Levels of table indices, shaped to broadcast against `like` (n, ...), on its device."""
        bar = self.alpha_bar.to(index.device)[index].view(-1, *[1] * (like.dim() - 1)).to(like.device)
        return Level(bar.sqrt(), (1 - bar).sqrt())

    # ------------------------------------------------------------------------------------------------ what a network says

    def prediction(self, raw: Tensor, x: Tensor, at: Point, to: Point) -> Prediction:
        """The clean picture, and the log of the variance of the step where it is learned, from a raw prediction.

        raw has the channels of x, or twice as many where the variance is learned (second half).
        """
        log_variance = None
        if self.config.learns_variance:
            raw, spread = raw.chunk(2, dim=1)
            log_variance = self.learned_log_variance(spread, Level(at.alpha, at.sigma), Level(to.alpha, to.sigma))
        return Prediction(process.clean(self.config.predicts, raw, x, Level(at.alpha, at.sigma)), log_variance)

    def learned_log_variance(self, spread: Tensor, at: Level, to: Level) -> Tensor:
        """log of the variance of the step. learned-range: between the two fixed ones, `spread` -1 being the small one and 1
        the large one (Nichol and Dhariwal 2021, eq. 15); learned: `spread` itself."""
        if self.config.variance == "learned":
            return spread
        step = process.posterior(at, to)
        small = torch.as_tensor(step.small).log().clamp(min=self._least_log_variance)
        large = torch.as_tensor(step.large).log()
        share = (spread + 1) / 2
        return share * large + (1 - share) * small

    # ----------------------------------------------------------------------------------------------------------- training

    def draw_times(self, draw: Draw, n: int, within: tuple[float, float] | None = None) -> Float[Tensor, " n"]:
        """Times (n,) float64 of table indices, as the config distributes them, or evenly `within` a part of the table."""
        place = draw.uniform("time", (n,))
        if within is not None:
            place = within[0] + (within[1] - within[0]) * place
        elif self.config.times != TimesConfig():
            place = quantile(self.config.times, place.double(), self)
        index = (place * self.config.timesteps).long().clamp(0, self.config.timesteps - 1)
        return (index + 1).double() / self.config.timesteps


def _without_terminal_signal(table: Tensor) -> Tensor:
    """Betas that end in pure noise, the first step as it was. Source: Lin et al. 2024, algorithm 1."""
    root = torch.cumprod(1 - table, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * first / (first - last)) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
