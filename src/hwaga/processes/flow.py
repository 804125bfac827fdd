"""Rectified flow: straight paths between noise and data (Liu et al. 2023; Lipman et al. 2023; Esser et al. 2024).

    x_t = (1 - t) x_0 + t eps            level
    dx_t / dt = eps - x_0                what the network predicts: the velocity
    x_s = x_t + (s - t) velocity         samplers/ddim.py, which on a straight path is Euler's method

Time runs from data (0) to noise (1), as in Stable Diffusion 3, Flux and Qwen-Image; SiT and the papers on flow matching run
it the other way. `shift` moves training and sampling towards noise (times.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ..interfaces import Point
from .process import DATA, Level, Process
from .spacing import Spaced, at_least_one, known
from .times import TimesConfig, Weighting


class FlowConfig(BaseModel, frozen=True, extra="forbid"):
    """Straight paths; times of training uniform as in the first papers (Stable Diffusion 3: logit-normal)."""

    kind: Literal["flow"] = "flow"
    predicts: Literal["velocity", "x0", "eps", "v"] = "velocity"
    times: TimesConfig = TimesConfig()
    weighting: Weighting = "simple"
    min_snr_gamma: float = Field(5.0, gt=0)
    data_deviation: float = Field(0.5, gt=0)
    shift: float = Field(1.0, gt=0, description="of the sampling grid")
    least: float = Field(0.0, ge=0, lt=0.1, description="smallest time of training")

    @property
    def learns_variance(self) -> bool:
        return False

    def build(self) -> RectifiedFlow:
        return RectifiedFlow(self)


class RectifiedFlow(Process):
    """See the top of this file."""

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def level(self, t: Tensor) -> Level:
        t = t.double()
        return Level(1 - t, t)

    def time(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double()
        return torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio))

    def grid(self, steps: int, how: Spaced = Spaced()) -> list[Point]:
        """trailing (the default): 1 ... 1 / steps. linspace: 1 to 1 / 1000 shifted, as the public Euler scheduler has it by
        itself. Then all are shifted; `terminal` stretches them so that the last one before the data is that."""
        at_least_one(steps)
        shift, spacing = self.config.shift if how.shift is None else how.shift, known(how.spacing or "trailing")
        last = {"trailing": 1 / steps, "leading": 1 / steps, "linspace": shift * 0.001 / (1 + (shift - 1) * 0.001)}[
            spacing
        ]
        t = np.linspace(1 - 1 / steps if spacing == "leading" and steps > 1 else 1, last, steps)
        t = shift * t / (1 + (shift - 1) * t)
        if how.terminal is not None and steps > 1:
            t = 1 - (1 - t) * (1 - how.terminal) / (1 - t[-1])
        if how.respaced and steps > 1:
            t = how.between(float(t[0]), float(t[-1]), steps)
        return [*(self.point(float(v)) for v in t), DATA]
