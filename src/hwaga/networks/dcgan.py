"""DCGAN: the first convolutional generator and discriminator that trained well (Radford, Metz and Chintala 2015).

    generator       latent -> 4 x 4 places -> transposed convolutions, each twice the size -> tanh
    discriminator   strided convolutions, each half the size -> 4 x 4 places -> logit

No pooling, no hidden linear layers; batch norm everywhere but at the generator's end and the discriminator's two ends; ReLU
in the generator, leaky ReLU 0.2 in the discriminator; weights begin normal with standard deviation 0.02 (section 3 and 4).

Beside the paper: z is normal, where the paper draws it uniform; class conditions by an embedding beside z and by projection
(Miyato and Koyama 2018, eq. 3); spectral norm, or none, in the place of the discriminator's batch norm.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from ..layers.initialise import initialise, normal
from ..layers.spectral import SpectralConv2d

START = 4  # side of the smallest resolution
SLOPE = 0.2


class _Shape(BaseModel, frozen=True, extra="forbid"):
    """What generator and discriminator share; the defaults are those of figure 1, for 64 x 64 pixels."""

    channels: tuple[int, ...] = Field(
        (1024, 512, 256, 128), min_length=1, max_length=8, description="width at each resolution, from 4 x 4 up"
    )
    kernel: Literal[4, 5] = Field(5, description="side of the convolutions; 4 has each pixel seen equally often")
    classes: int = Field(0, ge=0, description="number of classes; 0: no condition")
    image_channels: int = Field(3, ge=1)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        side = START * 2 ** len(self.channels)
        return side, side


class DCGANGeneratorConfig(_Shape):
    """Sizes of a `DCGANGenerator`."""

    kind: Literal["dcgan"] = "dcgan"
    latent: int = Field(100, ge=1, description="numbers of the noise z")
    class_width: int = Field(64, ge=1, description="numbers of the class embedding")

    @property
    def needs_whole_batch(self) -> bool:
        """Batch norm looks at all pictures at once."""
        return True

    def build(self) -> DCGANGenerator:
        return DCGANGenerator(self)


class DCGANDiscriminatorConfig(_Shape):
    """Sizes of a `DCGANDiscriminator`."""

    kind: Literal["dcgan"] = "dcgan"
    norm: Literal["batch", "spectral", "none"] = "batch"

    @property
    def needs_whole_batch(self) -> bool:
        """Batch norm looks at all pictures at once."""
        return self.norm == "batch"

    def build(self) -> DCGANDiscriminator:
        return DCGANDiscriminator(self)


class DCGANGenerator(nn.Module):
    """`forward(z, label)` gives pictures in [-1, 1]. See the top of this file."""

    def __init__(self, config: DCGANGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths, k = config.channels, config.kernel
        self.embedding = nn.Embedding(config.classes, config.class_width) if config.classes else None
        width = config.latent + (config.class_width if config.classes else 0)
        self.into = nn.ConvTranspose2d(width, widths[0], START, bias=False)
        outs = [*widths[1:], config.image_channels]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, k, stride=2, padding=k // 2 if k % 2 else 1, output_padding=k % 2, bias=last)
            for a, b, last in zip(widths, outs, [False] * (len(outs) - 1) + [True], strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5) for width in widths)

    def initialise(self, generator: torch.Generator) -> None:
        initialise(self, generator, weight=normal(0.02))

    def forward(self, z: Float[Tensor, "n z"], label: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """z is standard normal; label 0 ... classes - 1, given exactly when the config has classes."""
        _check_label(label, self.embedding)
        x = z if self.embedding is None else torch.cat([z, self.embedding(label)], dim=1)
        x = self.into(x[:, :, None, None])
        for norm, up in zip(self.norms, self.ups, strict=True):
            x = up(relu(norm(x)))
        return torch.tanh(x)


class DCGANDiscriminator(nn.Module):
    """`forward(image, label)` gives a logit (n,): positive where a picture looks real. See the top of this file."""

    def __init__(self, config: DCGANDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths, conv = config.channels[::-1], SpectralConv2d if config.norm == "spectral" else nn.Conv2d
        ins = [config.image_channels, *widths[:-1]]
        batch = config.norm == "batch"
        self.downs = nn.ModuleList(
            conv(a, b, config.kernel, stride=2, padding=config.kernel // 2 if config.kernel % 2 else 1,
                 bias=not batch or i == 0)
            for i, (a, b) in enumerate(zip(ins, widths, strict=True))
        )  # fmt: skip
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, eps=1e-5) if batch and i else nn.Identity() for i, width in enumerate(widths)
        )
        self.out = conv(widths[-1], 1, START)
        self.embedding = nn.Embedding(config.classes, widths[-1]) if config.classes else None

    def initialise(self, generator: torch.Generator) -> None:
        initialise(self, generator, weight=normal(0.02))

    def forward(self, image: Float[Tensor, "n c h w"], label: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Pictures in [-1, 1]; label as in the generator."""
        _check_label(label, self.embedding)
        x = image
        for norm, down in zip(self.norms, self.downs, strict=True):
            x = leaky_relu(norm(down(x)), SLOPE)
        logit = self.out(x).flatten()
        if self.embedding is None:
            return logit
        return logit + (self.embedding(label) * x.mean((2, 3))).sum(1) / math.sqrt(x.shape[1])


def _check_label(label: Tensor | None, embedding: nn.Embedding | None) -> None:
    if (label is None) != (embedding is None):
        raise ValueError(f"label={'given' if label is not None else None} with a network of {embedding}")
