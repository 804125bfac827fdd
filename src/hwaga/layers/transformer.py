"""What transformers over tokens are made of: attention, feed-forward layers, norms that a condition shifts and scales.

Queries, keys and values come from one product: on small networks three products cost more than one of their size.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention, silu

from .positions import rotated


class RMSNorm(nn.RMSNorm):
    """Brought to unit mean square over the last dimension, times a learned gain (Zhang and Sennrich 2019, eq. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.to(x.dtype)  # under autocast x may be narrower than the weights
        return rms_norm(x, self.normalized_shape, gain, self.eps)


class TokenAttention(nn.Module):
    """Self-attention over l tokens (Vaswani et al. 2017, eq. 1), several heads.

    qk_norm: queries and keys are brought to unit mean square, times a learned gain, head by head, which keeps the logits
    bounded in long trainings (Dehghani et al. 2023, section 2; Esser et al. 2024, section 5.3.2).
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, eps: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
        self.passes = False  # see layers/attention.py: passing
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = RMSNorm(width // heads, eps=eps) if qk_norm else None
        self.norm_k = RMSNorm(width // heads, eps=eps) if qk_norm else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n l d"], rotation: Tensor | None = None) -> Float[Tensor, "n l d"]:
        q, k, v = rearrange(self.qkv(x), "n l (three heads d) -> three n heads l d", three=3, heads=self.heads)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        mixed = v if self.passes else scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(mixed, "n heads l d -> n l (heads d)"))


class CrossAttention(nn.Module):
    """Attention of tokens to the tokens of a condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n l d"], context: Float[Tensor, "n m d"]) -> Float[Tensor, "n l d"]:
        q = rearrange(self.q(x), "n l (heads d) -> n heads l d", heads=self.heads)
        k, v = rearrange(self.kv(context), "n m (two heads d) -> two n heads m d", two=2, heads=self.heads)
        return self.out(rearrange(scaled_dot_product_attention(q, k, v), "n heads l d -> n l (heads d)"))


class MLP(nn.Module):
    """Two layers with a GELU between them, in its tanh form (Hendrycks and Gimpel 2016, section 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "n l d"]) -> Float[Tensor, "n l d"]:
        return self.down(gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """Two layers, the first of which opens and shuts itself: down(silu(gate) * value) (Shazeer 2020, eq. 6).

    `up` gives gate and value in one product. With hidden = 2/3 of an MLP's it has as many parameters.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "n l d"]) -> Float[Tensor, "n l d"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(silu(gate) * value)


def modulated(x: Float[Tensor, "n l d"], shift: Float[Tensor, "n 1 d"], scale: Float[Tensor, "n 1 d"]) -> Tensor:
    """x (1 + scale) + shift: what an adaptive norm does to a normalised x."""
    return torch.addcmul(shift, x, 1 + scale)
