"""The tokenizer of VQGAN: an encoder to a grid of vectors, a codebook that each is exchanged at, a decoder back.

The public layout (diffusers' VQModel) is kept: encoder and decoder as in `autoencoder.py`, 1 x 1 convolutions into the
codebook's space (`quant_conv`) and out of it (`post_quant_conv`), `quantize.embedding.weight`.

Source: Esser, Rombach and Ommer 2021, section 3.1 and table 7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from ..layers.conv import Conv2d
from ..layers.initialise import initialise
from . import tiling
from .autoencoder import CodecConfig, Decoder, Encoder, ends
from .tiling import Tiling
from .vq import QuantizerConfig


class VQModelConfig(CodecConfig, frozen=True, extra="forbid"):
    """A tokenizer; the defaults are the published f16 one's for 256 x 256 pictures."""

    channels: tuple[int, ...] = Field((128, 128, 256, 256, 512), min_length=1, max_length=16)
    attention: tuple[bool, ...] | None = (False, False, False, False, True)
    latent_channels: int = Field(256, ge=1)
    double_z: bool = Field(False, description="a tokenizer has no variance")
    quantizer: QuantizerConfig = QuantizerConfig()

    def build(self) -> VQModel:
        return VQModel(self)


class Told(NamedTuple):
    """What a tokenizer makes of n pictures in training."""

    image: Tensor  # (n, 3, h, w) about [-1, 1]
    z: Tensor  # (n, c, y, x) what the encoder said, in the codebook's space
    codes: Tensor  # (n, y, x) int64
    loss: Tensor  # (n,) the codebook's


class VQModel(nn.Module):
    """See the top of this file. Pictures are in [-1, 1], codes int64 (n, h / f, w / f)."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tiling = Tiling()
        width, channels = config.quantizer.width, config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = Conv2d(channels * (2 if config.double_z else 1), width, 1)
        self.quantize = config.quantizer.build()
        self.post_quant_conv = Conv2d(width, channels, 1)

    @property
    def checkpointing(self) -> bool:
        return self.decoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = on

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last kernel, where an adversary's pull is weighed against reconstruction's."""
        return self.decoder.conv_out.weight

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: variance scaling, 0 for what ends a residual branch; the codebook's as it says."""
        initialise(self, generator, zero=ends(self))
        self.quantize.initialise(generator)

    def forward(self, image: Float[Tensor, "n 3 h w"], draws: Tensor | None = None) -> Told:
        """There and back; `draws` as the codebook takes them (Gumbel in training)."""
        z = self.latents(image)
        found = self.quantize(z, draws)
        return Told(self.decoded(found.vectors), z, found.codes, found.loss)

    def latents(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c y x"]:
        """What the encoder says, in the codebook's space, not yet quantised. h and w are multiples of `config.factor`."""
        return self.quant_conv(tiling.encoded(self.encoder, image, self.tiling))

    def codes(self, image: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n y x"]:
        return self.quantize.codes(self.latents(image))

    def pictures(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n 3 h w"]:
        """What codes look like; each must be below `config.quantizer.codes`."""
        return self.decoded(self.quantize.vectors(codes))

    def decoded(self, vectors: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 3 h w"]:
        return tiling.decoded(self.decoder, self.post_quant_conv(vectors.to(self.last_layer.dtype)), self.tiling)
