"""How hard each noise level is, learned beside the denoiser: one number u for a level (Karras et al. 2024, section 2.3, eq. 21).

With a loss of weight e^-u error + u the best u is the logarithm of the error's mean at that level, so every level asks for the
same. The network is that paper's: Fourier features of the level and one linear layer without bias, which begins at 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..layers.initialise import initialise


class UncertaintyConfig(BaseModel, frozen=True, extra="forbid"):
    features: int = Field(128, gt=0)

    def build(self) -> Uncertainty:
        return Uncertainty(self)


class Uncertainty(nn.Module):
    """u (n,) of log SNR (n,)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, config: UncertaintyConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("frequencies", torch.zeros(config.features))
        self.register_buffer("phases", torch.zeros(config.features))
        self.linear = nn.Linear(config.features, 1, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        initialise(self, generator, zero=[self.linear])
        with torch.no_grad():
            self.frequencies.normal_(std=2 * math.pi, generator=generator)
            self.phases.uniform_(0, 2 * math.pi, generator=generator)

    def forward(self, log_snr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        place = log_snr.float().clamp(-40, 40)[:, None] / 8  # a quarter of log(sigma / alpha), as in EDM
        wave = torch.cos(place * self.frequencies + self.phases) * math.sqrt(2)
        return self.linear(wave / math.sqrt(self.config.features)).squeeze(1)
