"""A transformer that reads tokens from left to right and says what may come next (GPT-2, Radford et al. 2019).

The published layout of VQGAN's second stage is kept, name by name. A row may begin with a text, whose states (of a text encoder)
stand where tokens would. `Cache` holds the keys and values of what was read, so
that a further token costs one pass of that token alone.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..layers.initialise import initialise, normal

_EPSILON = 1e-5


class GPTConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes; the defaults are those of the published faceshq transformer (24 layers, 307 M parameters)."""

    vocabulary: int = Field(1024, ge=2, description="tokens, conditions and picture alike")
    length: int = Field(512, ge=1, description="places that a token can stand at")
    width: int = Field(1024, ge=1)
    heads: int = Field(16, ge=1)
    depth: int = Field(24, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    unmasked: int = Field(0, ge=0, description="so many first tokens see each other in both directions")
    text_width: int = Field(0, ge=0, description="numbers of a state of the text that rows begin with; 0: of none")

    @model_validator(mode="after")
    def _agrees(self) -> GPTConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self

    def build(self) -> GPT:
        return GPT(self)


class Cache:
    """Keys and values of the tokens read so far, for n rows: room for all places is taken once."""

    def __init__(self, config: GPTConfig, rows: int, length: int, like: Tensor) -> None:
        shape = (rows, config.heads, min(length, config.length), config.width // config.heads)
        self.keys = [like.new_empty(shape) for _ in range(config.depth)]
        self.values = [like.new_empty(shape) for _ in range(config.depth)]
        self.filled = 0

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the new tokens' keys and values behind the others; all of them so far."""
        end = self.filled + key.shape[2]
        self.keys[block][:, :, self.filled : end] = key
        self.values[block][:, :, self.filled : end] = value
        return self.keys[block][:, :, :end], self.values[block][:, :, :end]


class Attention(nn.Module):
    """Self-attention over tokens; each sees those before it and itself (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.key = nn.Linear(config.width, config.width)
        self.query = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "n l d"], block: int, cache: Cache | None) -> Float[Tensor, "n l d"]:
        q, k, v = (
            rearrange(project(x), "n l (heads d) -> n heads l d", heads=self.config.heads)
            for project in (self.query, self.key, self.value)
        )
        before = 0
        if cache is not None:
            before = cache.filled
            k, v = cache.extend(block, k, v)
        alone = q.shape[2] == 1  # one token sees all that was read
        mask = None if alone or not (before or self.config.unmasked) else self._visible(q.shape[2], before, x.device)
        p = self.config.dropout if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None and not alone)
        return self.proj(rearrange(y, "n heads l d -> n l (heads d)"))

    def _visible(self, count: int, before: int, device: torch.device) -> Tensor:
        """(count, before + count) true where a token may look."""
        rows = torch.arange(before, before + count, device=device)[:, None]
        columns = torch.arange(before + count, device=device)[None]
        return (columns <= rows) | ((columns < self.config.unmasked) & (rows < self.config.unmasked))


class Block(nn.Module):
    """norm, attention, residual; norm, two layers with an exact GELU between, residual."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.ln2 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.attn = Attention(config)
        self.mlp = nn.ModuleDict(
            {"0": nn.Linear(config.width, 4 * config.width), "2": nn.Linear(4 * config.width, config.width)}
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "n l d"], block: int, cache: Cache | None = None) -> Float[Tensor, "n l d"]:
        x = x + self.drop(self.attn(self.ln1(x), block, cache))
        return x + self.drop(self.mlp["2"](gelu(self.mlp["0"](self.ln2(x)))))


class GPT(nn.Module):
    """Logits of the next token after each token of a row."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.tok_emb = nn.Embedding(config.vocabulary, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.length, config.width))
        self.text_proj = nn.Linear(config.text_width, config.width) if config.text_width else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.ln_f = nn.LayerNorm(config.width, eps=_EPSILON)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal, standard deviation 0.02; places begin at 0 (as published), norms at the identity."""
        initialise(self, generator, weight=normal(0.02))
        with torch.no_grad():
            self.tok_emb.weight.mul_(0.02)  # a standard normal until here

    def reset_state(self, generator: torch.Generator) -> None:
        self.pos_emb.zero_()

    def cache(self, rows: int, length: int | None = None) -> Cache:
        """An empty cache for n rows of up to `length` tokens."""
        return Cache(self.config, rows, length or self.config.length, self.head.weight)

    def before(self, prefix: Tensor) -> Float[Tensor, "n p d"]:
        """What rows begin with, as the network reads it: tokens (n, p) int64, or states of a text (n, p, text_width)."""
        if self.text_proj is None:
            return self.tok_emb(prefix)
        return self.text_proj(prefix)

    def forward(
        self, tokens: Int[Tensor, "n l"], cache: Cache | None = None, before: Tensor | None = None
    ) -> Float[Tensor, "n p+l k"]:
        """Logits (n, p + l, vocabulary): at each place those of the token after it. before: (n, p, width), what `before` gives.
        With a cache `tokens` are the new ones alone; ValueError if a row becomes longer than config.length."""
        x = self.tok_emb(tokens)
        if before is not None:
            x = torch.cat([before, x], dim=1)
        start = 0 if cache is None else cache.filled
        end = start + x.shape[1]
        if end > self.config.length:
            raise ValueError(f"{end} tokens: this network has {self.config.length} places")
        x = self.drop(x + self.pos_emb[:, start:end])
        for number, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, number, use_reentrant=False)
            else:
                x = block(x, number, cache)
        if cache is not None:
            cache.filled = end
        return self.head(self.ln_f(x))
