"""Diffusion in continuous time, as stochastic differential equations (Song et al. 2021).

    vp       dx = -beta x / 2 dt + sqrt(beta) dw, beta from 0.1 to 20       alpha = exp(-integral of beta / 2)     eq. 11, 33
    cosine   alpha = cos((t + s) / (1 + s) pi / 2) over its value at 0       Nichol and Dhariwal 2021, eq. 17
    sub-vp   the same alpha, sigma = 1 - alpha^2: never more noise than vp   eq. 12, 34
    ve       alpha = 1, sigma from sigma_min to sigma_max, evenly in log     eq. 9, 30; Karras et al. 2022

`predicts: edm` is the preconditioning of Karras et al. 2022 (eq. 7, table 1): the network F is given c_in x, and

    x_0 = c_skip x + c_out F(c_in x, log(sigma) / 4)     c_skip = s^2 / (sigma^2 + s^2)     c_out = sigma s / sqrt(sigma^2 + s^2)

with s the standard deviation of the data, so that what goes in and what is asked for have unit variance at every sigma.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..interfaces import Point
from .process import DATA, Level, Process, sensitivity
from .spacing import Spaced, at_least_one
from .times import TimesConfig, Weighting


class _Continuous(BaseModel, frozen=True, extra="forbid"):
    """What the configs have in common."""

    times: TimesConfig = TimesConfig()
    weighting: Weighting = "simple"
    min_snr_gamma: float = Field(5.0, gt=0)
    data_deviation: float = Field(0.5, gt=0, description="standard deviation of the pictures (0.5 in [-1, 1])")

    @property
    def learns_variance(self) -> bool:
        return False


class VPConfig(_Continuous, frozen=True, extra="forbid"):
    """Variance preserving, in continuous time."""

    kind: Literal["vp"] = "vp"
    schedule: Literal["linear", "cosine"] = "linear"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    predicts: Literal["eps", "v", "x0", "velocity", "score"] = "eps"
    least: float = Field(1e-5, ge=0, lt=0.1, description="smallest time of training")

    @model_validator(mode="after")
    def _rises(self) -> VPConfig:
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max={self.beta_max} is below beta_min={self.beta_min}; beta rises")
        return self

    def build(self) -> VariancePreserving:
        return VariancePreserving(self)


class SubVPConfig(_Continuous, frozen=True, extra="forbid"):
    """The sub-variance-preserving process."""

    kind: Literal["sub-vp"] = "sub-vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    predicts: Literal["eps", "x0", "score"] = "eps"
    least: float = Field(1e-5, ge=0, lt=0.1)

    def build(self) -> SubVP:
        return SubVP(self)


class VEConfig(_Continuous, frozen=True, extra="forbid"):
    """Variance exploding; as in Karras et al. 2022 by default."""

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    predicts: Literal["edm", "eps", "x0", "score"] = "edm"
    fed: Literal["log-quarter", "log", "time"] = Field(
        "log-quarter", description="EDM: log(sigma)/4; NCSN++: log(sigma)"
    )
    times: TimesConfig = TimesConfig(kind="log-normal", mean=-1.2, spread=1.2)
    least: float = Field(0.0, ge=0, lt=0.1)

    @model_validator(mode="after")
    def _rises(self) -> VEConfig:
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"sigma_max={self.sigma_max} is not above sigma_min={self.sigma_min}")
        return self

    def build(self) -> VarianceExploding:
        return VarianceExploding(self)


def _log_alpha(t: Tensor, low: float, high: float) -> Tensor:
    """Song et al. 2021, eq. 33: -(1/4) t^2 (beta_max - beta_min) - (1/2) t beta_min."""
    return -0.25 * t**2 * (high - low) - 0.5 * t * low


def _time_of_log_alpha(log_alpha: Tensor, low: float, high: float) -> Tensor:
    """The root of `_log_alpha`, without the difference of near numbers that the plain formula has near t = 0."""
    asked = -4 * log_alpha
    if high == low:
        return asked / (2 * low)
    return 2 * asked / (2 * low + (4 * low**2 + 4 * (high - low) * asked).sqrt())


class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1."""

    COSINE = 0.008

    def __init__(self, config: VPConfig) -> None:
        self.config = config

    def level(self, t: Tensor) -> Level:
        t = t.double()
        if self.config.schedule == "cosine":
            s = self.COSINE
            alpha = torch.cos((t + s) / (1 + s) * (math.pi / 2)) / math.cos(s / (1 + s) * math.pi / 2)
            alpha = alpha.clamp(0, 1)
            return Level(alpha, (1 - alpha**2).clamp(min=0).sqrt())
        log_alpha = _log_alpha(t, self.config.beta_min, self.config.beta_max)
        return Level(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())

    def time(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double()
        log_alpha = -0.5 * torch.log1p(ratio**2)
        if self.config.schedule == "cosine":
            s = self.COSINE
            t = torch.acos(log_alpha.exp() * math.cos(s / (1 + s) * math.pi / 2)) * (2 / math.pi) * (1 + s) - s
        else:
            t = _time_of_log_alpha(log_alpha, self.config.beta_min, self.config.beta_max)
        return t.clamp(0, 1)


class SubVP(Process):
    """sigma is the square of the variance preserving one."""

    def __init__(self, config: SubVPConfig) -> None:
        self.config = config

    def level(self, t: Tensor) -> Level:
        log_alpha = _log_alpha(t.double(), self.config.beta_min, self.config.beta_max)
        return Level(log_alpha.exp(), -torch.expm1(2 * log_alpha))

    def time(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double()
        # sigma / alpha = 1 / alpha - alpha
        alpha = 2 / (ratio + (ratio**2 + 4).sqrt())
        return _time_of_log_alpha(alpha.log(), self.config.beta_min, self.config.beta_max).clamp(0, 1)

    def at_ratio(self, ratio: float) -> Point:
        return self.point(float(self.time(torch.tensor(ratio, dtype=torch.float64))))


class VarianceExploding(Process):
    """alpha = 1; t = log(sigma / sigma_min) / log(sigma_max / sigma_min)."""

    def __init__(self, config: VEConfig) -> None:
        self.config = config
        self._span = math.log(config.sigma_max / config.sigma_min)

    def level(self, t: Tensor) -> Level:
        t = t.double()
        return Level(torch.ones_like(t), self.config.sigma_min * (self._span * t).exp())

    def time(self, ratio: Tensor) -> Tensor:
        return ((ratio.double() / self.config.sigma_min).log() / self._span).clamp(0, 1)

    def at_ratio(self, ratio: float) -> Point:
        """Also above sigma_max, where churn may lead."""
        at = float(self.time(torch.tensor(ratio, dtype=torch.float64)))
        t = at if ratio <= self.config.sigma_max else math.log(ratio / self.config.sigma_min) / self._span
        return Point(t, 1.0, ratio, float(self.fed(torch.tensor(t, dtype=torch.float64))))

    def fed(self, t: Tensor) -> Tensor:
        if self.config.fed == "time":
            return t
        log_sigma = math.log(self.config.sigma_min) + self._span * t
        return log_sigma / 4 if self.config.fed == "log-quarter" else log_sigma

    def grid(self, steps: int, how: Spaced = Spaced()) -> list[Point]:
        """Karras et al. 2022, eq. 5, by default; linspace, exponential: evenly in log(sigma), which is time here."""
        at_least_one(steps)
        high, low = self.config.sigma_max, self.config.sigma_min
        if how.spacing == "trailing":
            return [*(self.point(t) for t in torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()), DATA]
        even = how.exponential or (how.spacing is not None and not how.karras)
        ratios = how._replace(karras=not even, exponential=even).between(high, low, steps)
        return [*(self.at_ratio(float(r)) for r in ratios), DATA]

    # ----------------------------------------------------------------------------------------------------- preconditioning

    def _coefficients(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        sigma, s = torch.as_tensor(level.sigma), self.config.data_deviation
        whole = sigma**2 + s**2
        return s**2 / whole, sigma * s / whole.sqrt(), 1 / whole.sqrt()

    def entering(self, x: Tensor, level: Level) -> Tensor:
        return self._coefficients(level)[2].to(x) * x if self.config.predicts == "edm" else x

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        if self.config.predicts != "edm":
            return super().target(x0, eps, level)
        skip, out, _ = self._coefficients(level)
        return (x0 - skip * (x0 + level.sigma * eps)) / out

    def clean(self, raw: Tensor, x: Tensor, level: Level) -> Tensor:
        if self.config.predicts != "edm":
            return super().clean(raw, x, level)
        skip, out, _ = self._coefficients(level)
        return skip.to(x) * x + out.to(x) * raw

    def sensitivity(self, level: Level) -> Tensor:
        if self.config.predicts == "edm":
            return 1 / self._coefficients(level)[1]
        return sensitivity(self.config.predicts, level)
