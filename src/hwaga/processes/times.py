"""At which times a process is trained, and what an error there weighs.

Both are questions of where learning is spent: a weight of 2 at a time and drawing it twice as often ask for the same.

    uniform      t = u                                                    Ho et al. 2020, algorithm 1
    logit-normal logit t ~ N(mean, spread^2)                              Esser et al. 2024, eq. 19
    mode         t = 1 - u - s (cos^2(pi u / 2) - 1 + u)                  Esser et al. 2024, eq. 20
    log-normal   log(sigma / alpha) ~ N(mean, spread^2)                   Karras et al. 2022, table 1 (-1.2 and 1.2)
    shift        t' = s t / (1 + (s - 1) t), for larger pictures          Esser et al. 2024, eq. 23

    simple       1 on the raw prediction
    snr          SNR on the x_0 error, which is 1 on the eps error
    min-snr      min(SNR, gamma) on the x_0 error                         Hang et al. 2023, section 3.4
    edm          (r^2 + s^2) / (r s)^2 on the x_0 error, r = sigma/alpha  Karras et al. 2022, table 1, lambda
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from .process import Level, snr

if TYPE_CHECKING:
    from .process import Process

Weighting = Literal["simple", "min-snr", "snr", "edm"]


class TimesConfig(BaseModel, frozen=True, extra="forbid"):
    """Which times are drawn in training."""

    kind: Literal["uniform", "logit-normal", "mode", "log-normal"] = "uniform"
    mean: float = 0.0
    spread: float = Field(1.0, gt=0)
    mode_scale: float = Field(1.29, ge=-1, le=2 / (math.pi - 2), description="s of `mode`; the paper's best is 1.29")
    shift: float = Field(1.0, gt=0, description="above 1: more noise, for pictures of more pixels")


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise, as more pixels need more of it. Source: Esser et al. 2024, eq. 23."""
    return shift * t / (1 + (shift - 1) * t)


def quantile(config: TimesConfig, u: Tensor, process: Process) -> Tensor:
    """The time below which a share u of the drawn ones lies: turns uniform numbers into times."""
    if config.kind == "mode":  # falls with u, which leaves the distribution as it is
        t = 1 - u - config.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    elif config.kind == "uniform":
        t = u
    else:
        normal = config.mean + config.spread * torch.special.ndtri(u.clamp(2.0**-26, 1 - 2.0**-26))
        t = torch.sigmoid(normal) if config.kind == "logit-normal" else process.time(normal.exp())
    return shifted(t, config.shift)


def weight(kind: str, level: Level, sensitivity: Tensor, config: Any) -> Tensor:
    """Weight of the squared error of the raw prediction, which is `sensitivity` times that of x_0."""
    ratio = snr(level)
    if kind == "simple":
        return torch.ones_like(ratio)
    if kind == "edm":
        return (1 / config.data_deviation**2 + ratio) / sensitivity**2
    on_x0 = ratio.clamp(max=config.min_snr_gamma) if kind == "min-snr" else ratio
    return on_x0 / sensitivity**2
