"""The small convolutional VAE: a picture to one vector and back. Its vector is what the prior N(0, I) is put on.

The two halves are those of `autoencoder.py`; a linear layer lies between the lowest feature map and the vector, so a network
fits one size of picture. With `classes` the label's embedding enters beside the features and beside the vector: the
conditional VAE q(z | x, y), p(x | z, y) (Sohn, Lee and Yan 2015, eq. 4).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from ..layers.initialise import initialise
from .autoencoder import CodecConfig, Coder, Decoder, Encoder, Gaussian, ends, gaussian


class ConvVAEConfig(CodecConfig, frozen=True, extra="forbid"):
    """Sizes of a ConvVAE; `latent_channels` is the width of the feature map next to the vector."""

    kind: Literal["vector"] = "vector"
    channels: tuple[int, ...] = Field((64, 96, 128), min_length=1, max_length=16)
    blocks: int = Field(1, ge=1, le=64)
    middle_attention: bool = False
    latent_channels: int = Field(64, ge=1)
    groups: int = Field(16, ge=1)
    patch: int = Field(2, ge=1, le=8)
    size: tuple[int, int] = Field((32, 32), description="(height, width) of the pictures; filled in from the data")
    latents: int = Field(128, ge=1, description="numbers of z")
    classes: int = Field(0, ge=0, description="rows of the label embedding, the null label's among them; 0: none")
    label_width: int = Field(32, ge=1, description="numbers of a label's embedding")

    @model_validator(mode="after")
    def _divides(self) -> Any:
        if any(side <= 0 or side % self.factor for side in self.size):
            raise ValueError(f"size={self.size} is not a multiple of {self.factor}, as the channels halve it that far")
        return self

    @property
    def inner(self) -> tuple[int, int, int]:
        """(c, y, x) of the feature map next to the vector."""
        return self.latent_channels, self.size[0] // self.factor, self.size[1] // self.factor

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return (self.latents,)

    def build(self) -> ConvVAE:
        return ConvVAE(self)


class ConvVAE(Coder):
    """See the top of this file; the same methods as AutoencoderKL's, z and its scaled form being (n, latents)."""

    precise = ("shift", "scale")
    shift: Tensor
    scale: Tensor

    def __init__(self, config: ConvVAEConfig) -> None:
        super().__init__()
        self.config = config
        c, y, x = config.inner
        features, extra = c * y * x, config.label_width if config.classes else 0
        self.encoder = Encoder(config.model_copy(update={"double_z": False}))
        self.to_moments = nn.Linear(features + extra, config.latents * (2 if config.double_z else 1))
        self.from_latents = nn.Linear(config.latents + extra, features)
        self.decoder = Decoder(config)
        self.label_embedding = nn.Embedding(config.classes, config.label_width) if config.classes else None
        self.register_buffer("shift", torch.zeros(config.latents))
        self.register_buffer("scale", torch.ones(config.latents))

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: variance scaling, 0 for what ends a residual branch."""
        initialise(self, generator, zero=ends(self))
        self.shift.zero_()
        self.scale.fill_(1.0)

    def posterior(self, image: Float[Tensor, "n 3 h w"], label: Int[Tensor, " n"] | None = None) -> Gaussian:
        """q(z | x), or q(z | x, y): each (n, latents). `label` is 0 ... classes - 1, given exactly when there are classes."""
        features = silu(self.encoder(image)).flatten(1)
        return gaussian(self.to_moments(self._beside(features, label)), self.config.double_z)

    def decoded(self, z: Float[Tensor, "n d"], label: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n 3 h w"]:
        """What the decoder makes of z: pictures in about [-1, 1], or logits where the likelihood says so."""
        features = self.from_latents(self._beside(z, label))
        return self.decoder(features.unflatten(1, self.config.inner))

    def scaled(self, z: Tensor) -> Tensor:
        """(z - shift) * scale, float32; the plain VAE has neither, its prior being N(0, I) already."""
        return (z.float() - self.shift) * self.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        return (latents.float() / self.scale + self.shift).to(self.last_layer.dtype)

    def _beside(self, features: Tensor, label: Tensor | None) -> Tensor:
        if (label is None) != (self.label_embedding is None):
            raise ValueError(f"label={'given' if label is not None else None} with classes={self.config.classes}")
        if self.label_embedding is None:
            return features
        return torch.cat([features, self.label_embedding(label).to(features.dtype)], dim=1)
