"""Networks whose inner features say how alike two pictures look: a small one of our own, and VGG-16 of public files.

`levels(x)` gives the feature maps that a perceptual distance compares (objectives/perceptual.py). The small one is a
plain stack of 3 x 3 convolutions, trained as a classifier of drawings (evaluation/judge.py) with another seed and another
layout than the judge, which it must never be: a judge that a system was trained through would flatter it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from ..layers.conv import Conv2d
from .features import Judged

_EPSILON = 1e-5


class PlainConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a `PlainNetwork`. Each entry of `channels` is a resolution: the whole, a half, a quarter, ... of a picture's."""

    size: int = Field(32, ge=8, le=512)  # height and width in pixels that it was trained at
    channels: tuple[int, ...] = Field((32, 64, 96), min_length=1, max_length=8)
    blocks: int = Field(2, ge=1, le=8)  # convolutions at each resolution
    features: int = Field(64, ge=1, le=4096)
    classes: int = Field(ge=2, le=100_000)
    norms: bool = True  # False: they are folded into the convolutions

    def build(self) -> PlainNetwork:
        return PlainNetwork(self)


class PlainNetwork(nn.Module):
    """Convolution, norm, ReLU, again and again; halves by the maximum between resolutions; a classifier at the end.

    Layout: Simonyan and Zisserman 2015 (VGG) with batch norms (Ioffe and Szegedy 2015), a mean over places before the
    classifier.
    """

    floor = (
        0.1  # added to the length of a place's vector before it is divided by it: where little is seen, little differs
    )

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList()
        inside = 3
        for width in config.channels:
            stage = nn.ModuleList()
            for _ in range(config.blocks):
                norm = nn.BatchNorm2d(width, _EPSILON) if config.norms else nn.Identity()
                stage.append(nn.ModuleDict({"conv": Conv2d(inside, width, 3, padding=1), "norm": norm}))
                inside = width
            self.stages.append(stage)
        self.embed = nn.Linear(inside, config.features)
        self.classify = nn.Linear(config.features, config.classes)

    def levels(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of pictures in [-1, 1] of any size, the finest first: (n, c, h, w), (n, c', h/2, w/2), ..."""
        found: list[Tensor] = []
        for stage in self.stages:
            x = max_pool2d(x, 2, ceil_mode=True) if found else x
            for block in stage:  # type: ignore[attr-defined]
                x = relu(block["norm"](block["conv"](x)))
            found.append(x)
        return found

    def forward(self, image: Float[Tensor, "n 3 h w"]) -> Judged:
        features = self.embed(self.levels(image)[-1].mean(dim=(2, 3)))
        return Judged(features, self.classify(features))


@torch.no_grad()
def folded(network: PlainNetwork) -> PlainNetwork:
    """The same function without norms: each norm's mean and variance go into the weights before it (evaluation mode)."""
    with torch.device("meta"):
        plain = network.config.model_copy(update={"norms": False}).build()
    state = network.state_dict()
    stages: Any = network.stages
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage):
            norm, name = block["norm"], f"stages.{i}.{j}"
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            state[f"{name}.conv.weight"] = block["conv"].weight * scale[:, None, None, None]
            state[f"{name}.conv.bias"] = (block["conv"].bias - norm.running_mean) * scale + norm.bias
    plain.load_state_dict({name: state[name] for name in plain.state_dict()}, assign=True)
    return plain.eval()


# ------------------------------------------------------------------------------------------------------- public weights


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the convolutions at each resolution (Simonyan and Zisserman 2015, table 1, column D)."""


class VGGConfig(BaseModel, frozen=True, extra="forbid"):
    """The features of VGG-16 as LPIPS takes them; `widths` are smaller in tests alone."""

    widths: tuple[tuple[int, ...], ...] = VGG16

    def build(self) -> VGG:
        return VGG(self)


class VGG(nn.Module):
    """VGG-16 up to its last ReLU, and LPIPS's weight for each channel of the five levels.

    Source: Zhang et al. 2018, section 3 (v0.1 of the published weights); constants: the mean and spread of ImageNet's
    colours, in the range [-1, 1].
    """

    floor = 1e-10  # as published
    shift: Tensor
    scale: Tensor

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList()
        inside = 3
        for widths in config.widths:
            stage = nn.ModuleList()
            for width in widths:
                stage.append(Conv2d(inside, width, 3, padding=1))
                inside = width
            self.stages.append(stage)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(widths[-1])) for widths in config.widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def levels(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of pictures in [-1, 1], the finest first."""
        x = (x - self.shift) / self.scale
        found: list[Tensor] = []
        for stage in self.stages:
            x = max_pool2d(x, 2) if found else x
            for convolution in stage:  # type: ignore[attr-defined]
                x = relu(convolution(x))
            found.append(x)
        return found
