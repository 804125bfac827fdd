"""StyleGAN's generator and discriminator: the form of 2019 (StyleGAN2) and, by choice, that of 2018.

A mapping network takes z to w; w, by an affine layer of each convolution's own, is the style that this convolution has;
noise is added after each. The picture grows from a learned constant of 4 x 4, doubling in each block.

    style         demodulation   weights modulated and demodulated         Karras et al. 2020, section 2.2
                  adain          instance norm, then scale and shift       Karras et al. 2019, eq. 1
    architecture  skip           each block adds to the RGB picture        Karras et al. 2020, figure 7 b
                  resnet         residual blocks                           figure 7 c
                  plain          one after the other, as in 2018           figure 7 a
    growing       pictures begin at 4 x 4; higher blocks are faded in      Karras et al. 2018, section 2

Names of parameters and buffers are those of the public PyTorch networks (StyleGAN2-ADA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from ..layers.modulation import (
    EqualConv2d,
    EqualLinear,
    activate,
    batch_deviation,
    convolve,
    modulated,
    second_moment,
)
from ..layers.resample import binomial, upsample

LayerNoise = Callable[[str, tuple[int, ...]], Tensor] | Literal["const", "none"]
"""Noise inputs: drawn by (layer's name, (n, 1, h, w)), the fixed ones that belong to the weights, or none."""


class MappingConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(8, ge=1, le=64)
    rate: float = Field(0.01, gt=0, description="share of the learning rate that these layers have")
    w_avg_beta: float | None = Field(0.995, ge=0, lt=1, description="how slowly the mean of w follows")


class GeneratorConfig(BaseModel, frozen=True, extra="forbid"):
    """Defaults are the published 256 x 256 network of StyleGAN2-ADA (`paper256`)."""

    kind: Literal["stylegan2"] = "stylegan2"
    channels: tuple[int, ...] = Field(
        (512, 512, 512, 512, 256, 128, 64), min_length=1, description="at 4, 8, 16, ... px"
    )
    z_dim: int = Field(512, ge=1)
    w_dim: int = Field(512, ge=1)
    classes: int = Field(0, ge=0)
    mapping: MappingConfig = MappingConfig()
    style: Literal["demodulation", "adain"] = "demodulation"
    architecture: Literal["skip", "resnet", "plain"] = "skip"
    growing: bool = False
    noise: bool = True
    clamp: float | None = Field(
        None, gt=0, description="activations are held to +-clamp (256 where it is trained in half)"
    )
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    picture_channels: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _agrees(self) -> GeneratorConfig:
        if (self.style == "adain" or self.growing) and self.architecture != "plain":
            raise ValueError(f"style={self.style} with growing={self.growing} needs architecture=plain, as in 2018")
        return self

    @property
    def resolution(self) -> int:
        return 4 * 2 ** (len(self.channels) - 1)

    @property
    def num_ws(self) -> int:
        """Two styles a block."""
        return 2 * len(self.channels)

    def build(self) -> Generator:
        return Generator(self)


class DiscriminatorConfig(BaseModel, frozen=True, extra="forbid"):
    channels: tuple[int, ...] = Field(
        (512, 512, 512, 512, 256, 128, 64), min_length=1, description="at 4, 8, 16, ... px"
    )
    classes: int = Field(0, ge=0)
    mapping: MappingConfig = MappingConfig(w_avg_beta=None)
    architecture: Literal["resnet", "plain"] = "resnet"
    growing: bool = False
    deviation_group: int = Field(4, ge=0, description="pictures whose deviation is shown to D as a channel; 0: none")
    deviation_channels: int = Field(1, ge=1)
    clamp: float | None = Field(None, gt=0)
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    picture_channels: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _agrees(self) -> DiscriminatorConfig:
        if self.growing and self.architecture != "plain":
            raise ValueError("growing=true needs architecture=plain, as in 2018")
        return self

    @property
    def resolution(self) -> int:
        return 4 * 2 ** (len(self.channels) - 1)

    def build(self) -> Discriminator:
        return Discriminator(self)


class Network(nn.Module):
    """Both draw their first weights layer by layer."""

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: N(0, 1) for what is normalised in use, 0 for biases and noise strengths, 1 for styles."""
        for part in self.modules():
            if part is not self and hasattr(part, "initialise"):
                part.initialise(generator)  # type: ignore[operator]


# ----------------------------------------------------------------------------------------------------------------- mapping


class Mapping(nn.Module):
    """z (n, z), class -> w (n, w), through `layers` fully connected ones. Without z (in D), class -> vector."""

    w_avg: Tensor

    def __init__(self, config: MappingConfig, z_dim: int, classes: int, w_dim: int) -> None:
        super().__init__()
        self.config, self.z_dim, self.classes = config, z_dim, classes
        if classes:
            self.embed = EqualLinear(classes, w_dim)
        widths = [z_dim + (w_dim if classes else 0)] + [w_dim] * config.layers
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            setattr(self, f"fc{i}", EqualLinear(inputs, outputs, activation="lrelu", rate=config.rate))
        if config.w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def initialise(self, generator: torch.Generator) -> None:
        if self.config.w_avg_beta is not None:
            self.w_avg.zero_()

    def forward(self, z: Tensor | None, label: Tensor | None = None) -> Float[Tensor, "n w"]:
        parts = [] if z is None else [second_moment(z)]
        if self.classes:
            if label is None:
                raise ValueError("this network is conditioned on classes: a label (n,) is needed")
            known = torch.arange(self.classes, device=label.device)
            parts.append(second_moment(self.embed((label[:, None] == known).to(self.embed.weight.dtype))))
        x = torch.cat(parts, dim=1)
        for i in range(self.config.layers):
            x = getattr(self, f"fc{i}")(x)
        return x

    @torch.no_grad()
    def follow(self, w: Float[Tensor, "n w"]) -> None:
        """Moves the mean of w towards that of a batch."""
        if self.config.w_avg_beta is not None:
            self.w_avg.copy_(w.mean(0).to(self.w_avg.dtype).lerp(self.w_avg, self.config.w_avg_beta))

    def truncate(
        self, ws: Float[Tensor, "n l w"], truncation: float | Tensor = 1.0, cutoff: int | None = None
    ) -> Float[Tensor, "n l w"]:
        """w_avg + psi (w - w_avg) on the first `cutoff` layers (all if None): 1 leaves w alone, 0 is the mean."""
        nearer = self.w_avg + truncation * (ws - self.w_avg)
        return nearer if cutoff is None else torch.cat([nearer[:, :cutoff], ws[:, cutoff:]], dim=1)


# --------------------------------------------------------------------------------------------------------------- generator


class StyledConv(nn.Module):
    """A convolution in a style: its kernel modulated and demodulated (or instance norm and the style), noise, leaky ReLU."""

    noise_const: Tensor

    def __init__(self, config: GeneratorConfig, name: str, inputs: int, outputs: int, size: int, up: int) -> None:
        super().__init__()
        self.name, self.up, self.size, self.clamp = name, up, size, config.clamp
        self.adain = config.style == "adain"
        self.taps = binomial(config.taps)
        if inputs:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.affine = EqualLinear(config.w_dim, 2 * outputs if self.adain else inputs, bias_init=0 if self.adain else 1)
        self.noise = config.noise
        if config.noise:
            self.register_buffer("noise_const", torch.zeros(size, size))
            self.noise_strength = nn.Parameter(torch.empty(outputs) if self.adain else torch.empty(()))

    def initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            if hasattr(self, "weight"):
                self.weight.normal_(generator=generator)
            self.bias.zero_()
            if self.noise:
                self.noise_const.normal_(generator=generator)
                self.noise_strength.zero_()

    def forward(self, x: Tensor, w: Float[Tensor, "n w"], noise: LayerNoise, gain: float = 1.0) -> Tensor:
        style = self.affine(w)
        if not self.adain:
            x = modulated(x, self.weight, style, up=self.up, taps=self.taps)
        elif hasattr(self, "weight"):
            x = convolve(x, self.weight * (1 / math.sqrt(self.weight[0].numel())), up=self.up, taps=self.taps)
        if self.noise and noise != "none":
            drawn = self.noise_const if noise == "const" else noise(self.name, (len(x), 1, self.size, self.size))
            x = x + (drawn * self.noise_strength.reshape(-1, 1, 1)).to(x.dtype)
        x = activate(x + self.bias[:, None, None].to(x.dtype), "lrelu", gain, self.clamp)
        if not self.adain:
            return x
        scale, shift = style[:, :, None, None].chunk(2, dim=1)
        return F.instance_norm(x, eps=1e-8) * (1 + scale) + shift


class ToRGB(nn.Module):
    """A 1 x 1 convolution in a style, not demodulated: channels -> colours."""

    def __init__(self, config: GeneratorConfig, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.picture_channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(config.picture_channels))
        self.clamp = config.clamp
        self.affine = EqualLinear(config.w_dim, inputs, bias_init=1) if config.style == "demodulation" else None

    def initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.weight.normal_(generator=generator)
            self.bias.zero_()

    def forward(self, x: Tensor, w: Float[Tensor, "n w"]) -> Tensor:
        weight = self.weight * (1 / math.sqrt(self.weight.shape[1]))
        x = F.conv2d(x, weight) if self.affine is None else modulated(x, weight, self.affine(w), demodulate=False)
        return activate(x + self.bias[:, None, None].to(x.dtype), "linear", clamp=self.clamp)


class SynthesisBlock(nn.Module):
    """Doubles the size (but for the first, which begins with the constant): two convolutions, and colours if asked."""

    def __init__(self, config: GeneratorConfig, i: int) -> None:
        super().__init__()
        size, inputs, outputs = 4 * 2**i, config.channels[max(0, i - 1)], config.channels[i]
        self.first, self.taps, self.resnet = i == 0, binomial(config.taps), config.architecture == "resnet" and i > 0
        if self.first:
            self.const = nn.Parameter(torch.empty(outputs, size, size))
        if not self.first or config.style == "adain":  # in 2018 the constant itself has noise and a style
            self.conv0 = StyledConv(
                config, f"b{size}.conv0", 0 if self.first else inputs, outputs, size, 1 if self.first else 2
            )
        self.conv1 = StyledConv(config, f"b{size}.conv1", outputs, outputs, size, 1)
        last = i == len(config.channels) - 1
        self.torgb = ToRGB(config, outputs) if last or config.architecture == "skip" or config.growing else None
        if self.resnet:
            self.skip = EqualConv2d(inputs, outputs, 1, activation="linear", bias=False, up=2, taps=self.taps)

    def initialise(self, generator: torch.Generator) -> None:
        if self.first:
            with torch.no_grad():
                self.const.normal_(generator=generator)

    @property
    def styles(self) -> int:
        """How many of the w's its convolutions take."""
        return 2 if hasattr(self, "conv0") else 1

    def forward(self, x: Tensor | None, ws: tuple[Tensor, ...], noise: LayerNoise) -> Tensor:
        if x is None:
            x = self.const.expand(len(ws[0]), -1, -1, -1)
        if self.resnet:
            y = self.skip(x, math.sqrt(0.5))
            return y + self.conv1(self.conv0(x, ws[0], noise), ws[1], noise, math.sqrt(0.5))
        if hasattr(self, "conv0"):
            x = self.conv0(x, ws[0], noise)
        return self.conv1(x, ws[-1], noise)


class Synthesis(nn.Module):
    """Styles (n, num_ws, w) -> pictures (n, 3, r, r) in about [-1, 1]."""

    level: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        for i in range(len(config.channels)):
            setattr(self, f"b{4 * 2**i}", SynthesisBlock(config, i))
        if config.growing:
            self.register_buffer("level", torch.tensor(float(len(config.channels) - 1)))

    def initialise(self, generator: torch.Generator) -> None:
        if self.config.growing:
            self.level.fill_(len(self.config.channels) - 1)

    def forward(self, ws: Float[Tensor, "n l w"], noise: LayerNoise = "const") -> Float[Tensor, "n c r r"]:
        level = float(self.level) if self.config.growing else len(self.config.channels) - 1.0
        styles, at = ws.unbind(1), 0
        x: Tensor | None = None
        picture: Tensor | None = None
        for i in range(math.ceil(level) + 1):
            block = getattr(self, f"b{4 * 2**i}")
            x = block(x, styles[at : at + block.styles], noise)
            at += block.styles
            if block.torgb is not None and (self.config.architecture == "skip" or i > level - 1):
                before, picture = (
                    picture,
                    block.torgb(x, styles[min(at, len(styles) - 1)]),
                )  # shared with the next block
                if self.config.architecture == "skip" and before is not None:
                    picture = picture + upsample(before, block.taps)
                elif i > level and before is not None:  # the newest block fades in
                    picture = torch.lerp(F.interpolate(before, scale_factor=2.0), picture, level - (i - 1))
        return picture  # type: ignore[return-value]


class Generator(Network):
    """z (n, z_dim) standard normal [and a class] -> pictures."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.mapping, config.z_dim, config.classes, config.w_dim)
        self.synthesis = Synthesis(config)

    def forward(
        self, z: Float[Tensor, "n z"], label: Tensor | None = None, noise: LayerNoise = "const", truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[Tensor, "n c r r"]:  # fmt: skip
        ws = self.mapping(z, label)[:, None].expand(-1, self.config.num_ws, -1)
        return self.synthesis(self.mapping.truncate(ws, truncation, cutoff), noise)


# ----------------------------------------------------------------------------------------------------------- discriminator


class DiscriminatorBlock(nn.Module):
    """Halves the size: two convolutions, and in a residual network a straight way beside them."""

    def __init__(self, config: DiscriminatorConfig, i: int) -> None:
        super().__init__()
        outputs, inner = config.channels[i - 1], config.channels[i]
        taps, resnet = binomial(config.taps), config.architecture == "resnet"
        if i == len(config.channels) - 1 or config.growing:
            self.fromrgb = from_rgb(config, inner)
        self.conv0 = EqualConv2d(inner, inner, 3, activation="lrelu", clamp=config.clamp)
        self.conv1 = EqualConv2d(inner, outputs, 3, activation="lrelu", down=2, taps=taps, clamp=config.clamp)
        self.skip = None
        if resnet:
            self.skip = EqualConv2d(inner, outputs, 1, activation="linear", bias=False, down=2, taps=taps)

    def forward(self, x: Tensor) -> Tensor:
        if self.skip is None:
            return self.conv1(self.conv0(x))
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


def from_rgb(config: DiscriminatorConfig, outputs: int) -> EqualConv2d:
    return EqualConv2d(config.picture_channels, outputs, 1, activation="lrelu", clamp=config.clamp)


class DiscriminatorEnd(nn.Module):
    """4 x 4 -> what D says: a number, or a vector that the class's own vector is multiplied with."""

    def __init__(self, config: DiscriminatorConfig, outputs: int) -> None:
        super().__init__()
        inner = config.channels[0]
        self.group, self.extra = config.deviation_group, config.deviation_channels if config.deviation_group else 0
        if config.growing or len(config.channels) == 1:
            self.fromrgb = from_rgb(config, inner)
        self.conv = EqualConv2d(inner + self.extra, inner, 3, activation="lrelu", clamp=config.clamp)
        self.fc = EqualLinear(inner * 16, inner, activation="lrelu")
        self.out = EqualLinear(inner, outputs)

    def forward(self, x: Float[Tensor, "n c 4 4"]) -> Float[Tensor, "n o"]:
        if self.extra:
            x = torch.cat([x, batch_deviation(x, self.group, self.extra)], dim=1)
        return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(Network):
    """Pictures (n, 3, r, r) in [-1, 1] [and a class] -> logits (n,): how real they look."""

    level: Tensor

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        for i in range(len(config.channels) - 1, 0, -1):
            setattr(self, f"b{4 * 2**i}", DiscriminatorBlock(config, i))
        width = config.channels[0] if config.classes else 1
        self.b4 = DiscriminatorEnd(config, width)
        if config.classes:
            self.mapping = Mapping(config.mapping, 0, config.classes, width)
        if config.growing:
            self.register_buffer("level", torch.tensor(float(len(config.channels) - 1)))

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        if self.config.growing:
            self.level.fill_(len(self.config.channels) - 1)

    def forward(self, picture: Float[Tensor, "n c r r"], label: Tensor | None = None) -> Float[Tensor, " n"]:
        level = float(self.level) if self.config.growing else len(self.config.channels) - 1.0
        top = math.ceil(level)
        x = getattr(self, f"b{4 * 2**top}").fromrgb(picture)
        for i in range(top, 0, -1):
            x = getattr(self, f"b{4 * 2**i}")(x)
            if i > level:  # the newest block fades in
                below = getattr(self, f"b{4 * 2 ** (i - 1)}").fromrgb(F.avg_pool2d(picture, 2))
                x = torch.lerp(below, x, level - (i - 1))
        x = self.b4(x)
        if not self.config.classes:
            return x[:, 0]
        return (x * self.mapping(None, label)).sum(1) / math.sqrt(x.shape[1])


def shrunk(picture: Tensor, size: int, fading: float) -> Tensor:
    """Pictures as the growing networks see them: averaged down to `size`, and while a block fades in (0 < fading < 1) mixed
    with their own next coarser form."""
    if picture.shape[-1] != size:
        picture = F.avg_pool2d(picture, picture.shape[-1] // size)
    if not 0 < fading < 1:
        return picture
    return torch.lerp(F.interpolate(F.avg_pool2d(picture, 2), scale_factor=2.0), picture, fading)
