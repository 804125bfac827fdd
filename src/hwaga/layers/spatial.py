"""The spatial transformer: how words enter a convolutional network (Rombach et al. 2022, section 3.3 and appendix E.2.1).

The places of a feature map become tokens; each block lets them look at each other, then at the tokens of a text, then works on
each alone; the sum is added to the map that came in.

    x + attn1(norm(x))              self-attention                Vaswani et al. 2017, eq. 1
    x + attn2(norm(x), text)        Q from the map, K and V from the text: softmax(Q K^T / sqrt(d)) V     eq. 1 of Rombach et al.
    x + ff(norm(x))                 value * gelu(gate)            Shazeer 2020, eq. 6 (GEGLU)

Parameters have the names of public folders (`transformer_blocks.0.attn2.to_k.weight`). A text does not change while a picture is
painted, so its keys and values are made once and kept for as long as the same tensor comes again.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

NORM_EPS = 1e-5  # of the layer norms inside blocks
ENTRY_EPS = 1e-6  # of the group norm where a map enters


class Attention(nn.Module):
    """Queries of one sequence on keys and values of another, several heads; no bias but that of the last product."""

    def __init__(self, width: int, source_width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # a list, as public files name it `to_out.0`

    def split(self, x: Float[Tensor, "n l c"]) -> Float[Tensor, "n heads l d"]:
        return rearrange(x, "n l (heads d) -> n heads l d", heads=self.heads)

    def joined(self, mixed: Float[Tensor, "n heads l d"]) -> Float[Tensor, "n l c"]:
        return self.to_out[0](rearrange(mixed, "n heads l d -> n l (heads d)"))


class SelfAttention(Attention):
    """Tokens look at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.passes = False  # see layers/attention.py: passing

    def forward(self, x: Float[Tensor, "n l c"]) -> Float[Tensor, "n l c"]:
        v = self.split(self.to_v(x))
        if self.passes:
            return self.joined(v)
        return self.joined(scaled_dot_product_attention(self.split(self.to_q(x)), self.split(self.to_k(x)), v))


class _Kept(NamedTuple):
    """Keys and values, and what they were made of: valid while the very same tensors, unchanged, come again."""

    text: weakref.ref[Tensor]
    weights: tuple[tuple[int, int], ...]  # which tensors, and how often they were written to
    version: int
    keys: Tensor
    values: Tensor


class CrossAttention(Attention):
    """Tokens look at the tokens of a text (n, m, s). Without gradients its keys and values are kept from step to step."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__(width, text_width, heads)
        self._kept: _Kept | None = None

    def forward(self, x: Float[Tensor, "n l c"], text: Float[Tensor, "n m s"]) -> Float[Tensor, "n l c"]:
        k, v = self.keys_and_values(text)
        return self.joined(scaled_dot_product_attention(self.split(self.to_q(x)), k, v))

    def keys_and_values(self, text: Float[Tensor, "n m s"]) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or text.is_inference():
            self._kept = None
            return self.split(self.to_k(text)), self.split(self.to_v(text))
        weights = tuple((id(w), w._version) for layer in (self.to_k, self.to_v) for w in _tensors(layer))
        kept = self._kept
        if kept is None or kept.text() is not text or kept.version != text._version or kept.weights != weights:
            k, v = self.split(self.to_k(text)), self.split(self.to_v(text))
            kept = self._kept = _Kept(weakref.ref(text), weights, text._version, k, v)
        return kept.keys, kept.values

    def forget(self) -> None:
        """Drops what is kept: for whoever changes weights without writing to them."""
        self._kept = None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


class GEGLU(nn.Module):
    """value * gelu(gate), both from one product: the first half is the value; GELU in its exact form."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Float[Tensor, "n l c"]) -> Float[Tensor, "n l k"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "n l c"]) -> Float[Tensor, "n l c"]:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each on a norm of what it is added to."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn1 = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn2 = CrossAttention(width, text_width, heads)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ff = FeedForward(width)

    def forward(self, x: Float[Tensor, "n l c"], text: Float[Tensor, "n m s"]) -> Float[Tensor, "n l c"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class PlaceConv2d(nn.Conv2d):
    """A 1 x 1 convolution, as the product that it is on the tokens of places (n, l, c)."""

    on_tokens = True

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, tokens: Float[Tensor, "n l c"]) -> Float[Tensor, "n l o"]:
        return linear(tokens, self.weight.flatten(1), self.bias)


class SpatialTransformer(nn.Module):
    """See the top of this file. linear: the ways in and out are linear layers (SD 2, XL), else 1 x 1 convolutions (SD 1): the
    same arithmetic, stored otherwise."""

    def __init__(self, channels: int, text_width: int, heads: int, *, depth: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=ENTRY_EPS)
        projection = nn.Linear if linear else PlaceConv2d
        self.proj_in: nn.Module = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, text_width, heads) for _ in range(depth))
        self.proj_out: nn.Module = projection(channels, channels)

    def forward(self, x: Float[Tensor, "n c h w"], text: Float[Tensor, "n m s"]) -> Float[Tensor, "n c h w"]:
        tokens = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        return x + rearrange(self.proj_out(tokens), "n (h w) c -> n c h w", h=x.shape[2])
