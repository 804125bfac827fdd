"""The U-Net that is told words: Stable Diffusion's (Rombach et al. 2022, section 3.3; Podell et al. 2023, section 2).

It is DDPM's U-Net (unet.py) with a spatial transformer after the residual blocks of chosen resolutions, whose cross-attention
looks at the tokens of a text (layers/spatial.py):

    conv_in      3 x 3 convolution to the first width
    down_blocks  residual block, transformer, again; each output kept; then half the size
    mid_block    residual block, transformer, residual block
    up_blocks    on [its input, what the way down kept]: residual block, transformer; then the size of what was kept there
    conv_out     norm, SiLU, 3 x 3 convolution to the prediction

Every residual block is told one vector: the time's, plus (SD XL) that of a pooled text and of six numbers, the sizes that a
training picture had, each as a sinusoid (`added_width`), plus (students) that of a guidance scale. `TextUNetDown` is the half of
it that a ControlNet copies. Parameters have the names of UNet2DConditionModel folders, so that public files load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from ..layers.conv import Conv2d, memory_format
from ..layers.embeddings import TimeEmbedding, guidance_wave, sinusoid
from ..layers.initialise import initialise
from ..layers.resnet import Downsample, ResnetBlock, Upsample
from ..layers.spatial import SpatialTransformer

Residuals = tuple[Sequence[Tensor], Tensor]
"""What a ControlNet adds: to each of what the way down keeps, and to what comes out of the middle."""


class TextUNetConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices of a TextUNet; the defaults are those of Stable Diffusion 1."""

    channels: tuple[int, ...] = Field(
        (320, 640, 1280, 1280), min_length=1, max_length=16, description="width at each resolution"
    )
    attention: tuple[bool, ...] = Field((True, True, True, False), description="transformers at each resolution")
    depth: tuple[int, ...] = Field((1, 1, 1, 1), description="blocks of a transformer, at each resolution")
    heads: tuple[int, ...] = Field((8, 8, 8, 8), description="heads of attention, at each resolution")
    middle: bool = Field(
        True, description="false: nothing between the ways down and up (the smallest distilled models)"
    )
    blocks: int = Field(2, ge=1, le=64, description="residual blocks a resolution; one more on the way up")
    in_channels: int = Field(4, ge=1, description="9: told a mask and what is outside it; 5: told a depth")
    out_channels: int = Field(4, ge=1)
    text_width: int = Field(768, ge=1)
    linear_projection: bool = Field(False, description="ways into and out of transformers are linear layers (SD 2, XL)")
    added_width: int = Field(
        0, ge=0, description="of the pooled text and the sinusoids of sizes (SD XL: 2816); 0: told none"
    )
    size_width: int = Field(256, ge=2, multiple_of=2, description="of the sinusoid of each of those sizes")
    classes: int = Field(0, ge=0, description="rows of the class embedding; 0: none")
    groups: int = Field(32, ge=1)
    eps: float = Field(1e-5, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    downsample_padding: int = Field(1, ge=0, le=1)
    cosine_first: bool = True
    frequency_shift: float = 0.0
    time_scale: float = Field(1.0, description="factor of the time that the grid feeds")
    guidance_width: int = Field(0, ge=0, multiple_of=2, description="of the sinusoid of a guidance scale; 0: told none")
    span: bool = Field(False, description="told how far the step from here leads")

    @model_validator(mode="after")
    def _fits(self) -> TextUNetConfig:
        for name in ("attention", "depth", "heads"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, channels has {len(self.channels)}")
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width <= 0 or width % self.groups:
                raise ValueError(f"channels={width} is not a positive multiple of groups={self.groups}")
            if heads < 1 or width % heads:
                raise ValueError(f"heads={heads} do not divide channels={width}")
        if min(self.depth) < 1:
            raise ValueError(f"depth={list(self.depth)}: at least 1 at each resolution")
        return self

    @property
    def factor(self) -> int:
        """What height and width must be multiples of: any size does, as the way up comes to the sizes of the way down."""
        return 1

    @property
    def time_width(self) -> int:
        return 4 * self.channels[0]

    def build(self) -> TextUNet:
        return TextUNet(self)


class TextLevel(nn.Module):
    """One resolution on the way down or up. Submodules exist only where used, as the public files have them."""

    def __init__(self, config: TextUNetConfig, widths: Sequence[tuple[int, int]], i: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_block(config, a, b) for a, b in widths)
        self.attentions = nn.ModuleList(_transformer(config, i) for _ in widths) if attention else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, j: int, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        x = self.resnets[j](x, embedding)
        return x if self.attentions is None else self.attentions[j](x, text)


class TextMiddle(nn.Module):
    """Residual block, transformer, residual block, at the lowest resolution."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.resnets = nn.ModuleList(_block(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(config, len(config.channels) - 1)])

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding), text)
        return self.resnets[1](x, embedding)


class TextUNetDown(nn.Module):
    """The first half of a TextUNet: what enters, the vector that blocks are told, the way down and the middle."""

    streams = True  # see weights/streamed.py

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # recompute levels in the backward pass: less memory, a third more arithmetic
        widths = config.channels
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], config.time_width, config.guidance_width)
        self.span_embedding = TimeEmbedding(widths[0], config.time_width) if config.span else None
        self.add_embedding = TimeEmbedding(config.added_width, config.time_width) if config.added_width else None
        self.class_embedding = nn.Embedding(config.classes, config.time_width) if config.classes else None
        self.down_blocks: Any = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            pairs = [(before if j == 0 else width, width) for j in range(config.blocks)]
            level = TextLevel(config, pairs, i, config.attention[i])
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, config.downsample_padding)])
            self.down_blocks.append(level)
            before = width
        self.mid_block = TextMiddle(config) if config.middle else None

    def embed(
        self, time: Float[Tensor, " n"], pooled: Tensor | None = None, ids: Tensor | None = None,
        guidance: Tensor | None = None, span: Tensor | None = None, label: Tensor | None = None,
    ) -> Float[Tensor, "n t"]:  # fmt: skip
        """The vector that every residual block is told; ValueError where what is given is not what the config asks for."""
        config, dtype = self.config, self.conv_in.weight.dtype
        for name, given, wanted in (("pooled", pooled, self.add_embedding), ("ids", ids, self.add_embedding),
                                    ("span", span, self.span_embedding), ("label", label, self.class_embedding)):  # fmt: skip
            if (given is None) != (wanted is None):
                raise ValueError(f"{name} {'missing' if given is None else 'given'}: not what this config is told")
        told = None if guidance is None else guidance_wave(guidance, config.guidance_width).to(dtype)
        embedding = self.time_embedding(self.wave(time).to(dtype), told)
        if self.add_embedding is not None and pooled is not None and ids is not None:
            sizes = sinusoid(
                ids.flatten(), config.size_width, cosine_first=config.cosine_first, shift=config.frequency_shift
            )
            both = torch.cat([pooled.to(dtype), sizes.view(len(ids), -1).to(dtype)], dim=1)
            embedding = embedding + self.add_embedding(both)
        if self.span_embedding is not None and span is not None:
            embedding = embedding + self.span_embedding(self.wave(span).to(dtype))
        return embedding if self.class_embedding is None else embedding + self.class_embedding(label)

    def wave(self, time: Float[Tensor, " n"]) -> Float[Tensor, "n c"]:
        config = self.config
        scaled = time * config.time_scale
        return sinusoid(scaled, config.channels[0], cosine_first=config.cosine_first, shift=config.frequency_shift)

    def down(self, x: Float[Tensor, "n c h w"], embedding: Tensor, text: Tensor) -> list[Tensor]:
        """What the way down keeps, from what conv_in gave on; the last is what the middle takes."""
        kept = [x]
        for level in self.down_blocks:
            for j in range(self.config.blocks):
                kept.append(self.run(level, j, kept[-1], embedding, text))
            if level.downsamplers is not None:
                kept.append(level.downsamplers[0](kept[-1]))
        return kept

    def across(self, x: Float[Tensor, "n c h w"], embedding: Tensor, text: Tensor) -> Float[Tensor, "n c h w"]:
        """The middle."""
        return x if self.mid_block is None else self.run(self.mid_block, x, embedding, text)

    def enter(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.conv_in(x.contiguous(memory_format=memory_format(x)))

    def run(self, part: nn.Module, *told: Any) -> Tensor:
        """A part of the network, computed again in the backward pass where memory is to be saved."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *told, use_reentrant=False)
        return part(*told)


class TextUNet(TextUNetDown):
    """See the top of this file. `forward` gives the raw prediction (eps, v or x_0)."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config)
        widths = config.channels
        kept = [widths[0]]  # widths of what the way down keeps
        for i, width in enumerate(widths):
            kept += [width] * (config.blocks + (i < len(widths) - 1))
        self.up_blocks: Any = nn.ModuleList()
        before = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            pairs = [((before if j == 0 else width) + kept.pop(), width) for j in range(config.blocks + 1)]
            level = TextLevel(config, pairs, i, config.attention[i])
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
            before = width
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.eps)
        self.conv_out = Conv2d(widths[0], config.out_channels, 3, padding=1)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: variance scaling, and 0 for what ends a residual branch, a transformer or the network."""
        ends: list[nn.Module] = [part.conv2 for part in self.modules() if isinstance(part, ResnetBlock)]
        ends += [part.proj_out for part in self.modules() if isinstance(part, SpatialTransformer)]
        new = [self.time_embedding.cond_proj, self.span_embedding and self.span_embedding.linear_2]
        initialise(self, generator, zero=[*ends, self.conv_out, *(part for part in new if part is not None)])

    def forward(
        self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"], text: Float[Tensor, "n l d"],
        pooled: Float[Tensor, "n p"] | None = None, ids: Float[Tensor, "n k"] | None = None,
        guidance: Float[Tensor, " n"] | None = None, residuals: Residuals | None = None,
        span: Float[Tensor, " n"] | None = None, label: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n o h w"]:  # fmt: skip
        """Raw prediction at `time` (the number that the grid feeds) of x of any height and width.

        text: states of the text encoders. pooled and ids (height, width, top, left, target height and width in pixels) are
        given exactly where the config has `added_width`; so are `guidance`, a scale, `span` and `label` by their fields.
        residuals: what a ControlNet adds. ValueError where something is missing or not asked for.
        """
        text = text.to(x.dtype) if text.dtype != x.dtype else text
        embedding = self.embed(time, pooled, ids, guidance, span, label).to(x.dtype)
        kept = self.down(self.enter(x), embedding, text)
        x = self.across(kept[-1], embedding, text)
        if residuals is not None:
            kept = [a + b for a, b in zip(kept, residuals[0], strict=True)]
            x = x + residuals[1]
        for level in self.up_blocks:
            for j in range(self.config.blocks + 1):
                x = self.run(level, j, torch.cat([x, kept.pop()], dim=1), embedding, text)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, (kept[-1].shape[2], kept[-1].shape[3]))
        return self.conv_out(silu(self.conv_norm_out(x)))


def _block(config: TextUNetConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(
        in_channels, out_channels, config.time_width, groups=config.groups, eps=config.eps, dropout=config.dropout
    )


def _transformer(config: TextUNetConfig, i: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.channels[i], config.text_width, config.heads[i], depth=config.depth[i], groups=config.groups,
        linear=config.linear_projection,
    )  # fmt: skip
