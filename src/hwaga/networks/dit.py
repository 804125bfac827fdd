"""DiT, the diffusion transformer: a picture becomes patches, a transformer works on all of them at once, patches become a picture.

    patches    p x p blocks of pixels or latents, each a token; fixed 2-D sines and cosines say where it stood
    condition  a time and a label, each a vector of the tokens' width
    blocks     attention and feed-forward layers, told the condition in one of four ways
    out        norm, and a linear layer from each token to its p x p block of the prediction

How a block is told the condition c (Peebles and Xie 2022, section 3.2 and figure 3):

    in-context       time and label are two more tokens, taken away after the last block
    cross-attention  a third layer in each block attends to the two of them
    adaln            norms are shifted and scaled by a linear function of time + label: norm(x) (1 + scale) + shift
    adaln-zero       so too, and each branch is multiplied by a gate that begins at 0: at first every block is the identity

Label and time reach `adaln` blocks through SiLU(time + label), computed once a call. Pictures of any height and width that
the patch divides are taken. Options of later work by the same config: RMS-norm of queries and keys, rotated positions,
SwiGLU.

Source: Peebles and Xie 2022 (arXiv:2212.09748); sizes S, B, L, XL: table 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from ..layers.embeddings import TimeEmbedding, guidance_wave, sinusoid
from ..layers.initialise import initialise, normal, variance_scaling
from ..layers.patches import Patches, assembled
from ..layers.positions import positions_2d, sine_cosine_2d
from ..layers.transformer import MLP, CrossAttention, SwiGLU, TokenAttention, modulated
from .sizes import named_size

Conditioning = Literal["adaln-zero", "adaln", "cross-attention", "in-context"]

SIZES = {  # table 1 of the paper
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}


class DiTConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices of a DiT; the defaults are those of DiT-XL/2 on latents. `size` (S, B, L or XL) may stand for depth,
    width and heads."""

    patch: int = Field(2, ge=1, le=64, description="side of the blocks that become tokens")
    width: int = Field(1152, ge=4, multiple_of=4)
    depth: int = Field(28, ge=1, le=1024, description="blocks")
    heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the feed-forward layers over `width`")
    in_channels: int = Field(4, ge=1)
    out_channels: int = Field(8, ge=1, description="twice in_channels where the variance is learned")
    classes: int = Field(0, ge=0, description="rows of the label embedding, the null label's among them; 0: none")
    conditioning: Conditioning = "adaln-zero"
    positions: Literal["sine-cosine", "rope", "none"] = "sine-cosine"
    grid: tuple[int, int] | None = Field(
        None, description="rows and columns of tokens trained on: others are stretched over them; null: just counted"
    )
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="swiglu has 2/3 of the hidden width: as many parameters")
    qk_norm: bool = Field(False, description="RMS-norm of queries and keys")
    eps: float = Field(1e-6, gt=0)
    mlp_eps: float | None = Field(None, gt=0, description="of the norm before feed-forward layers; null: eps")
    frequency_width: int = Field(256, ge=2, multiple_of=2, description="width of the sinusoid of a time")
    frequency_shift: float = Field(0.0, description="0 as the paper's code, 1 as public folders")
    time_scale: float = Field(1.0, description="factor of the time that the grid feeds")
    time_offset: float = Field(0.0, description="added to it after that")
    guidance_width: int = Field(0, ge=0, multiple_of=2, description="of the sinusoid of a guidance scale; 0: told none")
    span: bool = Field(False, description="told how far the step from here leads")

    @model_validator(mode="before")
    @classmethod
    def _named_size(cls, value: Any) -> Any:
        return named_size(value, SIZES)

    @model_validator(mode="after")
    def _fits(self) -> DiTConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ValueError(f"positions=rope needs heads of a multiple of 4, not of {self.width // self.heads}")
        if self.frequency_shift >= self.frequency_width / 2:
            raise ValueError(
                f"frequency_shift={self.frequency_shift:g} leaves no frequencies of {self.frequency_width}"
            )
        return self

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return self.patch

    @property
    def hidden(self) -> int:
        """Width between the two feed-forward layers."""
        whole = int(self.width * self.mlp_ratio)
        return whole if self.mlp == "gelu" else max(8, round(whole * 2 / 3 / 8) * 8)

    def build(self) -> DiT:
        return DiT(self)


def fixed_positions(config: DiTConfig) -> Float[Tensor, "1 l d"]:
    """The position vectors of the trained grid, as original files store them. ValueError where there is no such grid."""
    if config.grid is None:
        raise ValueError("grid=null has no one table of positions")
    return sine_cosine_2d(config.width, *config.grid, config.grid, torch.device("cpu"))[None].clone()


