"""A modern generator and discriminator without normalisation: the R3GAN form (Huang et al. 2024, section 3, config E).

    generator       latent and class -> linear -> scales a learned 4 x 4 picture of each channel
                    residual blocks; then the next width (1 x 1, where it differs), twice the size; ...; 1 x 1 to colours
    discriminator   1 x 1 from colours; residual blocks; then half the size and the next width; ...
                    a 4 x 4 filter for each channel -> features -> logit, and the class asks the features (projection)

    block           x + C3(act(C2(act(C1(x)))))      1 x 1 that widens, 3 x 3 in groups, 1 x 1 back; leaky ReLU 0.2
    resampling      bilinear; first weights as in Fixup (Zhang et al. 2019): no block does anything at the start

A 1 x 1 convolution and a bilinear resampling commute, so that the convolution is done on the smaller side. With `patch=2`
the picture leaves and enters as 2 x 2 blocks of pixels in four times the channels, by a 3 x 3 convolution instead of the 1 x 1: a
quarter of the arithmetic. The pixels of a block begin alike (Aitken et al. 2017), or the blocks would be seen.

Class conditions: an embedding beside the latent; logit = psi(f) + <e_y, f> / sqrt(width) (Miyato and Koyama 2018, eq. 3).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu, pixel_shuffle, pixel_unshuffle

from ..layers.conv import Conv2d
from ..layers.initialise import initialise
from ..layers.spectral import SpectralConv2d, SpectralLinear

SLOPE = 0.2
START = 4  # side of the smallest resolution


class _Shape(BaseModel, frozen=True, extra="forbid"):
    """What generator and discriminator share; widths are listed from 4 x 4 up to the largest resolution."""

    channels: tuple[int, ...] = Field(
        (192, 128, 96), min_length=1, max_length=9, description="width at each resolution, from 4 x 4 up"
    )
    blocks: tuple[int, ...] = Field((1, 1, 1), min_length=1, max_length=9, description="residual blocks at each")
    expansion: int = Field(2, ge=1, le=8, description="how much wider than a block its 3 x 3 convolution is")
    group_width: int | None = Field(16, ge=1, description="channels a group of the 3 x 3; null: one group")
    patch: int = Field(1, ge=1, le=8, description="side of the pixel blocks that are channels")
    classes: int = Field(0, ge=0, description="number of classes; 0: no condition")
    image_channels: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> _Shape:
        if len(self.blocks) != len(self.channels):
            raise ValueError(f"blocks has {len(self.blocks)} entries, channels has {len(self.channels)}")
        for width in self.channels:
            if width <= 0 or (self.group_width and width * self.expansion % self.group_width):
                raise ValueError(
                    f"channels={width} times {self.expansion} is no multiple of group_width={self.group_width}"
                )
        if min(self.blocks) < 0 or sum(self.blocks) == 0:
            raise ValueError(f"blocks={list(self.blocks)}: none below 0, and one at least, are needed")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        side = START * 2 ** (len(self.channels) - 1) * self.patch
        return side, side

    @property
    def edge(self) -> int:
        """Side of the convolution from and to colours. Blocks of pixels look at their neighbours, or they would not join."""
        return 1 if self.patch == 1 else 3

    @property
    def needs_whole_batch(self) -> bool:
        """Nothing here looks at more than one picture."""
        return False


class ResidualGeneratorConfig(_Shape):
    """Sizes of a `ResidualGenerator`."""

    kind: Literal["residual"] = "residual"
    latent: int = Field(64, ge=1, description="numbers of the noise z")
    class_width: int = Field(64, ge=1, description="numbers of the class embedding")

    def build(self) -> ResidualGenerator:
        return ResidualGenerator(self)


class ResidualDiscriminatorConfig(_Shape):
    """Sizes of a `ResidualDiscriminator`."""

    kind: Literal["residual"] = "residual"
    spectral: bool = Field(False, description="weights divided by their largest singular value")

    def build(self) -> ResidualDiscriminator:
        return ResidualDiscriminator(self)


class Block(nn.Module):
    """x + C3(act(C2(act(C1(x))))). Source: Huang et al. 2024, section 3.2 (1-3-1, no norm, grouped, wider inside)."""

    def __init__(self, width: int, config: _Shape, spectral: bool) -> None:
        super().__init__()
        conv = SpectralConv2d if spectral else Conv2d
        inner = width * config.expansion
        groups = inner // config.group_width if config.group_width else 1
        self.widen = conv(width, inner, 1)
        self.mix = conv(inner, inner, 3, padding=1, groups=groups)
        self.narrow = conv(inner, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        h = leaky_relu(self.widen(x), SLOPE)
        return x + self.narrow(leaky_relu(self.mix(h), SLOPE))


class ResidualGenerator(nn.Module):
    """`forward(z, label)` gives pictures in about [-1, 1] (nothing bounds them). See the top of this file."""

    def __init__(self, config: ResidualGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.embedding = nn.Embedding(config.classes, config.class_width) if config.classes else None
        self.into = nn.Linear(config.latent + (config.class_width if config.classes else 0), widths[0], bias=False)
        self.basis = Basis(widths[0], 1.0)
        self.stages: Any = _stages(widths, config, False)
        self.widths = nn.ModuleList(_width(a, b, Conv2d) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = Conv2d(widths[-1], config.image_channels * config.patch**2, config.edge, padding=config.edge // 2)

    def initialise(self, generator: torch.Generator) -> None:
        _initialise(self, self.config, generator)
        block = (
            self.config.patch**2
        )  # the pixels of a block begin alike, so that no pattern of blocks is there to unlearn
        with torch.no_grad():
            self.out.weight.copy_(self.out.weight[::block].repeat_interleave(block, dim=0))

    def forward(self, z: Float[Tensor, "n z"], label: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """z is standard normal; label 0 ... classes - 1, given exactly when the config has classes."""
        _check_label(label, self.embedding)
        x = self.into(z if self.embedding is None else torch.cat([z, self.embedding(label)], dim=1))
        x = (x[:, :, None, None] * self.basis.weight).contiguous(memory_format=torch.channels_last)
        for i, stage in enumerate(self.stages):
            if i:
                x = interpolate(self.widths[i - 1](x), scale_factor=2.0, mode="bilinear", align_corners=False)
            for block in stage:
                x = block(x)
        return pixel_shuffle(self.out(x), self.config.patch)


class ResidualDiscriminator(nn.Module):
    """`forward(image, label)` gives a logit (n,): positive where a picture looks real. See the top of this file."""

    def __init__(self, config: ResidualDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths, conv = config.channels, SpectralConv2d if config.spectral else Conv2d
        linear = SpectralLinear if config.spectral else nn.Linear
        self.first = conv(config.image_channels * config.patch**2, widths[-1], config.edge, padding=config.edge // 2)
        self.stages: Any = _stages(widths, config, config.spectral)
        self.widths = nn.ModuleList(_width(b, a, conv) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.basis = Basis(widths[0], 1 / START)  # a sum over 4 x 4 places
        self.out = linear(widths[0], 1)
        self.embedding = nn.Embedding(config.classes, widths[0]) if config.classes else None

    def initialise(self, generator: torch.Generator) -> None:
        _initialise(self, self.config, generator)

    def forward(self, image: Float[Tensor, "n c h w"], label: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Pictures in [-1, 1]; label as in the generator."""
        _check_label(label, self.embedding)
        x = pixel_unshuffle(image, self.config.patch).contiguous(memory_format=torch.channels_last)
        x = self.first(x)
        for i in reversed(range(len(self.stages))):
            for block in self.stages[i]:
                x = block(x)
            if i:
                x = self.widths[i - 1](avg_pool2d(x, 2))  # bilinear at half the size is the mean of 2 x 2
        features = (x * self.basis.weight).sum((2, 3))
        logit = self.out(features).squeeze(1)
        if self.embedding is None:
            return logit
        return logit + (self.embedding(label) * features).sum(1) / math.sqrt(features.shape[1])


