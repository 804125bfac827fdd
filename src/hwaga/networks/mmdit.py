"""MMDiT, the joint transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, section 4): words and picture in one attention.

    pos_embed            p x p blocks of latents become tokens x; the middle of a table of sines and cosines is added
    context_embedder     the states of a text become tokens c of the same width
    time_text_embed      time, and the pooled text: one vector y
    transformer_blocks   x and c, with weights of their own, in one attention; both are told y:
                             x = x + gate attn([norm(x) (1 + scale) + shift, the same of c])     layers/joint.py
                             x = x + gate ff(norm(x) (1 + scale) + shift), and c alike
    norm_out, proj_out   norm, told y, and from each token its p x p block of the prediction; c ends in the last block

Choices of 3.5: queries and keys are normed (`qk_norm`, section 5.3.2); in the first blocks of its medium model the picture's tokens
have a second attention, to themselves alone (`dual`). The table of positions is made for the largest picture; a smaller one
sees its centre, so that places have the same distance whatever the size (section 5.3.2, "positional encodings").

Every gate, and the prediction, begin at zero, as in DiT (Peebles and Xie 2022, section 3.2). Parameters have the names of
SD3Transformer2DModel folders, so that public files load as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from ..layers.embeddings import TimeEmbedding, guidance_wave, sinusoid
from ..layers.initialise import initialise, normal, variance_scaling
from ..layers.joint import FeedForward, JointAttention, Told
from ..layers.patches import Patches, assembled
from ..layers.positions import sine_cosine_2d
from ..layers.transformer import modulated
from .sizes import named_size

EPS = 1e-6  # of every norm
FREQUENCIES = 256  # numbers of the sinusoid of a time
SIZES: dict[str, dict[str, Any]] = {
    "medium": {"depth": 24, "width": 1536, "heads": 24},  # Stable Diffusion 3: 2 B parameters
    "3.5-medium": {"depth": 24, "width": 1536, "heads": 24, "qk_norm": True, "dual": tuple(range(13)), "table": 384},
    "3.5-large": {"depth": 38, "width": 2432, "heads": 38, "qk_norm": True},
}
"""Published sizes, by the name that `size` takes."""


class MMDiTConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices of an MMDiT; the defaults are those of Stable Diffusion 3 medium. `size` (medium, 3.5-medium or 3.5-large)
    may stand for depth, width, heads and choices."""

    kind: Literal["mmdit"] = "mmdit"
    patch: int = Field(2, ge=1, le=64, description="side of the blocks that become tokens")
    width: int = Field(1536, ge=4, multiple_of=4)
    depth: int = Field(24, ge=1, le=1024, description="blocks")
    heads: int = Field(24, ge=1)
    in_channels: int = Field(16, ge=1)
    out_channels: int = Field(16, ge=1)
    text_width: int = Field(4096, ge=1, description="of the states of a text")
    pooled_width: int = Field(2048, ge=1, description="of the pooled text")
    table: int = Field(192, ge=1, le=4096, description="rows and columns of tokens that there are positions for")
    base: int = Field(
        64, ge=1, description="rows and columns over which positions are counted 0 ... base - 1 in the table"
    )
    qk_norm: bool = Field(False, description="RMS-norm of queries and keys")
    dual: tuple[int, ...] = Field((), description="blocks with a second attention of the picture's tokens alone")
    time_scale: float = Field(1000.0, description="factor of the time that the grid feeds")
    guidance_width: int = Field(0, ge=0, multiple_of=2, description="of the sinusoid of a guidance scale; 0: told none")
    span: bool = Field(False, description="told how far the step from here leads")

    added_width: ClassVar[int] = 0  # it is told no sizes, as Stable Diffusion XL is
    classes: ClassVar[int] = 0

    @model_validator(mode="before")
    @classmethod
    def _named_size(cls, value: Any) -> Any:
        return named_size(value, SIZES)

    @model_validator(mode="after")
    def _fits(self) -> MMDiTConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}")
        if any(not 0 <= i < self.depth for i in self.dual):
            raise ValueError(f"dual={list(self.dual)}: blocks are numbered from 0 to {self.depth - 1}")
        return self

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return self.patch

    @property
    def largest(self) -> int:
        """Height or width, in what it works on, that it has positions for."""
        return self.patch * self.table

    def build(self) -> MMDiT:
        return MMDiT(self)


class PlacedPatches(nn.Module):
    """Tokens of a picture's blocks, each with the position that it has in the middle of a large table."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = Patches(config.in_channels, config.width, config.patch)
        self.register_buffer("pos_embed", torch.empty(1, config.table**2, config.width))

    def reset_state(self, generator: torch.Generator) -> None:
        """The table: sines and cosines of 0 ... base - 1, stretched over it."""
        side, base = self.config.table, self.config.base
        self.pos_embed: Tensor
        self.pos_embed.copy_(sine_cosine_2d(self.config.width, side, side, (base, base), torch.device("cpu"))[None])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n l d"]:
        return self.proj(x) + self.positions(x.shape[2] // self.config.patch, x.shape[3] // self.config.patch).to(
            x.dtype
        )

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 l d"]:
        """The table's centre. ValueError where it is not as large."""
        side = self.config.table
        if max(rows, columns) > side:
            raise ValueError(f"{rows} x {columns} tokens, but there are positions for {side} x {side}")
        top, left = (side - rows) // 2, (side - columns) // 2
        table = rearrange(self.pos_embed, "one (y x) d -> one y x d", y=side)
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)


