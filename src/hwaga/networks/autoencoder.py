"""The convolutional autoencoder in the public layout: Encoder and Decoder, and AutoencoderKL made of them.

    picture -> residual blocks at each resolution, halved in between -> middle with attention -> latents, and back

Modules and parameters are named as in public folders (`encoder.down_blocks.0.resnets.1.conv2.weight`,
`decoder.mid_block.attentions.0.to_q.weight`, ...), so that Stable Diffusion's and Flux's files fit as they are. VQGAN's
tokenizer is made of the same two halves, with attention inside chosen levels and one number a latent channel.

With `patch > 1` pixels enter as channels, a block of patch x patch at a time, and leave the same way: much less
arithmetic on a machine without an accelerator. The public layout has no such field.

AutoencoderKL owns the scale of its latents: `encode` gives what a diffusion sees, (z - shift) * scale, `decode` takes it.
Large pictures are worked off in parts when no gradients are taken: see `tiling.py`.

Source: Esser, Rombach and Ommer 2021 (VQGAN), table 7; Rombach et al. 2022, section 3.1 and appendix G.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu
from torch.utils.checkpoint import checkpoint

from ..layers.attention import PixelAttention
from ..layers.conv import Conv2d
from ..layers.initialise import initialise
from ..layers.resnet import Downsample, ResnetBlock, Upsample
from . import tiling
from .tiling import Tiling


class Gaussian(NamedTuple):
    """What an encoder says of z: a mean and the log of a variance (natural), both (n, ...); None: the mean is all."""

    mean: Tensor
    log_variance: Tensor | None = None

    def sample(self, eps: Tensor) -> Tensor:
        """z = mean + sigma eps: the reparametrisation of Kingma and Welling 2013, section 2.4."""
        return self.mean if self.log_variance is None else self.mean + (0.5 * self.log_variance).exp() * eps


def gaussian(moments: Tensor, double: bool = True) -> Gaussian:
    """The two halves of an encoder's channels; the log variance is held to [-30, 20], as published."""
    if not double:
        return Gaussian(moments)
    mean, log_variance = moments.chunk(2, dim=1)
    return Gaussian(mean, log_variance.clamp(-30.0, 20.0))


class CodecConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices of an Encoder and its Decoder; the defaults are Stable Diffusion's."""

    channels: tuple[int, ...] = Field(
        (128, 256, 512, 512), min_length=1, max_length=16, description="width at each resolution"
    )
    blocks: int = Field(2, ge=1, le=64, description="residual blocks a resolution; the decoder has one more")
    attention: tuple[bool, ...] | None = Field(None, description="attention at each resolution; null: at none")
    middle_attention: bool = True
    in_channels: int = Field(3, ge=1)
    latent_channels: int = Field(4, ge=1)
    double_z: bool = Field(True, description="the encoder gives a mean and a variance of each latent number")
    groups: int = Field(32, ge=1, description="groups of the group norms")
    eps: float = Field(1e-6, gt=0)
    patch: int = Field(1, ge=1, le=8, description="side of the pixel blocks that enter as channels")

    @model_validator(mode="after")
    def _fits(self) -> Any:
        if self.attention is not None and len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries, channels has {len(self.channels)}")
        for width in self.channels:
            if width <= 0 or width % self.groups:
                raise ValueError(f"channels={width} is not a positive multiple of groups={self.groups}")
        return self

    @property
    def factor(self) -> int:
        """How many pixels a latent's side stands for; what height and width must be multiples of."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def attends(self, level: int) -> bool:
        return self.attention is not None and self.attention[level]


class AutoencoderKLConfig(CodecConfig, frozen=True, extra="forbid"):
    """An AutoencoderKL; the defaults are Stable Diffusion 1's."""

    kind: Literal["map"] = "map"
    quant_conv: bool = Field(True, description="a 1 x 1 convolution after the encoder (not in SD 3 and Flux)")
    post_quant_conv: bool = Field(True, description="a 1 x 1 convolution before the decoder")

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(c, y, x) of a picture's latents."""
        return self.latent_channels, size[0] // self.factor, size[1] // self.factor

    def build(self) -> AutoencoderKL:
        return AutoencoderKL(self)


class Level(nn.Module):
    """One resolution. Submodules exist only where used, as public files have them."""

    def __init__(self, config: CodecConfig, widths: list[tuple[int, int]], attention: bool) -> None:
        super().__init__()
        out = widths[0][1]
        self.resnets = nn.ModuleList(_block(config, i, o) for i, o in widths)
        self.attentions = nn.ModuleList(_attention(config, out) for _ in widths) if attention else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for step in self.downsamplers or self.upsamplers or ():
            x = step(x)
        return x

    def inner(self, x: Tensor) -> Tensor:
        """Without the step to the next resolution."""
        for j, block in enumerate(self.resnets):
            x = block(x)
            if self.attentions is not None:
                x = self.attentions[j](x)
        return x


