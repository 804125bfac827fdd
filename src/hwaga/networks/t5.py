"""T5's encoder (Raffel et al. 2020, in its 1.1 form): the longer words of Stable Diffusion 3 and Flux.

    h_0 = token                                                 shared
    h = h + W_o softmax(q k^T + b) v, of norm h                 encoder.block.i.layer.0     no 1 / sqrt(d): section 2.1, footnote
    h = h + W_o (gelu(W_0 norm h) * W_1 norm h)                 encoder.block.i.layer.1     Shazeer 2020, eq. 6
    states: norm h                                              encoder.final_layer_norm

b depends on how far apart two tokens are, in buckets that widen with the distance (section 2.1); the first block holds it for all.
Norms divide by the root of the mean square alone (Zhang and Sennrich 2019). Tokens look at all tokens, the filling among them: the
painters that read this encoder were trained so. Parameters have the names of transformers' folders (T5EncoderModel).

In half precision the residual stream and the last product of a feed-forward layer stay float32, as in the published code: they
leave float16's range.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from ..layers.initialise import initialise, normal
from ..layers.transformer import RMSNorm
from .clip_text import Read


class T5Config(BaseModel, frozen=True, extra="forbid"):
    """Sizes; the defaults are those of t5-v1_1-xxl, Stable Diffusion 3's and Flux's."""

    kind: Literal["t5"] = "t5"
    width: int = Field(4096, ge=1)
    layers: int = Field(24, ge=1, le=256)
    heads: int = Field(64, ge=1)
    head_width: int = Field(64, ge=1)
    hidden: int = Field(10240, ge=1)
    vocabulary: int = Field(32128, ge=1)
    buckets: int = Field(
        32, ge=2, multiple_of=2, description="of distances between tokens, half of them for each direction"
    )
    distance: int = Field(128, ge=2, description="from which on all distances are one bucket")
    eps: float = Field(1e-6, gt=0)
    end: int = Field(1, ge=0, description="id of the end token")

    positions: ClassVar[int | None] = None  # they are relative: a text may be of any length
    projection: ClassVar[int] = 0
    skippable: ClassVar[bool] = False  # `clip_skip` is of CLIP's layers

    def build(self) -> T5:
        return T5(self)


@lru_cache(maxsize=8)
def buckets(length: int, count: int, distance: int) -> Int[Tensor, "l l"]:
    """The bucket of each pair (looking, looked at): half of `count` for those behind, half for those ahead; in each half the
    first half counts places one by one, the rest widens as a logarithm up to `distance`. Source: Raffel et al. 2020, 2.1."""
    place = torch.arange(length)
    apart = place[None] - place[:, None]
    half, near = count // 2, count // 4
    ahead, apart = (apart > 0).long() * half, apart.abs()
    far = near + ((apart.clamp(min=1).float() / near).log() / math.log(distance / near) * (half - near)).long()
    return ahead + torch.where(apart < near, apart, far.clamp(max=half - 1))


class _Attention(nn.Module):
    def __init__(self, config: T5Config, biased: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.q, self.k, self.v = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.width, bias=False)
        self.relative_attention_bias = nn.Embedding(config.buckets, config.heads) if biased else None

    def forward(self, x: Tensor, bias: Float[Tensor, "1 heads l l"]) -> Tensor:
        q, k, v = (
            rearrange(project(x), "n l (heads d) -> n heads l d", heads=self.heads)
            for project in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(rearrange(mixed, "n heads l d -> n l (heads d)"))


class _Gated(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.width, config.hidden, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        return linear(h.float(), self.wo.weight.float()) if h.dtype == torch.float16 else self.wo(h)


class _Looking(nn.Module):
    def __init__(self, config: T5Config, biased: bool) -> None:
        super().__init__()
        self.SelfAttention, self.layer_norm = _Attention(config, biased), RMSNorm(config.width, eps=config.eps)


class _Thinking(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense, self.layer_norm = _Gated(config), RMSNorm(config.width, eps=config.eps)


class _Block(nn.Module):
    """Attention and a gated layer, each after a norm and beside the input."""

    def __init__(self, config: T5Config, biased: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Looking(config, biased), _Thinking(config)])

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        looking: Any = self.layer[0]
        thinking: Any = self.layer[1]
        kind = looking.layer_norm.weight.dtype  # of the weights; the stream h may be wider
        h = h + looking.SelfAttention(looking.layer_norm(h).to(kind), bias)
        return h + thinking.DenseReluDense(thinking.layer_norm(h).to(kind))


class _Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(config, i == 0) for i in range(config.layers))
        self.final_layer_norm = RMSNorm(config.width, eps=config.eps)


class T5(nn.Module):
    """See the top of this file."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder: Any = _Encoder(config)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: normal with 0.02."""
        initialise(self, generator, weight=normal(0.02))

    def forward(
        self, ids: Int[Tensor, "n l"], *, skip: int = 0, final_norm: bool = True, words: Tensor | None = None
    ) -> Read:
        """States after all blocks but the last `skip`, and the last block's at the end token.

        ids: tokens, end, filling. words: vectors (k, width) that ids from `vocabulary` on stand for (learned words).
        """
        count = self.config.vocabulary
        h = self.shared(ids.clamp(max=count - 1))
        if words is not None:
            h = torch.where((ids >= count)[..., None], words.to(h)[(ids - count).clamp(min=0)], h)
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        places = buckets(ids.shape[1], self.config.buckets, self.config.distance).to(ids.device)
        bias = rearrange(table(places), "l m heads -> 1 heads l m").contiguous()
        states = h
        for i, block in enumerate(self.encoder.block):
            h = block(h, bias)
            if i == self.config.layers - 1 - skip:
                states = h
        norm, kind = self.encoder.final_layer_norm, self.shared.weight.dtype
        end = norm(h[torch.arange(len(ids), device=ids.device), (ids == self.config.end).int().argmax(1)]).to(kind)
        return Read((norm(states) if final_norm else states).to(kind), end)
