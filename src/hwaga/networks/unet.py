"""The U-Net of DDPM: a picture goes down through resolutions, through a middle, and up again past its own past.

    conv_in      3 x 3 convolution to the first width
    down_blocks  residual blocks, each output kept; attention where the config says; then half the size
    mid_block    residual block, attention, residual block
    up_blocks    residual blocks, each on [its input, what the way down kept]; then twice the size
    conv_out     norm, SiLU, 3 x 3 convolution to the prediction

Every residual block is told the time (and the class, if there is one) by a vector. Parameters have the names of the
public layout (`UNet2DModel` folders such as google/ddpm-cifar10-32), so that its files load as they are.

With `patch=2` the picture enters as 2 x 2 blocks of pixels in four times the channels (pixel unshuffle) and leaves the same
way: a quarter of the places for every convolution, which is what makes pixels affordable without an accelerator. The
public layout has no such field.

Source: Ho, Jain and Abbeel 2020, section 4 and appendix B; scale-shift norm: Dhariwal and Nichol 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu
from torch.utils.checkpoint import checkpoint

from ..layers.attention import PixelAttention
from ..layers.conv import Conv2d, memory_format
from ..layers.embeddings import TimeEmbedding, guidance_wave, sinusoid
from ..layers.initialise import initialise
from ..layers.resnet import Downsample, ResnetBlock, Upsample


class UNetConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices of a UNet; the defaults are those of the CIFAR-10 network of the paper."""

    channels: tuple[int, ...] = Field(
        (128, 256, 256, 256), min_length=1, max_length=16, description="width at each resolution"
    )
    attention: tuple[bool, ...] = Field((False, True, False, False), description="attention at each resolution")
    blocks: int = Field(2, ge=1, le=64, description="residual blocks a resolution")
    in_channels: int = Field(3, ge=1)
    out_channels: int = Field(3, ge=1, description="twice in_channels where the variance is learned")
    middle_attention: bool = True
    middle_norm: bool = Field(True, description="the middle's attention begins with a group norm")
    head_width: int | None = Field(None, ge=1, description="channels a head; None: one head over all channels")
    classes: int = Field(0, ge=0, description="rows of the class embedding, the null label's among them; 0: none")
    groups: int = Field(32, ge=1, description="groups of the group norms")
    eps: float = Field(1e-6, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    scale_shift: bool = False
    patch: int = Field(1, ge=1, le=8, description="side of the pixel blocks that enter as channels")
    downsample_padding: int = Field(0, ge=0, le=1)
    cosine_first: bool = False
    frequency_shift: float = 1.0
    time_scale: float = Field(1.0, description="factor of the time that the grid feeds")
    guidance_width: int = Field(0, ge=0, multiple_of=2, description="of the sinusoid of a guidance scale; 0: told none")
    span: bool = Field(False, description="told how far the step from here leads")

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries, channels has {len(self.channels)}")
        for width in self.channels:
            if width <= 0 or width % self.groups:
                raise ValueError(f"channels={width} is not a positive multiple of groups={self.groups}")
            if self.head_width and width % self.head_width:
                raise ValueError(f"channels={width} is not a multiple of head_width={self.head_width}")
        return self

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def build(self) -> UNet:
        return UNet(self)


class _Level(nn.Module):
    """One resolution on the way down or up. Submodules exist only where used, as the public files have them."""

    def __init__(self, config: UNetConfig, widths: list[tuple[int, int]], attention: bool, time_width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_block(config, i, o, time_width) for i, o in widths)
        out = widths[0][1]
        self.attentions = nn.ModuleList(_attention(config, out) for _ in widths) if attention else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, j: int, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[j](x, time)
        return x if self.attentions is None else self.attentions[j](x)


class _Middle(nn.Module):
    def __init__(self, config: UNetConfig, width: int, time_width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_block(config, width, width, time_width) for _ in range(2))
        self.attentions = (
            nn.ModuleList([_attention(config, width, config.middle_norm)]) if config.middle_attention else None
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, time)


class UNet(nn.Module):
    """See the top of this file. `forward(x, time, label)` gives the raw prediction (eps, v or x_0)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # recompute levels in the backward pass: less memory, a third more arithmetic
        widths, time_width = config.channels, 4 * config.channels[0]
        self.conv_in = Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_width, config.guidance_width)
        self.span_embedding = TimeEmbedding(widths[0], time_width) if config.span else None
        self.class_embedding = nn.Embedding(config.classes, time_width) if config.classes else None

        self.down_blocks: Any = nn.ModuleList()
        kept = [widths[0]]  # widths of what the way down keeps
        for i, width in enumerate(widths):
            before = kept[-1]
            pairs = [(before if j == 0 else width, width) for j in range(config.blocks)]
            level = _Level(config, pairs, config.attention[i], time_width)
            kept += [width] * config.blocks
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, config.downsample_padding)])
                kept.append(width)
            self.down_blocks.append(level)

        self.mid_block = _Middle(config, widths[-1], time_width)

        self.up_blocks: Any = nn.ModuleList()
        before = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            pairs = [((before if j == 0 else width) + kept.pop(), width) for j in range(config.blocks + 1)]
            level = _Level(config, pairs, config.attention[i], time_width)
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
            before = width

        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.eps)
        self.conv_out = Conv2d(widths[0], config.out_channels * config.patch**2, 3, padding=1)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights as in the paper's code: variance scaling, and 0 for what ends a residual branch or the network."""
        ends: list[nn.Module] = [part.conv2 for part in self.modules() if isinstance(part, ResnetBlock)]
        ends += [part.to_out[0] for part in self.modules() if isinstance(part, PixelAttention)]
        new = [self.time_embedding.cond_proj, self.span_embedding and self.span_embedding.linear_2]
        initialise(self, generator, zero=[*ends, self.conv_out, *(part for part in new if part is not None)])

    def forward(
        self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"], label: Int[Tensor, " n"] | None = None,
        guidance: Float[Tensor, " n"] | None = None, span: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n o h w"]:  # fmt: skip
        """Raw prediction at `time` (the number that the grid feeds). h and w are multiples of `config.factor`.

        `label` is 0 ... classes - 1, given exactly when the config has classes; so are `guidance`, a scale, and `span`, time
        here less time where the step leads. ValueError otherwise.
        """
        if (label is None) != (self.class_embedding is None):
            raise ValueError(f"label={'given' if label is not None else None} with classes={self.config.classes}")
        embedding = self._embed(time, label, guidance, span).to(x.dtype)
        if self.config.patch > 1:
            x = pixel_unshuffle(x, self.config.patch)
        x = self.conv_in(x.contiguous(memory_format=memory_format(x)))
        kept = [x]
        for level in self.down_blocks:
            for j in range(self.config.blocks):
                x = self._run(level, j, x, embedding)
                kept.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                kept.append(x)
        x = self.mid_block(x, embedding)
        for level in self.up_blocks:
            for j in range(self.config.blocks + 1):
                x = self._run(level, j, torch.cat([x, kept.pop()], dim=1), embedding)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x)
        x = self.conv_out(silu(self.conv_norm_out(x)))
        return pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x

    def _embed(self, time: Tensor, label: Tensor | None, guidance: Tensor | None, span: Tensor | None) -> Tensor:
        config, dtype = self.config, self.time_embedding.linear_1.weight.dtype
        told = None if guidance is None else guidance_wave(guidance, config.guidance_width).to(dtype)
        embedding = self.time_embedding(self._wave(time).to(dtype), told)
        if (span is None) != (self.span_embedding is None):
            raise ValueError(f"span={'given' if span is not None else None} with span={config.span} in the config")
        if self.span_embedding is not None and span is not None:
            embedding = embedding + self.span_embedding(self._wave(span).to(dtype))
        return embedding if self.class_embedding is None else embedding + self.class_embedding(label)

    def _wave(self, time: Tensor) -> Tensor:
        config = self.config
        scaled = time * config.time_scale
        return sinusoid(scaled, config.channels[0], cosine_first=config.cosine_first, shift=config.frequency_shift)

    def _run(self, level: Any, j: int, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(level, j, x, embedding, use_reentrant=False)
        return level(j, x, embedding)


def _block(config: UNetConfig, in_channels: int, out_channels: int, time_width: int) -> ResnetBlock:
    return ResnetBlock(
        in_channels, out_channels, time_width, groups=config.groups, eps=config.eps, dropout=config.dropout,
        scale_shift=config.scale_shift,
    )  # fmt: skip


def _attention(config: UNetConfig, channels: int, norm: bool = True) -> PixelAttention:
    return PixelAttention(channels, config.head_width or channels, config.groups if norm else None, config.eps)
