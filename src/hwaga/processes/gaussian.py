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
from ..interfaces import Point, Prediction
from . import process
from .process import Level

Schedule = Literal["linear", "scaled-linear", "cosine"]
Spacing = Literal["leading", "trailing", "linspace"]
Variance = Literal["fixed-small", "fixed-large", "learned", "learned-range"]


class GaussianConfig(BaseModel, frozen=True, extra="forbid"):
    """The process of the paper by default."""

    timesteps: int = Field(1000, ge=2, le=1_000_000)
    schedule: Schedule = "linear"
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    predicts: Literal["eps", "v", "x0"] = "eps"
    variance: Variance = "fixed-large"
    weighting: Literal["simple", "min-snr", "snr"] = Field("simple", description="weight of a time in the loss")
    min_snr_gamma: float = Field(5.0, gt=0)

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


class GaussianDiffusion:
    """See the top of this file. Holds tables, no parameters."""

    def __init__(self, config: GaussianConfig) -> None:
        self.config = config
        self.betas = betas(config)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)  # (T,) float32
        exact = self.alpha_bar.double()
        self._log_ratio = 0.5 * (torch.log1p(-exact) - exact.log())  # log(sigma / alpha) at each index
        first = process.posterior(self._level_at(1), self._level_at(0)).small
        self._least_log_variance = math.log(first)  # what a learned variance is held to where the true one is 0

    # ------------------------------------------------------------------------------------------------- times and levels

    def _level_at(self, k: int) -> Level:
        at = self.point(k)
        return Level(at.alpha, at.sigma)

    def point(self, k: int) -> Point:
        """Index k of the table (0 ... T - 1) as a point of a grid; the network is fed k."""
        bar = float(self.alpha_bar[k])
        return Point((k + 1) / self.config.timesteps, math.sqrt(bar), math.sqrt(1 - bar), float(k))

    def grid(self, steps: int, spacing: str = "leading", offset: int = 0, ends_at_data: bool = True) -> list[Point]:
        """`steps` + 1 points from noise to data. The last one is the data (alpha = 1, sigma = 0), or, as a scheduler's
        `set_alpha_to_one: false` asks, the lowest level of the table."""
        walk = [self.point(k) for k in indices(self.config.timesteps, steps, spacing, offset)]
        return [*walk, Point(0.0, 1.0, 0.0, 0.0) if ends_at_data else self.point(0)]

    def level(self, t: Float[Tensor, " n"]) -> Level:
        """alpha and sigma (n,) float64 at times t in [0, 1]; below the first index sigma / alpha falls linearly to 0."""
        place = t.double() * self.config.timesteps - 1
        low = place.floor().clamp(0, self.config.timesteps - 2).long()
        between = place.clamp(min=0) - low
        log_ratio = torch.lerp(self._log_ratio[low], self._log_ratio[low + 1], between)
        ratio = log_ratio.exp() * (place + 1).clamp(0, 1)
        alpha = (1 + ratio**2).rsqrt()
        return Level(alpha, alpha * ratio)

    def levels(self, index: Int[Tensor, " n"], like: Tensor) -> Level:
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

    def weight(self, level: Level) -> Tensor:
        """Weight of the squared error of the raw prediction at a level.

        simple: 1. min-snr: min(SNR, gamma) on the x_0 error, brought to what the network predicts (Hang et al. 2023,
        section 3.4). snr: SNR on the x_0 error, which is 1 on the eps error.
        """
        ratio = process.snr(level)
        if self.config.weighting == "simple":
            return torch.ones_like(ratio)
        on_x0 = ratio.clamp(max=self.config.min_snr_gamma) if self.config.weighting == "min-snr" else ratio
        return on_x0 / {"eps": ratio, "v": ratio + 1, "x0": torch.ones_like(ratio)}[self.config.predicts]
