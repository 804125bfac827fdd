"""Attention, once: over the pixels of a feature map here; every softmax goes through the fused operator of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PixelAttention(nn.Module):
    """Self-attention over the h x w places of a feature map, with a residual connection.

    Source: Ho et al. 2020, appendix B (self-attention at the 16 x 16 level), one or several heads.
    """

    def __init__(self, channels: int, head_width: int, groups: int | None, eps: float) -> None:
        super().__init__()
        if channels % head_width:
            raise ValueError(f"head_width={head_width} does not divide channels={channels}")
        self.heads = channels // head_width
        self.passes = False  # see `passing`
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups else None
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, as public files name it `to_out.0`

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        height = x.shape[2]
        tokens = rearrange(x if self.group_norm is None else self.group_norm(x), "n c h w -> n (h w) c")
        q, k, v = (
            rearrange(project(tokens), "n l (heads d) -> n heads l d", heads=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = rearrange(v if self.passes else scaled_dot_product_attention(q, k, v), "n heads l d -> n l (heads d)")
        return x + rearrange(self.to_out[0](mixed), "n (h w) c -> n c h w", h=height)


@contextmanager
def passing(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these self-attention layers look nowhere: each place keeps its own value, as if its row of attention were the
    identity's. Source: Ahn et al. 2024 (perturbed-attention guidance), section 4.1."""
    chosen = list(layers)
    for layer in chosen:
        layer.passes = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in chosen:
            layer.passes = False  # type: ignore[assignment]


def middle_attention(network: nn.Module) -> list[nn.Module]:
    """The self-attention layers in a network's middle: those of a UNet's middle block, else the middle one of all."""
    found = [(name, layer) for name, layer in network.named_modules() if hasattr(layer, "passes")]
    middle = [layer for name, layer in found if "mid_block" in name]
    return middle or [layer for _, layer in found[len(found) // 2 : len(found) // 2 + 1]]