class Basis(nn.Module):
    """A learned 4 x 4 picture of each channel: what a generator begins with, and how a discriminator looks at the last one."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(width, START, START))

    def reset_state(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.weight.normal_(std=self.std, generator=generator)


def _stages(widths: tuple[int, ...], config: _Shape, spectral: bool) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleList(Block(width, config, spectral) for _ in range(count))
        for width, count in zip(widths, config.blocks, strict=True)
    )


def _width(before: int, after: int, conv: type[nn.Conv2d]) -> nn.Module:
    return nn.Identity() if before == after else conv(before, after, 1, bias=False)


def _check_label(label: Tensor | None, embedding: nn.Embedding | None) -> None:
    if (label is None) != (embedding is None):
        raise ValueError(f"label={'given' if label is not None else None} with a network of {embedding}")


def _initialise(network: nn.Module, config: _Shape, generator: torch.Generator) -> None:
    """He et al. 2015 with the gain of the leaky ReLU where one follows, 1 elsewhere; inside the L blocks times L^(-1/4), and
    0 at each block's end (Zhang et al. 2019, section 3.1: L^(-1 / (2 m - 2)), m = 3 layers a block). Spectral norm takes any
    scale away, and has none for 0: its blocks end as they begin."""
    gain, depth = math.sqrt(2 / (1 + SLOPE**2)), sum(config.blocks) ** -0.25
    blocks = [part for part in network.modules() if isinstance(part, Block)]
    inside = {id(weight) for block in blocks for weight in (block.widen.weight, block.mix.weight)}

    ends = [block.narrow for block in blocks if not isinstance(block.narrow, SpectralConv2d)]

    def weights(weight: Tensor, g: torch.Generator) -> None:
        scale = gain * depth if id(weight) in inside else 1.0
        with torch.no_grad():
            weight.normal_(std=scale / math.sqrt(weight[0].numel()), generator=g)

    initialise(network, generator, weight=weights, zero=ends)