class Block(nn.Module):
    """One block. `told`: SiLU(c) (n, d) for adaptive norms, the condition's tokens (n, m, d) for cross-attention, else None."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d, plain = config.width, not config.conditioning.startswith("adaln")
        self.norm_1 = nn.LayerNorm(d, eps=config.eps, elementwise_affine=plain)
        self.attention = TokenAttention(d, config.heads, qk_norm=config.qk_norm, eps=config.eps)
        crossed = config.conditioning == "cross-attention"
        self.norm_cross = nn.LayerNorm(d, eps=config.eps) if crossed else None
        self.cross = CrossAttention(d, config.heads) if crossed else None
        self.norm_2 = nn.LayerNorm(d, eps=config.mlp_eps or config.eps, elementwise_affine=plain)
        self.mlp = MLP(d, config.hidden) if config.mlp == "gelu" else SwiGLU(d, config.hidden)
        numbers = {"adaln-zero": 6, "adaln": 4}.get(config.conditioning, 0)
        self.modulation = nn.Linear(d, numbers * d) if numbers else None

    def forward(self, x: Float[Tensor, "n l d"], told: Tensor | None, rotation: Tensor | None) -> Tensor:
        if self.modulation is None:
            return self.untold(x, told, rotation)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.numbers(self.modulation(told)[:, None])
        x = torch.addcmul(x, gate_1, self.attention(modulated(self.norm_1(x), shift_1, scale_1), rotation))
        return torch.addcmul(x, gate_2, self.mlp(modulated(self.norm_2(x), shift_2, scale_2)))

    def numbers(self, said: Float[Tensor, "n 1 k"]) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention and of the feed-forward layers, (n, 1, d) each; plain adaLN's gates are open."""
        parts = said.chunk(said.shape[-1] // self.attention.out.out_features, dim=-1)
        return parts if len(parts) == 6 else (*parts[:2], said.new_ones(()), *parts[2:], said.new_ones(()))

    def untold(self, x: Tensor, told: Tensor | None, rotation: Tensor | None) -> Tensor:
        """The block whose norms are not told the condition."""
        x = x + self.attention(self.norm_1(x), rotation)
        if self.cross is not None and self.norm_cross is not None:
            x = x + self.cross(self.norm_cross(x), told)
        return x + self.mlp(self.norm_2(x))


class Out(nn.Module):
    """The last norm, told the condition where the blocks are, and the way from a token to its block of the prediction."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        adaptive = config.conditioning.startswith("adaln")
        self.norm = nn.LayerNorm(config.width, eps=config.eps, elementwise_affine=not adaptive)
        self.modulation = nn.Linear(config.width, 2 * config.width) if adaptive else None
        self.linear = nn.Linear(config.width, config.patch**2 * config.out_channels)

    def forward(self, x: Float[Tensor, "n l d"], told: Tensor | None) -> Float[Tensor, "n l o"]:
        x = self.norm(x)
        if self.modulation is not None:
            x = modulated(x, *self.modulation(told)[:, None].chunk(2, dim=-1))
        return self.linear(x)


class DiT(nn.Module):
    """See the top of this file."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.patches = Patches(config.in_channels, config.width, config.patch)
        self.time = TimeEmbedding(config.frequency_width, config.width, config.guidance_width)
        self.span = TimeEmbedding(config.frequency_width, config.width) if config.span else None
        self.labels = nn.Embedding(config.classes, config.width) if config.classes else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.out = Out(config)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: uniform by fan in and out; time and label embeddings and plain adaLN normal with 0.02; what ends
        the network and adaLN-Zero's modulations 0 (section 3.2: every block begins as the identity)."""
        begin_at_zero: list[nn.Module] = [self.out.linear]
        if self.out.modulation is not None:
            begin_at_zero.append(self.out.modulation)
        blocks: list[Any] = list(self.blocks)
        if self.config.conditioning == "adaln-zero":
            begin_at_zero += [block.modulation for block in blocks]
        new = [self.time.cond_proj, self.span and self.span.linear_2]
        initialise(self, generator, zero=[*begin_at_zero, *(part for part in new if part is not None)])
        with torch.no_grad():
            variance_scaling(self.patches.weight.flatten(1), generator)  # a linear layer on patches, not a convolution
            small = [self.time.linear_1.weight, self.time.linear_2.weight]
            if self.config.conditioning == "adaln":
                small += [block.modulation.weight for block in blocks]
            if self.labels is not None:
                small.append(self.labels.weight)
            for weight in small:
                normal(0.02)(weight, generator)

    def forward(
        self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"], label: Int[Tensor, " n"] | None = None,
        guidance: Float[Tensor, " n"] | None = None, span: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n o h w"]:  # fmt: skip
        """The raw prediction at x. `time` is what the grid feeds; label 0 ... classes - 1. Height and width are multiples of
        the patch: ValueError otherwise, and where labels are missing or there are none to give; so too with `guidance`, a
        scale, and `span`, time here less time where the step leads."""
        how, place = self.config, (x.shape[2] // self.config.patch, x.shape[3] // self.config.patch)
        told, tokens = self.condition(time, label, x.dtype, guidance, span)
        extra = 0 if tokens is None else tokens.shape[1]
        h = self.patches(x)
        added, rotation = positions_2d(how.positions, how.width, how.heads, place, how.grid, extra, h)
        h = h + added if tokens is None else torch.cat([h + added, tokens], dim=1)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, told, rotation, use_reentrant=False)
            else:
                h = block(h, told, rotation)
        return assembled(self.out(h[:, : place[0] * place[1]], told), how.patch, place[0])

    def condition(
        self, time: Float[Tensor, " n"], label: Tensor | None, dtype: torch.dtype, guidance: Tensor | None = None,
        span: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """What blocks are told, and the tokens that stand beside the picture's: time and label, as the config says."""
        if (label is None) != (self.labels is None):
            raise ValueError("label missing" if label is None else "label given to a network without label embedding")
        fed = time.float() * self.config.time_scale + self.config.time_offset
        wave = partial(
            sinusoid, width=self.config.frequency_width, cosine_first=True, shift=self.config.frequency_shift
        )
        told = None if guidance is None else guidance_wave(guidance, self.config.guidance_width).to(dtype)
        c = self.time(wave(fed).to(dtype), told)
        if (span is None) != (self.span is None):
            raise ValueError(f"span={'given' if span is not None else None} with span={self.config.span} in the config")
        if self.span is not None and span is not None:
            c = c + self.span(wave(span.float() * self.config.time_scale).to(dtype))
        said = None if self.labels is None or label is None else self.labels(label)
        if self.config.conditioning.startswith("adaln"):
            return silu(c if said is None else c + said), None
        tokens = torch.stack([c] if said is None else [c, said], dim=1)
        return (tokens, None) if self.config.conditioning == "cross-attention" else (None, tokens)
