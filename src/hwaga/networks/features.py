"""A small classifier of drawings whose last hidden layer judges pictures: its features make FD, KID, PRDC and more.

It only judges: no system is conditioned on it or trained through it. Layout: He et al. 2016 (basic residual blocks),
average pooling before the 1 x 1 shortcut as He et al. 2019 ("Bag of tricks", ResNet-D).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn

FILTER = "bicubic, antialiased, clamped"  # how pictures of another size come to the trained one; it is on the card
_EPSILON = 1e-5


class FeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a `FeatureNetwork`. Each entry of `channels` is a resolution: half, a quarter, ... of `size`."""

    size: int = Field(32, ge=8, le=512)  # height and width in pixels that it was trained at
    channels: tuple[int, ...] = Field((48, 96, 160), min_length=1, max_length=8)
    blocks: int = Field(1, ge=1, le=8)  # residual blocks at each resolution
    features: int = Field(64, ge=1, le=64)  # few, so that a covariance is known from few hundred pictures
    classes: int = Field(ge=2, le=100_000)

    def build(self) -> FeatureNetwork:
        return FeatureNetwork(self)


Seeing = TypeVar("Seeing", bound=nn.Module)


class Judged(NamedTuple):
    """What the network says of n pictures."""

    features: Tensor  # (n, features)
    logits: Tensor  # (n, classes)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside, _EPSILON)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside, _EPSILON)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False) if inside != outside else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return F.relu(y + self.skip(x))


class FeatureNetwork(nn.Module):
    """Pictures in [-1, 1], any size, to features and the logits of the classes it was trained on."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.stem = nn.Conv2d(3, first, 4, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(first, _EPSILON)
        blocks: list[nn.Module] = []
        inside = first
        for place, width in enumerate(config.channels):
            for number in range(config.blocks):
                blocks.append(_Block(inside, width, 2 if place and not number else 1))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        self.embed = nn.Linear(inside, config.features)
        self.classify = nn.Linear(config.features, config.classes)

    def forward(self, image: Float[Tensor, "n 3 h w"]) -> Judged:
        """Pictures in [-1, 1]; another size than the trained one is resized (see `FILTER`), aspect not kept."""
        size = (self.config.size, self.config.size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        x = F.relu(self.stem_norm(self.stem(image)))
        features = self.embed(self.blocks(x).mean(dim=(2, 3)))
        return Judged(features, self.classify(features))


def initialise(network: Seeing, generator: torch.Generator) -> Seeing:
    """Fresh weights (He et al. 2015) drawn from `generator` alone; the network has `embed` and `classify`, and may come from
    `layers.build_on`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # draws nothing
    for last in (network.embed, network.classify):
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=last.in_features**-0.5, generator=generator)
    for module in network.modules():
        if isinstance(module, _Block):
            nn.init.zeros_(module.norm2.weight)  # each block starts as its shortcut (Goyal et al. 2017)
    return network