class Middle(nn.Module):
    def __init__(self, config: CodecConfig, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_block(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([_attention(config, width)]) if config.middle_attention else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Pictures (n, 3, h, w) to 2 c numbers (`double_z`) or c at each of (h / f) x (w / f) places."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        widths = config.channels
        self.conv_in = Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            pairs = [(before if j == 0 else width, width) for j in range(config.blocks)]
            level = Level(config, pairs, config.attends(i))
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, 0)])
            self.down_blocks.append(level)
            before = width
        self.mid_block = Middle(config, before)
        self.conv_norm_out = nn.GroupNorm(config.groups, before, eps=config.eps)
        self.conv_out = Conv2d(before, config.latent_channels * (2 if config.double_z else 1), 3, padding=1)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        x = pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level in (*self.down_blocks, self.mid_block):
            x = _run(level, x, self.checkpointing)
        return self.conv_out(silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (n, c, y, x) to pictures (n, 3, y f, x f)."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        widths = config.channels
        before = widths[-1]
        self.conv_in = Conv2d(config.latent_channels, before, 3, padding=1)
        self.mid_block = Middle(config, before)
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            pairs = [(before if j == 0 else width, width) for j in range(config.blocks + 1)]
            level = Level(config, pairs, config.attends(i))
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
            before = width
        self.conv_norm_out = nn.GroupNorm(config.groups, before, eps=config.eps)
        self.conv_out = Conv2d(before, config.in_channels * config.patch**2, 3, padding=1)

    def forward(self, z: Float[Tensor, "n c y x"]) -> Float[Tensor, "n o h w"]:
        x = self.conv_in(z.contiguous(memory_format=torch.channels_last))
        for level in (self.mid_block, *self.up_blocks):
            x = _run(level, x, self.checkpointing)
        x = self.conv_out(silu(self.conv_norm_out(x)))
        return pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x


class Coder(nn.Module):
    """What networks of an encoder and a decoder share."""

    encoder: Encoder
    decoder: Decoder

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


class AutoencoderKL(Coder):
    """See the top of this file. Pictures are in [-1, 1], latents about (n, c, h / f, w / f).

    Two buffers say what a diffusion sees of z: (z - shift) * scale, one number a channel each.
    """

    precise = ("shift", "scale")  # float32 whatever the weights are
    shift: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        self.tiling = Tiling()
        c = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        wide = c * (2 if config.double_z else 1)
        self.quant_conv = Conv2d(wide, wide, 1) if config.quant_conv else None
        self.post_quant_conv = Conv2d(c, c, 1) if config.post_quant_conv else None
        self.register_buffer("shift", torch.zeros(c))
        self.register_buffer("scale", torch.ones(c))

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: variance scaling, 0 for what ends a residual branch; latents unscaled."""
        initialise(self, generator, zero=ends(self))
        self.shift.zero_()
        self.scale.fill_(1.0)

    def posterior(self, image: Float[Tensor, "n 3 h w"], label: Tensor | None = None) -> Gaussian:
        """q(z | x) of pictures in [-1, 1], z unscaled. h and w are multiples of `config.factor`."""
        _no(label)
        moments = tiling.encoded(self.encoder, image, self.tiling)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return gaussian(moments, self.config.double_z)

    def decoded(self, z: Float[Tensor, "n c y x"], label: Tensor | None = None) -> Float[Tensor, "n 3 h w"]:
        """What the decoder makes of unscaled z: about [-1, 1]."""
        _no(label)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return tiling.decoded(self.decoder, z, self.tiling)

    def scaled(self, z: Tensor) -> Tensor:
        """z as a diffusion sees it: (z - shift) * scale, in float32."""
        return (z.float() - self.shift.view(-1, 1, 1)) * self.scale.view(-1, 1, 1)

    def unscaled(self, latents: Tensor) -> Tensor:
        """The way back, in the dtype of the weights."""
        z = latents.float() / self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        return z.to(self.last_layer.dtype)

    def encode(self, image: Float[Tensor, "n 3 h w"], eps: Tensor | None = None) -> Float[Tensor, "n c y x"]:
        """Latents as a diffusion sees them, float32: of the posterior's mean, or of a sample by `eps` (n, c, y, x)."""
        q = self.posterior(image.to(self.last_layer.dtype))
        return self.scaled(q.mean if eps is None else q.sample(eps))

    def decode(self, latents: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 3 h w"]:
        """Pictures in about [-1, 1] of such latents."""
        return self.decoded(self.unscaled(latents))


def ends(network: nn.Module) -> list[nn.Module]:
    """What ends the residual branches of a network: begun with 0, so that each begins as the identity."""
    found: list[nn.Module] = [part.conv2 for part in network.modules() if isinstance(part, ResnetBlock)]
    return found + [part.to_out[0] for part in network.modules() if isinstance(part, PixelAttention)]


def _no(label: Tensor | None) -> None:
    if label is not None:
        raise ValueError("label given to an AutoencoderKL, which is not conditioned on labels")


def _run(level: nn.Module, x: Tensor, again: bool) -> Tensor:
    if again and torch.is_grad_enabled():
        return checkpoint(level, x, use_reentrant=False)
    return level(x)


def _block(config: CodecConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, None, groups=config.groups, eps=config.eps)


def _attention(config: CodecConfig, channels: int) -> PixelAttention:
    return PixelAttention(channels, channels, config.groups, config.eps)
