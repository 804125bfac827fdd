"""CLIP's text transformer (Radford et al. 2021, section 2.4): the words of Stable Diffusion, ControlNet, SD 3 and Flux.

    h_0 = token + position                                     embeddings
    h = h + attention(norm h), each token looks back only      encoder.layers.i: self_attn
    h = h + fc2(act(fc1(norm h)))                              encoder.layers.i: mlp
    states: some layer's h, with the last norm or without      `forward`
    pooled: normed h at the end token [projected]              `forward`

Parameters have the names of transformers' folders (CLIPTextModel, CLIPTextModelWithProjection), so that public files load as
they are; here nothing of that library is needed, which spares a program that paints its import.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from ..layers.initialise import initialise, normal

LARGEST_ID = 2
"""An `end` of old configs: the end token is then the one with the largest id."""


class ClipTextConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices; the defaults are CLIP ViT-L/14's, Stable Diffusion 1's text encoder."""

    kind: Literal["clip"] = "clip"
    width: int = Field(768, ge=1)
    layers: int = Field(12, ge=1, le=256)
    heads: int = Field(12, ge=1)
    hidden: int = Field(3072, ge=1)
    vocabulary: int = Field(49408, ge=1)
    positions: int = Field(77, ge=2, description="tokens that a text can have")
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    eps: float = Field(1e-5, gt=0)
    projection: int = Field(0, ge=0, description="width that the pooled text is brought to; 0: none")
    end: int = Field(LARGEST_ID, ge=0, description="id of the end token; 2: the largest that there is")

    skippable: ClassVar[bool] = True  # `clip_skip` takes the states of an earlier layer

    @model_validator(mode="after")
    def _fits(self) -> ClipTextConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}")
        return self

    def build(self) -> ClipText:
        return ClipText(self)


class Read(NamedTuple):
    """What the transformer makes of tokens."""

    states: Tensor  # (n, l, d)
    end: Tensor  # (n, d), of the last layer at the end token, normed


class Sizes(Protocol):
    """What a layer asks of a config: that of this file, or of the half that sees pictures (networks/clip.py)."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def eps(self) -> float: ...


class _Attention(nn.Module):
    def __init__(self, config: Sizes, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "n l (heads d) -> n heads l d", heads=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(rearrange(mixed, "n heads l d -> n l (heads d)"))


class _MLP(nn.Module):
    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1, self.fc2 = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else gelu(h))


class Layer(nn.Module):
    """Attention (each token looks back only, if `causal`) and a perceptron, each after a norm and beside the input."""

    def __init__(self, config: Sizes, causal: bool = True) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(config.width, eps=config.eps) for _ in range(2))
        self.self_attn, self.mlp = _Attention(config, causal), _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)


class _Encoder(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class _Body(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = _Embeddings(config), _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)


class ClipText(nn.Module):
    """See the top of this file."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model: Any = _Body(config)
        self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: normal with 0.02, as in GPT-2."""
        initialise(self, generator, weight=normal(0.02))
        with torch.no_grad():
            for table in (self.text_model.embeddings.token_embedding, self.text_model.embeddings.position_embedding):
                table.weight.normal_(std=0.02, generator=generator)

    def forward(
        self, ids: Int[Tensor, "n l"], *, skip: int = 0, final_norm: bool = True, words: Tensor | None = None
    ) -> Read:
        """States after all layers but the last `skip`, and the last layer's at the end token.

        ids: begin, tokens, end, filling. words: vectors (k, width) that ids from `vocabulary` on stand for (learned words).
        """
        body, count = self.text_model, self.config.vocabulary
        h = body.embeddings.token_embedding(ids.clamp(max=count - 1))
        if words is not None:
            h = torch.where((ids >= count)[..., None], words.to(h)[(ids - count).clamp(min=0)], h)
        h = h + body.embeddings.position_embedding.weight[: ids.shape[1]]
        states = h
        for i, layer in enumerate(body.encoder.layers):
            h = layer(h)
            if i == self.config.layers - 1 - skip:
                states = h
        end = body.final_layer_norm(h[torch.arange(len(ids), device=ids.device), self.end_places(ids)])
        return Read(body.final_layer_norm(states) if final_norm else states, end)

    def end_places(self, ids: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        """Where each text ends: at the first end token."""
        known = torch.where(ids < self.config.vocabulary, ids, -1)
        return known.argmax(1) if self.config.end == LARGEST_ID else (ids == self.config.end).int().argmax(1)