class TimeAndText(nn.Module):
    """The vector that blocks are told: a time, plus the pooled text, plus what students are told."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.timestep_embedder = TimeEmbedding(FREQUENCIES, config.width, config.guidance_width)
        self.text_embedder = TimeEmbedding(config.pooled_width, config.width)
        self.span = TimeEmbedding(FREQUENCIES, config.width) if config.span else None

    def forward(
        self, time: Float[Tensor, " n"], pooled: Float[Tensor, "n p"], guidance: Tensor | None, span: Tensor | None
    ) -> Float[Tensor, "n d"]:
        """time, guidance (a scale) and span (time here less time where the step leads), each (n,)."""
        scale = self.config.time_scale
        wave = lambda t: sinusoid(t.float() * scale, FREQUENCIES, cosine_first=True, shift=0.0).to(pooled.dtype)  # noqa: E731
        told = None if guidance is None else guidance_wave(guidance, self.config.guidance_width).to(pooled.dtype)
        y = self.timestep_embedder(wave(time), told) + self.text_embedder(pooled)
        if (span is None) != (self.span is None):
            raise ValueError(f"span={'given' if span is not None else None} with span={self.config.span} in the config")
        return y if self.span is None or span is None else y + self.span(wave(span))


class JointBlock(nn.Module):
    """One block. last: of the text it reads keys and values alone. dual: x also looks at itself alone."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, dual: bool = False, last: bool = False) -> None:
        super().__init__()
        plain = lambda: nn.LayerNorm(width, eps=EPS, elementwise_affine=False)  # noqa: E731
        self.norm1, self.norm1_context = Told(width, 9 if dual else 6), Told(width, 2 if last else 6)
        self.attn = JointAttention(width, heads, qk_norm=qk_norm, eps=EPS, text="heard" if last else "both")
        self.attn2 = JointAttention(width, heads, qk_norm=qk_norm, eps=EPS, text="none") if dual else None
        self.ff, self.ff_context = FeedForward(width), None if last else FeedForward(width)
        self.norm = plain()

    def forward(
        self, x: Float[Tensor, "n l d"], text: Float[Tensor, "n m d"], told: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n m d"]]:
        """Both kinds of tokens after the block; the text as it was, where no one reads it any more."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *second = self.norm1(told)
        of_text, normed, seen = self.norm1_context(told), self.norm(x), self.norm(text)
        # the last block's two are stored scale first, as public folders have them
        said = modulated(seen, *(of_text[:2] if self.ff_context is not None else reversed(of_text)))
        heard, text_heard = self.attn(modulated(normed, shift, scale), said)
        x = torch.addcmul(x, gate, heard)
        if self.attn2 is not None:
            x = torch.addcmul(x, second[2], self.attn2(modulated(normed, second[0], second[1]))[0])
        x = torch.addcmul(x, gate_ff, self.ff(modulated(self.norm(x), shift_ff, scale_ff)))
        if self.ff_context is None:
            return x, text
        text = torch.addcmul(text, of_text[2], text_heard)
        return x, torch.addcmul(text, of_text[5], self.ff_context(modulated(self.norm(text), *of_text[3:5])))


class MMDiT(nn.Module):
    """See the top of this file."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.pos_embed = PlacedPatches(config)
        self.time_text_embed = TimeAndText(config)
        self.context_embedder = nn.Linear(config.text_width, config.width)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(
                config.width, config.heads, qk_norm=config.qk_norm, dual=i in config.dual, last=i == config.depth - 1
            )
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=EPS, elementwise_affine=False)
        self.norm_out = Told(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.patch**2 * config.out_channels)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: uniform by fan in and out; the time's normal with 0.02; what blocks are told, and what ends the
        network, 0, so that every block begins as the identity."""
        zero: list[nn.Module] = [part.linear for part in self.modules() if isinstance(part, Told)]
        zero += [part for part in (self.proj_out, self.time_text_embed.timestep_embedder.cond_proj) if part is not None]
        zero += [] if self.time_text_embed.span is None else [self.time_text_embed.span.linear_2]
        initialise(self, generator, zero=zero)
        with torch.no_grad():
            variance_scaling(
                self.pos_embed.proj.weight.flatten(1), generator
            )  # a linear layer on patches, not a convolution
            embedder = self.time_text_embed.timestep_embedder
            for weight in (embedder.linear_1.weight, embedder.linear_2.weight):
                normal(0.02)(weight, generator)

    def forward(
        self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"], text: Float[Tensor, "n m s"],
        pooled: Float[Tensor, "n p"], guidance: Float[Tensor, " n"] | None = None, span: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n o h w"]:  # fmt: skip
        """The raw prediction at x. `time` is what the grid feeds. Height and width are multiples of the patch and not above
        `largest`: ValueError otherwise, and where a student's `guidance` or `span` is missing or not asked for."""
        h, rows = self.pos_embed(x), x.shape[2] // self.config.patch
        told = silu(self.time_text_embed(time, pooled.to(x.dtype), guidance, span))
        said = self.context_embedder(text.to(x.dtype))
        for block in self.transformer_blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h, said = checkpoint(block, h, said, told, use_reentrant=False)
            else:
                h, said = block(h, said, told)
        scale, shift = self.norm_out(told)
        return assembled(self.proj_out(modulated(self.norm(h), shift, scale)), self.config.patch, rows)
