"""Discriminators that serve several systems. `PatchDiscriminator` judges each patch of a picture by itself.

The published layout of its modules (`main.0`, `main.2`, ...) is kept, so that files with a trained one fit.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..layers.initialise import initialise, normal
from ..layers.spectral import SpectralConv2d


class PatchDiscriminatorConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a `PatchDiscriminator`; the defaults are the paper's, whose logits see patches of 70 x 70 pixels."""

    width: int = Field(64, ge=1, description="channels of the first layer; doubled by each further one, up to 8 times")
    layers: int = Field(3, ge=1, le=8, description="how often the picture is halved")
    norm: Literal["batch", "group", "none", "spectral"] = "batch"
    groups: int = Field(16, ge=1, description="groups of the group norms (at most the width)")
    in_channels: int = Field(3, ge=1)

    @property
    def needs_whole_batch(self) -> bool:
        """Batch norm looks at all pictures at once: its stage must say `batch_statistics=True`."""
        return self.norm == "batch"

    def build(self) -> PatchDiscriminator:
        return PatchDiscriminator(self)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 3.2.2 and appendix 6.1.2): strided 4 x 4 convolutions, one logit a patch."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        steps: list[nn.Module] = [_conv(config, config.in_channels, widths[0], 2, True), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
            steps.append(_conv(config, before, width, 2 if i < config.layers else 1, config.norm != "batch"))
            if config.norm == "batch":
                steps.append(nn.BatchNorm2d(width, eps=1e-5))
            elif config.norm == "group":
                steps.append(nn.GroupNorm(_groups(config.groups, width), width, eps=1e-5))
            steps.append(nn.LeakyReLU(0.2))
        steps.append(_conv(config, widths[-1], 1, 1, True))
        self.main = nn.Sequential(*steps)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: normal, standard deviation 0.02 (Isola et al. 2017, appendix 6.2)."""
        initialise(self, generator, weight=normal(0.02))

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 y x"]:
        """Logits of pictures in [-1, 1]: positive where a patch looks real. y = h / 2^layers - 2 (as in the paper), x alike;
        h and w are at least 3 times 2^layers."""
        return self.main(image)


def _conv(config: PatchDiscriminatorConfig, before: int, width: int, stride: int, bias: bool) -> nn.Conv2d:
    kind = SpectralConv2d if config.norm == "spectral" else nn.Conv2d
    return kind(before, width, 4, stride=stride, padding=1, bias=bias)


def _groups(wanted: int, width: int) -> int:
    """The largest number of groups up to the wanted one that divides the width."""
    return next(count for count in range(min(wanted, width), 0, -1) if width % count == 0)
